"""Stored weights in the order of the product with one sample that looks its inputs up in registers.

Weights are taken in steps of as many as a vector has bytes: each lane of a step, a byte of an index and a weight,
belongs to another neuron. The inputs come from a table, a block of inputs that registers hold. Two layouts differ
in what they do about neurons that have more weights in a block than their neighbours:

:class:`SortedLookup`
    sorts the neurons of each block. The sums of all blocks must then be put together neuron by neuron, which pays
    with the 256 inputs that 16 registers of 64 bytes hold.
:class:`FixedLookup`
    lets every neuron keep its lane, so that sums stay in place, and leaves the weights that would need steps of
    their own to a plainer loop. For the 32 inputs that 8 registers of 32 bytes hold.
"""

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sparsekit.kernels.memory import aligned_empty
from sparsekit.kernels.transpose import index_dtype, read_only

if TYPE_CHECKING:
    from sparsekit.kernels.plan import Order


class SortedLookup:
    """Weights for tables of 256 inputs and steps of 64 lanes.

    Block by block of 256 inputs, the neurons are sorted by how many weights they have there and taken 64 at a
    time, a neuron a lane: the first weight of each, the second of each, and so on, filled up with zeros. Neurons
    of a like number stand together, so few zeros are needed. A weight takes 5 bytes.

    Parameters
    ----------
    order : the weights block by block of 256 inputs, in runs
    values : float32 (nnz,), the weights as stored
    n_rows : number of neurons

    Attributes
    ----------
    steps : float32 (n_steps, 80). The first 64 bytes are the inputs of 64 lanes, counted from the first of their
        block, in the order of :func:`byte_of_lane`. Behind them are the 64 weights
    bounds : int64 (n_blocks * n_groups + 1,), group g owns the steps bounds[g] to bounds[g + 1]
    ranks : uint16 or int32 (n_blocks, n_rows), place of each neuron among the lanes of each block
    """

    TABLE: ClassVar = 256  # inputs
    LANES: ClassVar = 64

    def __init__(self, order: "Order", values: np.ndarray, n_rows: int) -> None:
        counts = np.diff(order.indptr).reshape(-1, n_rows)  # ascending in each block
        n_steps = _by_group(counts, self.LANES).max(axis=2)
        self.bounds = _edges(n_steps)
        runs, number = _places(order)
        block, rank = np.divmod(runs, n_rows)
        group, lane = np.divmod(rank, self.LANES)
        step = self.bounds[block * n_steps.shape[1] + group] + number
        self.steps = _steps(self.bounds[-1], self.LANES, step, lane, order.indices, _weights(order, values, runs))
        ranks = np.empty(counts.shape, dtype=index_dtype(n_rows))
        places = np.arange(n_rows, dtype=ranks.dtype)[None]
        np.put_along_axis(ranks, order.rows.reshape(counts.shape), places, axis=1)
        self.ranks = read_only(ranks)


