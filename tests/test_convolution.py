"""Convolution on stored weights: against plain loops on small images, sliding windows on larger ones."""

from dataclasses import dataclass, replace

import naive
import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_helpers import VARIANTS, assert_frame_is, assert_within_rounding, framed, mask_of, misaligned
from numpy.lib.stride_tricks import sliding_window_view

from sparsekit.condensed import CondensedMatrix
from sparsekit.convolution import Convolution
from sparsekit.csr import CSRMatrix
from sparsekit.dense import DenseMatrix
from sparsekit.errors import InputError
from sparsekit.kernels import conv as conv_kernels
from sparsekit.kernels.memory import aligned_empty
from sparsekit.kernels.threads import thread_limit
from sparsekit.masks import random_bernoulli, random_constant_fan_in

STORAGES = [CondensedMatrix, CSRMatrix]

needs_speed = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="too slow without compilation")


@dataclass(frozen=True)
class Case:
    """A convolution, its images and a gradient of its output.

    Attributes
    ----------
    weight, mask : (out, in, kernel height, kernel width); the weight is zero where nothing is stored
    x : (in, height, width, batch)
    g : (out, output height, output width, batch)
    """

    weight: np.ndarray
    mask: np.ndarray
    x: np.ndarray
    g: np.ndarray
    stride: tuple[int, int]
    padding: tuple[int, int]

    @property
    def input_size(self):
        return self.x.shape[1:3]

    def stored(self, storage):
        n_out = len(self.mask)
        return storage.from_dense(self.weight.reshape(n_out, -1), self.mask.reshape(n_out, -1))

    def convolution(self, storage):
        in_channels, *kernel_size = self.mask.shape[1:]
        return Convolution(self.stored(storage), in_channels, tuple(kernel_size), self.stride, self.padding)

    def results(self, conv):
        """What the package computes: y, dx and the dw of the stored weights."""
        dx = conv.input_gradient(self.g, input_size=self.input_size)
        return conv.forward(self.x), dx, conv.weight_gradient(self.g, self.x).ravel()

    def oracle(self):
        """The same by plain loops."""
        y = naive.convolution(self.weight, self.mask, self.x, self.stride, self.padding)
        dx = naive.convolution_input_gradient(
            self.weight, self.mask, self.g, self.input_size, self.stride, self.padding
        )
        dw = naive.convolution_weight_gradient(self.mask, self.g, self.x, self.stride, self.padding)
        return y, dx, dw[self.mask]

    def dense(self):
        """The same by sliding windows over the padded images, quick enough for larger ones."""
        (height, width), (down, right) = self.g.shape[1:3], self.stride
        top, left = self.padding
        padded = np.pad(self.x, [(0, 0), (top, top), (left, left), (0, 0)])
        windows = sliding_window_view(padded, self.mask.shape[2:], axis=(1, 2))[:, ::down, ::right]
        y = np.einsum("oiuv,irsbuv->orsb", self.weight, windows, optimize=True)
        dw = np.einsum("orsb,irsbuv->oiuv", self.g, windows, optimize=True)
        dx = np.zeros_like(padded)
        for u, v in np.ndindex(self.mask.shape[2:]):
            reads = np.einsum("oi,orsb->irsb", self.weight[:, :, u, v], self.g, optimize=True)
            dx[:, u : u + down * height : down, v : v + right * width : right] += reads
        bottom, side = top + self.input_size[0], left + self.input_size[1]
        return y, dx[:, top:bottom, left:side], dw[self.mask]


def draw_case(mask, input_size, batch, stride, padding, dtype, rng):
    """Integers, so that all sums are exact; stored weights may be zero, as freshly grown ones are."""

    def integers(*shape):
        return rng.integers(-4, 5, shape).astype(dtype)

    n_out, in_channels = mask.shape[:2]
    directions = zip(input_size, mask.shape[2:], stride, padding, strict=True)
    output_size = [len(range(-pad, size + pad - kernel + 1, step)) for size, kernel, step, pad in directions]
    return Case(
        integers(*mask.shape) * mask,
        mask,
        integers(in_channels, *input_size, batch),
        integers(n_out, *output_size, batch),
        stride,
        padding,
    )


