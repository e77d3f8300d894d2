"""Every backend against the reference and against dense products, for both storages."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekit.condensed import CondensedMatrix
from sparsekit.csr import CSRMatrix
from sparsekit.errors import InputError
from sparsekit.kernels import BACKENDS, get_backend
from sparsekit.kernels.threads import thread_limit
from sparsekit.kernels.transpose import transposed_index
from sparsekit.masks import has_constant_fan_in, random_bernoulli, random_constant_fan_in

FAST = [name for name in BACKENDS if name != "reference"]
STORAGES = [CondensedMatrix, CSRMatrix]


def random_mask(storage, shape, density, rng):
    """What the storage is made for: constant fan-in, or rows of any length around a density."""
    if storage is CondensedMatrix:
        return random_constant_fan_in(shape, max(1, round(density * shape[1])), rng)
    mask = random_bernoulli(shape, density, rng)
    return mask & (rng.random(shape) < rng.uniform(0.3, 1, (shape[0], 1)))


@st.composite
def layers(draw, storage, max_out=9, max_in=23, max_batch=40):
    """(weight, mask, x, g): with neurons that store nothing, integers so that all sums are exact.

    CSR has rows of any length, now and then all of one length.
    """
    n_out, n_in = draw(st.integers(1, max_out)), draw(st.integers(1, max_in))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    like = draw(st.sampled_from([CSRMatrix, CSRMatrix, CondensedMatrix])) if storage is CSRMatrix else storage
    mask = random_mask(like, (n_out, n_in), draw(st.sampled_from([0.05, 0.3, 0.7, 1])), rng)
    mask[rng.random(n_out) < draw(st.sampled_from([0, 0.3, 1]))] = False
    batch = draw(st.integers(0, max_batch))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    weight, x, g = (
        rng.integers(-8, 9, shape).astype(dtype) for shape in [(n_out, n_in), (n_in, batch), (n_out, batch)]
    )
    return weight * mask, mask, x, g


@pytest.mark.parametrize("storage", STORAGES)
@settings(max_examples=40)
@given(data=st.data())
def test_the_reference_equals_dense_products(storage, data):
    weight, mask, x, g = data.draw(layers(storage, max_out=5, max_in=7, max_batch=4))
    matrix = storage.from_dense(weight, mask)
    np.testing.assert_array_equal(matrix.matmul(x, "reference"), weight @ x)
    np.testing.assert_array_equal(matrix.rmatmul(g, "reference"), weight.T @ g)
    np.testing.assert_array_equal(matrix.sampled_outer(g, x, "reference").ravel(), (g @ x.T)[mask])


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("backend", FAST)
@settings(max_examples=60)
@given(data=st.data())
def test_every_backend_equals_the_reference(backend, storage, data):
    check_against_the_reference(backend, storage, data.draw(layers(storage)))


@pytest.mark.parametrize("storage", STORAGES)
@settings(max_examples=60)
@given(data=st.data())
def test_the_parallel_kernels_equal_the_reference(storage, data):
    layer = data.draw(layers(storage))
    with pytest.MonkeyPatch.context() as patch:  # the layers here are too small to be run in parallel
        patch.setattr("sparsekit.kernels.compiled._PARALLEL_FROM", 0)
        check_against_the_reference("cpu", storage, layer)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "fan_ins",
    [[0], [0, 0, 0], [7, 0, 0], [0, 0, 7], [1, 2, 0, 3, 0, 4, 5, 0, 6, 7], [17, 0, 8, 9, 1]],
    ids=["one empty row", "empty", "first only", "last only", "lengths 0 to 7", "unrolled and rests"],
)
def test_csr_rows_of_different_lengths(backend, dtype, fan_ins):
    """Each kind of row that the loops tell apart, for all widths of batch they tell apart."""
    rng = np.random.default_rng(0)
    mask = np.array([rng.permutation(20) < fan_in for fan_in in fan_ins])
    weight = rng.integers(-8, 9, mask.shape).astype(dtype) * mask
    matrix = CSRMatrix.from_dense(weight, mask)
    assert np.diff(matrix.indptr).tolist() == fan_ins
    for batch in (0, 1, 2, 9):
        x = rng.integers(-8, 9, (20, batch)).astype(dtype)
        g = rng.integers(-8, 9, (len(fan_ins), batch)).astype(dtype)
        # what an output held before is no part of the result
        y, dx, dw = np.full_like(g, np.nan), np.full_like(x, np.nan), np.full_like(matrix.values, np.nan)
        np.testing.assert_array_equal(matrix.matmul(x, backend, out=y), weight @ x)
        np.testing.assert_array_equal(matrix.rmatmul(g, backend, out=dx), weight.T @ g)
        np.testing.assert_array_equal(matrix.sampled_outer(g, x, backend, out=dw), (g @ x.T)[mask])


def test_the_masks_drawn_here_are_what_they_should_be():
    rng = np.random.default_rng(0)
    condensed, csr = (random_mask(storage, (64, 300), 0.1, rng) for storage in STORAGES)
    assert has_constant_fan_in(condensed)
    assert len(set(csr.sum(axis=1))) > 10


def check_against_the_reference(backend, storage, layer):
    weight, mask, x, g = layer
    matrix = storage.from_dense(weight, mask)
    reference = get_backend("reference")
    where = (matrix.rows,) if storage is CondensedMatrix else (matrix.indptr,)
    prefix = "condensed" if storage is CondensedMatrix else "csr"
    forward = getattr(reference, f"{prefix}_matmul")
    backward = getattr(reference, f"{prefix}_rmatmul")
    outer = getattr(reference, f"{prefix}_sampled_outer")
    # integers below 2**24: every order of summation gives the same float
    y, dx = np.empty_like(g), np.empty_like(x)
    expected = forward(matrix.values, matrix.indices, *where, x, y, matrix.plan)
    np.testing.assert_array_equal(matrix.matmul(x, backend), expected)
    expected = backward(matrix.values, matrix.indices, *where, g, dx, matrix.plan)
    np.testing.assert_array_equal(matrix.rmatmul(g, backend), expected)
    expected = outer(matrix.indices, *where, g, x, np.empty_like(matrix.values), matrix.plan)
    np.testing.assert_array_equal(matrix.sampled_outer(g, x, backend), expected)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_stays_within_the_error_bound(backend, storage, dtype):
    rng = np.random.default_rng(0)
    mask = random_mask(storage, (64, 300), 0.1, rng)
    mask[[0, 17, 63]] = False
    weight = (rng.standard_normal(mask.shape) * mask).astype(dtype)
    x, g = rng.standard_normal((300, 128)).astype(dtype), rng.standard_normal((64, 128)).astype(dtype)
    matrix = storage.from_dense(weight, mask)
    exact_w, exact_x, exact_g = weight.astype(np.longdouble), x.astype(np.longdouble), g.astype(np.longdouble)

    def check(got, exact, magnitude, terms):
        """|error| <= (terms + 1) * eps * sum of |products|, for any order of summation."""
        bound = (terms + 1) * np.finfo(dtype).eps * magnitude
        assert (np.abs(got - exact) <= bound).all()

    fan_in, readers = mask.sum(axis=1)[:, None], mask.sum(axis=0)[:, None]
    check(matrix.matmul(x, backend), exact_w @ exact_x, np.abs(exact_w) @ np.abs(exact_x), fan_in)
    check(matrix.rmatmul(g, backend), exact_w.T @ exact_g, np.abs(exact_w).T @ np.abs(exact_g), readers)
    got = matrix.sampled_outer(g, x, backend).ravel()
    check(got, (exact_g @ exact_x.T)[mask], (np.abs(exact_g) @ np.abs(exact_x).T)[mask], x.shape[1])


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_and_infinity_come_through(backend, storage):
    mask = np.ones((2, 9), dtype=bool)
    matrix = storage.from_dense(np.ones((2, 9)), mask)
    x = np.ones((9, 3))
    x[4, 1], x[8, 2] = np.nan, np.inf
    y = matrix.matmul(x, backend)
    assert np.isnan(y[:, 1]).all()
    assert np.isposinf(y[:, 2]).all()
    assert np.isfinite(y[:, 0]).all()


@pytest.mark.parametrize("storage", STORAGES)
def test_same_bits_for_any_thread_count(storage):
    import numba

    from sparsekit.kernels.compiled import _PARALLEL_FROM

    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("needs a machine with at least 2 processors")
    rng = np.random.default_rng(0)
    mask = random_mask(storage, (200, 400), 0.15, rng)
    mask[::7] = False
    assert mask.sum() * 128 > _PARALLEL_FROM  # else one thread would do it all
    matrix = storage.from_dense(rng.standard_normal(mask.shape).astype(np.float32), mask)
    x, g = rng.standard_normal((2, 400, 128)).astype(np.float32)
    g = g[:200].copy()

    def products():
        return matrix.matmul(x), matrix.rmatmul(g), matrix.sampled_outer(g, x)

    results = []
    for threads in (1, 2):
        with thread_limit(threads):
            results.append(products())
    for one, two in zip(*results, strict=True):
        assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("backend", FAST)
def test_wide_inputs_use_int32_indices(backend, storage):
    n_in = 2**16 + 10
    mask = np.zeros((3, n_in), dtype=bool)
    mask[[0, 0, 2, 2], [0, n_in - 1, 65535, 65536]] = True
    if storage is CSRMatrix:
        mask[[1, 2, 2], [65537, 3, n_in - 1]] = True
    rng = np.random.default_rng(0)
    weight = rng.integers(-5, 6, mask.shape).astype(np.float64) * mask
    matrix = storage.from_dense(weight, mask)
    assert matrix.indices.dtype == np.int32
    x, g = rng.integers(-5, 6, (n_in, 3)).astype(float), rng.integers(-5, 6, (3, 3)).astype(float)
    np.testing.assert_array_equal(matrix.matmul(x, backend), weight @ x)
    np.testing.assert_array_equal(matrix.rmatmul(g, backend), weight.T @ g)
    np.testing.assert_array_equal(matrix.sampled_outer(g, x, backend).ravel(), (g @ x.T)[mask])


def test_the_largest_uint16_width():
    mask = np.zeros((1, 2**16), dtype=bool)
    mask[0, -1] = True
    matrix = CondensedMatrix.from_dense(mask.astype(float) * 2, mask)
    assert matrix.indices.dtype == np.uint16
    assert (matrix @ np.arange(2.0**16))[0] == 2 * (2**16 - 1)


def test_no_more_specialisations_than_dtypes_need():
    from sparsekit.kernels import gather
    from sparsekit.kernels.compiled import Kernel

    if not hasattr(gather.gather_wide.serial, "signatures"):
        pytest.skip("NUMBA_DISABLE_JIT=1: nothing is compiled")
    rng = np.random.default_rng(0)
    mask = random_constant_fan_in((6, 8), 2, rng)
    condensed = CondensedMatrix.from_dense(rng.standard_normal(mask.shape), mask)
    read_only, strided = np.ones((8, 4)), np.ones((8, 8))[:, ::2]
    read_only.flags.writeable = False
    condensed @ np.ones((8, 4))
    kernels = [version for kernel in vars(gather).values() if isinstance(kernel, Kernel) for version in kernel]
    condensed @ np.ones(8)
    before = [len(kernel.signatures) for kernel in kernels]
    for matrix in (condensed, condensed.to_csr()):
        for x in (
            np.ones(8),
            read_only,
            strided,
            np.asfortranarray(np.ones((8, 4))),
            np.ones((8, 4), np.int8),
        ):
            matrix @ x
    assert [len(kernel.signatures) for kernel in kernels] == before


def test_the_transposed_index_lists_every_weight_by_input():
    index = transposed_index(np.array([2, 0, 2, 1]), np.array([0, 1, 1, 3]), n_out=4, n_in=4)
    assert index.indptr.tolist() == [0, 1, 2, 4, 4]
    assert index.positions.tolist() == [1, 3, 0, 2]
    assert index.rows.tolist() == [1, 3, 0, 1]


def test_unknown_backend_is_named():
    matrix = CSRMatrix.from_mask(np.ones((2, 2), dtype=bool))
    with pytest.raises(InputError, match=r"backend must be one of reference, .*'cpuu' \(did you mean 'cpu'\?\)"):
        matrix.matmul(np.ones((2, 1)), backend="cpuu")
