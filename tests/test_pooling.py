"""Pooling: against plain loops, exactly; ties, NaN, windows that overlap or leave pixels out."""

import naive
import numba
import numpy as np
import pytest
from gradients import check_module
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_helpers import VARIANTS, read_only
from layer_helpers import results, spoil_free_memory
from test_convolution import assert_equal_where_finite, needs_speed

from sparsekit import InputError
from sparsekit.kernels.threads import thread_limit
from sparsekit.nn import AvgPool2d, GlobalAvgPool, MaxPool2d

KINDS = [MaxPool2d, AvgPool2d]
NAIVE = {
    MaxPool2d: (naive.max_pooling, naive.max_pooling_gradient),
    AvgPool2d: (naive.average_pooling, naive.average_pooling_gradient),
}


@st.composite
def pools(draw, kind):
    """(layer, x, g): few values, so that windows have ties; mean values of windows of 1, 2, 4, ... are exact."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kernels = [1, 2, 3, 4] if kind is MaxPool2d else [1, 2, 4]
    kernel = int(rng.choice(kernels)), int(rng.choice(kernels))
    stride = int(rng.integers(1, 6)), int(rng.integers(1, 6))
    size = [int(k + rng.integers(0, 6)) for k in kernel]
    channels, batch = int(rng.integers(1, 4)), int(rng.choice([0, 1, 3, 17]))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    x = rng.integers(-2, int(rng.choice([-1, 0, 3, 50])), (channels, *size, batch)).astype(dtype)
    layer = kind(kernel, None if stride == kernel else stride)
    g = rng.integers(-8, 9, (*layer.output_shape(x.shape[:3]), batch)).astype(dtype)
    return layer, x, g


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150)
@given(data=st.data())
def test_pooling_equals_plain_loops(kind, data):
    layer, x, g = data.draw(pools(kind))
    forward, backward = NAIVE[kind]
    y, dx = forward(x, layer.kernel_size, layer.stride), backward(g, x, layer.kernel_size, layer.stride)
    found = results(layer, x, g)
    assert found["output"].dtype == found["gradient of the input"].dtype == x.dtype
    np.testing.assert_array_equal(found["output"], y)
    np.testing.assert_array_equal(found["gradient of the input"], dx)
    np.testing.assert_array_equal(layer.forward(x), y)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(data=st.data(), bad=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_nan_and_infinity_reach_their_windows_and_nothing_else(kind, data, bad):
    layer, x, g = data.draw(pools(kind))
    if x.size:
        x.flat[x.size // 2] = bad
    forward, backward = NAIVE[kind]
    y = forward(x, layer.kernel_size, layer.stride)
    found = results(layer, x, g)
    np.testing.assert_array_equal(found["output"], y)
    expected = backward(g, x, layer.kernel_size, layer.stride)
    np.testing.assert_array_equal(found["gradient of the input"], expected)
    if g.size:
        g.flat[g.size // 2] = bad
        expected = backward(g, x, layer.kernel_size, layer.stride)
        assert_equal_where_finite(results(layer, x, g)["gradient of the input"], expected)


def test_the_first_among_equals_wins_and_a_nan_beats_all():
    x = np.array([[1, 3, 3], [3, 3, 3], [np.nan, 3, np.inf]], np.float32).reshape(1, 3, 3, 1)
    layer = MaxPool2d(2, 1)
    y = layer.forward(x, training=True)
    np.testing.assert_array_equal(y[0, :, :, 0], [[3, 3], [np.nan, np.inf]])
    dx = layer.backward(np.float32([1, 2, 4, 8]).reshape(1, 2, 2, 1))
    np.testing.assert_array_equal(dx[0, :, :, 0], [[0, 1 + 2, 0], [0, 0, 0], [4, 0, 8]])
    zeros = MaxPool2d(2)
    zeros.forward(np.array([[-0.0, 0.0], [0.0, -0.0]]).reshape(1, 2, 2, 1), training=True)
    assert zeros.backward(np.ones((1, 1, 1, 1)))[0, 0, 0, 0] == 1


@pytest.mark.parametrize("kernel", [(16, 16), (17, 16)])
def test_windows_of_more_pixels_than_a_byte_counts(kernel, rng):
    for place in (0, 1, 255, kernel[0] * kernel[1] - 1):
        x = rng.standard_normal((1, *kernel, 3)).astype(np.float32)
        x.reshape(-1, 3)[place, 1] = 9
        layer = MaxPool2d(kernel)
        assert layer.forward(x, training=True)[0, 0, 0, 1] == 9
        dx = layer.backward(np.float32([1, 2, 3]).reshape(1, 1, 1, 3))
        assert dx.reshape(-1, 3)[place, 1] == 2
        np.testing.assert_array_equal(dx.sum(axis=(0, 1, 2)), [1, 2, 3])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 3, 17])
@pytest.mark.parametrize(("kernel", "stride"), [(2, None), (2, 1), ((1, 3), (2, 1)), (1, 2), ((3, 2), (2, 3))])
def test_backward_equals_central_differences(kind, batch, kernel, stride, rng):
    x = rng.permutation(2 * 5 * 4 * batch).reshape(2, 5, 4, batch) * 0.1  # no two pixels near each other
    check_module(kind(kernel, stride), x, rng)


@pytest.mark.parametrize("batch", [1, 3, 17])
def test_the_mean_of_an_image(batch, rng):
    x = rng.integers(-8, 9, (3, 2, 4, batch)).astype(np.float32)
    layer = GlobalAvgPool()
    y = layer.forward(x, training=True)
    assert y.shape == (3, batch)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, naive.average_pooling(x, (2, 4), (1, 1))[:, 0, 0])
    g = rng.integers(-8, 9, (3, batch)).astype(np.float32)
    expected = naive.average_pooling_gradient(g[:, None, None], x, (2, 4), (1, 1))
    np.testing.assert_array_equal(layer.backward(g), expected)
    check_module(layer, x.astype(float), rng)
    assert layer.output_shape((3, 2, 4)) == (3,)


@needs_speed
@pytest.mark.parametrize("stride", [2, 1])
def test_same_bits_for_any_thread_count(stride, rng):
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("needs a machine with at least 2 processors")
    x = rng.integers(0, 9, (9, 40, 41, 40)).astype(np.float32)
    assert x.size > 500_000
    layer = MaxPool2d(2, stride)
    g = rng.standard_normal((*layer.output_shape(x.shape[:3]), 40)).astype(np.float32)
    bits = set()
    for threads in (1, 2, 1, 2):
        spoil_free_memory()
        with thread_limit(threads):
            y, dx = results(layer, x, g).values()
            bits.add(y.tobytes() + dx.tobytes())
    assert len(bits) == 1
    # And they are right: a version for several threads is compiled of its own.
    down, right = (1 + stride * (n - 1) for n in y.shape[1:3])
    windows = [x[:, i : i + down : stride, j : j + right : stride] for i in (0, 1) for j in (0, 1)]
    np.testing.assert_array_equal(y, np.max(windows, axis=0))
    expected = np.zeros(x.shape)
    winner = np.argmax(windows, axis=0)
    for k in range(4):
        i, j = divmod(k, 2)
        expected[:, i : i + down : stride, j : j + right : stride] += np.where(winner == k, g, 0)
    np.testing.assert_allclose(dx, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "layer", [MaxPool2d(2), AvgPool2d((3, 2), 1), GlobalAvgPool()], ids=lambda m: type(m).__name__
)
def test_operands_are_left_alone_and_may_lie_anywhere(layer, rng):
    x = rng.integers(-4, 5, (2, 4, 6, 5)).astype(np.float32)
    g = rng.integers(-4, 5, layer.forward(x).shape).astype(np.float32)
    expected = results(layer, x, g)
    inputs = read_only(x), read_only(g)
    for name, array in results(layer, *inputs).items():
        np.testing.assert_array_equal(array, expected[name])
        array[...] = 0  # what comes out belongs to the caller
    np.testing.assert_array_equal(inputs[0], x)
    np.testing.assert_array_equal(inputs[1], g)
    layouts = ["Fortran order", "every other element", "every other row", "reversed", "batch first"]
    for variant in [*layouts, "4 bytes off a cache line"]:
        for name, array in results(layer, VARIANTS[variant](x), VARIANTS[variant](g)).items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-6, atol=1e-6, err_msg=variant)


@pytest.mark.parametrize("layer", [MaxPool2d(2), AvgPool2d(2), GlobalAvgPool()], ids=lambda m: type(m).__name__)
def test_backward_without_forward_is_refused(layer, rng):
    x = rng.standard_normal((2, 4, 4, 3))
    y = layer.forward(x, training=True)
    layer.backward(y)
    layer.forward(x, training=True)
    layer.forward(x)
    for _ in range(2):
        with pytest.raises(InputError, match="backward needs a forward pass with training=True"):
            layer.backward(y)


@pytest.mark.parametrize("kind", KINDS)
def test_images_that_do_not_fit_are_refused(kind):
    layer = kind((3, 2))
    with pytest.raises(InputError, match=r"^kernel_size must be at most the image 2 x 6, not 3 x 2$"):
        layer.forward(np.ones((1, 2, 6, 4)))
    with pytest.raises(InputError, match=r"^kernel_size must be at most the image 6 x 1, not 3 x 2$"):
        layer.output_shape((1, 6, 1))
    for pool in (layer, GlobalAvgPool()):
        for wrong in ((6, 6), (1, 6, 6), (1, 6, 6, 1, 1)):
            sizes = "".join(f"{n}, " for n in wrong[:-1])
            message = rf"^x must be images \(channels, height, width, batch\), not \({sizes}'batch'\)$"
            with pytest.raises(InputError, match=message):
                pool.forward(np.ones(wrong))
    # Compiled loops check nothing: a shorter array would be read beyond its end.
    layer.forward(np.ones((1, 6, 6, 4)), training=True)
    with pytest.raises(InputError, match=r"^grad_output must have shape \(1, 2, 3, 4\), not \(1, 2, 3, 1\)$"):
        layer.backward(np.ones((1, 2, 3, 1)))
    for change, message in (
        ({"kernel_size": 0}, "kernel_size must be an integer of at least 1, not 0"),
        (
            {"kernel_size": (2, 2, 2)},
            r"kernel_size must be an integer or \(vertical, horizontal\), not \(2, 2, 2\)",
        ),
        ({"kernel_size": 2, "stride": (1, 0)}, "stride must be an integer of at least 1, not 0"),
    ):
        with pytest.raises(InputError, match=message):
            kind(**change)


def test_windows_lie_side_by_side_by_default():
    assert MaxPool2d((3, 2)).stride == (3, 2)
    assert MaxPool2d(2).output_shape((5, 7, 9)) == (5, 3, 4)
    assert AvgPool2d(3, (1, 2)).output_shape((5, 7, 9)) == (5, 5, 4)
    assert AvgPool2d((7, 9)).output_shape((5, 7, 9)) == (5, 1, 1)
