"""Conv2d and what a convolution does in the same pass: against plain loops, central differences, dense layers."""

import copy
import pickle
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import product
from unittest.mock import patch

import naive
import numba
import numpy as np
import pytest
from gradients import check_module
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_helpers import VARIANTS, assert_frame_is, framed, read_only
from layer_helpers import (
    SPARSE,
    STORAGES,
    assert_close,
    assert_same_results,
    conv2d,
    results,
    spoil_free_memory,
    stored,
)
from test_convolution import cases, draw_case, larger_case, needs_speed

from sparsekit import CondensedMatrix, CSRMatrix, DenseMatrix, InputError, im2col
from sparsekit.convolution import Convolution
from sparsekit.im2col import Im2colConvolution
from sparsekit.kernels import conv as conv_kernels
from sparsekit.kernels import normalization as normalization_kernels
from sparsekit.kernels.conv import Affine
from sparsekit.kernels.threads import thread_limit
from sparsekit.nn import BatchNorm2d, Conv2d, ReLU, Sequential
from sparsekit.optim import SGD

BACKENDS = ["cpu", "vectorized", "reference", "csr"]
COMBINATIONS = [(DenseMatrix, "cpu"), *product(SPARSE, BACKENDS)]


@st.composite
def cases_of(draw, storage):
    """Small images of integers, see :func:`test_convolution.cases`; dense weights store some zeros."""
    case = draw(cases(CSRMatrix if storage is DenseMatrix else storage))
    return case if storage is not DenseMatrix else replace(case, mask=np.ones_like(case.mask))


def matrix_of(case, storage):
    return (
        DenseMatrix(case.weight.reshape(len(case.weight), -1)) if storage is DenseMatrix else case.stored(storage)
    )


def products_of(case, storage, backend):
    geometry = case.mask.shape[1], case.mask.shape[2:], case.stride, case.padding
    if storage is DenseMatrix or backend != "cpu":
        return Im2colConvolution(matrix_of(case, storage), *geometry, backend)
    return Convolution(matrix_of(case, storage), *geometry)


@contextmanager
def small_caches(rng):
    """Images are cut into bands of rows and columns, and channels into blocks, as far larger ones would be."""
    with ExitStack() as stack:
        if rng.random() < 0.7:
            stack.enter_context(patch.object(im2col, "_CACHED", int(rng.choice([1, 2_000, 20_000]))))
            stack.enter_context(patch.object(conv_kernels, "_CACHED", int(rng.choice([1, 1_000, 5_000]))))
            stack.enter_context(patch.object(conv_kernels, "_NEAR", int(rng.choice([1, 2_000]))))
            stack.enter_context(patch.object(conv_kernels, "_ROWS", 1))
        yield


def neighbours(case, rng):
    """Integer before and bias, one of the two or none."""
    n_out, n_in = case.mask.shape[:2]
    before = Affine(rng.integers(-2, 3, n_in), rng.integers(-3, 4, n_in)) if rng.random() < 0.6 else None
    return before, rng.integers(-9, 10, n_out) if rng.random() < 0.6 else None


def with_nothing_before(case, before):
    """The case whose images are what the convolution sees."""
    if before is None:
        return case
    return replace(case, x=naive.scaled_and_rectified(case.x, *before).astype(case.x.dtype))


