"""One sample whose inputs are looked up in registers: the layouts read by plain loops, and the products."""

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_helpers import integers, mask_of
from test_plan import plan_of

from sparsekit.condensed import CondensedMatrix
from sparsekit.csr import CSRMatrix
from sparsekit.kernels import compiled, lookup
from sparsekit.kernels.lookup_layout import SlidingLookup, SortedLookup, byte_of_lane
from sparsekit.kernels.plan import _in_runs
from sparsekit.kernels.threads import thread_limit


@st.composite
def masks(draw):
    """Bool (n_out, n_in) over several blocks and groups, with rows of any number of inputs."""
    n_out, n_in = draw(st.integers(1, 150)), draw(st.integers(1, 600))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return mask_of(CSRMatrix, (n_out, n_in), draw(st.integers(0, n_in)), rng)


def layout_of(kind, mask, weights=None):
    """The layout of weights, by default such that are all different, and these as a dense array."""
    plan = plan_of(mask)
    if weights is None:
        weights = np.zeros(mask.shape, np.float32)
        weights[mask] = np.arange(mask.sum()) + 1
    if kind is SlidingLookup:
        return SlidingLookup(plan.indptr, plan.indices, weights[mask], mask.shape), weights
    order = _in_runs(plan.runs(kind.TABLE), plan.indices, None, kind.TABLE)
    return kind(order, weights[mask], mask.shape), weights


def lanes_of(layout, step):
    """(lane, code of the input, weight) of those lanes of a step that hold a weight."""
    lanes = np.arange(layout.LANES)
    codes = layout.steps.view(np.uint8)[step, byte_of_lane(lanes, layout.LANES)]
    weights = layout.steps[step, layout.LANES // 4 :]
    assert (codes[weights == 0] == 0).all()
    return [(lane, int(codes[lane]), weights[lane]) for lane in lanes if weights[lane]]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (SortedLookup, ("bounds", "ranks", "steps")),
        (SlidingLookup, ("bounds", "order", "rest_places", "starts", "steps")),
    ],
)
def test_the_memory_of_a_layout_holds_its_arrays(kind, names):
    mask = mask_of(CSRMatrix, (70, 300), 40, np.random.default_rng(0))
    layout, _ = layout_of(kind, mask)
    head = layout.memory[: 8 * (5 + len(names))].view(np.int64)
    assert tuple(head[:2]) == mask.shape
    assert head[3] - head[2] == 4 * mask.sum()
    for name, begin, end in zip(names, head[4:-1], head[5:], strict=True):
        array = getattr(layout, name)
        assert not array.flags.writeable
        np.testing.assert_array_equal(
            layout.memory[begin : begin + array.nbytes], array.reshape(-1).view(np.uint8)
        )
        assert begin % 64 == 0
        assert array.nbytes <= end - begin < array.nbytes + 64
    assert head[-1] == layout.memory.size


@pytest.mark.parametrize("lanes", [32, 64])
def test_bytes_of_lanes_are_what_unpacking_puts_together(lanes):
    """Bytes k of all lanes as planes: taking bytes of two in turn, then pairs of these, within 16 bytes each."""
    place = byte_of_lane(np.arange(lanes), lanes)
    assert sorted(place) == list(range(lanes))
    lane_at = np.argsort(place)
    planes = [np.stack([lane_at, np.full(lanes, k)], axis=1).reshape(-1, 16, 2) for k in range(4)]

    def in_turn(a, b, high):
        half = a.shape[1] // 2
        pick = slice(half, None) if high else slice(None, half)
        return np.stack([a[:, pick], b[:, pick]], axis=2)

    numbers = []
    for high in (False, True):
        low_pair, high_pair = in_turn(planes[0], planes[1], high), in_turn(planes[2], planes[3], high)
        numbers += [in_turn(low_pair, high_pair, upper).reshape(-1, 4, 2) for upper in (False, True)]
    expected = [[(lane, k) for k in range(4)] for lane in range(lanes)]
    np.testing.assert_array_equal(np.concatenate(numbers), expected)


