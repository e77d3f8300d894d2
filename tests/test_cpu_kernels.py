"""The CPU kernels: every path of every product, on memory of any kind, from any number of threads.

What all backends share is in ``test_kernels.py``. Which path a product takes depends on its shapes and is no
business of these tests: they try batches around every width that a path may have, on layers wide and narrow,
whose inputs are read by many or by few.
"""

import copy
import itertools
import pickle
from functools import cache

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_helpers import (
    VARIANTS,
    assert_frame_is,
    assert_within_rounding,
    framed,
    integers,
    mask_of,
    misaligned,
    read_only,
)

from sparsekit.condensed import CondensedMatrix
from sparsekit.csr import CSRMatrix
from sparsekit.errors import InputError
from sparsekit.kernels import BACKENDS, cpu, gather
from sparsekit.kernels.threads import one_blas_thread, thread_limit

STORAGES = [CondensedMatrix, CSRMatrix]
DTYPES = [np.float32, np.float64]
BORDERS = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 128, 200, 256, 257]
A_FEW_BATCHES = [1, 2, 9, 16, 33, 64, 127, 128, 150, 257]

# test_processors.py does without compilation what does not take too long then
pytestmark = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="too slow without compilation")


@pytest.fixture(scope="module", autouse=True)
def _quick_dense_products():
    """Else the threads of BLAS, waiting for more, would hold the processors that the kernels need next."""
    with one_blas_thread():
        yield


def integer_layer(storage, shape, fan_in, dtype, rng):
    """(matrix, weight, mask), stored zeros among the weights."""
    mask = mask_of(storage, shape, fan_in, rng)
    weight = integers(shape, dtype, rng) * mask
    return storage.from_dense(weight, mask), weight, mask


def check_exactly(matrix, weight, mask, x, g):
    """All three products against dense ones, with nothing read or written beside the arrays."""
    x, g = framed(x, np.nan), framed(g, np.nan)
    y, dx, dw = (framed(np.full_like(like, np.nan), -99) for like in (g, x, matrix.values))
    assert matrix.matmul(x, out=y) is y
    np.testing.assert_array_equal(y, weight @ x)
    assert matrix.rmatmul(g, out=dx) is dx
    np.testing.assert_array_equal(dx, weight.T @ g)
    assert matrix.sampled_outer(g, x, out=dw) is dw
    np.testing.assert_array_equal(dw.ravel(), (g @ x.T)[mask])
    for out in (y, dx, dw):
        assert_frame_is(out, -99)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "fan_in"), [((1, 1), 1), ((4, 40), 1), ((9, 40), 13), ((5, 70), 70)])
def test_small_layers_are_exact_at_every_batch(shape, fan_in, dtype, storage):
    rng = np.random.default_rng(0)
    matrix, weight, mask = integer_layer(storage, shape, fan_in, dtype, rng)
    frozen = matrix.frozen()
    for batch in range(71):
        x, g = integers((shape[1], batch), dtype, rng), integers((shape[0], batch), dtype, rng)
        check_exactly(matrix, weight, mask, x, g)
        check_exactly(frozen, weight, mask, x, g)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "fan_in"), [((70, 600), 250), ((600, 70), 30), ((300, 520), 60), ((700, 256), 2)]
)
def test_large_layers_are_exact(shape, fan_in, dtype, storage):
    rng = np.random.default_rng(0)
    matrix, weight, mask = integer_layer(storage, shape, fan_in, dtype, rng)
    frozen = matrix.frozen()
    for batch in (1, 5, 16, 63, 64, 65, 79, 100, 127, 128, 129, 143, 160, 191, 256, 257):
        x, g = integers((shape[1], batch), dtype, rng), integers((shape[0], batch), dtype, rng)
        check_exactly(matrix, weight, mask, x, g)
        check_exactly(frozen, weight, mask, x, g)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_batch_of_one_tile_is_read_and_written_where_it_stands(dtype, storage):
    """256 bytes a row, from a cache line on: the kernels may then take operands and results as tiles."""
    rng = np.random.default_rng(0)
    matrix, weight, mask = integer_layer(storage, (70, 600), 250, dtype, rng)
    size = np.dtype(dtype).itemsize
    batch = 256 // size
    bias = integers((70, 1), dtype, rng)
    for one in (matrix, matrix.frozen()):
        for offset in (0, size, 64):
            x, g = (misaligned(integers((n, batch), dtype, rng), offset) for n in (600, 70))
            y = framed(np.full((70, batch), np.nan, dtype), -99)
            before = x.copy()
            one.matmul(x, out=y, bias=bias, relu=True)
            np.testing.assert_array_equal(y, np.maximum(weight @ x + bias, 0))
            assert_frame_is(y, -99)
            np.testing.assert_array_equal(x, before)
            check_exactly(one, weight, mask, x, g)
            np.testing.assert_array_equal(one.rmatmul(g), weight.T @ g)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "fan_in"), [((9, 40), 13), ((60, 7), 2), ((20, 300), 200)])
