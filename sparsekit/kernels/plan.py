"""The plan of a topology: in which order each product reads the stored weights.

A plan is built once for a topology, part by part as products need it. When only values change, nothing is
rebuilt: a product copies the values into the order it wants, one pass over memory. Values that never change, as
in a network that only predicts, are copied once.
"""

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np

from sparsekit.kernels.lookup_layout import SlidingLookup, SortedLookup
from sparsekit.kernels.memory import aligned_empty
from sparsekit.kernels.transpose import TransposedIndex, index_dtype, read_only, transposed_index


class Runs(NamedTuple):
    """The stored weights of each row in each block of inputs, a run each, block after block.

    In each block the rows stand by the lengths of their runs. A loop over a run then takes as many rounds as the
    one before it, mostly, and the processor foresees where it ends. With rows in their own order it guesses wrong
    once or twice a run, and each time loses what several weights take.

    Attributes
    ----------
    starts, ends : int64 (n_blocks * n_rows,), run q owns the slots from starts[q] to ends[q]; the runs of block j
        begin at j * n_rows
    rows : uint16 or int32 (n_blocks * n_rows,), the row of each run
    """

    starts: np.ndarray
    ends: np.ndarray
    rows: np.ndarray

    @classmethod
    def by_length(cls, edges: np.ndarray, parts: int = 1) -> "Runs":
        """The runs of rows that own the slots edges[j, r] to edges[j + 1, r] in block j, for all j and r.

        They are sorted within each of so many parts of the rows, that threads work on.
        """
        n_rows = edges.shape[1]
        part = np.searchsorted(np.arange(1, parts + 1) * n_rows // parts, np.arange(n_rows), side="right")
        lengths = np.diff(edges, axis=0)
        rows = np.argsort(part * (lengths.max(initial=0) + 1) + lengths, axis=1, kind="stable")
        starts, ends = (np.take_along_axis(edge, rows, axis=1) for edge in (edges[:-1], edges[1:]))
        return cls(*(read_only(array.reshape(-1)) for array in (starts, ends, rows.astype(index_dtype(n_rows)))))


class Order:
    """The stored weights in another order than their own, run after run.

    Parameters
    ----------
    keep : whether values copied into this order stay right, as those of a frozen matrix do

    Attributes
    ----------
    indptr : int64 (n_runs + 1,), run q owns the slots indptr[q] to indptr[q + 1]
    rows : uint16 or int32 (n_runs,), the row of each run; None where run q is row q
    indices : uint8, uint16 or int32 (nnz,), input of each slot, counted from the first input of its block
    places : where the weights lie in the flat stored values. Either int64 (n_runs,), that of the first weight of
        each run, which the others of the run follow, or int32 or int64 (nnz,), that of each weight
    in_runs : whether it is the former
    """

    def __init__(
        self,
        indptr: np.ndarray,
        rows: np.ndarray | None,
        indices: np.ndarray,
        places: np.ndarray,
        in_runs: bool,
        keep: bool = False,
    ) -> None:
        self.indptr, self.rows, self.indices = indptr, rows, indices
        self.places, self.in_runs = places, in_runs
        self._keep = keep
        self._buffer: np.ndarray | None = None

    def take(self, values: np.ndarray, copy: Callable[[np.ndarray, "Order", np.ndarray], None]) -> np.ndarray:
        """The values in this order: copied by ``copy(values, order, out)``, unless kept from the last time."""
        buffer = self._buffer
        if buffer is not None and self._keep:
            return buffer
        if buffer is None:
            buffer = aligned_empty((self.indices.size,), values.dtype)
        copy(values, self, buffer)
        self._buffer = buffer  # not before it is filled: the copy may be interrupted
        return buffer


class Plan:
    """What the products of one topology need beside values and indices, each part built on first use.

    Attributes
    ----------
    frozen : whether the values never change, so that what is made from them is kept
    at_once : for a batch, f(x, bias, relu, out) computes out = W x as a kernel does, and says whether it could: it
        looks at shapes and memory itself, in compiled code. For arrays of other kinds than it was compiled for it
        raises a TypeError

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
        self._orders: dict[tuple[str, int, int], Order] = {}
        self._runs: dict[tuple[int, int], Runs] = {}
        self.at_once: dict[int, Callable[..., bool]] = {}
        self._lookup: SortedLookup | SlidingLookup | None = None

    @cached_property
    def transposed(self) -> TransposedIndex:
        """The transposed index: for every input, who reads it and with which stored weight."""
        n_out, n_in = self.shape
        return transposed_index(self.indices, np.repeat(np.arange(n_out), np.diff(self.indptr)), n_out, n_in)

    def runs(self, block: int, parts: int = 1) -> Runs:
        """The runs of the neurons in blocks of so many inputs, for products that leave the weights in place."""
        if (block, parts) not in self._runs:
            self._runs[block, parts] = self._new_runs(block, parts)
        return self._runs[block, parts]

    def rows_in_blocks(self, block: int, parts: int = 1) -> Order:
        """The weights for W x, block by block of inputs."""
        key = "rows", block, parts
        if key not in self._orders:
            self._orders[key] = _in_runs(self._new_runs(block, parts), self.indices, None, block, self.frozen)
        return self._orders[key]

    def columns_in_blocks(self, block: int, parts: int = 1) -> Order:
        """The weights for W^T g, block by block of neurons."""
        key = "columns", block, parts
        if key not in self._orders:
            index = self.transposed
            runs = _runs(index.indptr, index.rows, self.shape[0], block, parts)
            self._orders[key] = _in_runs(runs, index.rows, index.positions, block, self.frozen)
        return self._orders[key]

    @cached_property
    def by_column(self) -> Order:
        """The weights for W^T g, column by column."""
        index = self.transposed
        return Order(index.indptr, None, index.rows, index.positions, False, self.frozen)

    def lookup(
        self, layout: type[SortedLookup] | type[SlidingLookup], values: np.ndarray
    ) -> SortedLookup | SlidingLookup | None:
        """The weights for one sample; None where they may change, or the layout does not suit them."""
        if self._lookup is None and self.frozen and layout.suits(self.shape, values):
            if layout is SlidingLookup:
                self._lookup = SlidingLookup(self.indptr, self.indices, values.reshape(-1), self.shape)
            else:
                order = _in_runs(self._new_runs(SortedLookup.TABLE), self.indices, None, SortedLookup.TABLE)
                self._lookup = SortedLookup(order, values.reshape(-1), self.shape)
        return self._lookup

    @property
    def looks_up(self) -> bool:
        """Whether there are weights for one sample whose inputs are looked up."""
        return self._lookup is not None

    def _new_runs(self, block: int, parts: int = 1) -> Runs:
        return _runs(self.indptr, self.indices, self.shape[1], block, parts)

    @property
    def nbytes(self) -> int:
        """Bytes of all parts built so far; arrays that parts share count once."""
        arrays = {id(array): array for part in vars(self).values() for array in _arrays(part)}
        return sum(array.nbytes for array in arrays.values()) - self.indices.nbytes


def _arrays(part: object) -> list[np.ndarray]:
    """The arrays that a part of a plan is or holds."""
    if isinstance(part, np.ndarray):
        return [part]
    if isinstance(part, SortedLookup | SlidingLookup):
        return [part.memory]
    if isinstance(part, Order):
        part = vars(part)
    held = part.values() if isinstance(part, dict) else part if isinstance(part, tuple) else ()
    return [array for one in held for array in _arrays(one)]


def _runs(indptr: np.ndarray, indices: np.ndarray, n_inputs: int, block: int, parts: int) -> Runs:
    n_rows, n_blocks = len(indptr) - 1, -(-n_inputs // block)
    rows = np.repeat(np.arange(n_rows), np.diff(indptr))
    runs = rows * n_blocks + indices.astype(np.int64) // block
    lengths = np.bincount(runs, minlength=n_rows * n_blocks).reshape(n_rows, n_blocks)
    edges = np.concatenate([np.zeros((n_rows, 1), dtype=np.int64), np.cumsum(lengths, axis=1)], axis=1)
    return Runs.by_length((edges + indptr[:-1, None]).T, parts)


def _in_runs(
    runs: Runs, indices: np.ndarray, positions: np.ndarray | None, block: int, keep: bool = False
) -> Order:
    """The order of the runs; positions are where the weights of the slots lie, None where slot s is weight s."""
    lengths = runs.ends - runs.starts
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    narrow = np.uint8 if block <= 256 else indices.dtype  # 8 indices a load
    source = np.repeat(runs.starts - indptr[:-1], lengths) + np.arange(indices.size)
    return Order(
        indptr=read_only(indptr),
        rows=runs.rows,
        indices=read_only((indices[source] % block).astype(narrow)),
        places=runs.starts if positions is None else read_only(positions[source]),
        in_runs=positions is None,
        keep=keep,
    )
