"""Stored weights in the order of the product with one sample that looks its inputs up in registers.

Weights are taken in steps of as many as a vector has bytes: each lane of a step, a byte of an index and a weight,
belongs to another neuron. The inputs come from a table, a block of inputs that registers hold. Two layouts differ
in what they do about neurons that have more weights in a block than their neighbours:

:class:`SortedLookup`
    sorts the neurons of each block. The sums of all blocks must then be put together neuron by neuron, which pays
    with the 256 inputs that 16 registers of 64 bytes hold.
:class:`SlidingLookup`
    lets every neuron keep its lane, so that sums stay in registers, and the table move on by as few inputs as
    suits the neurons of a step. The inputs are put in an order that keeps the neurons together. For tables of 32
    inputs, which are built as fast as a step is computed.

The arrays of a layout lie in one piece, its `memory`, so that a kernel is called with a single one. First in it
are int64 numbers: n_out, n_in, the addresses where the stored values begin and end, which no result may lie
between, then the places in bytes where each array begins, in the order of the attributes, and where the last one
ends.
"""

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sparsekit.kernels.even_order import even_order
from sparsekit.kernels.memory import LINE, address, aligned_empty
from sparsekit.kernels.transpose import read_only

if TYPE_CHECKING:
    from sparsekit.kernels.plan import Order


_COUNTED = 1 << 16  # by two bytes


