"""Batch normalisation: against plain loops and central differences; running statistics; numbers of any size."""

import naive
import numba
import numpy as np
import pytest
from gradients import check_module
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_helpers import VARIANTS, read_only
from layer_helpers import assert_close, normalization, results, spoil_free_memory
from test_convolution import needs_speed

from sparsekit import InputError
from sparsekit.kernels.threads import thread_limit
from sparsekit.nn import BatchNorm, BatchNorm2d

KINDS = [BatchNorm, BatchNorm2d]
EPS = 1e-5


def shape_of(kind, n_features, n, rng):
    """n values a feature, for images spread over height, width and batch."""
    if kind is BatchNorm:
        return (n_features, n)
    divisors = [d for d in range(1, n + 1) if n % d == 0]
    height = int(rng.choice(divisors))
    width = int(rng.choice([d for d in divisors if (n // height) % d == 0]))
    return (n_features, height, width, n // height // width)


def columns(vector, like):
    """A vector of features for arithmetic with an array (features, ...)."""
    return np.asarray(vector).reshape(-1, *[1] * (like.ndim - 1))


@st.composite
def normalisations(draw):
    """(layer, x, g): some features are constant, far from zero, or get no gradient; y is exactly zero in some."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind, n_features, n = draw(st.sampled_from(KINDS)), draw(st.integers(1, 5)), draw(st.integers(2, 40))
    dtype = draw(st.sampled_from([np.float64, np.float64, np.float32]))
    layer = normalization(kind, n_features, rng, dtype)
    x, g = rng.standard_normal((2, *shape_of(kind, n_features, n, rng)))
    x *= columns(rng.choice([0, 0.1, 1, 30], n_features), x)
    x += columns(rng.choice([0, 1, -5], n_features), x)
    layer.weight.values[rng.random(n_features) < 0.2] = 0
    layer.bias.values[rng.random(n_features) < 0.3] = 0
    g[rng.random(n_features) < 0.1] = 0
    return layer, x.astype(dtype), g.astype(dtype)


def naively(layer, x, g, training=True):
    """What :func:`layer_helpers.results` gives, by plain loops."""
    weight, bias = layer.weight.values[:, 0], layer.bias.values[:, 0]
    mean, var = layer.running_mean[:, 0], layer.running_var[:, 0]
    if not training:
        found = {"output": naive.batch_norm(x, mean, var, weight, bias, EPS)}
    else:
        n, (batch_mean, batch_var) = x[0].size, naive.feature_statistics(x)
        dx, d_weight, d_bias = naive.batch_norm_gradient(g, x, weight, EPS)
        found = {
            "output": naive.batch_norm(x, batch_mean, batch_var, weight, bias, EPS),
            "gradient of the input": dx,
            "gradient of weight": d_weight[:, None],
            "gradient of bias": d_bias[:, None],
        }
        mean, var = 0.9 * mean + 0.1 * batch_mean, 0.9 * var + 0.1 * batch_var * n / (n - 1)
    return found | {"running_mean": mean[:, None], "running_var": var[:, None]}


def assert_normalised(got, expected, dtype):
    """Feature by feature, because each has its own scale."""
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        exact = name.startswith("running") or dtype == np.float64  # statistics are summed in float64
        assert got[name].dtype == (np.float64 if exact else np.float32)
        tolerance = 1e-10 if exact else 1e-3
        for i in range(len(array)):
            largest = max(1.0, np.abs(array[i]).max())
            np.testing.assert_allclose(got[name][i], array[i], rtol=0, atol=tolerance * largest, err_msg=name)


@settings(max_examples=150)
@given(normalisations(), st.booleans())
def test_it_equals_plain_loops(case, training):
    layer, x, g = case
    expected = naively(layer, x, g, training)
    assert_normalised(results(layer, x, g, training), expected, x.dtype)


@settings(max_examples=60)
@given(normalisations(), st.booleans())
def test_it_applies_the_relu_that_follows(case, training):
    """As a ReLU after it, whose gradient is zero where it gave exactly zero."""
    layer, x, g = case
    y = layer.forward(x, training)
    np.testing.assert_array_equal(layer.forward(x, training, relu=True), np.maximum(y, 0))
    if training:
        got = layer.backward(g), layer.weight.grad, layer.bias.grad
        layer.forward(x, training)
        expected = layer.backward(g * (y > 0)), layer.weight.grad, layer.bias.grad
        for array, wanted in zip(got, expected, strict=True):
            assert_close(array, wanted, 1e-6 if x.dtype == np.float32 else 1e-13)


@settings(max_examples=60)
@given(normalisations(), st.booleans(), st.booleans())
def test_it_adds_the_other_side_of_a_residual_sum(case, training, relu):
    """Its backward pass is that of the normalisation alone."""
    layer, x, g = case
    y = layer.forward(x, training)
    side = g[::-1].copy()
    expected = naive.residual_sum(y, side, relu)
    assert_close(layer.forward(x, training, relu, read_only(side)), expected, 1e-6)
    if training:
        got = layer.backward(g)
        layer.forward(x, training)
        np.testing.assert_array_equal(got, layer.backward(g))


@pytest.mark.parametrize("batch", [1, 3, 17])
@pytest.mark.parametrize("size", [None, (1, 1), (2, 3)])
def test_backward_equals_central_differences(batch, size, rng):
    shape = (3, batch) if size is None else (3, *size, batch)
    layer = normalization(BatchNorm if size is None else BatchNorm2d, 3, rng)
    if batch == 1 and size in (None, (1, 1)):
        with pytest.raises(InputError, match=r"^x must have at least 2 values a feature .* in training, not 1$"):
            layer.forward(np.ones(shape), training=True)
    else:
        check_module(layer, rng.standard_normal(shape), rng, tolerance=2e-7)


def test_running_statistics_follow_mean_and_unbiased_variance(rng):
    layer = BatchNorm2d(2, np.float32, momentum=0.25)
    mean, var = np.zeros(2), np.ones(2)
    for k in range(4):
        x = ((k + 1) * rng.standard_normal((2, 2, 1, 2)) + 3 * k).astype(np.float32)
        layer.forward(x, training=True)
        mean = 0.75 * mean + 0.25 * x.astype(float).mean(axis=(1, 2, 3))
        var = 0.75 * var + 0.25 * x.astype(float).var(axis=(1, 2, 3), ddof=1)
        np.testing.assert_allclose(layer.running_mean[:, 0], mean, rtol=1e-14)
        np.testing.assert_allclose(layer.running_var[:, 0], var, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_uses_the_running_statistics_and_leaves_them_alone(kind, rng):
    layer = normalization(kind, 3, rng)
    before = {name: buffer.copy() for name, buffer in layer.named_buffers().items()}
    x = rng.standard_normal(shape_of(kind, 3, 12, rng))
    y = layer.forward(x)
    for sample in range(x.shape[-1]):  # one sample's output does not depend on the others
        np.testing.assert_allclose(layer.forward(x[..., sample : sample + 1]), y[..., sample : sample + 1])
    assert layer.forward(x[..., :0]).shape == x[..., :0].shape
    for name, buffer in layer.named_buffers().items():
        np.testing.assert_array_equal(buffer, before[name])
    with pytest.raises(InputError, match="backward needs a forward pass with training=True"):
        layer.backward(x)
    layer.forward(x, training=True)
    layer.forward(x)  # what was remembered is gone
    with pytest.raises(InputError, match="backward needs a forward pass with training=True"):
        layer.backward(x)
    layer.forward(x, training=True)
    layer.backward(x)
    with pytest.raises(InputError, match="backward needs a forward pass with training=True"):
        layer.backward(x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mean", [0, 1, 1e2, 1e4, -1e6])
def test_a_mean_far_from_zero_costs_the_digits_of_the_input_only(kind, mean, rng):
    """In float32: scale, shift, product and sum are rounded once each, and so large are they."""
    x = (mean + rng.uniform(-0.1, 0.1, (4, 3000)) * max(1, abs(mean) / 1e5)).astype(np.float32)
    x = x if kind is BatchNorm else x.reshape(4, 10, 20, 15)
    layer = kind(4)
    y = layer.forward(x, training=True)
    exact = x.astype(float).reshape(4, -1)
    np.testing.assert_allclose(layer.running_mean[:, 0], 0.1 * exact.mean(axis=1), rtol=1e-13, atol=1e-9)
    np.testing.assert_allclose(
        layer.running_var[:, 0] - 0.9, 0.1 * exact.var(axis=1, ddof=1), rtol=1e-6, atol=1e-9
    )
    std = np.sqrt(exact.var(axis=1, keepdims=True) + EPS)
    z = (exact - exact.mean(axis=1, keepdims=True)) / std
    rounding = 4 * np.finfo(np.float32).eps / 2 * (abs(mean) + 2) / std
    assert (np.abs(y.reshape(4, -1) - z) <= rounding).all()
    g = rng.standard_normal(x.shape).astype(np.float32)
    dx = layer.backward(g).reshape(4, -1)
    of_y = g.astype(float).reshape(4, -1)
    expected = (of_y - of_y.mean(axis=1, keepdims=True) - z * (of_y * z).mean(axis=1, keepdims=True)) / std
    assert (np.abs(dx - expected) <= rounding / std).all()
    np.testing.assert_allclose(layer.bias.grad[:, 0], of_y.sum(axis=1), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(layer.weight.grad[:, 0], (of_y * z).sum(axis=1), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("value", [0.0, -1.0, 3.7e3, 1e20])
def test_a_constant_feature_becomes_its_bias(value, rng):
    layer = BatchNorm2d(2)
    layer.bias.values[...] = [[0.5], [-2]]
    x = np.full((2, 3, 4, 5), value, np.float32)
    y = layer.forward(x, training=True)
    rounding = 4 * np.finfo(np.float32).eps / 2 * abs(value) / np.sqrt(EPS)
    assert (np.abs(y - columns([0.5, -2], y)) <= 1e-6 + rounding).all()
    g = rng.standard_normal(x.shape).astype(np.float32)
    dx = layer.backward(g)
    expected = (g - g.mean(axis=(1, 2, 3), keepdims=True)) / np.sqrt(EPS)
    assert_close(dx, expected, 1e-5)
    np.testing.assert_allclose(layer.weight.grad, 0, atol=1e-4)
    np.testing.assert_allclose(layer.running_var, 0.9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 5])
def test_nan_and_infinity_spoil_their_feature_and_no_other(kind, relu, bad, position, rng):
    layer = normalization(kind, 3, rng, np.float32)
    x = rng.standard_normal((3, 12)).astype(np.float32)
    clean = results(layer, x.reshape(shape_of(kind, 3, 12, rng)), x.reshape(shape_of(kind, 3, 12, rng)))
    x[1, position] = bad
    layer = normalization(kind, 3, np.random.default_rng(0), np.float32)
    x = x.reshape(shape_of(kind, 3, 12, rng))
    with np.errstate(invalid="ignore"):
        y = layer.forward(x, training=True, relu=relu)
        dx = layer.backward(np.ones_like(x))
    assert np.isnan(y[1]).all()
    assert np.isnan(dx[1]).all()
    assert np.isnan(layer.running_var[1]).all()
    assert not np.isfinite(layer.running_mean[1]).any()
    assert np.isnan(layer.weight.grad[1]).all()
    for array in (y, dx, layer.running_mean, layer.running_var, layer.weight.grad):
        assert np.isfinite(array[[0, 2]]).all()
    assert np.isfinite(clean["output"]).all()
    # In evaluation a value concerns itself alone.
    layer = normalization(kind, 3, rng, np.float32)
    with np.errstate(invalid="ignore"):
        y = layer.forward(x, relu=relu)
        expected = naively(layer, x, x, training=False)["output"]
    assert_close(y, naive.rectified(expected) if relu else expected, 1e-6)
    assert np.isfinite(y).sum() >= y.size - 1


@needs_speed
@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_for_any_thread_count(kind, rng):
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("needs a machine with at least 2 processors")
    shape = (7, 90_001) if kind is BatchNorm else (7, 21, 39, 110)
    x, g, side = (rng.standard_normal(shape, dtype=np.float32) for _ in range(3))
    assert x.size > 500_000
    layer = normalization(kind, 7, rng, np.float32)
    bits = set()
    for threads in (1, 2, 1, 2):
        layer.running_mean[...], layer.running_var[...] = 0, 1
        spoil_free_memory()
        with thread_limit(threads):
            arrays = [layer.forward(x), layer.forward(x, training=True, relu=True), layer.backward(g)]
            arrays += [layer.weight.grad, layer.bias.grad, layer.forward(x, True, True, side), layer.backward(g)]
        arrays += layer.buffers().values()
        bits.add(b"".join(array.tobytes() for array in arrays))
    assert len(bits) == 1
    # And they are right: a version for several threads is compiled of its own.
    layer = normalization(kind, 7, np.random.default_rng(1), np.float32)
    y = layer.forward(x, training=True)
    rows = x.reshape(7, -1).astype(float)
    mean, var = rows.mean(axis=1), rows.var(axis=1)
    scale = layer.weight.values[:, 0] / np.sqrt(var + EPS)
    expected = columns(scale, x) * (x - columns(mean, x)) + columns(layer.bias.values, x)
    assert_close(y, expected, 1e-6)
    dx = layer.backward(g)
    z = (rows - mean[:, None]) / np.sqrt(var + EPS)[:, None]
    of_y = g.reshape(7, -1).astype(float)
    wanted = of_y - of_y.mean(axis=1, keepdims=True) - z * (of_y * z).mean(axis=1, keepdims=True)
    assert_close(dx.reshape(7, -1), scale[:, None] * wanted, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_operands_are_left_alone_and_may_lie_anywhere(kind, rng):
    layer = normalization(kind, 4, rng, np.float32)
    shape = (4, 18) if kind is BatchNorm else (4, 3, 2, 3)
    x, g, side = (rng.integers(-4, 5, shape).astype(np.float32) for _ in range(3))

    def all_of(x, g, side):
        y = layer.forward(x, True, relu=True)
        dx = layer.backward(g)
        return y, dx, layer.weight.grad, layer.bias.grad, layer.forward(x, True, side=side)

    expected = [array.copy() for array in all_of(x, g, side)]
    inputs = [read_only(array) for array in (x, g, side)]
    for got, wanted in zip(all_of(*inputs), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    for array, before in zip(inputs, (x, g, side), strict=True):
        np.testing.assert_array_equal(array, before)
    for name, variant in VARIANTS.items():
        if name != "list":
            for got, wanted in zip(all_of(*map(variant, (x, g, side))), expected, strict=True):
                np.testing.assert_array_equal(got, wanted, err_msg=name)
                assert got.dtype == np.float32


def test_input_that_does_not_fit_is_refused():
    flat, images = BatchNorm(3), BatchNorm2d(3)
    for wrong in ((3,), (2, 4), (3, 1, 1, 4)):
        shape = str(wrong).replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(InputError, match=rf"^x must have shape \(3, batch\), not {shape}$"):
            flat.forward(np.ones(wrong))
    for wrong in ((3, 4), (3, 2, 4), (4, 2, 2, 3)):
        shape = str(wrong).replace("(", r"\(").replace(")", r"\)")
        for call in (images.forward, images.affine):
            with pytest.raises(InputError, match=rf"^x must have shape \(3, height, width, batch\), not {shape}$"):
                call(np.ones(wrong), True)
    with pytest.raises(InputError, match=r"^x must hold real numbers, not complex128$"):
        flat.forward(np.ones((3, 4), complex))
    for n in (0, 1):
        message = rf"^x must have at least 2 values a feature for BatchNorm in training, not {n}$"
        with pytest.raises(InputError, match=message):
            flat.forward(np.ones((3, n)), training=True)
        with pytest.raises(InputError, match=message):
            images.forward(np.ones((3, 1, 1, n)), training=True)
    assert not flat.running_mean.any()
    # Compiled loops check nothing: a shorter array would be read beyond its end.
    flat.forward(np.ones((3, 8)), training=True)
    with pytest.raises(InputError, match=r"^grad_output must have shape \(3, 8\), not \(3, 2\)$"):
        flat.backward(np.ones((3, 2)))
    for wrong in ((3, 4), (3, 1), (3, 2, 4)):
        with pytest.raises(InputError, match=r"^side must have shape \(3, 8\), not "):
            flat.forward(np.ones((3, 8)), side=np.ones(wrong))
    with pytest.raises(InputError, match="n_features must be an integer of at least 1, not 0"):
        BatchNorm2d(0)


def test_an_input_of_integers_is_taken_as_numbers():
    x = np.array([[1, 2, 3], [4, 5, 9]])
    assert_close(BatchNorm(2).forward(x, True), BatchNorm(2).forward(x.astype(np.float32), True))
    assert np.abs(BatchNorm(2).forward(x, True)).max() > 1