def test_strips_are_exact_at_every_batch(shape, fan_in, dtype, monkeypatch):
    """In strips for any shape, whatever the processor; some neurons are ablated."""
    monkeypatch.setattr(cpu, "_wants_strips", lambda nnz, x: x.shape[1] > 1)
    monkeypatch.setattr(cpu, "_wants_blocks", lambda *_: False)
    rng = np.random.default_rng(0)
    mask = mask_of(CondensedMatrix, shape, fan_in, rng)
    mask[::5] = False
    weight = integers(shape, dtype, rng) * mask
    matrix, bias = CondensedMatrix.from_dense(weight, mask), integers((shape[0], 1), dtype, rng)
    for batch in (*range(71), *BORDERS):
        x, g = integers((shape[1], batch), dtype, rng), integers((shape[0], batch), dtype, rng)
        check_exactly(matrix, weight, mask, x, g)
        y = framed(np.full((shape[0], batch), np.nan, dtype), -99)
        matrix.matmul(x, out=y, bias=bias, relu=True)
        np.testing.assert_array_equal(y, np.maximum(weight @ x + bias, 0))
        assert_frame_is(y, -99)


@pytest.mark.parametrize(
    ("shape", "fan_in", "batch", "way"),
    [
        ((512, 784), 16, 128, "gather_wide"),  # few readers, and x in the second-level cache
        ((512, 784), 39, 128, "gather_strips"),
        ((512, 784), 39, 32, "gather_wide"),  # one strip as it is
        ((512, 784), 196, 128, "gather_tiles"),  # long runs
        ((768, 3072), 31, 256, "gather_strips"),
        ((768, 3072), 154, 256, "gather_tiles"),  # a wide strip
        ((768, 3072), 15, 256, "gather_wide"),
        ((300, 5000), 100, 128, "gather_wide"),  # a strip that the cache does not hold
    ],
)
def test_which_way_a_batch_goes_with_vectors_of_32_bytes(shape, fan_in, batch, way, monkeypatch):
    taken = []

    def note(kernel, work, *arguments):
        taken.append(kernel)

    matrix = CondensedMatrix.from_mask(mask_of(CondensedMatrix, shape, fan_in, np.random.default_rng(0)))
    monkeypatch.setattr(cpu, "run", note)
    monkeypatch.setattr(cpu, "VECTOR_BYTES", 32)
    monkeypatch.setattr(cpu, "CACHE_BYTES", 2**19)
    matrix.matmul(np.ones((shape[1], batch), np.float32))
    assert taken[-1] is getattr(gather, way)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    ("shape", "index_dtype"),
    [((3, 65536), np.uint16), ((3, 65537), np.int32), ((4, 70000), np.int32), ((65537, 2), np.uint16)],
)
def test_very_wide_layers_are_exact(shape, index_dtype, storage):
    rng, dtype = np.random.default_rng(0), np.float32
    n_out, n_in = shape
    fan_in = min(n_in - 1, 5)
    positions = np.arange(n_out * fan_in).reshape(n_out, fan_in) * 7919 + n_in - 1  # the last input is read
    mask = np.zeros(shape, dtype=bool)
    np.put_along_axis(mask, positions % n_in, True, axis=1)
    if storage is CSRMatrix:
        mask[1] = False
    weight = integers(shape, dtype, rng) * mask
    matrix = storage.from_dense(weight, mask)
    assert matrix.indices.dtype == index_dtype
    for batch in (0, 1, 2, 7) if n_out > n_in else (0, 1, 2, 9, 16, 17, 33):
        x, g = integers((n_in, batch), dtype, rng), integers((n_out, batch), dtype, rng)
        np.testing.assert_array_equal(matrix.matmul(x), weight @ x)
        np.testing.assert_array_equal(matrix.rmatmul(g), weight.T @ g)
        dw = matrix.sampled_outer(g, x)
        rows, columns = np.nonzero(mask)
        np.testing.assert_array_equal(dw.ravel(), (g[rows] * x[columns]).sum(axis=1))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("active", [[], [0], [3], [6], [0, 6], [0, 1, 2, 4, 5, 6]], ids=str)
