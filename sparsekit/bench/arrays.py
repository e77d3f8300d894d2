"""Operands of the benchmarks. All start on a cache line, those of the competitors too."""

import numpy as np

from sparsekit.condensed import CondensedMatrix
from sparsekit.kernels.memory import aligned_empty
from sparsekit.masks import random_constant_fan_in


def aligned(array: np.ndarray) -> np.ndarray:
    """A C-contiguous float32 copy that starts on a cache line."""
    copy = aligned_empty(array.shape, np.float32)
    copy[...] = array
    return copy


def normal(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Standard normal float32 numbers."""
    return aligned(rng.standard_normal(shape, dtype=np.float32))


def output(*shape: int) -> np.ndarray:
    """Memory for a result, full of NaN, so that what is never written is noticed."""
    array = aligned_empty(shape, np.float32)
    array.fill(np.nan)
    return array


def random_condensed(shape: tuple[int, int], sparsity: float, rng: np.random.Generator) -> CondensedMatrix:
    """A matrix (n_out, n_in) with normal weights, the same number of them in each row."""
    fan_in = max(1, round((1 - sparsity) * shape[1]))
    matrix = CondensedMatrix.from_mask(random_constant_fan_in(shape, fan_in, rng))
    matrix.values[...] = rng.standard_normal(matrix.values.shape)
    return matrix
