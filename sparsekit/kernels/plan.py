"""The plan of a topology: in which order each product reads the stored weights.

A plan is built once for a topology, part by part as products need it. When only values change, nothing is
rebuilt: a product copies the values into the order it wants, one pass over memory. Values that never change, as
in a network that only predicts, are copied once.
"""

from collections.abc import Callable
from functools import cached_property

import numpy as np

from sparsekit.kernels.memory import aligned_empty
from sparsekit.kernels.transpose import TransposedIndex, index_dtype, read_only, transposed_index

TABLE = 128  # inputs that 8 registers hold
LANES = 64  # neurons that look up an input each
_LOOKUP_RUN = 2  # stored weights of a neuron in one block of 128 inputs: fewer are faster without a lookup


class Order:
    """The stored weights in another order than their own: run after run, each one row's inputs in one block.

    Parameters
    ----------
    keep : whether values copied into this order stay right, as those of a frozen matrix do

    Attributes
    ----------
    indptr : int64 (n_blocks * n_rows + 1,), the run of row r in block j owns the slots from indptr[j * n_rows + r]
    indices : uint16 or int32 (nnz,), input of each slot, counted from the first input of its block
    positions : int32 or int64 (nnz,), place of each slot's weight in the flat stored values
    block : inputs in a block
    """

    def __init__(
        self, indptr: np.ndarray, indices: np.ndarray, positions: np.ndarray, block: int, keep: bool = False
    ) -> None:
        self.indptr, self.indices, self.positions, self.block = indptr, indices, positions, block
        self._keep = keep
        self._buffer: np.ndarray | None = None

    def take(self, values: np.ndarray, copy: Callable[[np.ndarray, np.ndarray, np.ndarray], None]) -> np.ndarray:
        """The values in this order: copied by ``copy(values, positions, out)``, unless kept from the last time."""
        buffer = self._buffer
        if buffer is not None and self._keep:
            return buffer
        if buffer is None:
            buffer = aligned_empty((self.positions.size,), values.dtype)
        copy(values, self.positions, buffer)
        self._buffer = buffer  # not before it is filled: the copy may be interrupted
        return buffer


