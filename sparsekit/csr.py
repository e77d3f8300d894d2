"""CSR storage: an unstructured sparse weight matrix, row by row."""

from typing import Self

import numpy as np

from sparsekit.errors import InputError
from sparsekit.kernels import get_backend
from sparsekit.kernels.transpose import index_dtype
from sparsekit.masks import require_mask
from sparsekit.stored import SparseMatrix, frozen, require_dense_weight, require_shape, require_values


class CSRMatrix(SparseMatrix):
    """A weight matrix (n_out, n_in) with any number of stored weights in each row.

    Parameters
    ----------
    values : float32 or float64 (nnz,), the stored weights, row by row; kept without a copy if C-contiguous
    indices : integer (nnz,), the input of each stored weight, ascending and unique in each row
    indptr : integer (n_out + 1,), row n owns the slots indptr[n] to indptr[n + 1]
    shape : (n_out, n_in)

    Raises
    ------
    InputError
        For shapes that do not fit each other, indices out of range, unsorted or repeated, row pointers that
        decrease, or values that are not finite.

    Attributes
    ----------
    indices : uint16 if n_in <= 65536, else int32; read-only
    indptr : int64, read-only
    """

    def __init__(
        self, values: np.ndarray, indices: np.ndarray, indptr: np.ndarray, shape: tuple[int, int]
    ) -> None:
        self.shape = n_out, n_in = require_shape(shape)
        self.values = require_values(values, ndim=1)
        self.indices = frozen("indices", indices, index_dtype(n_in), 0, n_in)
        self.indptr = frozen("indptr", indptr, np.int64, 0, self.values.size + 1)
        if self.indices.shape != self.values.shape or self.indptr.shape != (n_out + 1,):
            raise InputError(
                f"values, indices and indptr must have shapes (nnz,), (nnz,) and ({n_out + 1},), "
                f"not {self.values.shape}, {self.indices.shape} and {self.indptr.shape}"
            )
        if self.indptr[0] != 0 or self.indptr[-1] != self.nnz or (np.diff(self.indptr) < 0).any():
            raise InputError(f"indptr must rise from 0 to nnz = {self.nnz} and never fall")
        if not (np.diff(self.flat_positions()) > 0).all():
            raise InputError("indices must be ascending without repeats in each row")

    @classmethod
    def from_dense(cls, weight: np.ndarray, mask: np.ndarray) -> Self:
        """Store the weights of a dense float array (n_out, n_in) at the True positions of a bool mask."""
        weight = require_dense_weight(weight, require_mask(mask))
        matrix = cls.from_mask(mask, weight.dtype)
        matrix.values[...] = require_values(weight[mask], ndim=1)
        return matrix

    @classmethod
    def from_mask(cls, mask: np.ndarray, dtype: np.dtype | type = np.float32) -> Self:
        """A matrix of zeros stored at the True positions of a bool mask (n_out, n_in)."""
        indptr = np.concatenate([[0], np.cumsum(require_mask(mask).sum(axis=1))])
        indices = np.nonzero(mask)[1]
        return cls(np.zeros(indices.size, dtype=dtype), indices, indptr, mask.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of values, indices and row pointers."""
        return self.values.nbytes + self.indices.nbytes + self.indptr.nbytes

    def fan_ins(self) -> np.ndarray:
        """Int64 (n_out,), stored inputs of each neuron."""
        return np.diff(self.indptr)

    def flat_positions(self) -> np.ndarray:
        """Int64 (nnz,), row * n_in + column of each stored weight, ascending."""
        rows = np.repeat(np.arange(self.shape[0]), self.fan_ins())
        return rows * self.shape[1] + self.indices

    def mask(self) -> np.ndarray:
        """Bool (n_out, n_in), True where a weight is stored."""
        mask = np.zeros(self.shape, dtype=bool)
        mask.flat[self.flat_positions()] = True
        return mask

    def to_dense(self) -> np.ndarray:
        """Float (n_out, n_in), zero where no weight is stored."""
        weight = np.zeros(self.shape, dtype=self.dtype)
        weight.flat[self.flat_positions()] = self.values
        return weight

    def row_pointers(self) -> np.ndarray:
        """Int64 (n_out + 1,), `indptr` itself."""
        return self.indptr

    def _parts(self):
        return self.values, self.indices, self.indptr, self.shape

    def _matmul(self, x, backend, out, bias, relu):
        kernels = get_backend(backend)
        return kernels.csr_matmul(self.kernel_values, self.indices, self.indptr, x, out, self.plan, bias, relu)

    def _rmatmul(self, g, backend, out):
        return get_backend(backend).csr_rmatmul(self.kernel_values, self.indices, self.indptr, g, out, self.plan)

    def _sampled_outer(self, g, x, backend, out):
        return get_backend(backend).csr_sampled_outer(self.indices, self.indptr, g, x, out, self.plan)