def test_ablated_neurons_are_exact(active, storage):
    rng = np.random.default_rng(0)
    mask = np.zeros((7, 50), dtype=bool)
    mask[active] = mask_of(CondensedMatrix, (len(active), 50), 11, rng)
    weight = integers(mask.shape, np.float32, rng) * mask
    matrix = storage.from_dense(weight, mask)
    bias = integers(7, np.float32, rng)
    for batch in (0, *BORDERS):
        x, g = integers((50, batch), np.float32, rng), integers((7, batch), np.float32, rng)
        check_exactly(matrix, weight, mask, x, g)
        check_exactly(matrix.frozen(), weight, mask, x, g)
        np.testing.assert_array_equal(matrix.matmul(x, bias=bias), weight @ x + bias[:, None])
        np.testing.assert_array_equal(
            matrix.matmul(x, bias=bias, relu=True), np.maximum(weight @ x + bias[:, None], 0)
        )


# --- rounding ---------------------------------------------------------------------------------------------------


@cache
def paper_mask(storage, shape, sparsity):
    return mask_of(storage, shape, round((1 - sparsity) * shape[1]), np.random.default_rng(0))


@pytest.mark.parametrize("storage", STORAGES)
@settings(max_examples=25)
@given(
    layer=st.sampled_from(
        [((768, 3072), sparsity) for sparsity in (0.9, 0.95, 0.98, 0.99)]
        + [(shape, sparsity) for shape in ((512, 784), (1024, 1024)) for sparsity in (0.9, 0.95, 0.98)]
    ),
    batch=st.sampled_from(BORDERS),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_layers_of_the_benchmark_within_the_rounding_bound(storage, layer, batch, dtype, seed):
    shape, sparsity = layer
    mask = paper_mask(storage, shape, sparsity)
    rng = np.random.default_rng(seed)
    x, g, bias = (
        rng.standard_normal(size).astype(dtype) for size in ((shape[1], batch), (shape[0], batch), (shape[0], 1))
    )
    weight = np.zeros(shape, dtype)
    weight[mask] = rng.standard_normal(np.count_nonzero(mask))
    matrix = storage.from_dense(weight, mask)
    W, X, G = (array.astype(np.float64) for array in (weight, x, g))
    fan_in, readers = mask.sum(axis=1)[:, None], mask.sum(axis=0)[:, None]
    product, magnitude = W @ X, np.abs(W) @ np.abs(X)
    assert_within_rounding(matrix.matmul(x), product, magnitude, fan_in)
    relu = np.maximum(product + bias, 0)
    assert_within_rounding(matrix.matmul(x, bias=bias, relu=True), relu, magnitude + np.abs(bias), fan_in + 1)
    assert_within_rounding(matrix.rmatmul(g), W.T @ G, np.abs(W).T @ np.abs(G), readers)
    dw = matrix.sampled_outer(g, x).ravel()
    assert_within_rounding(dw, (G @ X.T)[mask], (np.abs(G) @ np.abs(X).T)[mask], batch)


# --- bias and ReLU ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "fan_in"), [((9, 40), 13), ((40, 300), 250)])
def test_bias_and_relu_are_exact_at_every_batch(shape, fan_in, dtype, storage):
    rng = np.random.default_rng(0)
    matrix, weight, _ = integer_layer(storage, shape, fan_in, dtype, rng)
    bias, frozen = integers(shape[0], dtype, rng), matrix.frozen()
    for batch in (*range(36), *BORDERS):
        x = integers((shape[1], batch), dtype, rng)
        product = weight @ x
        for relu, with_bias, stored in itertools.product((False, True), (False, True), (matrix, frozen)):
            expected = product + bias[:, None] if with_bias else product
            expected = np.maximum(expected, 0) if relu else expected
            out = framed(np.full_like(product, np.nan), -99)
            assert stored.matmul(x, bias=bias if with_bias else None, relu=relu, out=out) is out
            np.testing.assert_array_equal(out, expected)
            assert_frame_is(out, -99)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_adds_the_bias_and_applies_relu(backend, storage):
    rng = np.random.default_rng(0)
    mask = mask_of(CondensedMatrix, (6, 9), 3, rng)
    mask[[1, 5]] = False
    weight = integers(mask.shape, np.float32, rng) * mask
    matrix = storage.from_dense(weight, mask)
    x, bias = integers((9, 5), np.float32, rng), np.array([-3, -2, -1, 0, 1, 2])
    expected = np.maximum(weight @ x + bias[:, None], 0)
    for same in (bias, bias[:, None], bias.astype(float), bias.tolist(), read_only(bias), np.repeat(bias, 2)[::2]):
        y = matrix.matmul(x, backend, bias=same, relu=True)
        assert y.dtype == np.float32
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(matrix.matmul(x[:, 0], backend, bias=same, relu=True), expected[:, 0])
    for wrong in (bias[:5], bias[None], np.tile(bias[:, None], 2), bias[:, None, None], bias * 1j, np.float32(1)):
        with pytest.raises(InputError, match=r"\bbias\b"):
            matrix.matmul(x, backend, bias=wrong)


# --- NaN and infinity -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "fan_in"), [((7, 20), 5), ((40, 300), 250)])
def test_nan_and_infinity_reach_what_reads_them_and_nothing_else(shape, fan_in, dtype, storage):
    rng = np.random.default_rng(0)
    matrix, weight, mask = integer_layer(storage, shape, fan_in, dtype, rng)
    rows, columns = np.nonzero(mask)
    bias = integers(shape[0], dtype, rng)
    inputs, neurons = (0, 128 % shape[1], shape[1] // 2, shape[1] - 1), (0, shape[0] // 3, 5, shape[0] - 1)
    for batch in A_FEW_BATCHES:
        x, g = integers((shape[1], batch), dtype, rng), integers((shape[0], batch), dtype, rng)
        places = zip(inputs, neurons, (0, batch // 2, batch - 1, batch - 1), strict=True)
        for (j, n, b), bad, stored in itertools.product(places, (np.nan, -np.inf), (matrix, matrix.frozen())):
            bad_x, bad_g = x.copy(), g.copy()
            bad_x[j, b] = bad_g[n, b] = bad
            with np.errstate(invalid="ignore"):
                expected = weight @ x + bias[:, None]
                expected[mask[:, j], b] = weight[mask[:, j], j] * bad  # NaN for a stored zero
                np.testing.assert_array_equal(stored.matmul(bad_x, bias=bias), expected)
                expected = np.maximum(expected, 0)
                np.testing.assert_array_equal(stored.matmul(bad_x, bias=bias, relu=True), expected)
                expected = weight.T @ g
                expected[mask[n], b] = weight[n, mask[n]] * bad
                np.testing.assert_array_equal(stored.rmatmul(bad_g), expected)
                products = (g @ x.T)[mask]
                for dw, reached in (
                    (stored.sampled_outer(g, bad_x).ravel(), columns == j),
                    (stored.sampled_outer(bad_g, x).ravel(), rows == n),
                ):
                    np.testing.assert_array_equal(np.isfinite(dw), ~reached)
                    np.testing.assert_array_equal(dw[~reached], products[~reached])


# --- memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_operands_in_any_memory(variant, dtype, storage):
    rng = np.random.default_rng(0)
    matrix, weight, mask = integer_layer(storage, (24, 96), 60, dtype, rng)
    for batch in (1, 4, 16, 33, 64, 130):
        x, g = integers((96, batch), dtype, rng), integers((24, batch), dtype, rng)
        bias = integers((24, 1), dtype, rng)
        other_x, other_g = variant(x.copy()), variant(g.copy())
        before = copy.deepcopy((other_x, other_g))
        for got, expected in (
            (matrix.matmul(other_x), weight @ x),
            (matrix.matmul(other_x, bias=variant(bias), relu=True), np.maximum(weight @ x + bias, 0)),
            (matrix.rmatmul(other_g), weight.T @ g),
            (matrix.sampled_outer(other_g, other_x).ravel(), (g @ x.T)[mask]),
            (matrix.sampled_outer(g, other_x).ravel(), (g @ x.T)[mask]),
        ):
            assert got.dtype == dtype
            assert got.flags.writeable
            np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(other_x, before[0])
        np.testing.assert_array_equal(other_g, before[1])


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("offset", [1, 4, 8, 16, 32])
def test_outputs_and_weights_anywhere_in_memory(offset, storage):
    rng = np.random.default_rng(0)
    for dtype in DTYPES:
        matrix, weight, mask = integer_layer(storage, (24, 96), 60, dtype, rng)
        values, where = misaligned(matrix.values, offset), matrix.indptr if storage is CSRMatrix else matrix.rows
        matrix = storage(values, matrix.indices, where, matrix.shape)
        for batch in (1, 4, 16, 33, 64, 130):
            x, g = integers((96, batch), dtype, rng), integers((24, batch), dtype, rng)
            y, dx, dw = (misaligned(np.full_like(like, np.nan), offset) for like in (g, x, values))
            products = (matrix.matmul, (x,), y), (matrix.rmatmul, (g,), dx), (matrix.sampled_outer, (g, x), dw)
            for compute, operands, out in products:
                if offset % x.itemsize:  # where no such float may be
                    with pytest.raises(InputError, match=r"\bout must be .*\baligned\b"):
                        compute(*operands, out=out)
                    out[...] = compute(*operands)
                else:
                    assert compute(*operands, out=out) is out
            np.testing.assert_array_equal(y, weight @ x)
            np.testing.assert_array_equal(dx, weight.T @ g)
            np.testing.assert_array_equal(dw.ravel(), (g @ x.T)[mask])


@pytest.mark.parametrize("storage", STORAGES)
def test_out_may_not_overlap_what_is_read(storage):
    mask = mask_of(CondensedMatrix, (6, 6), 4, np.random.default_rng(0))
    matrix = storage.from_mask(mask)
    matrix.values[...] = 1
    x = np.ones((6, 4), np.float32)
    memory = np.ones(40, np.float32)
    overlapping = memory[:24].reshape(6, 4), memory[10:34].reshape(6, 4)
    weights = matrix.values.reshape(6, 4)
    x_as_values = x.reshape(matrix.values.shape)
    for product in (
        lambda: matrix.matmul(x, out=x),
        lambda: matrix.matmul(overlapping[0], out=overlapping[1]),
        lambda: matrix.rmatmul(x, out=x),
        lambda: matrix.rmatmul(overlapping[1], out=overlapping[0]),
        lambda: matrix.sampled_outer(x, np.ones_like(x), out=x_as_values),
        lambda: matrix.sampled_outer(np.ones_like(x), x, out=x_as_values),
        lambda: matrix.matmul(x, out=weights),
        lambda: matrix.rmatmul(x, out=weights),
    ):
        with pytest.raises(InputError, match=r"\bout must not share memory with\b"):
            product()
    assert (matrix.values == 1).all()
    assert (x == 1).all()
    # a product that was copied is no longer there
    np.testing.assert_array_equal(matrix.matmul(x[::-1], out=x), np.full((6, 4), 4))


@pytest.mark.parametrize("storage", STORAGES)
def test_results_stay_when_other_products_follow(storage):
    """Scratch memory, of one matrix or shared by several, is never handed out."""
    rng = np.random.default_rng(0)
    layers = [integer_layer(storage, shape, 30, np.float32, rng) for shape in ((50, 60), (60, 50), (80, 300))]
    kept = []
    for batch in (130, 1, 16, 40, 130):
        for matrix, weight, mask in layers:
            n_out, n_in = mask.shape
            x, g = integers((n_in, batch), np.float32, rng), integers((n_out, batch), np.float32, rng)
            results = matrix.matmul(x), matrix.rmatmul(g), matrix.sampled_outer(g, x).ravel()
            kept.append((results, (weight @ x, weight.T @ g, (g @ x.T)[mask])))
    for results, expected in kept:
        for got, wanted in zip(results, expected, strict=True):
            np.testing.assert_array_equal(got, wanted)


# --- weights that change ----------------------------------------------------------------------------------------


def check_at_a_few_batches(matrix, x, g):
    """The products of what the matrix holds now."""
    weight, mask = matrix.to_dense(), matrix.mask()
    for batch in A_FEW_BATCHES:
        xb, gb = x[:, :batch].copy(), g[:, :batch].copy()
        np.testing.assert_array_equal(matrix.matmul(xb), weight @ xb)
        np.testing.assert_array_equal(matrix.rmatmul(gb), weight.T @ gb)
        np.testing.assert_array_equal(matrix.sampled_outer(gb, xb).ravel(), (gb @ xb.T)[mask])


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("shape", "fan_in"), [((6, 20), 4), ((40, 300), 250)])
def test_values_changed_in_place_are_seen_by_the_next_product(shape, fan_in, storage):
    rng = np.random.default_rng(0)
    matrix, _, _ = integer_layer(storage, shape, fan_in, np.float32, rng)
    x, g = integers((shape[1], 257), np.float32, rng), integers((shape[0], 257), np.float32, rng)
    flat = matrix.values.reshape(-1)
    assert np.shares_memory(flat, matrix.values)
    check_at_a_few_batches(matrix, x, g)
    matrix.values *= -2
    check_at_a_few_batches(matrix, x, g)
    for slot in (0, flat.size // 2, flat.size - 1):
        flat[slot] += 5
        check_at_a_few_batches(matrix, x, g)
    flat[[0, -1]] = 1, 2
    check_at_a_few_batches(matrix, x, g)
    flat[[0, -1]] = 2, 1  # the sum stays
    check_at_a_few_batches(matrix, x, g)
    matrix.values[...] = 0
    check_at_a_few_batches(matrix, x, g)


@pytest.mark.parametrize("storage", STORAGES)
def test_weights_that_are_made_read_only_and_writeable_again(storage):
    rng = np.random.default_rng(0)
    matrix, _, _ = integer_layer(storage, (40, 300), 250, np.float32, rng)
    x, g = integers((300, 257), np.float32, rng), integers((40, 257), np.float32, rng)
    check_at_a_few_batches(matrix, x, g)
    for _ in range(2):
        matrix.values.flags.writeable = False
        check_at_a_few_batches(matrix, x, g)
        check_at_a_few_batches(matrix, x, g)
        matrix.values.flags.writeable = True
        matrix.values += 1
    check_at_a_few_batches(matrix, x, g)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_frozen_matrix_keeps_its_weights(storage):
    rng = np.random.default_rng(0)
    matrix, _, _ = integer_layer(storage, (40, 300), 250, np.float32, rng)
    x, g = integers((300, 257), np.float32, rng), integers((40, 257), np.float32, rng)
    frozen, weight = matrix.frozen(), matrix.to_dense()
    check_at_a_few_batches(frozen, x, g)
    matrix.values += 1
    again = [frozen, frozen.frozen(), copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))]
    for same in again:
        np.testing.assert_array_equal(same.to_dense(), weight)
        check_at_a_few_batches(same, x, g)
        with pytest.raises(ValueError, match="read-only"):
            same.values += 1
    np.testing.assert_array_equal(matrix.frozen().to_dense(), matrix.to_dense())
    check_at_a_few_batches(matrix.frozen(), x, g)
    check_at_a_few_batches(matrix, x, g)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda matrix: pickle.loads(pickle.dumps(matrix))])
