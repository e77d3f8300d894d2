"""Masks: the right number of active positions, uniformly random, and clear errors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsekit import masks
from sparsekit.errors import InputError

shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))
seeds = st.integers(0, 2**32 - 1)


@given(shapes, st.data(), seeds)
def test_constant_fan_in_gives_every_neuron_the_fan_in(shape, data, seed):
    k = data.draw(st.integers(0, shape[1]))
    mask = masks.random_constant_fan_in(shape, k, np.random.default_rng(seed))
    assert mask.shape == shape
    assert mask.dtype == bool
    assert [sum(row) for row in mask.tolist()] == [k] * shape[0]
    assert masks.has_constant_fan_in(mask)


@given(shapes, st.data(), seeds)
def test_per_layer_places_exactly_nnz(shape, data, seed):
    nnz = data.draw(st.integers(0, shape[0] * shape[1]))
    mask = masks.random_per_layer(shape, nnz, np.random.default_rng(seed))
    assert mask.shape == shape
    assert mask.sum() == nnz


@given(shapes, seeds)
def test_bernoulli_extremes(shape, seed):
    rng = np.random.default_rng(seed)
    assert not masks.random_bernoulli(shape, 0.0, rng).any()
    assert masks.random_bernoulli(shape, 1.0, rng).all()


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: masks.random_bernoulli((4, 5), 0.4, rng),
        lambda rng: masks.random_per_layer((4, 5), 8, rng),
        lambda rng: masks.random_constant_fan_in((4, 5), 2, rng),
    ],
    ids=["bernoulli", "per_layer", "constant_fan_in"],
)
def test_every_position_is_equally_likely(draw):
    rng = np.random.default_rng(0)
    n = 4000
    frequency = sum(draw(rng).astype(int) for _ in range(n)) / n
    # 20 positions at p = 0.4: five standard deviations are passed with a chance below 1e-5
    assert np.abs(frequency - 0.4).max() < 5 * np.sqrt(0.4 * 0.6 / n)


def test_constant_fan_in_draws_all_subsets_equally_often():
    rng = np.random.default_rng(1)
    subsets = [tuple(np.flatnonzero(masks.random_constant_fan_in((1, 4), 2, rng)[0])) for _ in range(6000)]
    counts = [subsets.count(subset) for subset in sorted(set(subsets))]
    assert len(counts) == 6
    assert sum((c - 1000) ** 2 / 1000 for c in counts) < 20.5  # chi-square, 5 degrees of freedom, p = 0.001


def test_counts_of_a_mask():
    mask = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 0]], dtype=bool)
    assert masks.fan_in(mask).tolist() == [2, 0, 2]
    assert masks.active_neurons(mask).tolist() == [True, False, True]
    assert masks.has_constant_fan_in(mask)
    mask[1, 0] = True
    assert not masks.has_constant_fan_in(mask)
    assert masks.has_constant_fan_in(np.zeros((2, 3), dtype=bool))


def test_same_seed_same_mask():
    first, second = (masks.random_constant_fan_in((20, 30), 7, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda rng: masks.random_constant_fan_in((3, 4), 5, rng),
            r"fan_in must be an integer in \[0, 4\], not 5",
        ),
        (lambda rng: masks.random_per_layer((3, 4), 13, rng), r"nnz must be an integer in \[0, 12\], not 13"),
        (lambda rng: masks.random_bernoulli((3, 4), 1.5, rng), r"density must lie in \[0, 1\], not 1.5"),
        (lambda rng: masks.random_bernoulli((3, 4), float("nan"), rng), "density must lie"),
        (lambda rng: masks.random_per_layer((0, 4), 0, rng), "n_out must be an integer of at least 1, not 0"),
        (lambda rng: masks.random_per_layer((3, 4, 5), 0, rng), "shape must be"),
        (lambda rng: masks.random_bernoulli((3, 4), 0.5, 0), "rng must be a numpy.random.Generator, not int"),
        (lambda rng: masks.random_per_layer((3, 4), 5, None), "rng must be a numpy.random.Generator"),
        (lambda rng: masks.random_constant_fan_in((3, 4), 2, 0), "rng must be a numpy.random.Generator"),
        (lambda rng: masks.fan_in(np.ones((2, 2))), r"mask must be a bool array.*float64 \(2, 2\)"),
        (lambda rng: masks.active_neurons([[True]]), "mask must be a bool array.*list"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call(np.random.default_rng(0))
