"""Simulations: random streams are what they say, every draw has its distribution, estimates meet the theory."""

from collections import Counter
from itertools import combinations

import numba
import numpy as np
import pytest
from scipy import stats

from analysis.monte_carlo import (
    BLOCKS,
    Estimate,
    joined,
    simulate_convolution,
    simulate_depth,
    simulate_fixed_mask,
    simulate_layer,
)
from analysis.monte_carlo_kernels import (
    BERNOULLI,
    CONSTANT_FAN_IN,
    PER_LAYER,
    draw_input,
    draw_mask,
    draw_output,
    mask_buffers,
)
from analysis.random_streams import next_below, next_normal, next_uniform, next_word, streams
from analysis.theory import MASK_TYPES, output_norm_mean, output_norm_variance
from analysis.theory_convolution import SparseConvolution, convolution_norm_mean, convolution_norm_variance
from analysis.theory_depth import depth_mean, depth_variances
from analysis.theory_fixed_mask import fixed_mask_mean, fixed_mask_variance
from sparsekit.errors import InputError
from sparsekit.kernels.threads import thread_limit
from sparsekit.masks import random_per_layer

RARE = 1e-6  # a test of a right simulation may fail this often, for other seeds
SIGMAS = 5.0


def stream(seed=0):
    return streams(np.random.SeedSequence(seed), 1)[0]


@numba.njit
def many_normals(state, count):
    values = np.empty(count)
    for t in range(count):
        values[t] = next_normal(state)
    return values


@numba.njit
def many_below(state, bound, count):
    counts = np.zeros(bound, dtype=np.int64)
    for _ in range(count):
        counts[next_below(state, bound)] += 1
    return counts


@numba.njit
def many_uniforms(state, count):
    values = np.empty(count)
    for t in range(count):
        values[t] = next_uniform(state)
    return values


# Random streams


def test_words_are_those_of_the_reference_implementation():
    """The first ten outputs of xoshiro256++ from the state 1, 2, 3, 4, published with several implementations."""
    state = np.array([1, 2, 3, 4], dtype=np.uint64)
    assert [int(next_word(state)) for _ in range(10)] == [
        41943041, 58720359, 3588806011781223, 3591011842654386, 9228616714210784205,
        9973669472204895162, 14011001112246962877, 12406186145184390807, 15849039046786891736,
        10450023813501588000,
    ]  # fmt: skip


def words_with_python_integers(state, count):
    """xoshiro256++ as the paper's text gives it."""
    full = 2**64

    def rotated(word, bits):
        return (word << bits | word >> (64 - bits)) % full

    state = [int(word) for word in state]
    for _ in range(count):
        yield (rotated((state[0] + state[3]) % full, 23) + state[0]) % full
        shifted = (state[1] << 17) % full
        state[2] ^= state[0]
        state[3] ^= state[1]
        state[1] ^= state[2]
        state[0] ^= state[3]
        state[2] ^= shifted
        state[3] = rotated(state[3], 45)


@pytest.mark.parametrize("seed", [0, 7])
def test_words_from_any_state(seed):
    state = stream(seed)
    expected = list(words_with_python_integers(state, 200))
    assert [int(next_word(state)) for _ in range(200)] == expected


def test_streams_are_those_of_the_children_of_a_seed_sequence():
    states = streams(np.random.SeedSequence(3), 5)
    assert states.shape == (5, 4)
    assert states.dtype == np.uint64
    children = np.random.SeedSequence(3).spawn(5)
    assert [list(state) for state in states] == [list(child.generate_state(4, np.uint64)) for child in children]
    assert len({tuple(state) for state in [*states, *streams(np.random.SeedSequence(4), 5)]}) == 10


def test_uniforms():
    values = many_uniforms(stream(), 200_000)
    assert values.min() >= 0
    assert values.max() < 1
    assert stats.kstest(values, "uniform").pvalue > RARE


@pytest.mark.parametrize("bound", [1, 2, 7, 100])
def test_integers_below_a_bound_are_equally_likely(bound):
    counts = many_below(stream(), bound, 200_000)
    assert counts.sum() == 200_000
    assert bound == 1 or stats.chisquare(counts).pvalue > RARE


