"""Condensed storage: a weight matrix of constant fan-in as two small rectangles.

Every active neuron stores exactly `fan_in` weights, so values and indices are arrays (n_active, fan_in); no
row pointers are needed, and ablated neurons take no space at all.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from sparsekit.csr import CSRMatrix
from sparsekit.errors import InputError
from sparsekit.kernels import get_backend
from sparsekit.kernels.transpose import index_dtype
from sparsekit.masks import fan_in as fan_in_of_mask
from sparsekit.masks import has_constant_fan_in, require_mask
from sparsekit.stored import SparseMatrix, frozen, require_dense_weight, require_shape, require_values

if TYPE_CHECKING:
    from sparsekit.gpu_matrix import GpuCondensedMatrix


class CondensedMatrix(SparseMatrix):
    """A weight matrix (n_out, n_in) with constant fan-in.

    Parameters
    ----------
    values : float32 or float64 (n_active, fan_in), the stored weights; kept without a copy if C-contiguous
    indices : integer (n_active, fan_in), the input of each stored weight; ascending and unique in each row
    rows : integer (n_active,), the neuron of each row, ascending and unique
    shape : (n_out, n_in)

    Raises
    ------
    InputError
        For shapes that do not fit each other, indices out of range, unsorted or repeated, or values that are
        not finite. What passes can be handed to kernels that check nothing.

    Attributes
    ----------
    indices : uint16 if n_in <= 65536, else int32; read-only
    rows : int32, read-only
    """

    def __init__(self, values: np.ndarray, indices: np.ndarray, rows: np.ndarray, shape: tuple[int, int]) -> None:
        self.shape = n_out, n_in = require_shape(shape)
        self.values = require_values(values, ndim=2)
        self.indices = frozen("indices", indices, index_dtype(n_in), 0, n_in)
        self.rows = frozen("rows", rows, np.int32, 0, n_out)
        if self.indices.shape != self.values.shape or self.rows.shape != self.values.shape[:1]:
            raise InputError(
                "values, indices and rows must have shapes (n_active, fan_in), (n_active, fan_in) and "
                f"(n_active,), not {self.values.shape}, {self.indices.shape} and {self.rows.shape}"
            )
        if len(self.rows) and self.fan_in == 0:
            raise InputError("values must hold at least one weight for each active neuron, not fan_in 0")
        _require_ascending("indices", self.indices)
        _require_ascending("rows", self.rows)

    @classmethod
    def from_dense(cls, weight: np.ndarray, mask: np.ndarray) -> Self:
        """Store the weights of a dense float array (n_out, n_in) at the True positions of a bool mask.

        Raises
        ------
        InputError
            If two active neurons of the mask have different fan-ins.
        """
        weight = require_dense_weight(weight, require_mask(mask))
        matrix = cls.from_mask(mask, weight.dtype)
        matrix.values[...] = require_values(weight[mask], ndim=1).reshape(matrix.values.shape)
        return matrix

    @classmethod
    def from_mask(cls, mask: np.ndarray, dtype: np.dtype | type = np.float32) -> Self:
        """A matrix of zeros stored at the True positions of a mask (n_out, n_in) with constant fan-in."""
        if not has_constant_fan_in(mask):
            counts = fan_in_of_mask(mask)
            counts = counts[counts > 0]
            raise InputError(f"mask must have a constant fan-in, not between {counts.min()} and {counts.max()}")
        rows = np.flatnonzero(mask.any(axis=1))
        indices = np.nonzero(mask)[1].reshape(len(rows), -1) if len(rows) else np.empty((0, 0), dtype=int)
        return cls(np.zeros(indices.shape, dtype=dtype), indices, rows, mask.shape)

    @property
    def fan_in(self) -> int:
        """Stored inputs of every active neuron."""
        return self.values.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of values, indices and rows."""
        return self.values.nbytes + self.indices.nbytes + self.rows.nbytes

    def __repr__(self) -> str:
        n_out, n_in = self.shape
        active = f"fan_in={self.fan_in}, {len(self.rows)} of {n_out} neurons active"
        return f"CondensedMatrix({n_out} x {n_in}, {active}, {self.dtype}, {self.nbytes} bytes)"

    def fan_ins(self) -> np.ndarray:
        """Int64 (n_out,), fan_in for active neurons and 0 for ablated ones."""
        counts = np.zeros(self.shape[0], dtype=np.int64)
        counts[self.rows] = self.fan_in
        return counts

    def row_pointers(self) -> np.ndarray:
        """Int64 (n_out + 1,), neuron n owns the stored weights from row_pointers()[n] to row_pointers()[n + 1]."""
        return np.concatenate([[0], np.cumsum(self.fan_ins())])

    def flat_positions(self) -> np.ndarray:
        """Int64 (nnz,), row * n_in + column of each stored weight, ascending."""
        return (self.rows[:, None].astype(np.int64) * self.shape[1] + self.indices).ravel()

    def mask(self) -> np.ndarray:
        """Bool (n_out, n_in), True where a weight is stored."""
        mask = np.zeros(self.shape, dtype=bool)
        mask[self.rows[:, None], self.indices] = True
        return mask

    def to_dense(self) -> np.ndarray:
        """Float (n_out, n_in), zero where no weight is stored."""
        weight = np.zeros(self.shape, dtype=self.dtype)
        weight[self.rows[:, None], self.indices] = self.values
        return weight

    def to_csr(self) -> CSRMatrix:
        """The same matrix in CSR storage, with a copy of the values."""
        return CSRMatrix(self.values.flatten(), self.indices.ravel(), self.row_pointers(), self.shape)

    def to_gpu(self) -> GpuCondensedMatrix:
        """A copy on the GPU, whose products take CuPy arrays.

        Raises
        ------
        GpuUnavailableError
            If there is no CuPy, driver or device.
        InputError
            If the values are not float32.
        """
        from sparsekit.gpu_matrix import GpuCondensedMatrix

        return GpuCondensedMatrix(self)

    def _on_gpu(self) -> Any:
        # the values may have changed since the last product, the topology cannot
        matrix = self._gpu_copy
        matrix.values.set(self.values)
        return matrix

    @cached_property
    def _gpu_copy(self) -> GpuCondensedMatrix:
        return self.to_gpu()

    def _parts(self):
        return self.values, self.indices, self.rows, self.shape

    def _matmul(self, x, backend, out, bias, relu):
        kernels = get_backend(backend)
        return kernels.condensed_matmul(self.kernel_values, self.indices, self.rows, x, out, self.plan, bias, relu)

    def _rmatmul(self, g, backend, out):
        return get_backend(backend).condensed_rmatmul(
            self.kernel_values, self.indices, self.rows, g, out, self.plan
        )

    def _sampled_outer(self, g, x, backend, out):
        return get_backend(backend).condensed_sampled_outer(self.indices, self.rows, g, x, out, self.plan)


def _require_ascending(name: str, indices: np.ndarray) -> None:
    """Ascending without repeats along the last axis (unsigned indices are compared, not subtracted)."""
    if not (indices[..., 1:] > indices[..., :-1]).all():
        raise InputError(f"{name} must be ascending without repeats in each row")
