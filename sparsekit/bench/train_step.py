"""The three products of a linear layer in training: forward, input gradient, weight gradient."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from sparsekit.bench import torch_competitors
from sparsekit.bench.arrays import aligned, normal, output, random_condensed
from sparsekit.bench.measure import Case, Implementation, Problem
from sparsekit.condensed import CondensedMatrix


@dataclass(frozen=True)
class Sizes:
    """What to measure; a layer is (n_in, n_out)."""

    layers: tuple[tuple[int, int], ...] = ((784, 512), (1024, 1024), (3072, 768))
    sparsities: tuple[float, ...] = (0.9, 0.95, 0.98)
    batch: int = 128


FULL = Sizes()
QUICK = Sizes(layers=((1024, 1024),), sparsities=(0.9,))


def cases(*, quick: bool) -> Iterator[Case]:
    """Every layer at every sparsity."""
    sizes = QUICK if quick else FULL
    for n_in, n_out in sizes.layers:
        for sparsity in sizes.sparsities:
            build = partial(_problem, (n_out, n_in), sparsity, sizes.batch)
            yield Case("train-step", f"{n_in} -> {n_out}", sparsity, sizes.batch, build)


def _problem(shape: tuple[int, int], sparsity: float, batch: int, rng: np.random.Generator) -> Problem:
    matrix = random_condensed(shape, sparsity, rng)
    weight = aligned(matrix.to_dense())
    x, g = normal((shape[1], batch), rng), normal((shape[0], batch), rng)
    w64, x64, g64 = (array.astype(np.float64) for array in (weight, x, g))
    expected = [w64 @ x64, w64.T @ g64, g64 @ x64.T]
    stored = expected[2].flat[matrix.flat_positions()].reshape(matrix.values.shape)
    implementations = [
        Implementation("condensed", "ours", _condensed(matrix, x, g), expected=[*expected[:2], stored]),
        Implementation("NumPy dense", "dense", _numpy(weight, x, g)),
        *torch_competitors.train_step(weight, x, g),
    ]
    macs = 3 * batch
    return Problem(implementations, expected, stored_macs=matrix.nnz * macs, dense_macs=weight.size * macs)


def _condensed(matrix: CondensedMatrix, x: np.ndarray, g: np.ndarray):
    y, gx, gw = output(len(g), x.shape[1]), output(*x.shape), output(*matrix.values.shape)
    return lambda: (matrix.matmul(x, out=y), matrix.rmatmul(g, out=gx), matrix.sampled_outer(g, x, out=gw))


def _numpy(weight: np.ndarray, x: np.ndarray, g: np.ndarray):
    y, gx, gw = output(len(g), x.shape[1]), output(*x.shape), output(*weight.shape)
    return lambda: (np.matmul(weight, x, out=y), np.matmul(weight.T, g, out=gx), np.matmul(g, x.T, out=gw))
