"""The plan of a topology: orders of the stored weights in which every one stands exactly once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from kernel_helpers import mask_of

from sparsekit.csr import CSRMatrix
from sparsekit.kernels.cpu import _in_order
from sparsekit.kernels.plan import Plan, Runs


@st.composite
def masks(draw):
    """Bool (n_out, n_in), with rows of any number of inputs."""
    n_out, n_in = draw(st.integers(1, 12)), draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return mask_of(CSRMatrix, (n_out, n_in), draw(st.integers(0, n_in)), rng)


def plan_of(mask):
    matrix = CSRMatrix.from_mask(mask)
    return Plan(matrix.indptr, matrix.indices, mask.shape)


def parts_of(n_rows, parts):
    """The rows of each part."""
    return [range(p * n_rows // parts, (p + 1) * n_rows // parts) for p in range(parts)]


@given(masks(), st.integers(1, 40), st.data())
def test_runs_hold_the_inputs_of_a_neuron_in_a_block_and_stand_by_length(mask, block, data):
    n_out, n_in = mask.shape
    parts = data.draw(st.integers(1, n_out))
    runs, indices = plan_of(mask).runs(block, parts), np.nonzero(mask)[1]
    n_blocks = -(-n_in // block)
    assert len(runs.starts) == len(runs.ends) == len(runs.rows) == n_blocks * n_out
    indptr = np.concatenate([[0], np.cumsum(mask.sum(axis=1))])
    for j in range(n_blocks):
        here = slice(j * n_out, (j + 1) * n_out)
        lengths = (runs.ends - runs.starts)[here]
        for part in parts_of(n_out, parts):
            assert sorted(runs.rows[here][part]) == list(part)
            assert (np.diff(lengths[part]) >= 0).all()
        for start, end, row in zip(*(array[here] for array in runs), strict=True):
            wanted = np.flatnonzero(mask[row, j * block : (j + 1) * block]) + j * block
            np.testing.assert_array_equal(indices[start:end], wanted)
            assert indptr[row] <= start <= end <= indptr[row + 1]


@given(masks(), st.integers(1, 40), st.data())
def test_blocked_orders_name_every_weight_once(mask, block, data):
    plan = plan_of(mask)
    weights = np.zeros(mask.shape)
    weights[mask] = np.arange(mask.sum()) + 1
    values = weights[mask]
    for build, matrix in ((plan.rows_in_blocks, weights), (plan.columns_in_blocks, weights.T)):
        order = build(block, data.draw(st.integers(1, len(matrix))))
        copied = _in_order(order, values)
        rebuilt = np.zeros(matrix.shape)
        for q, row in enumerate(order.rows):
            run = slice(order.indptr[q], order.indptr[q + 1])
            assert (order.indices[run] < block).all()
            rebuilt[row, q // len(matrix) * block + order.indices[run].astype(int)] += copied[run]
        np.testing.assert_array_equal(rebuilt, matrix)


def test_an_order_is_built_once_for_each_number_of_parts():
    plan = plan_of(np.ones((4, 6), dtype=bool))
    assert plan.rows_in_blocks(3) is plan.rows_in_blocks(3)
    assert plan.rows_in_blocks(3, 2) is not plan.rows_in_blocks(3)
    assert plan.runs(3) is plan.runs(3)
    assert all(not array.flags.writeable for array in plan.runs(3))


def test_runs_without_rows_or_blocks():
    assert [array.size for array in Runs.by_length(np.zeros((1, 5), dtype=np.int64))] == [0, 0, 0]
    assert [array.size for array in Runs.by_length(np.zeros((3, 0), dtype=np.int64))] == [0, 0, 0]