def test_normals_have_their_distribution():
    values = many_normals(stream(1), 2_000_000)
    assert stats.kstest(values, "norm").pvalue > RARE
    for power, expected in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        powers = values**power
        assert abs(powers.mean() - expected) < SIGMAS * powers.std() / len(values) ** 0.5


def test_normals_beyond_the_ziggurat_have_the_tail_of_the_distribution():
    """Layer 0 alone draws beyond 3.654: both how many there are, on each side, and where they lie."""
    values, edge = many_normals(stream(2), 4_000_000), 3.6541528853610088
    for tail in (values[values > edge], -values[values < -edge]):
        expected = stats.norm.sf(edge) * len(values)
        assert abs(len(tail) - expected) < SIGMAS * expected**0.5
        assert stats.kstest(stats.norm.sf(tail) / stats.norm.sf(edge), "uniform").pvalue > RARE


# Draws


def drawn_masks(code, amount, n_out, n_in, count):
    """`count` masks as sets of positions, drawn one after the other from the same buffers, as in a simulation."""
    rows, columns, orders = mask_buffers(np.array([n_in, n_out]))
    state, masks = stream(5), []
    for _ in range(count):
        nnz = draw_mask(state, code, amount, n_out, n_in, orders[0], rows, columns)
        positions = list(zip(rows[:nnz].tolist(), columns[:nnz].tolist(), strict=True))
        assert len(set(positions)) == nnz
        masks.append(frozenset(positions))
    return masks


@pytest.mark.parametrize(("n_out", "n_in", "nnz"), [(2, 3, 2), (3, 2, 5), (2, 2, 4), (1, 1, 1)])
def test_per_layer_masks_are_equally_likely(n_out, n_in, nnz):
    choices = list(combinations([(i, j) for i in range(n_out) for j in range(n_in)], nnz))
    counts = Counter(drawn_masks(PER_LAYER, nnz, n_out, n_in, 6000))
    assert set(counts) <= {frozenset(choice) for choice in choices}
    observed = [counts[frozenset(choice)] for choice in choices]
    assert len(choices) == 1 or stats.chisquare(observed).pvalue > RARE


@pytest.mark.parametrize(("n_in", "fan_in"), [(3, 1), (4, 2), (3, 3)])
def test_constant_fan_in_masks_are_equally_likely(n_in, fan_in):
    """Two rows: each set of inputs of the first together with each of the second."""
    rows = list(combinations(range(n_in), fan_in))
    counts = Counter(drawn_masks(CONSTANT_FAN_IN, fan_in, 2, n_in, 6000))
    masks = [frozenset([(0, j) for j in a] + [(1, j) for j in b]) for a in rows for b in rows]
    assert set(counts) <= set(masks)
    assert len(masks) == 1 or stats.chisquare([counts[mask] for mask in masks]).pvalue > RARE


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9, 1.0])
def test_bernoulli_masks_are_independent_positions(density):
    positions = [(i, j) for i in range(2) for j in range(2)]
    masks = [frozenset(chosen) for count in range(5) for chosen in combinations(positions, count)]
    chances = np.array([density ** len(mask) * (1 - density) ** (4 - len(mask)) for mask in masks])
    counts = Counter(drawn_masks(BERNOULLI, density, 2, 2, 20_000))
    if density == 1:
        assert counts == {frozenset(positions): 20_000}
    else:
        assert stats.chisquare([counts[mask] for mask in masks], 20_000 * chances).pvalue > RARE


def test_a_mask_of_hardly_any_density_is_empty():
    assert set(drawn_masks(BERNOULLI, 1e-15, 3, 3, 50)) == {frozenset()}