def test_a_copy_has_weights_of_its_own(twin_of, storage):
    rng = np.random.default_rng(0)
    matrix, _, _ = integer_layer(storage, (40, 300), 250, np.float32, rng)
    x, g = integers((300, 257), np.float32, rng), integers((40, 257), np.float32, rng)
    check_at_a_few_batches(matrix, x, g)
    twin = twin_of(matrix)
    twin.values *= 3
    check_at_a_few_batches(twin, x, g)
    check_at_a_few_batches(matrix, x, g)
    matrix.values += 1
    check_at_a_few_batches(twin, x, g)
    check_at_a_few_batches(matrix, x, g)


# --- threads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "fan_in"), [((300, 784), 130), ((301, 520), 520), ((400, 90), 40)])
def test_same_bits_for_any_thread_count(shape, fan_in, dtype, storage):
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("needs a machine with at least 2 processors")
    rng = np.random.default_rng(0)
    mask = mask_of(storage, shape, fan_in, rng)
    mask[::7] = False
    matrix = storage.from_dense(rng.standard_normal(shape).astype(dtype), mask)
    for batch in (1, 7, 16, 50, 128, 257):
        x, g, bias = (
            rng.standard_normal((n, b)).astype(dtype)
            for n, b in ((shape[1], batch), (shape[0], batch), (shape[0], 1))
        )
        bits = set()
        for threads in (1, 2, 2):
            with thread_limit(threads):
                products = matrix.matmul(x, bias=bias, relu=True), matrix.rmatmul(g), matrix.sampled_outer(g, x)
            bits.add(tuple(product.tobytes() for product in products))
        assert len(bits) == 1


