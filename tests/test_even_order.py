"""The order of the inputs: against the definition by plain loops, and what it is for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_helpers import mask_of
from threadpoolctl import threadpool_limits

from sparsekit.csr import CSRMatrix
from sparsekit.kernels import even_order as module
from sparsekit.kernels.even_order import even_order


def order_of(mask):
    return even_order(np.append(0, np.cumsum(mask.sum(axis=1))), np.nonzero(mask)[1], mask.shape[1])


def ahead_of_pace(mask, order):
    """(n_rows, n_inputs): by how many weights each neuron is ahead after each input of the order."""
    return np.cumsum(mask[:, order] - mask.mean(axis=1, keepdims=True), axis=1)


@st.composite
def masks(draw):
    """Bool (n_out, n_in) with rows of any number of inputs."""
    n_out, n_in = draw(st.integers(1, 12)), draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return mask_of(CSRMatrix, (n_out, n_in), draw(st.integers(0, n_in)), rng)


@given(masks())
def test_each_input_is_the_one_that_keeps_the_pace_best(mask):
    """Up to rounding, which decides between inputs that are as good as each other."""
    order = order_of(mask)
    assert sorted(order) == list(range(mask.shape[1]))
    added = mask - mask.mean(axis=1, keepdims=True)
    ahead, left = np.zeros(len(mask)), set(range(mask.shape[1]))
    for chosen in order:
        squares = {i: ((ahead + added[:, i]) ** 2).sum() for i in left}
        assert squares[chosen] <= min(squares.values()) + 1e-4
        ahead += added[:, chosen]
        left.remove(chosen)


def test_neurons_stay_several_times_closer_than_by_chance():
    mask = mask_of(CSRMatrix, (256, 1024), 102, np.random.default_rng(0))
    by_chance, even = (ahead_of_pace(mask, order).std() for order in (np.arange(1024), order_of(mask)))
    assert even < by_chance / 3


def test_inputs_that_lie_together_are_spread():
    mask = np.zeros((64, 640), dtype=bool)
    for r in range(64):
        mask[r, 10 * r : 10 * r + 64] = True
    assert np.abs(ahead_of_pace(mask, order_of(mask))).max() < 4
    assert np.abs(ahead_of_pace(mask, np.arange(640))).max() > 50


@pytest.mark.parametrize("products", [1, 256 * 700 * 100])
def test_large_matrices_are_ordered_part_by_part(products, monkeypatch):
    """One input at a time is no choice; by a hundred, each part goes on from where the one before ended."""
    monkeypatch.setattr(module, "_PRODUCTS", products)
    mask = mask_of(CSRMatrix, (256, 700), 70, np.random.default_rng(0))
    order = order_of(mask)
    if products == 1:
        np.testing.assert_array_equal(order, np.arange(700))
    else:
        np.testing.assert_array_equal(np.sort(order.reshape(7, 100), axis=1), np.arange(700).reshape(7, 100))
        assert ahead_of_pace(mask, order).std() < 0.9 * ahead_of_pace(mask, np.arange(700)).std()


def test_the_order_does_not_depend_on_threads():
    mask = mask_of(CSRMatrix, (300, 500), 50, np.random.default_rng(0))
    orders = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            orders.append(order_of(mask))
    np.testing.assert_array_equal(*orders)


@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (3, 1)])
def test_without_weights_any_order_is_even(shape):
    np.testing.assert_array_equal(np.sort(order_of(np.zeros(shape, dtype=bool))), np.arange(shape[1]))