@st.composite
def cases(draw, storage):
    """Small images; kernels, strides, paddings of every kind; some neurons ablated, now and then all of them.

    Most are spread by a seed: those that Hypothesis chooses itself are often 1 x 1 images or alike.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([True, True, True, False]))

    def integer(low, high):
        return int(rng.integers(low, high + 1)) if spread else draw(st.integers(low, high))

    def one_of(*choices):
        return choices[integer(0, len(choices) - 1)]

    padding, input_size = (integer(0, 3), integer(0, 3)), (integer(1, 7), integer(1, 7))
    kernel_size = tuple(integer(1, min(4, input_size[d] + 2 * padding[d])) for d in (0, 1))
    stride = integer(1, 3), integer(1, 3)
    batch = one_of(1, 15, 16, 17, 33, integer(0, 40))
    n_out, in_channels = integer(1, 5), integer(1, 5)
    n_in = in_channels * kernel_size[0] * kernel_size[1]
    if storage is CondensedMatrix:
        mask = random_constant_fan_in((n_out, n_in), one_of(1, n_in, integer(1, n_in), integer(1, n_in)), rng)
    else:
        mask = random_bernoulli((n_out, n_in), one_of(0.1, 0.3, 0.5, 1), rng)
    mask[rng.random(n_out) < one_of(0, 0, 0, 0.3, 0.3, 1)] = False
    mask = mask.reshape(n_out, in_channels, *kernel_size)
    return draw_case(mask, input_size, batch, stride, padding, one_of(np.float32, np.float64), rng)


def larger_case(storage, kernel=(3, 3), stride=(1, 1), padding=(1, 1), batch=40, size=(24, 24)):
    """16 to 16 channels, 90 % sparse: enough work for several threads."""
    rng, dtype = np.random.default_rng(0), np.float32
    n_in = 16 * kernel[0] * kernel[1]
    if storage is CondensedMatrix:
        mask = random_constant_fan_in((16, n_in), max(1, n_in // 10), rng)
    else:
        mask = random_bernoulli((16, n_in), 0.1, rng)
    mask[[0, 7]] = False
    case = draw_case(mask.reshape(16, 16, *kernel), size, batch, stride, padding, dtype, rng)
    weight, x, g = (rng.standard_normal(a.shape).astype(dtype) for a in (case.weight, case.x, case.g))
    return replace(case, weight=weight * case.mask, x=x, g=g)


def assert_results_within_rounding(case, results, compute):
    """Of what :meth:`Case.results` gives, with :meth:`Case.dense` or :meth:`Case.oracle` to compute the bound."""
    exact = replace(case, weight=case.weight.astype(float), x=case.x.astype(float), g=case.g.astype(float))
    magnitude = replace(exact, weight=np.abs(exact.weight), x=np.abs(exact.x), g=np.abs(exact.g))
    ones = replace(exact, weight=exact.mask * 1.0, x=np.ones(exact.x.shape), g=np.ones(exact.g.shape))
    for arrays in zip(results, compute(exact), compute(magnitude), compute(ones), strict=True):
        assert_within_rounding(*arrays)


@settings(max_examples=40)
@given(cases(CSRMatrix))
def test_the_oracle_is_linear_and_equals_sliding_windows(case):
    case = replace(case, weight=case.weight.astype(float), x=case.x.astype(float), g=case.g.astype(float))
    y, dx, dw = case.oracle()
    # <g, conv(x)> = <conv^T(g), x> = <dw, w>
    assert (case.g * y).sum() == (dx * case.x).sum() == (dw * case.weight[case.mask]).sum()
    if case.x.shape[3]:
        for got, expected in zip((y, dx, dw), case.dense(), strict=True):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("storage", STORAGES)
@settings(max_examples=200)
@given(data=st.data())
def test_all_three_products_equal_plain_loops(storage, data):
    case = data.draw(cases(storage))
    conv = case.convolution(storage)
    assert conv.output_size(*case.input_size) == case.g.shape[1:3]
    y, dx, dw = case.results(conv)
    assert y.dtype == dx.dtype == dw.dtype == case.x.dtype
    for got, expected in zip((y, dx, dw), case.oracle(), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert not y[~case.mask.any(axis=(1, 2, 3))].any()  # neurons that store nothing
    assert conv.weight_gradient(case.g, case.x).shape == case.stored(storage).values.shape
    out = framed(np.full_like(case.g, np.nan), frame=-99)
    assert conv.forward(framed(case.x, np.nan), out=out) is out
    np.testing.assert_array_equal(out, y)
    assert_frame_is(out, -99)


@pytest.mark.parametrize("storage", STORAGES)
@settings(max_examples=20)
@given(data=st.data())
def test_one_convolution_serves_images_of_any_size_and_batch(storage, data):
    """Whatever is kept between calls belongs to one size of image only."""
    first = data.draw(cases(storage))
    conv = first.convolution(storage)
    rng = np.random.default_rng(0)
    kernel_size, padding = first.mask.shape[2:], first.padding
    size = st.tuples(*(st.integers(max(1, kernel_size[d] - 2 * padding[d]), 9) for d in (0, 1)))
    sizes = [first.input_size, data.draw(size), data.draw(size), first.input_size]
    for input_size, batch in zip(sizes, (20, 3, 17, 20), strict=True):
        dtype = first.weight.dtype
        case = draw_case(first.mask, input_size, batch, first.stride, padding, dtype, rng)
        case = replace(case, weight=first.weight)
        for got, expected in zip(case.results(conv), case.oracle(), strict=True):
            np.testing.assert_array_equal(got, expected)


@needs_speed
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    "geometry",
    [
        {},
        {"stride": (2, 2), "batch": 37},
        {"kernel": (1, 1), "padding": (0, 0)},
        {"kernel": (1, 1), "padding": (0, 0), "stride": (2, 2), "size": (15, 16)},
        {"kernel": (7, 7), "padding": (3, 3), "stride": (2, 2), "batch": 5},
        {"kernel": (5, 3), "padding": (0, 2), "stride": (1, 3), "batch": 65, "size": (9, 40)},
        {"batch": 1},
    ],
    ids=str,
)
def test_larger_images_within_the_rounding_bound(geometry, storage):
    case = larger_case(storage, **geometry)
    assert_results_within_rounding(case, case.results(case.convolution(storage)), Case.dense)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("stride", [(1, 1), (2, 1)])
@pytest.mark.parametrize("batch", [16, 48, 20])
def test_large_results_are_written_past_the_caches(batch, stride, storage, monkeypatch):
    """Which is done where results are large and lines are whole."""
    monkeypatch.setattr(conv_kernels, "_UNCACHED", 0)
    rng = np.random.default_rng(0)
    mask = mask_of(storage, (5, 27), 8, rng).reshape(5, 3, 3, 3)
    case = draw_case(mask, (6, 7), batch, stride, (1, 1), np.float32, rng)
    conv = case.convolution(storage)
    y, dx, _ = case.oracle()
    bias = rng.integers(-4, 5, 5).astype(np.float32)
    for threads in (1, None):
        with thread_limit(threads):
            out = aligned_empty(y.shape, np.float32)
            assert conv_kernels._goes_past(out) == (batch % 16 == 0)
            np.testing.assert_array_equal(conv.forward(case.x, out=out), y)
            biased = np.maximum(y + bias[:, None, None, None], 0)
            np.testing.assert_array_equal(conv.forward(case.x, bias=bias, relu=True), biased)
            np.testing.assert_array_equal(conv.input_gradient(case.g, input_size=case.input_size), dx)


@needs_speed
def test_same_bits_for_any_thread_count():
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("needs a machine with at least 2 processors")
    for storage in STORAGES:
        case = larger_case(storage)
        conv = case.convolution(storage)
        bits = set()
        for threads in (1, 2, 2):
            with thread_limit(threads):
                bits.add(b"".join(result.tobytes() for result in case.results(conv)))
        assert len(bits) == 1


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("batch", [1, 17, 40])
def test_values_changed_in_place_are_seen_by_the_next_call(storage, batch):
    rng = np.random.default_rng(0)
    mask = random_constant_fan_in((6, 27), 8, rng)
    mask[2] = False
    case = draw_case(mask.reshape(6, 3, 3, 3), (5, 6), batch, (1, 1), (1, 1), np.float32, rng)
    matrix = case.stored(storage)
    conv = Convolution(matrix, 3, 3, padding=1)

    def check():
        weight = matrix.to_dense().reshape(case.mask.shape)
        now = replace(case, weight=weight)
        for got, expected in zip(now.results(conv), now.dense(), strict=True):
            np.testing.assert_array_equal(got, expected)

    check()
    matrix.values *= -2
    check()
    flat = matrix.values.reshape(-1)
    for slot in (0, flat.size // 2, flat.size - 1):
        flat[slot] += 1
        check()
    flat[[0, -1]] = flat[[-1, 0]]  # the sum stays
    check()
    matrix.values.flags.writeable = False
    check()
    matrix.values.flags.writeable = True
    matrix.values += 1
    matrix.values.flags.writeable = False
    check()
    matrix = matrix.frozen()
    conv = Convolution(matrix, 3, 3, padding=1)
    check()
    check()


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@settings(max_examples=25)
@given(data=st.data())
def test_nan_and_infinity_reach_what_reads_them_and_nothing_else(storage, bad, data):
    case = data.draw(cases(storage))
    rng = np.random.default_rng(0)

    def spoil(array):
        spoilt = array.copy()
        spoilt.flat[rng.integers(0, array.size, 2 if array.size else 0)] = bad
        return spoilt

    spoilt_x, spoilt_g = replace(case, x=spoil(case.x)), replace(case, g=spoil(case.g))
    conv = case.convolution(storage)
    with np.errstate(invalid="ignore"):
        (y, dx, dw), expected = spoilt_x.results(conv), spoilt_x.oracle()
        assert_equal_where_finite(y, expected[0])
        np.testing.assert_array_equal(dx, expected[1])
        assert_equal_where_finite(dw, expected[2])
        (y, dx, dw), expected = spoilt_g.results(conv), spoilt_g.oracle()
    np.testing.assert_array_equal(y, expected[0])
    assert_equal_where_finite(dx, expected[1])
    # A tap that finds nothing but padding there may count it as 0 * NaN, a tap of another neuron may not.
    may_see = np.broadcast_to(~np.isfinite(spoilt_g.g).all(axis=(1, 2, 3))[:, None, None, None], case.mask.shape)
    assert not np.isfinite(dw[~np.isfinite(expected[2])]).any()
    np.testing.assert_array_equal(dw[~may_see[case.mask]], expected[2][~may_see[case.mask]])


def assert_equal_where_finite(got, expected):
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(got), finite)
    np.testing.assert_array_equal(got[finite], expected[finite])


@pytest.mark.parametrize("storage", STORAGES)
def test_operands_are_copied_where_that_makes_them_right(storage):
    rng = np.random.default_rng(0)
    mask = random_constant_fan_in((4, 18), 5, rng).reshape(4, 2, 3, 3)
    case = draw_case(mask, (5, 6), 17, (2, 1), (1, 2), np.float32, rng)
    conv, expected = case.convolution(storage), case.dense()
    for variant in VARIANTS.values():
        other = replace(case, x=variant(case.x), g=variant(case.g))
        y, dw = conv.forward(other.x), conv.weight_gradient(other.g, other.x).ravel()
        dx = conv.input_gradient(other.g, input_size=case.input_size)
        for got, wanted in zip((y, dx, dw), expected, strict=True):
            assert got.dtype == np.float32
            np.testing.assert_array_equal(got, wanted)
    for offset in (4, 16):
        out = misaligned(np.full_like(expected[0], np.nan), offset)
        assert conv.forward(case.x, out=out) is out
        np.testing.assert_array_equal(out, expected[0])
    x = case.x.copy()
    case.results(conv)
    np.testing.assert_array_equal(case.x, x)


def test_one_number_stands_for_both_directions():
    matrix = CondensedMatrix.from_mask(np.ones((1, 18), dtype=bool))
    matrix.values[...] = 1
    square = Convolution(matrix, 2, 3, stride=2, padding=1)
    pair = Convolution(matrix, 2, (3, 3), stride=(2, 2), padding=(1, 1))
    x = np.ones((2, 5, 8, 2), np.float32)
    assert square.output_size(5, 8) == pair.output_size(5, 8) == (3, 4)
    np.testing.assert_array_equal(square.forward(x), pair.forward(x))
    assert Convolution(matrix, 2, (9, 1)).output_size(9, 4) == (1, 4)
    assert Convolution(matrix, 2, (1, 9), padding=(0, 4)).output_size(3, 1) == (3, 1)
    assert Convolution(matrix, 2, 3).output_size(5, 8) == (3, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 0}, "in_channels must"),
        ({"in_channels": 3}, r"matrix|in_channels"),
        ({"in_channels": 2.5}, "in_channels must"),
        ({"kernel_size": 2}, r"matrix|in_channels|kernel_size"),
        ({"kernel_size": (3, 2)}, r"matrix|in_channels|kernel_size"),
        ({"kernel_size": 0}, "kernel_size must"),
        ({"kernel_size": (3, 3, 1)}, "kernel_size must"),
        ({"kernel_size": "3"}, "kernel_size must"),
        ({"stride": 0}, "stride must"),
        ({"stride": (1, 0)}, "stride must"),
        ({"stride": -1}, "stride must"),
        ({"stride": 1.5}, "stride must"),
        ({"padding": -1}, "padding must"),
        ({"padding": (0, -1)}, "padding must"),
        ({"padding": "same"}, "padding must"),
    ],
    ids=str,
)
def test_a_geometry_that_cannot_be_is_refused(change, message):
    good = {"in_channels": 2, "kernel_size": 3, "stride": 1, "padding": 0}
    matrix = CSRMatrix.from_mask(np.ones((4, 18), dtype=bool))
    Convolution(matrix, **good)
    with pytest.raises(InputError, match=message):
        Convolution(matrix, **(good | change))


def test_operands_that_do_not_fit_are_refused_by_name():
    conv = Convolution(CondensedMatrix.from_mask(np.ones((4, 18), dtype=bool)), 2, 3)
    x, g = np.ones((2, 5, 6, 7), np.float32), np.ones((4, 3, 4, 7), np.float32)
    assert conv.forward(x).shape == g.shape
    complex_x = x.astype(complex)
    for wrong in (x[0], x[None], x[:1], complex_x, np.full(x.shape, "a"), x[:, :2], x[..., :2, :]):
        with pytest.raises(InputError, match=r"\bx\b|kernel_size"):
            conv.forward(wrong)
        with pytest.raises(InputError, match=r"\bx\b|kernel_size"):
            conv.weight_gradient(g, wrong)
    for wrong in (g[0], g[None], g[:1], g.astype(complex), g[:, :2], g[:, :, :2]):
        with pytest.raises(InputError, match=r"\bg\b"):
            conv.input_gradient(wrong, input_size=(5, 6))
        with pytest.raises(InputError, match=r"\bg\b"):
            conv.weight_gradient(wrong, x)
    with pytest.raises(InputError, match="batch"):
        conv.weight_gradient(g[..., :6], x)
    for size in ((2, 6), (5, 2)):
        with pytest.raises(InputError, match=r"kernel_size"):
            conv.output_size(*size)
    for wrong in ((4, 6), (5, 7), (2, 6)):  # the gradient of smaller or larger images
        with pytest.raises(InputError, match=r"\bg\b|input_size|kernel_size"):
            conv.input_gradient(g, input_size=wrong)
    with pytest.raises(InputError, match=r"height|width|input_size|kernel_size"):
        conv.output_size(0, 6)


def test_out_of_another_kind_or_place_is_refused():
    conv = Convolution(CondensedMatrix.from_mask(np.ones((2, 2), dtype=bool)), 2, 1)
    x = np.ones((2, 3, 4, 5), np.float32)
    read_only = np.empty_like(x)
    read_only.flags.writeable = False
    for wrong in (x[:, :2].copy(), np.empty(x.shape), np.asfortranarray(x), read_only, misaligned(x, 1), [[0]]):
        with pytest.raises(InputError, match=r"\bout\b"):
            conv.forward(x, out=wrong)
    with pytest.raises(InputError, match="out must not share memory with x"):
        conv.forward(x, out=x)


def test_the_weight_must_be_stored_sparse():
    with pytest.raises(InputError, match="matrix must be a CondensedMatrix or CSRMatrix, not DenseMatrix"):
        Convolution(DenseMatrix(np.ones((2, 9), np.float32)), 1, 3)
    matrix = CondensedMatrix.from_mask(np.ones((2, 9), dtype=bool))
    with pytest.raises(InputError, match="height must be an integer of at least 1, not 0"):
        Convolution(matrix, 1, 3, padding=3).output_size(0, 6)