@pytest.mark.parametrize("storage", [CondensedMatrix, CSRMatrix])
@pytest.mark.parametrize("batch", [4, 16, 64, 130])
def test_one_row_may_have_any_stride(storage, batch):
    """NumPy calls an array of one row contiguous whatever its stride; a kernel must not read the batch from it."""
    wide = np.arange(2 * 200, dtype=np.float32).reshape(2, 200)
    rows = np.arange(batch, dtype=np.float32)[None], wide[:1, :batch]
    column, row = (storage.from_mask(np.ones(shape, dtype=bool)) for shape in ((3, 1), (1, 3)))
    column.values[...], row.values[...] = 2, 3
    g = np.ones((3, batch), np.float32)
    for x in rows:
        np.testing.assert_array_equal(column.matmul(x), np.repeat(2 * x, 3, axis=0))
        np.testing.assert_array_equal(row.rmatmul(x), np.repeat(3 * x, 3, axis=0))
        np.testing.assert_array_equal(column.sampled_outer(g, x).ravel(), np.full(3, x.sum()))
        np.testing.assert_array_equal(row.sampled_outer(x, g).ravel(), np.full(3, x.sum()))


def test_out_may_not_be_the_bias():
    matrix = CondensedMatrix.from_mask(np.ones((3, 2), dtype=bool))
    bias = np.ones((3, 1), np.float32)
    with pytest.raises(InputError, match="out must not share memory with bias"):
        matrix.matmul(np.ones((2, 1), np.float32), out=bias, bias=bias)


def test_a_copy_of_frozen_weights_that_is_interrupted_is_made_again(monkeypatch):
    rng = np.random.default_rng(0)
    matrix = CondensedMatrix.from_mask(mask_of(CondensedMatrix, (40, 300), 200, rng))
    matrix.values[...] = rng.integers(-4, 5, matrix.values.shape)
    frozen, x = matrix.frozen(), rng.integers(-4, 5, (300, 128)).astype(np.float32)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cpu, "_take_runs", cpu._take_runs._replace(serial=interrupted, parallel=interrupted))
        with pytest.raises(KeyboardInterrupt):
            frozen.matmul(x)
    np.testing.assert_array_equal(frozen.matmul(x), matrix.to_dense() @ x)
