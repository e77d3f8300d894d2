"""Dense storage: every weight, multiplied by BLAS. For dense layers, so that all layers look alike."""

from typing import Self

import numpy as np

from sparsekit.errors import InputError
from sparsekit.kernels.epilogue import finish
from sparsekit.masks import require_mask
from sparsekit.stored import StoredMatrix, require_values


class DenseMatrix(StoredMatrix):
    """A weight matrix (n_out, n_in) with every weight stored; `backend` is ignored, BLAS computes.

    Parameters
    ----------
    values : float32 or float64 (n_out, n_in); kept without a copy if C-contiguous
    """

    def __init__(self, values: np.ndarray) -> None:
        self.values = require_values(values, ndim=2)
        n_out, n_in = self.values.shape
        self.shape = (n_out, n_in)

    @classmethod
    def from_mask(cls, mask: np.ndarray, dtype: np.dtype | type = np.float32) -> Self:
        """A matrix of zeros; the mask must be True everywhere."""
        if not require_mask(mask).all():
            raise InputError("mask must be True everywhere for dense storage, but has False positions")
        return cls(np.zeros(mask.shape, dtype=dtype))

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self.values.nbytes

    def fan_ins(self) -> np.ndarray:
        """Int64 (n_out,), n_in for every neuron."""
        return np.full(self.shape[0], self.shape[1], dtype=np.int64)

    def flat_positions(self) -> np.ndarray:
        """Int64 (n_out * n_in,), 0, 1, 2, ..."""
        return np.arange(self.nnz, dtype=np.int64)

    def mask(self) -> np.ndarray:
        """Bool (n_out, n_in), True everywhere."""
        return np.ones(self.shape, dtype=bool)

    def to_dense(self) -> np.ndarray:
        """A copy of the weights."""
        return self.values.copy()

    def _matmul(self, x, backend, out, bias, relu):
        return finish(np.matmul(self.values, x, out=out), bias, relu)

    def _rmatmul(self, g, backend, out):
        return np.matmul(self.values.T, g, out=out)

    def _sampled_outer(self, g, x, backend, out):
        return np.matmul(g, x.T, out=out)
