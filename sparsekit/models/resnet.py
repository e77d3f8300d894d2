"""Residual networks for images of 32 x 32 pixels, as CIFAR-10 has them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Unpack

import numpy as np

from sparsekit.models.building import (
    Sparsification,
    conv_layer,
    dropout_layer,
    image_features,
    linear_layer,
    require_images,
    sparsified,
)
from sparsekit.nn import BatchNorm2d, GlobalAvgPool, Module, ReLU, Residual, Sequential

_STRIDES = (1, 2, 2, 2)


def resnet18(
    sample_shape: Sequence[int] = (3, 32, 32),
    n_classes: int = 10,
    *,
    dtype: np.dtype | type = np.float32,
    rng: np.random.Generator | int = 0,
    **sparsification: Unpack[Sparsification],
) -> Sequential:
    """ResNet-18 for CIFAR: 3x3 convolution, four stages of two blocks with 64 to 512 channels, mean, linear layer.

    It has 11,164,352 weights in 21 layers for CIFAR-10 (11,173,962 parameters). Unlike the network for ImageNet
    it begins without pooling and with a stride of 1.

    Parameters
    ----------
    sample_shape : (channels, height, width) of the images
    n_classes : number of logits
    dtype : float32 or float64
    rng : random source of masks and weights, or a seed for one
    sparsification : storage, sparsity, distribution and so on, see :func:`sparsify`

    Raises
    ------
    InputError
        For samples that are no images, or an unknown name.

    Source: He et al., arXiv 1512.03385, in the form that SRigL's authors train.
    """
    widths = (64, 64, 128, 256, 512)
    layers: dict[str, Module] = {
        "conv1": conv_layer(64, require_images("resnet18", sample_shape)[0], 3, padding=1, dtype=dtype),
        "bn1": BatchNorm2d(64, dtype),
        "relu1": ReLU(),
    }
    for stage, ((n_in, n_out), stride) in enumerate(zip(pairwise(widths), _STRIDES, strict=True), start=1):
        first, second = _block(n_in, n_out, stride, dtype), _block(n_out, n_out, 1, dtype)
        layers[f"stage{stage}"] = Sequential({"block1": first, "block2": second})
    layers["pool"] = GlobalAvgPool()
    layers["fc"] = linear_layer(n_classes, image_features("resnet18", layers, sample_shape), dtype)
    return sparsified(layers, rng, sparsification)


def _block(n_in: int, n_out: int, stride: int, dtype: np.dtype | type) -> Residual:
    branch: dict[str, Module] = {
        "conv1": conv_layer(n_out, n_in, 3, stride, padding=1, dtype=dtype),
        "bn1": BatchNorm2d(n_out, dtype),
        "relu1": ReLU(),
        "conv2": conv_layer(n_out, n_out, 3, padding=1, dtype=dtype),
        "bn2": BatchNorm2d(n_out, dtype),
    }
    shortcut: dict[str, Module] | None = None
    if stride != 1 or n_in != n_out:
        shortcut = {"conv": conv_layer(n_out, n_in, 1, stride, dtype=dtype), "bn": BatchNorm2d(n_out, dtype)}
    return Residual(branch, shortcut, relu=True)


def wide_resnet22(
    sample_shape: Sequence[int] = (3, 32, 32),
    n_classes: int = 10,
    *,
    dropout: float = 0.3,
    dtype: np.dtype | type = np.float32,
    rng: np.random.Generator | int = 0,
    **sparsification: Unpack[Sparsification],
) -> Sequential:
    """Wide ResNet-22-2: 3x3 convolution, three stages of three pre-activated blocks, 32 to 128 channels, mean, fc.

    It has 1,076,912 weights in 23 layers for CIFAR-10. Where a block changes the number of channels, its shortcut
    is a 1x1 convolution of the normalised and rectified input; else it is the input itself.

    Parameters
    ----------
    dropout : probability of zeroing a value between the two convolutions of a block

    The others are those of :func:`resnet18`.

    Source: Zagoruyko and Komodakis, arXiv 1605.07146, in the form that SRigL's authors train.
    """
    rng = np.random.default_rng(rng)
    widths = (16, 32, 64, 128)
    layers: dict[str, Module] = {
        "conv1": conv_layer(16, require_images("wide_resnet22", sample_shape)[0], 3, padding=1, dtype=dtype)
    }
    for stage, ((n_in, n_out), stride) in enumerate(zip(pairwise(widths), _STRIDES[:3], strict=True), start=1):
        shortcut: dict[str, Module] = {"conv": conv_layer(n_out, n_in, 1, stride, dtype=dtype)}
        first = _wide_branch(n_in, n_out, stride, dropout, dtype, rng)
        blocks = {"bn": first.pop("bn1"), "relu": first.pop("relu1"), "block1": Residual(first, shortcut)}
        for block in (2, 3):
            blocks[f"block{block}"] = Residual(_wide_branch(n_out, n_out, 1, dropout, dtype, rng))
        layers[f"stage{stage}"] = Sequential(blocks)
    layers |= {"bn": BatchNorm2d(widths[-1], dtype), "relu": ReLU(), "pool": GlobalAvgPool()}
    layers["fc"] = linear_layer(n_classes, image_features("wide_resnet22", layers, sample_shape), dtype)
    return sparsified(layers, rng, sparsification)


def _wide_branch(
    n_in: int, n_out: int, stride: int, dropout: float, dtype: np.dtype | type, rng: np.random.Generator
) -> dict[str, Module]:
    return {
        "bn1": BatchNorm2d(n_in, dtype),
        "relu1": ReLU(),
        "conv1": conv_layer(n_out, n_in, 3, stride, padding=1, dtype=dtype),
        "bn2": BatchNorm2d(n_out, dtype),
        "relu2": ReLU(),
        "dropout": dropout_layer(dropout, rng),
        "conv2": conv_layer(n_out, n_out, 3, padding=1, dtype=dtype),
    }
