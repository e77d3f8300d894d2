"""A weight in the storage that it is exported to."""

import numpy as np

from sparsekit.condensed import CondensedMatrix
from sparsekit.csr import CSRMatrix
from sparsekit.dense import DenseMatrix
from sparsekit.stored import StoredMatrix


def store(weight: np.ndarray, mask: np.ndarray, storage: str) -> StoredMatrix:
    """The weights of a float array (n_out, n_in) at the True positions of a bool mask, zero everywhere else.

    Condensed storage needs the same number of weights in every active neuron. Where some have fewer, because they
    have lost constant inputs or were trained without a constant fan-in, zeros are stored for them at unused
    positions: that changes no output.

    Parameters
    ----------
    storage : "dense", "csr" or "condensed"
    """
    if storage == "dense":
        return DenseMatrix(np.where(mask, weight, 0))
    if storage == "csr":
        return CSRMatrix.from_dense(weight, mask)
    return CondensedMatrix.from_dense(np.where(mask, weight, 0), filled_up(mask))


def filled_up(mask: np.ndarray) -> np.ndarray:
    """The mask with more positions, the first that are free, so that all active neurons have equally many."""
    fan_ins = mask.sum(axis=1, keepdims=True)
    missing = np.where(fan_ins > 0, fan_ins.max() - fan_ins, 0)
    return mask | (np.cumsum(~mask, axis=1) <= missing) & (missing > 0)