@pytest.mark.parametrize("p", [0.25, 1.0])
def test_inputs_are_gated_points_of_the_sphere(p):
    state, x = stream(6), np.empty(3)
    points = np.empty((20_000, 3))
    for point in points:
        draw_input(state, p, x)
        point[:] = x
    is_open = points != 0
    counts = Counter(map(tuple, is_open.tolist()))
    if p == 1:
        np.testing.assert_allclose((points**2).sum(axis=1), 1, rtol=1e-12)
        # every coordinate of a point of the sphere of three dimensions is uniform (Archimedes)
        for j in range(3):
            assert stats.kstest(points[:, j], "uniform", args=(-1, 2)).pvalue > RARE
    else:
        keys = [(a, b, c) for a in (False, True) for b in (False, True) for c in (False, True)]
        chances = np.array([p ** sum(key) * (1 - p) ** (3 - sum(key)) for key in keys])
        assert stats.chisquare([counts[key] for key in keys], 20_000 * chances).pvalue > RARE


def test_outputs_are_those_of_a_dense_product():
    """The weights are the stream's next normals, in the order of the positions."""
    rng = np.random.default_rng(0)
    mask = rng.random((5, 7)) < 0.4
    rows, columns = np.nonzero(mask)
    x, z = rng.standard_normal(7), np.empty(5)
    weight = np.zeros((5, 7))
    weight[rows, columns] = many_normals(stream(8), len(rows))
    norm = draw_output(stream(8), rows, columns, x, 0.5, z)
    np.testing.assert_allclose(z, 0.5 * weight @ x, rtol=1e-12)
    assert norm == pytest.approx((z**2).sum(), rel=1e-12)


# Estimates


def moments_of_blocks(values, sizes):
    parts = np.split(values, np.cumsum(sizes)[:-1])
    return np.array([[part.mean(), ((part - part.mean()) ** 2).sum()] for part in parts]).T


@pytest.mark.parametrize("sizes", [[5, 5, 5, 5], [1, 7, 2], [1, 1, 1]])
def test_blocks_are_joined_to_the_estimate_of_all_samples(rng, sizes):
    values = rng.exponential(size=sum(sizes)) ** 3
    estimate = joined(np.array(sizes), *moments_of_blocks(values, sizes))
    without = [
        np.var(np.delete(values, np.s_[end - size : end]), ddof=1)
        for size, end in zip(sizes, np.cumsum(sizes), strict=True)
    ]
    n_blocks = len(sizes)
    jackknife = np.sqrt((n_blocks - 1) / n_blocks * np.square(without - np.mean(without)).sum())
    expected = Estimate(
        sum(sizes), values.mean(), stats.sem(values), np.var(values, ddof=1), pytest.approx(jackknife, rel=1e-9)
    )
    assert estimate.samples == expected.samples
    assert estimate.mean == pytest.approx(expected.mean)
    assert estimate.mean_error == pytest.approx(expected.mean_error)
    assert estimate.variance == pytest.approx(expected.variance)
    assert estimate.variance_error == expected.variance_error


def test_errors_are_as_large_as_the_estimates_scatter(rng):
    """Exponential samples have a fourth moment of 9 about the mean: the variance's error is sqrt(8 / samples)."""
    sizes = [40] * 50
    estimates = [
        joined(np.array(sizes), *moments_of_blocks(rng.exponential(size=2000), sizes)) for _ in range(400)
    ]
    scatter = np.std([estimate.variance for estimate in estimates])
    assert scatter == pytest.approx((8 / 2000) ** 0.5, rel=0.2)
    assert np.mean([estimate.variance_error for estimate in estimates]) == pytest.approx(scatter, rel=0.2)


def test_equal_seeds_give_equal_bits_for_any_number_of_threads():
    def simulate(threads, seed=(4, 2)):
        with thread_limit(threads):
            return [
                simulate_layer("per_layer", 8, 6, 2, samples=1500, seed=seed),
                simulate_convolution(
                    SparseConvolution("bernoulli", 2, 2, 4, (2, 2), (3, 3)), samples=700, seed=seed
                ),
                simulate_fixed_mask(np.ones((3, 4), dtype=bool), samples=700, seed=seed),
            ]

    most = numba.config.NUMBA_NUM_THREADS
    assert simulate(1) == simulate(most)
    assert simulate(1) != simulate(1, seed=(4, 3))