@settings(max_examples=30)
@given(masks())
def test_sorted_steps_hold_every_weight_once(mask):
    layout, weights = layout_of(SortedLookup, mask)
    rebuilt = np.zeros_like(weights)
    n_blocks = -(-mask.shape[1] // 256)
    n_groups = (layout.bounds.size - 1) // n_blocks
    for j in range(n_blocks):
        neuron = np.argsort(layout.ranks[j])
        for group in range(n_groups):
            for step in range(*layout.bounds[j * n_groups + group :][:2]):
                for lane, code, weight in lanes_of(layout, step):
                    rebuilt[neuron[group * 64 + lane], j * 256 + code] += weight
    np.testing.assert_array_equal(rebuilt, weights)


def read_sliding(layout, shape):
    """The weights that a layout holds as a dense array; and how many of them are left over."""
    weights, n_left = np.zeros(shape, np.float32), 0
    stretches = iter(zip(layout.bounds[:-1], layout.bounds[1:], strict=True))
    by_place = np.argsort(layout.rest_places)
    for part in range(by_place.size // 128):
        for first in range(part * 128, part * 128 + 128, 32):
            for step in range(*next(stretches)):
                held = lanes_of(layout, step)
                assert len(held) >= 8  # or single loads were as fast
                for lane, code, weight in held:
                    assert code < 16 or 128 <= code < 144
                    place = layout.starts[step] + code - 112 * (code >= 128)
                    assert place < shape[1]
                    weights[first + lane, layout.order[place]] += weight
        for first in range(part * 128, part * 128 + 128, 8):
            rows = by_place[first : first + 8]
            assert (rows // 128 == part).all()  # the part that they are added to
            for step in range(*next(stretches)):
                indices = layout.steps[step].view(np.uint16)[:24].reshape(3, 8)
                for inputs, these in zip(indices, layout.steps[step, 16:].reshape(3, 8), strict=True):
                    assert (inputs[these == 0] == 0).all()
                    np.add.at(weights, (rows[these != 0], inputs[these != 0]), these[these != 0])
                    n_left += np.count_nonzero(these)
    assert next(stretches, None) is None
    assert sorted(layout.rest_places) == list(range(by_place.size))
    assert sorted(layout.order[: shape[1]]) == list(range(shape[1]))
    assert layout.order.size == -(-shape[1] // 32) * 32
    return weights, n_left


@settings(max_examples=30)
@given(masks())
def test_sliding_steps_and_the_rest_hold_every_weight_once(mask):
    layout, weights = layout_of(SlidingLookup, mask)
    np.testing.assert_array_equal(read_sliding(layout, mask.shape)[0], weights)


def test_most_weights_are_looked_up():
    """As many as the documentation says: at 90 % a twentieth is left over, and a weight takes 5.6 bytes."""
    rng = np.random.default_rng(0)
    mask = mask_of(CondensedMatrix, (768, 2048), 205, rng)
    layout, weights = layout_of(SlidingLookup, mask)
    rebuilt, n_left = read_sliding(layout, mask.shape)
    np.testing.assert_array_equal(rebuilt, weights)
    assert n_left < 0.05 * mask.sum()
    assert layout.steps.nbytes + layout.starts.nbytes < 5.7 * mask.sum()


def test_a_window_waits_for_no_single_neuron():
    """One neuron reads every input, 31 every sixteenth: its weights would take sixteen times as many steps."""
    mask = np.zeros((32, 1024), dtype=bool)
    mask[:, ::16] = True
    mask[7] = True
    layout, weights = layout_of(SlidingLookup, mask)
    rebuilt, n_left = read_sliding(layout, mask.shape)
    np.testing.assert_array_equal(rebuilt, weights)
    assert layout.bounds[1] <= 64
    assert n_left > 900


def plain_group_sums(steps, bounds, first, groups, x, x0, sums, sums0):
    """What the innermost loops compute, in Python: on any processor, for the layouts of all."""
    for k in range(groups):
        these = sums[sums0 + 64 * k :][:64]
        these[:] = 0
        for step in steps[80 * bounds[first + k] : 80 * bounds[first + k + 1]].reshape(-1, 80):
            these += step[16:] * x[x0 + step.view(np.uint8)[byte_of_lane(np.arange(64), 64)].astype(int)]


def plain_ranked_sums(out, low, high, ranks, n_ranks, sums, n_sums, n_blocks):
    for r in range(low, high):
        out[r] = sum(sums[j * n_sums + ranks[j * n_ranks + r]] for j in range(n_blocks))


def plain_byte_planes(x, order, n, planes, length, steps):
    for k in range(4):
        planes[k * length :][:n] = x[order[:n]].view(np.uint8)[k::4]


def plain_window_sums(sums, sums0, steps, starts, begin, end, planes, length):
    sums[sums0 : sums0 + 32] = 0
    for number in range(begin, end):
        step = steps[40 * number : 40 * number + 40]
        codes = step.view(np.uint8)[byte_of_lane(np.arange(32), 32)].astype(int)
        places = starts[number] + np.where(codes < 16, codes, codes - 112)
        inputs = np.stack([planes[k * length + places] for k in range(4)], axis=1).reshape(-1).view(np.float32)
        sums[sums0 : sums0 + 32] += step[8:] * inputs


def plain_sums_of_eight(sums, sums0, steps, begin, end, x):
    sums[sums0 : sums0 + 8] = 0
    for step in steps[40 * begin : 40 * end].reshape(-1, 40):
        sums[sums0 : sums0 + 8] += (step[16:] * x[step.view(np.uint16)[:24]]).reshape(3, 8).sum(axis=0)


@pytest.mark.parametrize("kind", [SortedLookup, SlidingLookup])
@pytest.mark.parametrize(("shape", "fan_in"), [((130, 700), 70), ((300, 256), 30), ((9, 40), 20)])
def test_kernels_of_all_processors_with_plain_loops_inside(kind, shape, fan_in, monkeypatch):
    for name, function in globals().copy().items():
        if name.startswith("plain_"):
            monkeypatch.setattr(lookup, name.removeprefix("plain"), function)
    rng = np.random.default_rng(0)
    mask = mask_of(CSRMatrix, shape, fan_in, rng)
    weights, x = (integers(size, np.float32, rng) for size in (shape, (shape[1], 1)))
    out = np.empty((shape[0], 1), dtype=np.float32)  # before the stored values: it must not lie where they lay
    layout, weights = layout_of(kind, mask, weights * mask)
    kernel = dict(lookup._KERNELS.values())[kind].serial
    for bias in (np.empty(0, np.float32), integers(shape[0], np.float32, rng)):
        for relu in (False, True):
            out[:] = np.nan
            assert getattr(kernel, "py_func", kernel)(layout.memory, x, bias, relu, out)
            expected = weights @ x + (bias[:, None] if bias.size else 0)
            np.testing.assert_array_equal(out, np.maximum(expected, 0) if relu else expected)


@pytest.mark.parametrize("storage", [CondensedMatrix, CSRMatrix])
@pytest.mark.parametrize(
    ("shape", "fan_in"),
    [((900, 100), 30), ((33, 700), 300), ((770, 64), 64), ((8, 300), 40), ((2, 90), 20), ((1, 90), 0)],
)
def test_one_sample_with_several_parts_and_threads(storage, shape, fan_in, monkeypatch):
    """One neuron, at least, is ablated."""
    rng = np.random.default_rng(0)
    mask = mask_of(storage, shape, fan_in, rng)
    mask[shape[0] // 3] = False
    weight = integers(shape, np.float32, rng) * mask
    matrix, bias = storage.from_dense(weight, mask).frozen(), integers(shape[0], np.float32, rng)
    monkeypatch.setattr(compiled, "_PARALLEL_FROM", 0)
    for threads in range(1, min(4, numba.config.NUMBA_NUM_THREADS) + 1):
        with thread_limit(threads):
            x = integers((shape[1], 1), np.float32, rng)
            np.testing.assert_array_equal(matrix.matmul(x), weight @ x)
            expected = np.maximum(weight @ x + bias[:, None], 0)
            np.testing.assert_array_equal(matrix.matmul(x, bias=bias, relu=True), expected)


def test_results_are_the_same_bits_for_any_number_of_threads(monkeypatch):
    rng = np.random.default_rng(1)
    mask = mask_of(CSRMatrix, (900, 300), 60, rng)
    matrix = CSRMatrix.from_dense((rng.standard_normal(mask.shape) * mask).astype(np.float32), mask)
    x = rng.standard_normal((300, 1)).astype(np.float32)
    serial = matrix.frozen().matmul(x)
    monkeypatch.setattr(compiled, "_PARALLEL_FROM", 0)
    for threads in range(1, numba.config.NUMBA_NUM_THREADS + 1):
        with thread_limit(threads):
            np.testing.assert_array_equal(matrix.frozen().matmul(x), serial)