@pytest.mark.parametrize(("storage", "backend"), COMBINATIONS)
@settings(max_examples=40)
@given(data=st.data(), relu=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_a_convolution_with_its_neighbours_equals_plain_loops(storage, backend, data, relu, seed):
    case, rng = data.draw(cases_of(storage)), np.random.default_rng(seed)
    before, bias = neighbours(case, rng)
    conv = products_of(case, storage, backend)
    geometry = case.stride, case.padding
    expected = naive.conv_layer(case.weight, case.mask, case.x, *geometry, bias=bias, relu=relu, before=before)
    with small_caches(rng):
        y = conv.forward(case.x, before=before, bias=bias, relu=relu)
        assert y.dtype == case.x.dtype
        np.testing.assert_array_equal(y, expected)
        out = framed(np.full_like(case.g, np.nan), frame=-99)
        assert conv.forward(framed(case.x, np.nan), out, before=before, bias=bias, relu=relu) is out
        np.testing.assert_array_equal(out, expected)
        assert_frame_is(out, -99)
        _, dx, dw = with_nothing_before(case, before).oracle()
        got = conv.weight_gradient(case.g, case.x, before=before)
        assert got.dtype == case.x.dtype
        np.testing.assert_array_equal(got.ravel(), dw)
        np.testing.assert_array_equal(conv.input_gradient(case.g, case.input_size), dx)


@pytest.mark.parametrize("storage", STORAGES)
@settings(max_examples=40)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1), keep=st.booleans())
def test_a_layer_equals_plain_loops(storage, data, seed, keep):
    """Forward and all gradients, and the dense gradient at every position."""
    case, rng = data.draw(cases_of(storage)), np.random.default_rng(seed)
    layer = Conv2d(
        matrix_of(case, storage), case.mask.shape[1], case.mask.shape[2:], case.stride, case.padding,
        bias=bool(rng.integers(2)), backend=str(rng.choice(["cpu", "cpu", "vectorized"])),
    )  # fmt: skip
    bias = rng.integers(-9, 10, len(case.mask)) if layer.bias else None
    if bias is not None:
        layer.bias.values[...] = bias[:, None]
    layer.keep_dense_gradient = keep
    with small_caches(rng):
        got = results(layer, case.x, case.g)
    y, dx, dw = case.oracle()
    if bias is not None:
        y = y + bias[:, None, None, None]
        np.testing.assert_array_equal(got["gradient of bias"][:, 0], case.g.sum(axis=(1, 2, 3)))
    np.testing.assert_array_equal(got["output"], y)
    np.testing.assert_array_equal(got["gradient of the input"], dx)
    np.testing.assert_array_equal(got["gradient of weight"].ravel(), dw)
    assert got["gradient of weight"].shape == layer.weight.values.shape
    assert {array.dtype for array in got.values()} == {case.x.dtype}
    if keep:
        everywhere = replace(case, mask=np.ones_like(case.mask)).oracle()[2].reshape(layer.matrix.shape)
        np.testing.assert_array_equal(layer.dense_gradient(), everywhere)


GEOMETRIES = list(product([(1, 1), (3, 3), (3, 2)], [1, 2, (2, 1)], [0, 1, (1, 0)]))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("kernel", "stride", "padding"), GEOMETRIES)
def test_backward_equals_central_differences(storage, kernel, stride, padding, rng):
    """Each geometry with a bias and without, with two of the batches 1, 3 and 17 in turn."""
    number = GEOMETRIES.index((kernel, stride, padding))
    for bias, batch in ((True, (1, 3, 17)[number % 3]), (False, (17, 1, 3)[number % 3])):
        layer = conv2d(storage, rng, 3, 2, kernel, stride, padding, bias=bias)
        check_module(layer, rng.standard_normal((2, 4, 3, batch)), rng)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("batch", [1, 3, 17])
