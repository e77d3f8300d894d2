"""A 3x3 convolution with padding 1: forward, and forward with both gradients."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from sparsekit.bench import torch_competitors
from sparsekit.bench.arrays import aligned, normal, output, random_condensed
from sparsekit.bench.measure import Case, Implementation, Problem
from sparsekit.condensed import CondensedMatrix
from sparsekit.convolution import Convolution

_KERNEL, _PADDING = 3, 1


@dataclass(frozen=True)
class Sizes:
    """What to measure; an image is (channels, height and width), as many channels go out as come in."""

    images: tuple[tuple[int, int], ...] = ((64, 32), (128, 16), (256, 8))
    sparsities: tuple[float, ...] = (0.9, 0.95)
    batch: int = 64


FULL = Sizes()
QUICK = Sizes(images=((128, 16),), sparsities=(0.9,))


def cases(*, quick: bool) -> Iterator[Case]:
    """Every image size at every sparsity, without and with the gradients."""
    sizes = QUICK if quick else FULL
    for channels, side in sizes.images:
        for sparsity in sizes.sparsities:
            for passes, training in (("forward", False), ("forward + both gradients", True)):
                work = f"{channels} channels, {side}x{side}, {passes}"
                build = partial(_problem, channels, side, sparsity, sizes.batch, training)
                yield Case("conv", work, sparsity, sizes.batch, build)


def _problem(
    channels: int, side: int, sparsity: float, batch: int, training: bool, rng: np.random.Generator
) -> Problem:
    matrix = random_condensed((channels, channels * _KERNEL**2), sparsity, rng)
    weight = aligned(matrix.to_dense()).reshape(channels, channels, _KERNEL, _KERNEL)
    shape = (channels, side, side, batch)
    x, g = normal(shape, rng), normal(shape, rng) if training else None
    expected = _reference(weight.astype(np.float64), x, g)
    ours = (
        [*expected[:2], expected[2].flat[matrix.flat_positions()].reshape(matrix.values.shape)]
        if training
        else None
    )
    implementations = [
        Implementation("condensed", "ours", _condensed(matrix, channels, x, g), expected=ours),
        Implementation("NumPy im2col", "dense", _im2col(weight, x, g)),
        *torch_competitors.convolution(weight, x, g),
    ]
    macs = side**2 * batch * (3 if training else 1)  # those with the zeros of the padding are counted too
    return Problem(implementations, expected, stored_macs=matrix.nnz * macs, dense_macs=weight.size * macs)


def _condensed(matrix: CondensedMatrix, channels: int, x: np.ndarray, g: np.ndarray | None) -> Callable[[], Any]:
    layer = Convolution(matrix, channels, _KERNEL, padding=_PADDING)
    if g is None:
        return partial(layer.forward, x)
    size = x.shape[1:3]
    return lambda: (layer.forward(x), layer.input_gradient(g, input_size=size), layer.weight_gradient(g, x))


def _im2col(weight: np.ndarray, x: np.ndarray, g: np.ndarray | None) -> Callable[[], Any]:
    """Dense: every patch becomes a column, and the convolution one product of matrices."""
    w = weight.reshape(len(weight), -1)
    # the input gradient is the convolution of g with the kernels turned round and the channels exchanged
    turned = aligned(weight[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)).reshape(weight.shape[1], -1)
    patches, y = output(w.shape[1], x[0].size), output(len(w), x[0].size)

    def forward() -> np.ndarray:
        return np.matmul(w, _patches(x, patches), out=y).reshape(-1, *x.shape[1:])

    if g is None:
        return forward
    g_patches, gx, gw = output(*patches.shape), output(len(x), x[0].size), output(*w.shape)
    g_rows = g.reshape(len(g), -1)

    def training() -> tuple[np.ndarray, ...]:
        result = forward()
        np.matmul(turned, _patches(g, g_patches), out=gx)
        return result, gx.reshape(x.shape), np.matmul(g_rows, patches.T, out=gw)

    return training


def _patches(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Out (channels * 9, height * width * batch), the patch around each pixel a column."""
    windows = sliding_window_view(_padded(x), (_KERNEL, _KERNEL), axis=(1, 2))
    out.reshape(len(x), _KERNEL, _KERNEL, *x.shape[1:])[...] = windows.transpose(0, 4, 5, 1, 2, 3)
    return out


def _padded(x: np.ndarray) -> np.ndarray:
    return np.pad(x, ((0, 0), (_PADDING, _PADDING), (_PADDING, _PADDING), (0, 0)))


def _reference(weight: np.ndarray, x: np.ndarray, g: np.ndarray | None) -> list[np.ndarray]:
    """Output, input gradient and weight gradient in float64, one offset of the kernel after the other."""
    padded, columns = _padded(x), x[0].size
    y = np.zeros((len(weight), columns))
    gx, gw = np.zeros(padded.shape), np.zeros(weight.shape)
    height, width = x.shape[1:3]
    g64 = None if g is None else g.reshape(len(g), -1).astype(np.float64)
    for i in range(_KERNEL):
        for j in range(_KERNEL):
            part = slice(None), slice(i, i + height), slice(j, j + width)
            shifted = padded[part].reshape(len(x), -1).astype(np.float64)
            y += weight[:, :, i, j] @ shifted
            if g64 is not None:
                gx[part] += (weight[:, :, i, j].T @ g64).reshape(x.shape)
                gw[:, :, i, j] = g64 @ shifted.T
    y = y.reshape(-1, *x.shape[1:])
    inside = slice(None), slice(_PADDING, _PADDING + height), slice(_PADDING, _PADDING + width)
    return [y] if g is None else [y, gx[inside], gw.reshape(len(gw), -1)]
