"""The multi-layer perceptron."""

from collections.abc import Sequence
from typing import Unpack

import numpy as np

from sparsekit.checks import require_choice, require_integer
from sparsekit.errors import InputError
from sparsekit.models.building import Sparsification, dropout_layer, linear_layer, sparsified
from sparsekit.nn import GELU, BatchNorm, Flatten, Module, ReLU, Sequential

ACTIVATIONS: dict[str, type[Module]] = {"relu": ReLU, "gelu": GELU}


def mlp(
    sizes: Sequence[int],
    *,
    activation: str = "relu",
    batch_norm: bool = False,
    dropout: float = 0.0,
    dtype: np.dtype | type = np.float32,
    rng: np.random.Generator | int = 0,
    **sparsification: Unpack[Sparsification],
) -> Sequential:
    """A multi-layer perceptron; its linear layers are named fc1, fc2, ... and the last one gives the logits.

    Parameters
    ----------
    sizes : (n_features, hidden..., n_classes), at least two sizes
    activation : "relu" or "gelu"
    batch_norm : whether to normalise the outputs of the hidden layers before the activation
    dropout : probability of zeroing a hidden unit in training
    dtype : float32 or float64
    rng : random source of masks and weights, or a seed for one
    sparsification : storage, sparsity, distribution and so on, see :func:`sparsify`

    Raises
    ------
    InputError
        For a size that is not positive, a sparsity outside [0, 1), or an unknown name.
    """
    rng = np.random.default_rng(rng)
    sizes = _require_sizes(sizes)
    require_choice("activation", activation, ACTIVATIONS)
    layers: dict[str, Module] = {"flatten": Flatten()}
    for i in range(1, len(sizes)):
        layers[f"fc{i}"] = linear_layer(sizes[i], sizes[i - 1], dtype)
        if i < len(sizes) - 1:
            if batch_norm:
                layers[f"bn{i}"] = BatchNorm(sizes[i], dtype)
            layers[f"{activation}{i}"] = ACTIVATIONS[activation]()
            if dropout:
                layers[f"dropout{i}"] = dropout_layer(dropout, rng)
    return sparsified(layers, rng, sparsification)


def _require_sizes(sizes: Sequence[int]) -> list[int]:
    if len(sizes) < 2:
        raise InputError(f"sizes must be (n_features, hidden..., n_classes), not {tuple(sizes)}")
    return [require_integer(f"sizes[{i}]", size, 1) for i, size in enumerate(sizes)]