def test_backward_through_what_surrounds_a_convolution(storage, batch, rng):
    """The same by central differences where normalisation and ReLU are done by the convolution."""
    network = Sequential(
        {
            "bn": BatchNorm2d(2, np.float64),
            "relu1": ReLU(),
            "conv1": conv2d(storage, rng, 3, 2, (3, 2), (2, 1), (1, 0)),
            "conv2": conv2d(storage, rng, 4, 3, 1),
            "relu2": ReLU(),
        }
    )
    network.layers["bn"].bias.values[...] = [[0.6], [-0.2]]
    check_module(network, rng.standard_normal((2, 4, 4, batch)), rng, tolerance=2e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("storage", SPARSE)
def test_backends_agree(storage, dtype, rng):
    x = rng.standard_normal((3, 7, 6, 18)).astype(dtype)
    layer = conv2d(storage, rng, 5, 3, 3, (2, 1), 1, dtype=dtype)
    g = rng.standard_normal(layer.forward(x).shape).astype(dtype)
    kinds, expected = [], results(layer, x, g)
    for backend in BACKENDS[1:] + BACKENDS[:1]:
        layer.backend = backend
        kinds.append(type(layer.products))
        assert_same_results(results(layer, x, g), expected, 2e-6 if dtype == np.float32 else 1e-13)
    assert kinds == [Im2colConvolution] * 3 + [Convolution]
    dense = Conv2d(DenseMatrix(layer.matrix.to_dense()), 3, 3, (2, 1), 1)
    dense.bias.values[...] = layer.bias.values
    of_dense = results(dense, x, g)
    of_dense["gradient of weight"] = of_dense["gradient of weight"][layer.matrix.mask()].reshape(
        layer.weight.values.shape
    )
    assert_same_results(expected, of_dense, 2e-6 if dtype == np.float32 else 1e-13)
    with pytest.raises(InputError, match="backend must be one of"):
        Conv2d(layer.matrix, 3, 3, backend="fast").forward(x)


@pytest.mark.parametrize(("storage", "backend"), COMBINATIONS)
def test_nan_and_infinity_spread_as_in_plain_loops(storage, backend, rng):
    """ReLU keeps NaN; the padding is zero even where relu(shift) is not; -inf becomes zero."""
    mask = np.ones((3, 18), dtype=bool) if storage is DenseMatrix else np.zeros((3, 18), dtype=bool)
    mask[0, [0, 5, 13]] = mask[2, [4, 8, 17]] = True
    case = draw_case(mask.reshape(3, 2, 3, 3), (4, 5), 17, (1, 2), (1, 2), np.float32, rng)
    case = replace(case, weight=np.where(case.mask & (case.weight == 0), 1, case.weight).astype(np.float32))
    conv = products_of(case, storage, backend)
    spoilt = case.x.copy()
    spoils = {(0, 0, 0, 0): np.nan, (0, 2, 3, 7): np.inf, (1, 3, 4, 16): -np.inf, (1, 1, 2, 3): np.nan}
    for position, bad in spoils.items():
        spoilt[position] = bad
    befores = [
        None,
        *(
            Affine(np.array(a), np.array(b))
            for a, b in (([2, 1], [3, 3]), ([0, -1], [1, np.inf]), ([np.nan, 1], [0, 5]))
        ),
    ]
    biases = [None, np.array([1.0, np.nan, -2]), np.array([-np.inf, 5, np.inf])]
    n_nan = 0
    for before, bias, relu in product(befores, biases, [False, True]):
        with np.errstate(invalid="ignore"):
            expected = naive.conv_layer(
                case.weight, case.mask, spoilt, case.stride, case.padding, bias=bias, relu=relu, before=before
            )
            got = conv.forward(spoilt, before=before, bias=bias, relu=relu)
        np.testing.assert_array_equal(got, expected)
        n_nan += np.isnan(expected).sum()
    assert n_nan > 500
    # The gradient of a weight is spoilt where it reads what is spoilt, or may be where it reads the padding.
    before = befores[1]
    with np.errstate(invalid="ignore"):
        expected = with_nothing_before(replace(case, x=spoilt), before).oracle()[2]
        got = conv.weight_gradient(case.g, spoilt, before=before).ravel()
    assert np.isnan(expected).any()
    assert storage is DenseMatrix or np.isfinite(expected).any()
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("storage", SPARSE)
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_ablated_channel_is_its_bias_whatever_comes_in(storage, backend, rng):
    layer = conv2d(storage, rng, 4, 2, 3, padding=1, dtype=np.float32, backend=backend)
    assert not layer.matrix.mask()[1].any()
    x = np.full((2, 5, 4, 17), np.nan, np.float32)
    for bias in (0.7, -0.7, 0.0):
        layer.bias.values[1] = bias
        assert (layer.forward(x)[1] == np.float32(bias)).all()
        assert (layer.forward(x, relu=True)[1] == np.float32(max(bias, 0))).all()
        before = Affine(np.full(2, np.inf), np.full(2, np.nan))
        assert (layer.forward(x, before=before)[1] == np.float32(bias)).all()
    layer.forward(x, training=True)
    g = np.zeros((4, 5, 4, 17), np.float32)
    g[1] = np.nan  # what an ablated neuron is told reaches no input
    assert np.isfinite(layer.backward(g)).all()


@needs_speed
def test_same_bits_for_any_thread_count():
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("needs a machine with at least 2 processors")
    rng = np.random.default_rng(0)
    before = Affine(rng.standard_normal(16).astype(np.float32), rng.standard_normal(16).astype(np.float32))
    for storage, (stride, batch) in product(SPARSE, [((1, 1), 40), ((2, 2), 37)]):
        case = larger_case(storage, stride=stride, batch=batch)
        layer = Conv2d(matrix_of(case, storage), 16, 3, stride, 1)
        layer.bias.values[...] = rng.standard_normal((16, 1))
        work = case.mask.sum() * case.g[0].size
        assert work > 500_000
        bits = set()
        for threads in (1, 2, 1, 2):
            spoil_free_memory()
            with thread_limit(threads):
                y = layer.forward(case.x, training=True, relu=True, before=before)
                dx = layer.backward(case.g)
                arrays = y, dx, layer.weight.grad, layer.bias.grad
                bits.add(b"".join(array.tobytes() for array in arrays))
        assert len(bits) == 1


def test_what_is_scaled_is_rounded_alike_everywhere():
    """Where scale * x + shift is exactly zero after rounding, no pass may see the rest that it rounds off."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 5, 5, 7)).astype(np.float32)
    scale = rng.standard_normal(300).astype(np.float32)
    shift = -(scale * x[:, 2, 2, 3])
    y = x * scale[:, None, None, None] + shift[:, None, None, None]
    assert (y == 0).sum() >= 300
    expected = np.maximum(y, 0)
    identity = CondensedMatrix.from_dense(np.eye(300, dtype=np.float32), np.eye(300, dtype=bool))
    g = rng.standard_normal(x.shape).astype(np.float32)
    for products in (Convolution(identity, 300, 1), Im2colConvolution(identity, 300, 1)):
        np.testing.assert_array_equal(products.forward(x, before=Affine(scale, shift)), expected)
        dw = products.weight_gradient(g, x, before=Affine(scale, shift))[:, 0]
        assert_close(dw, (expected.astype(float) * g).sum(axis=(1, 2, 3)), 1e-5)
    rows, out = x.reshape(300, -1), np.empty((300, 175), np.float32)
    normalization_kernels.affine(rows, scale, shift, True, out)
    np.testing.assert_array_equal(out, expected.reshape(out.shape))
    zero, one, sums = np.zeros(300), np.ones(300), np.empty((2, 300))
    normalization_kernels.gradient(
        np.ones_like(rows), rows, zero, one, one, scale, shift, True, out, sums[0], sums[1]
    )
    np.testing.assert_array_equal(sums[1], (expected > 0).sum(axis=(1, 2, 3)))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("backend", ["cpu", "vectorized"])
def test_operands_are_left_alone_and_may_lie_anywhere(storage, backend, rng):
    layer = conv2d(storage, rng, 3, 2, 3, 2, 1, dtype=np.float32, backend=backend)
    x, g = (rng.integers(-4, 5, shape).astype(np.float32) for shape in ((2, 5, 6, 17), (3, 3, 3, 17)))
    scale, shift = np.float32([2, -1]), np.float32([1, 3])
    layer.keep_dense_gradient = True

    def all_of(x, g, before):
        y = layer.forward(x, training=True, relu=True, before=before)
        return y, layer.backward(g), layer.weight.grad, layer.bias.grad, layer.dense_gradient()

    expected = [array.copy() for array in all_of(x, g, Affine(scale, shift))]
    inputs = [read_only(array) for array in (x, g, scale, shift)]
    for got, wanted in zip(all_of(*inputs[:2], Affine(*inputs[2:])), expected, strict=True):
        assert_close(got, wanted, 1e-6)
    for array, before in zip(inputs, (x, g, scale, shift), strict=True):
        np.testing.assert_array_equal(array, before)
    for name, variant in VARIANTS.items():
        if name == "list":
            continue
        for got, wanted in zip(all_of(variant(x), variant(g), Affine(scale, shift)), expected, strict=True):
            assert_close(got, wanted, 1e-6, name)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("backend", ["cpu", "vectorized"])
def test_the_dense_gradient_is_that_of_a_dense_layer(storage, backend, rng):
    """Also behind a normalisation that the convolution applies; the optimizer's scratch is another array."""

    def network(conv):
        return Sequential({"bn": BatchNorm2d(2, np.float64), "relu": ReLU(), "conv": conv})

    sparse = conv2d(storage, rng, 4, 2, (3, 2), (1, 2), (1, 0), backend=backend)
    dense = Conv2d(DenseMatrix(sparse.matrix.to_dense()), 2, (3, 2), (1, 2), (1, 0))
    x, g = rng.standard_normal((2, 5, 6, 7)), rng.standard_normal((4, 5, 3, 7))
    for wrap in (lambda conv: conv, network):
        sparse.keep_dense_gradient = True
        results(wrap(dense), x, g), results(wrap(sparse), x, g)
        assert_close(sparse.weight.grad.ravel(), dense.weight.grad[sparse.matrix.mask()])
        expected = dense.weight.grad.copy()
        SGD(weight_decay=0.1).step([sparse.weight, dense.weight], 0.0)
        assert_close(sparse.dense_gradient(), expected)
        with pytest.raises(InputError, match="dense_gradient needs a backward pass with keep_dense_gradient=True"):
            sparse.dense_gradient()
        sparse.keep_dense_gradient = False
        results(wrap(sparse), x, g)
        with pytest.raises(InputError, match="dense_gradient needs a backward pass with keep_dense_gradient=True"):
            sparse.dense_gradient()
        sparse.weight.state.clear(), dense.weight.state.clear()


@pytest.mark.parametrize("storage", SPARSE)
def test_rewiring_keeps_values_and_state_and_the_products_follow(storage, rng):
    layer = conv2d(storage, rng, 4, 2, 3, padding=1)
    x, g = rng.standard_normal((2, 4, 5, 3)), rng.standard_normal((4, 4, 5, 3))
    for _ in range(3):
        results(layer, x, g)  # products are built for the old topology
        layer.weight.state["velocity"] = rng.standard_normal(layer.weight.values.shape)
        old_mask, old_weight = layer.matrix.mask(), layer.matrix.to_dense()
        velocity = np.zeros(old_mask.shape)
        velocity[old_mask] = layer.weight.state["velocity"].ravel()
        mask = np.roll(old_mask, 1, axis=1) if storage is CondensedMatrix else rng.random(old_mask.shape) < 0.3
        layer.rewire(mask)
        np.testing.assert_array_equal(layer.matrix.mask(), mask)
        np.testing.assert_array_equal(layer.matrix.to_dense(), old_weight * mask)
        np.testing.assert_array_equal(layer.weight.state["velocity"].ravel(), (velocity * old_mask)[mask])
        assert layer.weight.values is layer.matrix.values
        assert layer.weight.grad is None
        layer.weight.values[...] = rng.standard_normal(layer.weight.values.shape)
        fresh = Conv2d(storage.from_dense(layer.matrix.to_dense(), mask), 2, 3, padding=1)
        fresh.bias.values[...] = layer.bias.values
        assert_same_results(results(layer, x, g), results(fresh, x, g))
        assert isinstance(layer.products, Convolution)


@pytest.mark.parametrize("backend", ["cpu", "vectorized"])
def test_the_products_are_those_of_the_matrix_in_use(backend, rng):
    layer = conv2d(CondensedMatrix, rng, 3, 2, 3, backend=backend)
    x = rng.standard_normal((2, 4, 5, 17))
    first = layer.products
    assert layer.products is first  # what is built once serves again
    for storage in (CSRMatrix, DenseMatrix, CondensedMatrix):
        layer.use(stored(storage, (3, 18), rng))
        assert layer.weight.values is layer.matrix.values
        assert layer.products.matrix is layer.matrix
        weight, mask = layer.matrix.to_dense().reshape(3, 2, 3, 3), layer.matrix.mask().reshape(3, 2, 3, 3)
        expected = naive.conv_layer(weight, mask, x, (1, 1), (0, 0), bias=layer.bias.values[:, 0])
        assert_close(layer.forward(x), expected)
        layer.weight.values *= 2  # in place, as an optimizer does
        expected = naive.conv_layer(2 * weight, mask, x, (1, 1), (0, 0), bias=layer.bias.values[:, 0])
        assert_close(layer.forward(x), expected)


@pytest.mark.parametrize("storage", SPARSE)
@pytest.mark.parametrize("backend", ["cpu", "vectorized"])
@pytest.mark.parametrize("batch", [1, 17])
def test_a_frozen_layer_predicts_and_cannot_be_trained(storage, backend, batch, rng):
    layer = conv2d(storage, rng, padding=1, backend=backend)
    x = rng.standard_normal((2, 5, 4, batch))
    expected = layer.forward(x, relu=True)
    layer.freeze()
    for _ in range(2):
        assert_close(layer.forward(x, relu=True), expected)
    with pytest.raises(ValueError, match="read-only"):
        layer.weight.values[...] = 0


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_computes_the_same_and_trains_on_its_own(storage, duplicate, rng):
    layer = conv2d(storage, rng, 3, 2, 3, padding=1)
    x, g = rng.standard_normal((2, 5, 4, 17)), rng.standard_normal((3, 5, 4, 17))
    expected = results(layer, x, g)
    kernels = [value.serial for value in vars(conv_kernels).values() if hasattr(value, "serial")]
    n_compiled = [len(kernel.signatures) for kernel in kernels] if not numba.config.DISABLE_JIT else []
    twin = duplicate(layer)
    assert_same_results(results(twin, x, g), expected)
    assert [len(kernel.signatures) for kernel in kernels if n_compiled] == n_compiled  # nothing is compiled anew
    assert twin.weight.values is twin.matrix.values
    assert twin.products.matrix is twin.matrix
    twin.weight.values += 1
    assert not np.allclose(twin.forward(x), expected["output"])
    assert_close(layer.forward(x), expected["output"])


def test_without_a_need_there_is_no_input_gradient(rng):
    layer = conv2d(CondensedMatrix, rng)
    layer.needs_grad_input = False
    x, g = rng.standard_normal((2, 4, 4, 3)), rng.standard_normal((3, 2, 2, 3))
    found = results(layer, x, g)
    assert set(found) == {"output", "gradient of weight", "gradient of bias"}
    with pytest.raises(InputError, match="backward needs a forward pass with training=True"):
        layer.backward(g)  # the images are gone
    layer.forward(x)
    with pytest.raises(InputError, match="backward needs a forward pass with training=True"):
        layer.backward(g)


def test_shapes_and_counts_of_a_layer(rng):
    layer = conv2d(CSRMatrix, rng, 5, 2, (3, 2), (2, 1), (1, 0), bias=False)
    assert layer.weight_shape == (5, 2, 3, 2)
    assert layer.output_shape((2, 7, 6)) == (5, 4, 5)
    assert layer.uses_per_sample((2, 7, 6)) == 20
    assert list(layer.parameters()) == ["weight"]
    assert list(layer.shapes((2, 7, 6), "conv1")) == [("conv1", layer, (2, 7, 6))]


@pytest.mark.parametrize("storage", STORAGES)
def test_images_that_do_not_fit_are_refused(storage, rng):
    layer = conv2d(storage, rng, 4, 3, 3, dtype=np.float32)
    x = np.ones((3, 5, 6, 2), np.float32)
    for training, wrong in product([False, True], [x[:2], x[0], x.reshape(-1, 2), x[None], np.ones((4, 5, 6, 2))]):
        shape = str(wrong.shape).replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(InputError, match=rf"^x must have shape \(3, height, width, batch\), not {shape}$"):
            layer.forward(wrong, training)
    with pytest.raises(InputError, match=r"^kernel_size must be at most the padded input 2 x 6, not 3 x 3$"):
        layer.forward(x[:, :2])
    with pytest.raises(InputError, match=r"^x must hold real numbers, not complex64$"):
        layer.forward(x.astype(np.complex64))
    for wrong in ((3,), (2, 5, 5), (3, 5, 5, 5)):
        sizes = ", ".join(map(str, wrong))
        message = rf"^x must be images \(3, height, width, batch\), not \({sizes}, 'batch'\)$"
        with pytest.raises(InputError, match=message):
            layer.output_shape(wrong)
    with pytest.raises(InputError, match=r"^kernel_size must be at most the padded input 5 x 2, not 3 x 3$"):
        layer.output_shape((3, 5, 2))
    layer.forward(x, training=True)
    with pytest.raises(InputError, match=r"^g must have shape \(4, 3, 4, batch\), not \(4, 3, 3, 2\)$"):
        layer.backward(np.ones((4, 3, 3, 2)))
    layer.forward(x, training=True)
    with pytest.raises(InputError, match=r"^g and x must have the same batch, not 1 and 2$"):
        layer.backward(np.ones((4, 3, 4, 1)))
    with pytest.raises(
        InputError, match=r"matrix must have in_channels \* kernel height \* kernel width = 36 col"
    ):
        Conv2d(layer.matrix, 4, 3)


@pytest.mark.parametrize(
    ("storage", "backend"), [(DenseMatrix, "cpu"), (CondensedMatrix, "cpu"), (CSRMatrix, "csr")]
)
def test_neighbours_that_do_not_fit_are_refused(storage, backend, rng):
    products = conv2d(storage, rng, 4, 3, 3, dtype=np.float32, backend=backend).products
    x, g = np.ones((3, 5, 6, 2), np.float32), np.ones((4, 3, 4, 2), np.float32)
    three, four = np.arange(3), np.arange(4)
    expected = products.forward(x, before=Affine(three, -three), bias=four)
    columns = Affine(three[:, None], -three[:, None].astype(np.float16))
    np.testing.assert_array_equal(products.forward(x, before=columns, bias=four[:, None] + 0.0), expected)
    for bias, message in (
        (three, r"bias must have shape \(4,\) or \(4, 1\), not \(3,\)"),
        (four[None], r"bias must have shape \(4,\) or \(4, 1\), not \(1, 4\)"),
        (1.0, r"bias must have shape \(4,\) or \(4, 1\), not \(\)"),
        (four * 1j, "bias must hold real numbers, not complex128"),
    ):
        with pytest.raises(InputError, match=f"^{message}$"):
            products.forward(x, bias=bias)
    for before, message in (
        (Affine(four, three), r"before\[0\] must have shape \(3,\) or \(3, 1\), not \(4,\)"),
        (Affine(three, three[None]), r"before\[1\] must have shape \(3,\) or \(3, 1\), not \(1, 3\)"),
        (Affine(three, np.array("abc")), r"before\[1\] must hold real numbers, not <U3"),
    ):
        with pytest.raises(InputError, match=f"^{message}$"):
            products.forward(x, before=before)
        with pytest.raises(InputError, match=f"^{message}$"):
            products.weight_gradient(g, x, before=before)


def test_a_subclass_of_relu_is_not_taken_into_the_convolution(rng):
    class Shifted(ReLU):
        def forward(self, x, training=False):
            return super().forward(x, training) + 1

    layer = conv2d(CondensedMatrix, rng)
    x = rng.standard_normal((2, 4, 4, 3))
    assert_close(Sequential({"conv": layer, "relu": Shifted()}).forward(x), np.maximum(layer.forward(x), 0) + 1)
