"""The order in which a product on the GPU reads the stored weights: W x row by row, W^T g column by column."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from sparsekit.kernels.gpu import DeviceRows, pack
from sparsekit.kernels.gpu_arrays import device_limits, require_cupy
from sparsekit.kernels.gpu_layout import chunk_rows, packed_rows


class DeviceOrder:
    """How one product reads the stored weights; each form of it is built on first use.

    Parameters
    ----------
    indptr : integers (n_rows + 1,), row r owns the entries indptr[r] to indptr[r + 1]
    columns : uint16 or int32 (nnz,), input of each entry
    positions : integers (nnz,), place of its weight in the flat values; None: the entries are the values
    n_inputs : columns of the matrix
    keep : whether packed values stay right
    """

    def __init__(
        self, indptr: np.ndarray, columns: np.ndarray, positions: np.ndarray | None, n_inputs: int, keep: bool
    ) -> None:
        self._indptr, self._columns, self._positions = indptr, columns, positions
        self._n_inputs, self._keep = n_inputs, keep
        self._weights: Any = None

    @cached_property
    def entries(self) -> tuple[Any, Any, Any]:
        """Positions, inputs and row pointers as :func:`sparsekit.kernels.gpu.gather_few` takes them."""
        cupy = require_cupy()
        positions = None if self._positions is None else cupy.asarray(self._positions.astype(np.int32))
        return positions, cupy.asarray(self._columns), cupy.asarray(self._indptr.astype(np.int32))

    @cached_property
    def packed(self) -> DeviceRows:
        """The rows in slices, chunks and steps."""
        positions = np.arange(self._columns.size) if self._positions is None else self._positions
        rows = chunk_rows(self._n_inputs, device_limits(require_cupy()).shared_memory)
        packed = packed_rows(self._indptr, self._columns, positions, self._n_inputs, rows)
        return DeviceRows.of(packed)

    def weights(self, values: Any) -> Any:
        """The values in the order of `packed`, copied unless they cannot have changed."""
        if self._weights is None:
            self._weights = require_cupy().empty(self.packed.positions.shape, dtype=np.float32)
        elif self._keep:
            return self._weights
        pack(values, self.packed, self._weights)
        return self._weights

    @property
    def held_nbytes(self) -> int:
        """Bytes on the device."""
        entries = self.__dict__.get("entries", ())
        packed = self.__dict__.get("packed")
        arrays = [array for array in (*entries, self._weights) if array is not None]
        return sum(array.nbytes for array in arrays) + (packed.nbytes if packed else 0)