class FixedLookup:
    """Weights for tables of 32 inputs and steps of 32 lanes; those left over for gathers of 8 lanes.

    Neuron r has lane r % 32 of group r // 32 in every block of 32 inputs. A group takes as many steps there as
    fill at least 13 of its lanes, the rest is zero; a step takes about a third of the time of gathering
    as many inputs. Weights beyond the last step are left over. For those the neurons are sorted by how many they
    have, and taken 8 at a time. A weight takes 6 to 7 bytes.

    From memory four sequences of cache lines are read twice as fast as one. So the groups are dealt out to parts
    of four streams: block by block, a part goes through the first groups of its streams, the second ones, and so
    on, and those of each stream follow each other in memory.

    Parameters
    ----------
    order : the weights block by block of 32 inputs, in runs
    values : float32 (nnz,), the weights as stored
    n_rows : number of neurons

    Attributes
    ----------
    steps : float32 (n_steps, 40). The first 32 bytes are the inputs of 32 lanes, in the order of
        :func:`byte_of_lane`: input i of a block of 32 as i, or as 112 + i from 16 on. An instruction that looks
        up 16 bytes takes a byte from 128 on for a zero, so the two halves of a table can be added up. Behind
        them are the 32 weights
    groups : groups of a stream
    bounds : int64 (n_streams * n_blocks * groups + 1,), the k-th group of stream s owns in block j the steps from
        bounds[(s * n_blocks + j) * groups + k]; it is group s * groups + k of the neurons
    rest_values : float32 (n_rest, 8), the weights that are left over
    rest_indices : uint16 or int32 (n_rest, 8), input of each, 0 where its weight is a filling zero
    rest_bounds : int64 (n_eights + 1,), the e-th 8 neurons own the rows rest_bounds[e] to rest_bounds[e + 1]
    rest_rows : int32 (8 * n_eights,), the neurons of the eights, part by part; -1 where there is none
    """

    TABLE: ClassVar = 32  # inputs
    LANES: ClassVar = 32
    STREAMS: ClassVar = 4  # of a part
    _GROUPS = 12  # of a part, at most: more parts build more tables
    _FILLED = 13  # lanes of a step that hold a weight, at least

    def __init__(self, order: "Order", values: np.ndarray, n_rows: int) -> None:
        runs, number = _places(order)
        block, rows = runs // n_rows, order.rows.take(runs).astype(np.int64)
        counts = np.empty((order.rows.size // n_rows, n_rows), dtype=np.int64)
        lengths = np.diff(order.indptr).reshape(counts.shape)
        np.put_along_axis(counts, order.rows.reshape(counts.shape), lengths, axis=1)
        n_steps = np.sort(_by_group(counts, self.LANES), axis=2)[:, :, -self._FILLED]
        n_blocks, n_groups = n_steps.shape
        n_streams = self.STREAMS * -(-n_groups // self._GROUPS)
        self.groups = -(-n_groups // n_streams)
        in_streams = _by_group(n_steps, self.groups * n_streams).reshape(n_blocks, n_streams, self.groups)
        self.bounds = _edges(in_streams.transpose(1, 0, 2))
        group, lane = np.divmod(rows, self.LANES)
        stream, in_stream = np.divmod(group, self.groups)
        step = self.bounds[(stream * n_blocks + block) * self.groups + in_stream] + number
        fits = number < n_steps[block, group]
        inputs, weights = order.indices, _weights(order, values, runs)
        coded = inputs + np.where(inputs < 16, 0, 112).astype(np.uint8)
        self.steps = _steps(self.bounds[-1], self.LANES, step[fits], lane[fits], coded[fits], weights[fits])
        left, inputs = ~fits, block * self.TABLE + inputs
        self.rest_rows = self._sorted_in_parts(np.bincount(rows[left], minlength=n_rows))
        self._set_rest(rows[left], inputs[left], weights[left], n_blocks * self.TABLE)

    @property
    def rows_of_part(self) -> int:
        """Neurons of a part, but the last."""
        return self.STREAMS * self.groups * self.LANES

    def _sorted_in_parts(self, n_left: np.ndarray) -> np.ndarray:
        """The neurons of each part by how many weights are left over, eight by eight."""
        by_length = np.lexsort([n_left, np.arange(n_left.size) // self.rows_of_part])
        return read_only(np.concatenate([by_length, np.full(-n_left.size % 8, -1)]).astype(np.int32))

    def _set_rest(self, rows: np.ndarray, inputs: np.ndarray, weights: np.ndarray, n_inputs: int) -> None:
        neurons = self.rest_rows[self.rest_rows >= 0]
        n_left = np.bincount(rows, minlength=neurons.size)
        lengths = np.zeros(self.rest_rows.size, dtype=np.int64)
        lengths[: neurons.size] = n_left[neurons]
        self.rest_bounds = _edges(lengths.reshape(-1, 8).max(axis=1))
        rank = np.empty(neurons.size, dtype=np.int64)
        rank[neurons] = np.arange(neurons.size)
        by_row = np.argsort(rows, kind="stable")
        number = np.arange(rows.size) - np.repeat(np.cumsum(n_left) - n_left, n_left)
        eight, lane = np.divmod(rank[rows[by_row]], 8)
        place, shape = (self.rest_bounds[eight] + number, lane), (int(self.rest_bounds[-1]), 8)
        self.rest_values = aligned_empty(shape, np.float32)
        self.rest_indices = aligned_empty(shape, index_dtype(n_inputs))
        self.rest_values[:], self.rest_indices[:] = 0, 0
        self.rest_values[place], self.rest_indices[place] = weights[by_row], inputs[by_row]


def byte_of_lane(lane: np.ndarray, lanes: int) -> np.ndarray:
    """Where in a step the input of a lane stands.

    Instructions put four numbers together from bytes in every 16 bytes of a vector. With p parts of 16 bytes,
    lane 4 p v + 4 q + d is lane d of part q of vector v, and its byte comes from 16 q + 4 v + d.
    """
    vector, in_vector = np.divmod(lane, lanes // 4)
    return in_vector // 4 * 16 + vector * 4 + lane % 4


def _by_group(counts: np.ndarray, lanes: int) -> np.ndarray:
    """(n_blocks, n_rows) as (n_blocks, n_groups, lanes), filled up with zeros."""
    filled = np.pad(counts, ((0, 0), (0, -counts.shape[1] % lanes)))
    return filled.reshape(len(counts), -1, lanes)


def _edges(lengths: np.ndarray) -> np.ndarray:
    """Where each of the parts of so many steps begins, and where the last one ends."""
    return read_only(np.concatenate([[0], np.cumsum(lengths)]))


def _places(order: "Order") -> tuple[np.ndarray, np.ndarray]:
    """Of every slot of an order, its run and its number in the run."""
    runs = np.repeat(np.arange(order.rows.size), np.diff(order.indptr))
    return runs, np.arange(runs.size) - order.indptr[runs]


def _weights(order: "Order", values: np.ndarray, runs: np.ndarray) -> np.ndarray:
    """The weight of every slot of an order."""
    return values[(order.places - order.indptr[:-1])[runs] + np.arange(runs.size)]


def _steps(
    n_steps: int, lanes: int, step: np.ndarray, lane: np.ndarray, inputs: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """The inputs and weights, each in its lane of its step; zeros elsewhere."""
    steps = aligned_empty((int(n_steps), lanes // 4 + lanes), np.float32)
    steps[:] = 0
    steps[step, lanes // 4 + lane] = weights
    steps.view(np.uint8)[step, byte_of_lane(lane, lanes)] = inputs
    return steps