def test_fewer_samples_than_blocks():
    assert simulate_layer("bernoulli", 4, 4, 2, samples=3, seed=0).samples == 3
    assert simulate_layer("bernoulli", 4, 4, 2, samples=BLOCKS + 1, seed=0).samples == BLOCKS + 1


# Against theory


def check(estimate, mean, variance):
    assert abs(estimate.mean - mean) < SIGMAS * estimate.mean_error
    assert abs(estimate.variance - variance) < SIGMAS * estimate.variance_error
    assert estimate.variance_error < 0.1 * variance  # else the comparison would say little


LAYERS = [  # n_in, n_out, fan_in, gate_probability, n_ablated
    (12, 12, 3, 0.5, 0),
    (5, 20, 2, 0.3, 0),
    (30, 6, 4, 1.0, 2),
    (16, 8, 16, 0.5, 0),
]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("mask_type", MASK_TYPES)
def test_layers_meet_the_theory(mask_type, layer):
    estimate = simulate_layer(mask_type, *layer, samples=50_000, seed=1)
    check(estimate, output_norm_mean(mask_type, *layer), output_norm_variance(mask_type, *layer))


def test_fan_in_may_vary_between_integers_where_the_layer_holds_a_whole_number():
    estimate = simulate_layer("per_layer", 8, 3, 7 / 3, samples=50_000, seed=1)
    check(estimate, 3 / 8, output_norm_variance("per_layer", 8, 3, 7 / 3))
    estimate = simulate_layer("bernoulli", 8, 3, 0.7, samples=50_000, seed=1)
    check(estimate, 3 / 8, output_norm_variance("bernoulli", 8, 3, 0.7))


@pytest.mark.parametrize("mask_type", MASK_TYPES)
def test_networks_meet_the_theory(mask_type):
    widths, fan_ins = [20, 10, 30, 15], [4, 5, 6]
    estimate = simulate_depth(mask_type, widths, fan_ins, samples=100_000, seed=2)
    check(estimate, depth_mean(widths), depth_variances(mask_type, widths, fan_ins)[-1])


@pytest.mark.parametrize("mask_type", MASK_TYPES)
def test_convolutions_meet_the_theory(mask_type):
    convolution = SparseConvolution(mask_type, 3, 5, 6, (2, 3), (4, 5), 0.4)
    estimate = simulate_convolution(convolution, samples=20_000, seed=3)
    check(estimate, convolution_norm_mean(convolution), convolution_norm_variance(convolution))


def test_fixed_masks_meet_the_theory(rng):
    mask = random_per_layer((12, 9), 30, rng)
    mask[4] = False
    estimate = simulate_fixed_mask(mask, 0.4, samples=50_000, seed=4)
    check(estimate, fixed_mask_mean(mask), fixed_mask_variance(mask, 0.4))


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, "samples must be an integer of at least 3, not 0"),
        ({"seed": -1}, "seed must be an integer of at least 0, not -1"),
        ({"seed": [1, -2]}, "seed must be an integer of at least 0, not -2"),
        ({"seed": 1.5}, "seed must be an integer of at least 0, not 1.5"),
        ({"fan_in": 2.5}, "fan_in must be a whole number in a simulation of constant_fan_in, not 2.5"),
        (
            {"mask_type": "per_layer", "fan_in": 2.1},
            "fan_in times the active neurons must be a whole number .* 12.6",
        ),
        ({"fan_in": 9}, "fan_in must be at most n_in, 8, not 9"),
    ],
)
def test_bad_simulations_are_refused(changes, message):
    arguments = {
        "mask_type": "constant_fan_in", "n_in": 8, "n_out": 6, "fan_in": 2, "samples": 10, "seed": 0,
    } | changes  # fmt: skip
    with pytest.raises(InputError, match=message):
        simulate_layer(**arguments)


def test_a_mask_without_weights_is_refused():
    with pytest.raises(InputError, match="mask must hold a weight"):
        simulate_fixed_mask(np.zeros((2, 2), dtype=bool), samples=10, seed=0)