class SortedLookup:
    """Weights for tables of 256 inputs and steps of 64 lanes.

    Block by block of 256 inputs, the neurons are sorted by how many weights they have there and taken 64 at a
    time, a neuron a lane: the first weight of each, the second of each, and so on, filled up with zeros. Neurons
    of a like number stand together, so few zeros are needed. A weight takes 5 bytes.

    Parameters
    ----------
    order : the weights block by block of 256 inputs, in runs
    values : float32 (nnz,), the weights as stored
    shape : (n_out, n_in)

    Attributes
    ----------
    memory : uint8, all of it
    bounds : int64 (n_blocks * n_groups + 1,), group g owns the steps bounds[g] to bounds[g + 1]
    ranks : uint16 (n_blocks, n_out), place of each neuron among the lanes of each block
    steps : float32 (n_steps, 80). The first 64 bytes are the inputs of 64 lanes, counted from the first of their
        block, in the order of :func:`byte_of_lane`. Behind them are the 64 weights
    """

    TABLE: ClassVar = 256  # inputs
    LANES: ClassVar = 64

    @classmethod
    def suits(cls, shape: tuple[int, int], values: np.ndarray) -> bool:
        """Whether the weights are float32, and at least one of a neuron in a table on average.

        Fewer are faster without a look-up. And whether two bytes can count the neurons.
        """
        n_out, n_in = shape
        enough = values.size >= n_out * -(-n_in // cls.TABLE)
        return values.dtype == np.float32 and enough and n_out <= _COUNTED

    def __init__(self, order: "Order", values: np.ndarray, shape: tuple[int, int]) -> None:
        n_rows = shape[0]
        counts = np.diff(order.indptr).reshape(-1, n_rows)  # ascending in each block
        n_steps = _by_group(counts, self.LANES).max(axis=2)
        bounds = _edges(n_steps)
        runs, number = _places(order)
        block, rank = np.divmod(runs, n_rows)
        group, lane = np.divmod(rank, self.LANES)
        step = bounds[block * n_steps.shape[1] + group] + number
        steps = _steps(bounds[-1], self.LANES, step, lane, order.indices, _weights(order, values, runs))
        ranks = np.argsort(order.rows.reshape(counts.shape), axis=1).astype(np.uint16)
        self.memory, arrays = _in_one_piece(shape, values, (bounds, ranks, steps))
        self.bounds, self.ranks, self.steps = arrays


_LEFT_OVER = 0.5  # what a weight that is left over costs, as part of a weight that a step takes
_FILLED = 8  # lanes of a step that take a weight, at least: fewer weights are left over


class SlidingLookup:
    """Weights for tables of 32 inputs and steps of 32 lanes; those left over for gathers of 8 lanes.

    Neuron r has lane r % 32 of group r // 32. The inputs are put in an order that keeps the neurons together
    (:func:`sparsekit.kernels.even_order.even_order`). Every step of a group has a window of 32 of them, which
    starts at the next weight of one of the lanes, and takes the next weight of every lane that has it in there.
    The other lanes are filled up with zeros: they are ahead, and wait until the window has come closer. What lies
    before the window is left over. Of the lanes where the window may start, the one is chosen by which most
    weights are taken; each that is left over counts as half a weight less. A step that would take fewer than 8 is
    left out, and its weights left over.

    For the weights that are left over, a twentieth or so, the neurons of each 128 are sorted by how many they have
    and taken 8 at a time: steps of three times 8 weights. They follow the steps of their 128 neurons, so that
    memory is read in one sequence. At 90 % a weight takes 5.6 bytes, of which 5 are its own.

    Parameters
    ----------
    indptr : int64 (n_rows + 1,), neuron r owns the slots indptr[r] to indptr[r + 1]
    indices : integers (nnz,), input of each slot, below 65,536 and ascending in each row
    values : float32 (nnz,), the weights as stored
    shape : (n_out, n_in)

    Attributes
    ----------
    memory : uint8, all of it
    bounds : int64 (20 * n_parts + 1,). Each part of 128 neurons has 20 stretches of steps, for its 4 groups and
        for 16 times 8 neurons; stretch k owns the steps bounds[k] to bounds[k + 1]
    order : uint16, the inputs in the order in which windows meet them; input 0 once more up to a multiple of 32
    rest_places : uint32 (128 * n_parts,), the place of each neuron among those that are taken 8 at a time, in the
        order of the stretches; beyond the last neuron are such without weights
    starts : uint16 (n_steps,), where in the order the window of each step begins; 0 for what is left over
    steps : float32 (n_steps, 40). The first 32 bytes are the inputs of 32 lanes, in the order of
        :func:`byte_of_lane`: input i of a window as i, or as 112 + i from 16 on. An instruction that looks up 16
        bytes takes a byte from 128 on for a zero, so the two halves of a table can be added up. Behind them are
        the 32 weights.
        Steps of what is left over begin with the inputs of 24 weights, uint16, and end with these weights
    """

    TABLE: ClassVar = 32  # inputs
    LANES: ClassVar = 32
    ROWS: ClassVar = 128  # neurons of a part
    STRETCHES: ClassVar = ROWS // LANES + ROWS // 8  # of a part
    _REST = 3  # weights of a neuron in a step of what is left over

    @classmethod
    def suits(cls, shape: tuple[int, int], values: np.ndarray) -> bool:
        """Whether the weights are float32, at least half one of a neuron in a table on average.

        And whether two bytes can count the inputs, and there are neurons for eight lanes.
        """
        n_out, n_in = shape
        enough = n_out >= _FILLED and 2 * values.size >= n_out * -(-n_in // cls.TABLE)
        return values.dtype == np.float32 and enough and n_in <= _COUNTED

    def __init__(
        self, indptr: np.ndarray, indices: np.ndarray, values: np.ndarray, shape: tuple[int, int]
    ) -> None:
        n_rows, n_inputs = shape
        order = even_order(indptr, indices, n_inputs)
        rows, places = np.repeat(np.arange(n_rows), np.diff(indptr)), np.argsort(order)[indices]
        in_order = np.lexsort([places, rows])
        places, indices, weights = places[in_order], indices[in_order], values[in_order]
        step, start, n_steps = _scheduled(indptr, places)
        left = step < 0
        number, rest_places, n_rests = self._left_over(rows[left], n_rows)
        bounds = _edges(np.concatenate([_by_group(n_steps, self.ROWS // self.LANES), n_rests], axis=1))
        first = bounds[:-1].reshape(-1, self.STRETCHES)
        first_of_groups, first_of_eights = np.split(first, [self.ROWS // self.LANES], axis=1)

        group, lane = np.divmod(rows[~left], self.LANES)
        step = first_of_groups.reshape(-1)[group] + step[~left]
        inputs = places[~left] - start[~left]
        coded = inputs + np.where(inputs < 16, 0, 112)
        steps = _steps(bounds[-1], self.LANES, step, lane, coded, weights[~left])
        starts = np.zeros(len(steps), dtype=np.uint16)
        starts[step] = start[~left]

        eight, lane = np.divmod(rest_places[rows[left]], 8)
        step, third = np.divmod(number, self._REST)
        step += first_of_eights.reshape(-1)[eight]
        steps[step, 16 + 8 * third + lane] = weights[left]
        steps.view(np.uint16)[step, 8 * third + lane] = indices[left]

        padded = np.pad(order.astype(np.uint16), (0, -n_inputs % self.TABLE))
        rest_places = rest_places.astype(np.uint32)
        self.memory, arrays = _in_one_piece(shape, values, (bounds, padded, rest_places, starts, steps))
        self.bounds, self.order, self.rest_places, self.starts, self.steps = arrays

    def _left_over(self, rows: np.ndarray, n_rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is left over, given its neurons, in steps of eights.

        Returns
        -------
        number : int64, of each weight among those of its neuron
        places : int64 (128 * n_parts,), `rest_places`
        n_steps : int64 (n_parts, 16), of each eight
        """
        counts = np.bincount(rows, minlength=-(-n_rows // self.ROWS) * self.ROWS)
        by_count = np.lexsort([counts, np.arange(counts.size) // self.ROWS])
        longest = counts[by_count].reshape(-1, self.ROWS // 8, 8).max(axis=2)
        number = np.arange(rows.size) - (np.cumsum(counts) - counts)[rows]
        return number, np.argsort(by_count), -(-longest // self._REST)


def _scheduled(indptr: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The steps of a :class:`SlidingLookup`: one after the other, those of all groups side by side.

    Parameters
    ----------
    places : int64 (nnz,), where in the order of the inputs that of each weight is, ascending in each row

    Returns
    -------
    step : int64 (nnz,), the step of each weight, counted from the first of its group; -1 where it is left over
    start : int64 (nnz,), where the step's window begins
    n_steps : int64 (n_groups,)
    """
    width, lanes, never = SlidingLookup.TABLE, SlidingLookup.LANES, 1 << 17
    inputs = np.append(places, never)  # the next one of a lane that has no more
    place, end = (_by_group(edges, lanes).astype(np.int64) for edges in (indptr[:-1], indptr[1:]))
    apart = np.arange(len(place))[:, None] * (never + width)  # no window reaches the inputs of the next group
    step, start = np.full((2, places.size), -1)
    n_steps = np.zeros(len(place), dtype=np.int64)
    while (place < end).any():
        following = inputs[np.where(place < end, place, -1)]
        candidates = np.sort(following, axis=1)
        from_all = (candidates + apart).reshape(-1)
        reached = np.searchsorted(from_all, from_all + width) - np.arange(from_all.size)
        gain = reached.reshape(candidates.shape) - _LEFT_OVER * np.arange(lanes)
        gain[candidates == never] = -np.inf
        window = np.take_along_axis(candidates, gain.argmax(axis=1)[:, None], axis=1)
        while (behind := following < window).any():
            place += behind
            following = inputs[np.where(place < end, place, -1)]
        taken = following < np.minimum(window + width, never)
        pays = taken.sum(axis=1) >= _FILLED
        looked_up = taken & pays[:, None]
        for of_weight, of_group in ((step, n_steps[:, None]), (start, window)):
            of_weight[place[looked_up]] = np.broadcast_to(of_group, taken.shape)[looked_up]
        n_steps += pays
        place += taken
    return step, start, n_steps


def byte_of_lane(lane: np.ndarray, lanes: int) -> np.ndarray:
    """Where in a step the input of a lane stands.

    Instructions put four numbers together from bytes in every 16 bytes of a vector. With p parts of 16 bytes,
    lane 4 p v + 4 q + d is lane d of part q of vector v, and its byte comes from 16 q + 4 v + d.
    """
    vector, in_vector = np.divmod(lane, lanes // 4)
    return in_vector // 4 * 16 + vector * 4 + lane % 4


def _by_group(counts: np.ndarray, lanes: int) -> np.ndarray:
    """(..., n_rows) as (..., n_groups, lanes), filled up with zeros."""
    *before, n_rows = counts.shape
    filled = np.pad(counts, [*((0, 0) for _ in before), (0, -n_rows % lanes)])
    return filled.reshape(*before, -1, lanes)


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


def _in_one_piece(
    shape: tuple[int, int], values: np.ndarray, arrays: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The memory of a layout, with copies of its arrays, each on a cache line; and these copies."""
    n_numbers = 4 + len(arrays) + 1
    sizes = [8 * n_numbers, *(array.nbytes for array in arrays)]
    places = np.cumsum([-(-size // LINE) * LINE for size in sizes])
    memory = aligned_empty((int(places[-1]),), np.uint8)
    memory[: 8 * n_numbers].view(np.int64)[:] = [*shape, address(values), address(values) + values.nbytes, *places]
    copies = []
    for place, array in zip(places, arrays, strict=False):
        copy = memory[place : place + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        copies.append(read_only(copy))
    return read_only(memory), copies
