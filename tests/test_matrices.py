"""The storage formats: conversions, and what they refuse at construction and in products."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsekit import CondensedMatrix, CSRMatrix, DenseMatrix, InputError
from sparsekit.masks import random_constant_fan_in


@st.composite
def masks(draw, constant):
    n_out, n_in = draw(st.integers(1, 7)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if not constant:
        return rng.random((n_out, n_in)) < draw(st.sampled_from([0, 0.2, 0.7, 1]))
    mask = random_constant_fan_in((n_out, n_in), draw(st.integers(1, n_in)), rng)
    mask[rng.random(n_out) < draw(st.sampled_from([0, 0.3, 1]))] = False
    return mask


def check_storage(matrix, weight, mask):
    np.testing.assert_array_equal(matrix.to_dense(), weight)
    np.testing.assert_array_equal(matrix.mask(), mask)
    np.testing.assert_array_equal(matrix.fan_ins(), mask.sum(axis=1))
    np.testing.assert_array_equal(matrix.flat_positions(), np.flatnonzero(mask))
    np.testing.assert_array_equal(matrix.values.ravel(), weight[mask])
    assert matrix.nnz == mask.sum()
    assert matrix.shape == mask.shape
    assert matrix.dtype == weight.dtype


@given(masks(constant=True), st.sampled_from([np.float32, np.float64]))
def test_condensed_round_trip(mask, dtype):
    # zeros among the stored weights: the mask says where weights are, never their value
    weight = (np.arange(mask.size).reshape(mask.shape) % 3 - 1).astype(dtype) * mask
    matrix = CondensedMatrix.from_dense(weight, mask)
    check_storage(matrix, weight, mask)
    check_storage(matrix.to_csr(), weight, mask)
    assert matrix.indices.shape == matrix.values.shape == (len(matrix.rows), matrix.fan_in)
    assert matrix.nbytes == matrix.values.nbytes + matrix.indices.nbytes + matrix.rows.nbytes


@given(masks(constant=False))
def test_csr_round_trip(mask):
    weight = (np.arange(mask.size).reshape(mask.shape) % 3 - 1.0) * mask
    check_storage(CSRMatrix.from_dense(weight, mask), weight, mask)


def test_dense_storage():
    weight = np.arange(6.0).reshape(2, 3)
    check_storage(DenseMatrix(weight.copy()), weight, np.ones((2, 3), dtype=bool))
    x, g = np.ones((3, 2)), np.ones((2, 2))
    np.testing.assert_array_equal(DenseMatrix(weight) @ x, weight @ x)
    np.testing.assert_array_equal(DenseMatrix(weight).rmatmul(g), weight.T @ g)
    np.testing.assert_array_equal(DenseMatrix(weight).sampled_outer(g, x), g @ x.T)
    with pytest.raises(InputError, match="mask must be True everywhere"):
        DenseMatrix.from_mask(np.eye(2, dtype=bool))


def test_memory_is_small():
    mask = random_constant_fan_in((512, 784), 67, np.random.default_rng(0))
    matrix = CondensedMatrix.from_mask(mask)
    assert matrix.nbytes == 512 * 67 * (4 + 2) + 512 * 4
    assert matrix.held_nbytes == matrix.nbytes
    matrix.rmatmul(np.ones((512, 1), np.float32))
    # row pointers, transposed index (rows, positions, column pointers), values in its order
    assert matrix.held_nbytes == matrix.nbytes + 513 * 8 + 512 * 67 * (2 + 4) + 785 * 8 + 512 * 67 * 4


def test_values_are_shared_and_indices_are_not():
    values, indices, rows = np.ones((2, 2), np.float32), np.array([[0, 1], [1, 2]]), np.array([0, 2])
    matrix = CondensedMatrix(values, indices, rows, (3, 4))
    assert matrix.values is values
    indices[0, 0] = 99
    assert matrix.indices[0, 0] == 0
    with pytest.raises(ValueError, match="read-only"):
        matrix.indices[0, 0] = 99
    with pytest.raises(ValueError, match="read-only"):
        matrix.rows[0] = 99


GOOD = {
    "values": np.ones((2, 2)),
    "indices": np.array([[0, 3], [1, 2]]),
    "rows": np.array([0, 2]),
    "shape": (3, 4),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": np.array([[0, 4], [1, 2]])}, r"indices must lie in \[0, 4\), but hold 4"),
        ({"indices": np.array([[-1, 3], [1, 2]])}, r"indices must lie in \[0, 4\), but hold -1"),
        ({"indices": np.array([[0, 3], [2, 1]])}, "indices must be ascending without repeats"),
        ({"indices": np.array([[0, 3], [2, 2]])}, "indices must be ascending without repeats"),
        ({"indices": np.array([[0.0, 3], [1, 2]])}, "indices must be integers, not float64"),
        ({"indices": np.array([[0], [1]])}, r"values, indices and rows must have shapes"),
        ({"rows": np.array([0, 3])}, r"rows must lie in \[0, 3\), but hold 3"),
        ({"rows": np.array([2, 0])}, "rows must be ascending"),
        ({"rows": np.array([0])}, "values, indices and rows must have shapes"),
        ({"values": np.array([[1, np.nan], [1, 1]])}, "values must be finite"),
        ({"values": np.array([[1, np.inf], [1, 1]])}, "values must be finite"),
        ({"values": np.ones((2, 2), np.float16)}, "values must be float32 or float64, not float16"),
        ({"values": np.ones((2, 2), int)}, "values must be float32 or float64, not int64"),
        ({"values": np.ones(4)}, "values must have 2 dimensions"),
        ({"values": np.ones((2, 0)), "indices": np.ones((2, 0), int)}, "at least one weight for each active"),
        ({"shape": (3, 0)}, r"n_in must be an integer in \[1, 2147483647\], not 0"),
    ],
)
def test_condensed_refuses(change, message):
    CondensedMatrix(**GOOD)
    with pytest.raises(InputError, match=message):
        CondensedMatrix(**(GOOD | change))


CSR = {
    "values": np.ones(3),
    "indices": np.array([1, 3, 0]),
    "indptr": np.array([0, 2, 2, 3]),
    "shape": (3, 4),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": np.array([1, 4, 0])}, r"indices must lie in \[0, 4\), but hold 4"),
        ({"indices": np.array([3, 1, 0])}, "indices must be ascending without repeats"),
        ({"indices": np.array([1, 1, 0])}, "indices must be ascending without repeats"),
        ({"indptr": np.array([0, 2, 1, 3])}, "indptr must rise from 0 to nnz = 3 and never fall"),
        ({"indptr": np.array([0, 2, 2, 2])}, "indptr must rise from 0 to nnz = 3"),
        ({"indptr": np.array([1, 2, 2, 3])}, "indptr must rise from 0"),
        ({"indptr": np.array([0, 2, 3])}, "values, indices and indptr must have shapes"),
        ({"indptr": np.array([0, 2, 9, 3])}, r"indptr must lie in \[0, 4\)"),
        ({"values": np.array([1, np.nan, 1])}, "values must be finite"),
        ({"values": np.ones((3, 1))}, "values must have 1 dimension, "),
    ],
)
def test_csr_refuses(change, message):
    CSRMatrix(**CSR)
    with pytest.raises(InputError, match=message):
        CSRMatrix(**(CSR | change))


def test_condensed_needs_a_constant_fan_in():
    with pytest.raises(InputError, match="mask must have a constant fan-in, not between 1 and 2"):
        CondensedMatrix.from_mask(np.array([[1, 1, 0], [1, 0, 0]], dtype=bool))
    with pytest.raises(InputError, match="weight must be a float32 or float64 array of the mask's shape"):
        CondensedMatrix.from_dense(np.ones((3, 2)), np.ones((2, 3), dtype=bool))


@pytest.mark.parametrize("storage", [CondensedMatrix, CSRMatrix, DenseMatrix])
def test_operands_are_checked_and_copied_where_that_makes_them_right(storage):
    mask = np.ones((2, 3), dtype=bool)
    matrix = storage.from_mask(mask)
    matrix.values[...] = 1
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    expected = np.tile(x.sum(axis=0), (2, 1))
    read_only = x.copy()
    read_only.flags.writeable = False
    for operand in (x, np.asfortranarray(x), x.astype(np.int64), x.astype(">f8"), read_only, x.tolist()):
        np.testing.assert_array_equal(matrix @ operand, expected)
    np.testing.assert_array_equal(matrix @ x[:, ::2], expected[:, ::2])
    np.testing.assert_array_equal(matrix @ x[:, 0], expected[:, 0])
    assert (matrix @ x[:, :0]).shape == (2, 0)
    for wrong, message in [
        (np.ones((4, 2)), r"x must have shape \(3, batch\) or \(3,\), not \(4, 2\)"),
        (np.ones((3, 2, 2)), "x must have shape"),
        (np.ones((3, 2), complex), "x must hold real numbers, not complex128"),
        (np.array([["a"]] * 3), "x must hold real numbers"),
    ]:
        with pytest.raises(InputError, match=message):
            matrix @ wrong
    with pytest.raises(InputError, match=r"g must have shape \(2, batch\)"):
        matrix.rmatmul(np.ones((3, 2)))
    with pytest.raises(InputError, match="g and x must have the same batch, not 1 and 2"):
        matrix.sampled_outer(np.ones((2, 1)), np.ones((3, 2)))


@pytest.mark.parametrize("storage", [CondensedMatrix, CSRMatrix, DenseMatrix])
def test_out_is_used_or_refused(storage):
    matrix = storage.from_mask(np.ones((2, 3), dtype=bool))
    matrix.values[...] = 2
    x = np.ones((3, 4), np.float32)
    out = np.full((2, 4), np.nan, np.float32)
    assert matrix.matmul(x, out=out) is out
    np.testing.assert_array_equal(out, 6)
    for wrong in (
        np.empty((2, 5), np.float32),
        np.empty((2, 4)),
        np.empty((2, 8), np.float32)[:, ::2],
        [[0]],
    ):
        with pytest.raises(
            InputError, match=r"out must be a writeable, aligned, C-contiguous float32 array \(2, 4\)"
        ):
            matrix.matmul(x, out=wrong)


@pytest.mark.parametrize("storage", [CondensedMatrix, CSRMatrix, DenseMatrix])
def test_out_may_not_overlap_the_operand(storage):
    matrix = storage.from_mask(np.ones((3, 3), dtype=bool))
    x = np.ones((3, 2), np.float32)
    with pytest.raises(InputError, match="out must not share memory with x"):
        matrix.matmul(x, out=x)


def test_from_dense_takes_lists():
    mask = np.array([[True, False], [False, True]])
    for storage in (CondensedMatrix, CSRMatrix):
        np.testing.assert_array_equal(storage.from_dense([[1.0, 0.0], [0.0, 2.0]], mask).values.ravel(), [1, 2])


def test_a_result_never_overwrites_frozen_weights():
    matrix = CondensedMatrix.from_mask(np.ones((4, 4), dtype=bool)).frozen()
    with pytest.raises(InputError, match="out must not share memory with values"):
        matrix.matmul(np.ones((4, 4), dtype=np.float32), out=matrix.values.base)
