"""Small convolutional networks."""

from collections.abc import Sequence
from typing import Unpack

import numpy as np

from sparsekit.checks import require_integer
from sparsekit.errors import InputError
from sparsekit.models.building import (
    Sparsification,
    conv_layer,
    dropout_layer,
    image_features,
    linear_layer,
    require_images,
    sparsified,
)
from sparsekit.nn import BatchNorm2d, Flatten, MaxPool2d, Module, ReLU, Sequential


def cnn(
    sample_shape: Sequence[int],
    n_classes: int,
    *,
    channels: Sequence[int] = (32, 64),
    dtype: np.dtype | type = np.float32,
    rng: np.random.Generator | int = 0,
    **sparsification: Unpack[Sparsification],
) -> Sequential:
    """A small network: 3x3 convolution, batch norm, ReLU, 2x2 max-pooling, as often as there are `channels`; fc.

    Parameters
    ----------
    sample_shape : (channels, height, width) of the images; each pooling halves height and width
    n_classes : number of logits
    channels : output channels of each convolution
    dtype : float32 or float64
    rng : random source of masks and weights, or a seed for one
    sparsification : storage, sparsity, distribution and so on, see :func:`sparsify`

    Raises
    ------
    InputError
        If the images are too small, for a size that is not positive, or an unknown name.
    """
    if not channels:
        raise InputError("channels must name at least one convolution, not none")
    n_in = require_images("cnn", sample_shape)[0]
    layers: dict[str, Module] = {}
    for i, size in enumerate(channels, start=1):
        n_out = require_integer(f"channels[{i - 1}]", size, 1)
        layers[f"conv{i}"] = conv_layer(n_out, n_in, 3, padding=1, dtype=dtype)
        layers[f"bn{i}"] = BatchNorm2d(n_out, dtype)
        layers[f"relu{i}"] = ReLU()
        layers[f"pool{i}"] = MaxPool2d(2)
        n_in = n_out
    layers["flatten"] = Flatten()
    layers["fc"] = linear_layer(n_classes, image_features("cnn", layers, sample_shape), dtype)
    return sparsified(layers, rng, sparsification)


def mnist_cnn(
    sample_shape: Sequence[int] = (1, 28, 28),
    n_classes: int = 10,
    *,
    dropout: tuple[float, float] = (0.25, 0.5),
    dtype: np.dtype | type = np.float32,
    rng: np.random.Generator | int = 0,
    **sparsification: Unpack[Sparsification],
) -> Sequential:
    """The network that SRigL's authors train on MNIST: two 3x3 convolutions, max-pooling, two linear layers.

    For MNIST it has 1,199,648 weights in four layers, conv1, conv2, fc1 and fc2, all with biases.

    Parameters
    ----------
    dropout : probability of zeroing a value behind the pooling, and behind fc1

    The others are those of :func:`cnn`.
    """
    rng = np.random.default_rng(rng)
    layers: dict[str, Module] = {
        "conv1": conv_layer(32, require_images("mnist_cnn", sample_shape)[0], 3, bias=True, dtype=dtype),
        "relu1": ReLU(),
        "conv2": conv_layer(64, 32, 3, bias=True, dtype=dtype),
        "relu2": ReLU(),
        "pool": MaxPool2d(2),
        "dropout1": dropout_layer(dropout[0], rng),
        "flatten": Flatten(),
    }
    layers |= {
        "fc1": linear_layer(128, image_features("mnist_cnn", layers, sample_shape), dtype),
        "relu3": ReLU(),
        "dropout2": dropout_layer(dropout[1], rng),
        "fc2": linear_layer(n_classes, 128, dtype),
    }
    return sparsified(layers, rng, sparsification)
