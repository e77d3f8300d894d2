"""Masks: where the weights of a layer are.

A mask is a bool array of shape (n_out, n_in): True where a weight is stored ("active"). Row i is a neuron
and holds its incoming connections. The mask is the only truth about topology: a freshly grown weight is
active although its value is exactly zero.
"""

import numpy as np

from sparsekit.checks import require_fraction, require_integer, require_rng
from sparsekit.errors import InputError

Shape = tuple[int, int]


def random_bernoulli(shape: Shape, density: float, rng: np.random.Generator) -> np.ndarray:
    """Mask in which every position is active with probability `density`, independently.

    Parameters
    ----------
    shape : (n_out, n_in)
    density : probability in [0, 1]

    Returns
    -------
    bool array (n_out, n_in); its number of active positions is random.
    """
    shape = _require_shape(shape)
    density = require_fraction("density", density)
    return require_rng("rng", rng).random(shape) < density


def random_per_layer(shape: Shape, nnz: int, rng: np.random.Generator) -> np.ndarray:
    """Mask with exactly `nnz` active positions, uniformly random over the whole layer.

    Returns
    -------
    bool array (n_out, n_in); the fan-in varies from neuron to neuron.
    """
    n_out, n_in = _require_shape(shape)
    nnz = require_integer("nnz", nnz, 0, n_out * n_in)
    mask = np.zeros(n_out * n_in, dtype=bool)
    mask[require_rng("rng", rng).choice(n_out * n_in, nnz, replace=False)] = True
    return mask.reshape(n_out, n_in)


def random_constant_fan_in(shape: Shape, fan_in: int, rng: np.random.Generator) -> np.ndarray:
    """Mask in which every neuron has a uniformly random set of exactly `fan_in` inputs.

    Returns
    -------
    bool array (n_out, n_in); each row sums to `fan_in`.
    """
    n_out, n_in = _require_shape(shape)
    fan_in = require_integer("fan_in", fan_in, 0, n_in)
    # The positions of the fan_in smallest of n_in uniform draws are a uniformly random subset.
    chosen = require_rng("rng", rng).random((n_out, n_in)).argsort(axis=1)[:, :fan_in]
    mask = np.zeros((n_out, n_in), dtype=bool)
    np.put_along_axis(mask, chosen, True, axis=1)
    return mask


def fan_in(mask: np.ndarray) -> np.ndarray:
    """Number of active inputs of each neuron, int64 array (n_out,)."""
    return require_mask(mask).sum(axis=1)


def active_neurons(mask: np.ndarray) -> np.ndarray:
    """Which neurons have at least one active input, bool array (n_out,); the others are ablated."""
    return np.any(require_mask(mask), axis=1)


def has_constant_fan_in(mask: np.ndarray) -> bool:
    """Whether all active neurons have the same fan-in; ablated neurons do not count."""
    counts = fan_in(mask)
    counts = counts[counts > 0]
    return counts.size == 0 or bool((counts == counts[0]).all())


def require_mask(mask: np.ndarray, shape: Shape | None = None) -> np.ndarray:
    """Return `mask` if it is a bool array (n_out, n_in), of the given shape where one is given."""
    if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.ndim != 2:
        kind = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise InputError(f"mask must be a bool array of shape (n_out, n_in), not {kind}")
    if shape is not None and mask.shape != tuple(shape):
        raise InputError(f"mask must have shape {tuple(shape)}, not {mask.shape}")
    return mask


def _require_shape(shape: Shape) -> Shape:
    if len(shape) != 2:
        raise InputError(f"shape must be (n_out, n_in), not {tuple(shape)}")
    return require_integer("n_out", shape[0], 1), require_integer("n_in", shape[1], 1)
