"""The plan of a topology: in which order each product reads the stored weights.

A plan is built once for a topology, part by part as products need it. When only values change, nothing is rebuilt:
a product copies the values into the order it wants, one pass over memory.
"""

from functools import cached_property

import numpy as np

from sparsekit.kernels.memory import aligned_empty
from sparsekit.kernels.transpose import TransposedIndex, index_dtype, read_only, transposed_index

BLOCK = 256  # inputs whose part of a batch, 128 bytes each, a first-level cache holds


class Order:
    """The stored weights in another order than their own: run after run, each one row's inputs in one block.

    Attributes
    ----------
    indptr : int64 (n_blocks * n_rows + 1,), the run of row r in block j owns the slots from indptr[j * n_rows + r]
    indices : uint16 or int32 (nnz,), input of each slot, counted from the first input of its block
    positions : int32 or int64 (nnz,), place of each slot's weight in the flat stored values
    block : inputs in a block
    """

    def __init__(self, indptr: np.ndarray, indices: np.ndarray, positions: np.ndarray, block: int) -> None:
        self.indptr, self.indices, self.positions, self.block = indptr, indices, positions, block
        self._buffer: np.ndarray | None = None

    def buffer(self, dtype: np.dtype) -> np.ndarray:
        """Memory (nnz,) for the values in this order, the same at each call."""
        if self._buffer is None or self._buffer.dtype != dtype:
            self._buffer = aligned_empty((self.positions.size,), dtype)
        return self._buffer

    @property
    def nbytes(self) -> int:
        """Bytes held by the index arrays and the buffer."""
        buffer = 0 if self._buffer is None else self._buffer.nbytes
        return self.indptr.nbytes + self.indices.nbytes + self.positions.nbytes + buffer


class Plan:
    """What the products of one topology need beside values and indices, each part built on first use.

    Parameters
    ----------
    indptr : int64 (n_out + 1,), neuron n owns the slots indptr[n] to indptr[n + 1]; ablated ones own none
    indices : uint16 or int32 (nnz,), input of each slot, ascending in each row
    shape : (n_out, n_in)
    """

    def __init__(self, indptr: np.ndarray, indices: np.ndarray, shape: tuple[int, int]) -> None:
        self.indptr, self.indices, self.shape = read_only(indptr), indices, shape

    @cached_property
    def transposed(self) -> TransposedIndex:
        """The transposed index: for every input, who reads it and with which stored weight."""
        n_out, n_in = self.shape
        return transposed_index(self.indices, np.repeat(np.arange(n_out), np.diff(self.indptr)), n_out, n_in)

    @cached_property
    def by_row_blocked(self) -> Order:
        """The weights for W x, block by block of inputs."""
        n_out, n_in = self.shape
        return _blocked(self.indptr, self.indices, np.arange(self.indices.size), n_out, n_in)

    @cached_property
    def by_column(self) -> Order:
        """The weights for W^T g, column by column."""
        index = self.transposed
        return Order(index.indptr, index.rows, index.positions, self.shape[0])

    @cached_property
    def by_column_blocked(self) -> Order:
        """The weights for W^T g, block by block of neurons."""
        index = self.transposed
        n_out, n_in = self.shape
        return _blocked(index.indptr, index.rows, index.positions, n_in, n_out)

    @cached_property
    def block_starts(self) -> np.ndarray:
        """Int64 (n_blocks + 1, n_out): where each block of inputs begins in each row, in the weights' own order."""
        lengths = np.diff(self.by_row_blocked.indptr).reshape(-1, self.shape[0])
        starts = np.concatenate([np.zeros((1, self.shape[0]), dtype=np.int64), np.cumsum(lengths, axis=0)])
        return read_only(starts + self.indptr[:-1])

    @cached_property
    def row_starts(self) -> np.ndarray:
        """Int64 (2, n_out): `block_starts` with all inputs in one block."""
        return read_only(np.stack([self.indptr[:-1], self.indptr[1:]]))

    @property
    def nbytes(self) -> int:
        """Bytes of all parts built so far."""
        return sum(part.nbytes for part in vars(self).values() if hasattr(part, "nbytes")) - self.indices.nbytes


def _blocked(indptr: np.ndarray, indices: np.ndarray, positions: np.ndarray, n_rows: int, n_inputs: int) -> Order:
    n_blocks = -(-n_inputs // BLOCK)
    blocks = (indices // BLOCK).astype(index_dtype(n_blocks))
    order = np.argsort(blocks, kind="stable")
    rows = np.repeat(np.arange(n_rows), np.diff(indptr))
    lengths = np.bincount(blocks.astype(np.int64) * n_rows + rows, minlength=n_blocks * n_rows)
    return Order(
        indptr=read_only(np.concatenate([[0], np.cumsum(lengths)])),
        indices=read_only((indices[order] % BLOCK).astype(indices.dtype)),
        positions=read_only(positions[order].astype(np.int32 if order.size < 2**31 else np.int64)),
        block=BLOCK,
    )