class Plan:
    """What the products of one topology need beside values and indices, each part built on first use.

    Attributes
    ----------
    frozen : whether the values never change, so that what is made from them is kept

    Parameters
    ----------
    indptr : int64 (n_out + 1,), neuron n owns the slots indptr[n] to indptr[n + 1]; ablated ones own none
    indices : uint16 or int32 (nnz,), input of each slot, ascending in each row
    shape : (n_out, n_in)
    """

    def __init__(
        self, indptr: np.ndarray, indices: np.ndarray, shape: tuple[int, int], frozen: bool = False
    ) -> None:
        self.indptr, self.indices, self.shape, self.frozen = read_only(indptr), indices, shape, frozen
        self._orders: dict[tuple[str, int], Order] = {}
        self._starts: dict[int, np.ndarray] = {}
        self._lookup: Lookup | None = None

    @cached_property
    def transposed(self) -> TransposedIndex:
        """The transposed index: for every input, who reads it and with which stored weight."""
        n_out, n_in = self.shape
        return transposed_index(self.indices, np.repeat(np.arange(n_out), np.diff(self.indptr)), n_out, n_in)

    def rows_in_blocks(self, block: int) -> Order:
        """The weights for W x, block by block of inputs."""
        if ("rows", block) not in self._orders:
            n_out, n_in = self.shape
            slots = np.arange(self.indices.size)
            order = _blocked(self.indptr, self.indices, slots, n_out, n_in, block, self.frozen)
            self._orders["rows", block] = order
        return self._orders["rows", block]

    def columns_in_blocks(self, block: int) -> Order:
        """The weights for W^T g, block by block of neurons."""
        if ("columns", block) not in self._orders:
            index, (n_out, n_in) = self.transposed, self.shape
            order = _blocked(index.indptr, index.rows, index.positions, n_in, n_out, block, self.frozen)
            self._orders["columns", block] = order
        return self._orders["columns", block]

    @cached_property
    def by_column(self) -> Order:
        """The weights for W^T g, column by column."""
        index = self.transposed
        return Order(index.indptr, index.rows, index.positions, self.shape[0], self.frozen)

    def block_starts(self, block: int) -> np.ndarray:
        """Int64 (n_blocks + 1, n_out): where each block of inputs begins in each row, in the weights' order."""
        if block not in self._starts:
            lengths = np.diff(self.rows_in_blocks(block).indptr).reshape(-1, self.shape[0])
            starts = np.concatenate([np.zeros((1, self.shape[0]), dtype=np.int64), np.cumsum(lengths, axis=0)])
            self._starts[block] = read_only(starts + self.indptr[:-1])
        return self._starts[block]

    @cached_property
    def row_starts(self) -> np.ndarray:
        """Int64 (2, n_out): `block_starts` with all inputs in one block."""
        return read_only(np.stack([self.indptr[:-1], self.indptr[1:]]))

    def lookup(self, values: np.ndarray) -> "Lookup | None":
        """The weights for one sample; None where they may change, are not float32, or are too few in a block."""
        if self._lookup is None and self.frozen:
            n_out, n_in = self.shape
            n_runs = n_out * -(-n_in // TABLE)
            if values.dtype == np.float32 and values.size >= _LOOKUP_RUN * n_runs:
                slots = np.arange(self.indices.size)
                order = _blocked(self.indptr, self.indices, slots, n_out, n_in, TABLE)
                self._lookup = Lookup(order, values.reshape(-1), n_out)
        return self._lookup

    @property
    def nbytes(self) -> int:
        """Bytes of all parts built so far; arrays that parts share count once."""
        arrays = {id(array): array for part in vars(self).values() for array in _arrays(part)}
        return sum(array.nbytes for array in arrays.values()) - self.indices.nbytes


class Lookup:
    """Weights in the order of the product with one sample that looks its inputs up in registers.

    Block by block of 128 inputs, the neurons are sorted by how many weights they have there and taken 64 at a
    time, a neuron a lane: the first weight of each, the second of each, and so on, filled up with zeros. Neurons
    of a like number stand together, so few zeros are needed. A weight takes 5 bytes.

    Attributes
    ----------
    values : float32 (n,)
    inputs : uint8 (n,), input of each weight, counted from the first of its block. Of every 64, that of lane
        16 v + 4 q + d stands at 16 q + 4 v + d: the order in which instructions put numbers together from bytes
    lengths : uint8 (n_blocks, n_groups), weights a lane of each group
    starts : int64 (n_blocks,), first slot of each block
    sums : float32 (n_blocks * n_groups * 64,), memory for the sums of the lanes of all groups. It is used
        within one call of a kernel, which keeps other threads of Python out
    ranks : uint16 or int32 (n_blocks, n_rows), place of each neuron among the sums of each block
    """

    def __init__(self, order: Order, values: np.ndarray, n_rows: int) -> None:
        counts = np.diff(order.indptr).reshape(-1, n_rows)
        n_blocks, n_groups = len(counts), -(-n_rows // LANES)
        rank = np.empty(counts.shape, dtype=np.int64)
        by_count = np.argsort(counts, axis=1, kind="stable")
        np.put_along_axis(rank, by_count, np.broadcast_to(np.arange(n_rows), counts.shape), axis=1)
        ordered = np.zeros((n_blocks, n_groups * LANES), dtype=np.int64)
        ordered[:, :n_rows] = np.take_along_axis(counts, by_count, axis=1)
        lengths = ordered.reshape(n_blocks, n_groups, LANES).max(axis=2)
        group_starts = np.concatenate([[0], np.cumsum(lengths) * LANES])
        runs = np.repeat(np.arange(counts.size), counts.ravel())
        group, lane = np.divmod(rank.ravel()[runs], LANES)
        firsts = group_starts[runs // n_rows * n_groups + group]
        firsts += (np.arange(runs.size) - order.indptr[runs]) * LANES
        self.values = aligned_empty((int(group_starts[-1]),), np.float32)
        self.inputs = aligned_empty((int(group_starts[-1]),), np.uint8)
        self.values[:] = 0
        self.inputs[:] = 0
        self.values[firsts + lane] = values[order.positions]
        self.inputs[firsts + lane // 4 % 4 * 16 + lane // 16 * 4 + lane % 4] = order.indices
        self.lengths = read_only(lengths.astype(np.uint8))
        self.starts = read_only(group_starts[: n_blocks * n_groups : n_groups].copy())
        self.sums = aligned_empty((n_blocks * n_groups * LANES,), np.float32)
        self.ranks = read_only(rank.astype(index_dtype(n_rows)))


def _arrays(part: object) -> list[np.ndarray]:
    """The arrays that a part of a plan is or holds."""
    if isinstance(part, np.ndarray):
        return [part]
    if isinstance(part, Order | Lookup):
        part = vars(part)
    held = part.values() if isinstance(part, dict) else part if isinstance(part, tuple) else ()
    return [array for one in held for array in _arrays(one)]


def _blocked(
    indptr: np.ndarray,
    indices: np.ndarray,
    positions: np.ndarray,
    n_rows: int,
    n_inputs: int,
    block: int,
    keep: bool = False,
) -> Order:
    n_blocks = -(-n_inputs // block)
    blocks = (indices // block).astype(index_dtype(n_blocks))
    order = np.argsort(blocks, kind="stable")
    rows = np.repeat(np.arange(n_rows), np.diff(indptr))
    lengths = np.bincount(blocks.astype(np.int64) * n_rows + rows, minlength=n_blocks * n_rows)
    return Order(
        indptr=read_only(np.concatenate([[0], np.cumsum(lengths)])),
        indices=read_only((indices[order] % block).astype(indices.dtype)),
        positions=read_only(positions[order].astype(np.int32 if order.size < 2**31 else np.int64)),
        block=block,
        keep=keep,
    )
