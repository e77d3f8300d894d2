"""The theory of the output norm: equal to exact enumeration and to the paper's formulas; its corollaries hold."""

import math
from fractions import Fraction
from itertools import pairwise, product

import numpy as np
import pytest
from enumeration import (
    convolution_connections,
    gates_of,
    linear_connections,
    masks_of,
    mean_and_variance,
    moments_given,
    normal_moment,
    sphere_moment,
)
from hypothesis import given
from hypothesis import strategies as st

from analysis.theory import (
    MASK_TYPES,
    ablation_raises_relative_variance,
    bernoulli_minus_constant_fan_in,
    bernoulli_minus_per_layer,
    fan_in_after_ablation,
    fan_in_beats_per_layer,
    output_norm_mean,
    output_norm_variance,
    per_layer_minus_constant_fan_in,
    relative_variance,
)
from analysis.theory_convolution import SparseConvolution, convolution_norm_mean, convolution_norm_variance
from analysis.theory_depth import depth_mean, depth_variances
from analysis.theory_fixed_mask import fixed_mask_mean, fixed_mask_variance
from sparsekit.errors import InputError
from sparsekit.masks import random_constant_fan_in, random_per_layer

HALF, THIRD = Fraction(1, 2), Fraction(1, 3)
EXACT = 1e-12


def close(value, expected):
    return value == pytest.approx(float(expected), rel=EXACT, abs=EXACT)


# The oracle


def test_moments_of_normals():
    moments = [normal_moment("a" * count) for count in range(8)]
    assert moments == [1, 0, 1, 0, 3, 0, 15, 0]
    assert normal_moment("aabbbb") == 3
    assert normal_moment("aab") == 0


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_moments_of_the_sphere_add_up_to_its_radius(n):
    """The squared coordinates of a unit vector sum to 1, and so does the square of that sum."""
    assert sum(sphere_moment((j, j), n) for j in range(n)) == 1
    assert sum(sphere_moment((j, j, i, i), n) for i, j in product(range(n), repeat=2)) == 1


@pytest.mark.parametrize("mask_type", MASK_TYPES)
def test_chances_of_all_masks_and_gates_add_up(mask_type):
    masks = list(masks_of(mask_type, 2, 3, Fraction(2)))
    assert sum(chance for _, chance in masks) == 1
    assert sum(chance * len(mask) for mask, chance in masks) == 4
    assert len({mask for mask, _ in masks}) == len(masks)
    assert sum(chance for _, chance in gates_of(3, THIRD)) == 1


# One layer against enumeration

LAYERS = [  # n_out, n_in, fan_in, gate_probability
    (1, 1, 1, HALF),
    (2, 1, 1, THIRD),
    (1, 3, 2, HALF),
    (2, 2, 1, HALF),
    (2, 3, 1, Fraction(1)),
    (2, 3, 2, HALF),
    (2, 3, Fraction(3, 2), HALF),
    (2, 3, 3, Fraction(1, 5)),
    (3, 2, 1, THIRD),
    (3, 3, 2, HALF),
    (2, 4, 2, Fraction(3, 10)),
]


def _allowed(mask_type, fan_in):
    return mask_type != "constant_fan_in" or Fraction(fan_in).denominator == 1


@pytest.mark.parametrize(
    ("mask_type", "layer"),
    [(mask_type, layer) for mask_type in MASK_TYPES for layer in LAYERS if _allowed(mask_type, layer[2])],
)
def test_mean_and_variance_are_those_of_all_masks_and_gates(mask_type, layer):
    n_out, n_in, fan_in, p = layer
    mean, variance = mean_and_variance(mask_type, (n_out, n_in), Fraction(fan_in), p)
    arguments = mask_type, n_in, n_out, float(fan_in), float(p)
    assert close(output_norm_mean(*arguments), mean)
    assert close(output_norm_variance(*arguments), variance)
    with_ablated = mask_type, n_in, n_out + 3, float(fan_in), float(p), 3
    assert close(output_norm_variance(*with_ablated), variance)
    assert close(relative_variance(*with_ablated), variance / mean**2)


# The paper's square layers


@pytest.mark.parametrize("n", [2, 10, 64])
@pytest.mark.parametrize("density", [0.05, 0.2, 1.0])
def test_square_layers_have_the_variances_of_the_paper(n, density):
    k = max(1.0, density * n)
    C = (n - 1 / k) / (n - 1 / n)
    bernoulli = (5 * n - 8 + 18 * n / k) / (n * (n + 2))
    per_layer = ((n**2 + 7 * n - 8) * C + 18 * n / k - n**2 - 2 * n) / (n * (n + 2))
    assert close(output_norm_variance("bernoulli", n, n, k), bernoulli)
    assert close(output_norm_variance("per_layer", n, n, k), per_layer)
    fan_in = bernoulli - 3 * (n - k) / (k * n * (n + 2))
    assert close(output_norm_variance("constant_fan_in", n, n, k), fan_in)


def test_values_of_the_papers_curves():
    assert output_norm_variance("constant_fan_in", 40, 40, 2) == pytest.approx(0.29464, abs=5e-6)
    assert output_norm_variance("per_layer", 40, 40, 4) == pytest.approx(0.21516, abs=5e-6)


# Properties


@st.composite
def layers(draw):
    """(n_in, n_out, fan_in, gate_probability, n_ablated) with at least one weight a neuron."""
    n_in, n_out = draw(st.integers(1, 80)), draw(st.integers(1, 80))
    fan_in = draw(st.one_of(st.integers(1, n_in), st.floats(1, n_in)))
    p = draw(st.floats(0.05, 1.0))
    return n_in, n_out, fan_in, p, draw(st.integers(0, n_out - 1))


@given(layers())
def test_differences_are_those_of_the_variances(layer):
    variance = {mask_type: output_norm_variance(mask_type, *layer) for mask_type in MASK_TYPES}
    tolerance = {
        "rel": 1e-9,
        "abs": 1e-11 * (1 + variance["bernoulli"] + output_norm_mean("bernoulli", *layer) ** 2),
    }
    expected = pytest.approx(variance["bernoulli"] - variance["constant_fan_in"], **tolerance)
    assert bernoulli_minus_constant_fan_in(*layer) == expected
    expected = pytest.approx(variance["bernoulli"] - variance["per_layer"], **tolerance)
    assert bernoulli_minus_per_layer(*layer) == expected
    expected = pytest.approx(variance["per_layer"] - variance["constant_fan_in"], **tolerance)
    assert per_layer_minus_constant_fan_in(*layer) == expected


@given(layers())
def test_bernoulli_masks_vary_most(layer):
    assert bernoulli_minus_constant_fan_in(*layer) >= 0
    assert bernoulli_minus_per_layer(*layer) >= 0


@given(st.integers(2, 60), st.integers(2, 60), st.floats(0.02, 1.0), st.floats(0.0, 0.99))
def test_fan_in_beats_per_layer_whatever_fan_in_and_neurons(n_in, n_out, p, share):
    fan_in = 1 + share * (n_in - 1)
    difference = per_layer_minus_constant_fan_in(n_in, n_out, fan_in, p)
    assert fan_in_beats_per_layer(n_in, p) == (p * (2 * n_in + 1) > 3)
    assert (difference > 0) == (2 * n_in + 1 - 3 / p > 0)


def test_order_of_masks_turns_in_tiny_layers():
    """The case worked by hand: 4 inputs, 2 neurons, fan-in 2, gates open with probability 0.3."""
    fan_in, per_layer = (output_norm_variance(kind, 4, 2, 2, 0.3) for kind in ("constant_fan_in", "per_layer"))
    assert close(fan_in, Fraction(67, 48))
    assert close(per_layer, Fraction(39, 28))
    assert not fan_in_beats_per_layer(4, 0.3)
    assert fan_in_beats_per_layer(4, 0.5)
    assert [fan_in_beats_per_layer(n) for n in (1, 2, 3)] == [False, False, True]


@given(st.sampled_from(MASK_TYPES), st.integers(2, 20), st.integers(2, 20), st.floats(0.1, 1.0), st.data())
def test_ablation_raises_the_relative_variance_where_it_says(mask_type, n_in, n_out, p, data):
    """For every number of neurons that can be ablated, the relative variance moves in the direction stated."""
    fan_in = data.draw(st.integers(1, n_in))
    most = n_out - math.ceil(fan_in * n_out / n_in)
    values = [
        relative_variance(mask_type, n_in, n_out, min(n_in, fan_in_after_ablation(n_in, n_out, fan_in, a)), p, a)
        for a in range(most + 1)
    ]
    raises = ablation_raises_relative_variance(mask_type, n_in, p)
    threshold = 2 * (n_in - 1) if mask_type == "bernoulli" else 2 * n_in + 1
    slack = 1e-9 * (1 + max(values))
    for before, after in pairwise(values):
        if abs(p * threshold - 3) > 1e-3:
            assert (after > before) == raises
        assert after >= before - slack if raises else after <= before + slack


def test_ablation_in_relu_networks():
    assert [ablation_raises_relative_variance("bernoulli", n) for n in (1, 4, 5, 64)] == [False, False, True, True]
    assert [ablation_raises_relative_variance("per_layer", n) for n in (2, 3)] == [False, True]


def test_the_weights_of_ablated_neurons_are_shared():
    assert fan_in_after_ablation(64, 64, 6, 48) == 24
    with pytest.raises(InputError, match="n_ablated must leave neurons .* fan-in 192, above n_in, 64"):
        fan_in_after_ablation(64, 64, 6, 62)


# A mask that is known


@pytest.mark.parametrize("p", [HALF, Fraction(1, 5)])
@pytest.mark.parametrize("rows", [["110", "011"], ["111", "100"], ["101", "101", "010"], ["1000", "0111"]])
def test_fixed_mask_is_the_mean_over_its_gates(rows, p):
    """Rows of different fan-in: each is scaled by its own, which the oracle is told by weighing the outputs."""
    mask = np.array([[bit == "1" for bit in row] for row in rows])
    mean, square = _scaled_moments(mask, p)
    assert close(fixed_mask_mean(mask), mean)
    assert close(fixed_mask_variance(mask, float(p)), square - mean**2)
    ablated = np.vstack([mask[:1], np.zeros((2, mask.shape[1]), dtype=bool), mask[1:]])
    assert close(fixed_mask_variance(ablated, float(p)), square - mean**2)


def _scaled_moments(mask, p):
    """E |z|^2 and E |z|^4 of rows scaled by 1/(p fan_in); the latter from each row alone and each two together."""
    n_out, n_in = mask.shape
    positions = frozenset((int(i), int(j)) for i, j in np.argwhere(mask))
    connections = linear_connections(n_out, n_in)
    scales = [1 / (p * int(row.sum())) for row in mask]
    mean = square = Fraction(0)
    for is_open, chance in gates_of(n_in, p):
        alone = [moments_given(positions, is_open, [row], n_in) for row in connections]
        for i in range(n_out):
            mean += chance * scales[i] * alone[i][0]
            square += chance * scales[i] ** 2 * alone[i][1]
            for other in range(i):
                both = moments_given(positions, is_open, [connections[i], connections[other]], n_in)[1]
                square += chance * scales[i] * scales[other] * (both - alone[i][1] - alone[other][1])
    return mean, square


@pytest.mark.parametrize("mask_type", ["constant_fan_in", "per_layer"])
def test_fixed_masks_average_to_random_masks(mask_type):
    """Over all masks with constant fan-in; a per-layer mask of one neuron has constant fan-in too."""
    n_out = 3 if mask_type == "constant_fan_in" else 1
    variances = []
    for positions, _ in masks_of(mask_type, n_out, 4, Fraction(2)):
        mask = np.zeros((n_out, 4), dtype=bool)
        for position in positions:
            mask[position] = True
        variances.append(fixed_mask_variance(mask, 0.3))
    assert close(np.mean(variances), output_norm_variance(mask_type, 4, n_out, 2, 0.3))


def test_uneven_inputs_raise_the_variance(rng):
    even = np.kron(np.eye(4, dtype=bool), np.ones((2, 2), dtype=bool))
    same = np.zeros((8, 8), dtype=bool)
    same[:, :2] = True
    assert fixed_mask_variance(even) < fixed_mask_variance(random_constant_fan_in((8, 8), 2, rng))
    assert fixed_mask_variance(same) > fixed_mask_variance(random_per_layer((8, 8), 16, rng))


# Depth


@given(st.sampled_from(MASK_TYPES), st.integers(1, 50), st.integers(1, 50), st.data())
def test_depth_of_one_layer_is_that_layer(mask_type, n_in, n_out, data):
    fan_in = data.draw(st.integers(1, n_in))
    variance = output_norm_variance(mask_type, n_in, n_out, fan_in)
    assert depth_variances(mask_type, [n_in, n_out], [fan_in])[0] == pytest.approx(variance, rel=1e-9)


def test_dense_layers_multiply():
    widths = [5, 7, 4, 6]
    squares = np.cumprod([1 + relative_variance("bernoulli", n, m, n) for n, m in pairwise(widths)])
    variances = depth_variances("constant_fan_in", widths, widths[:-1])
    means = [depth_mean(widths[: layer + 2]) for layer in range(3)]
    np.testing.assert_allclose(variances, (squares - 1) * np.square(means), rtol=1e-12)


@pytest.mark.parametrize("mask_type", MASK_TYPES)
def test_two_layers_are_those_of_all_masks_and_gates(mask_type):
    """The fourth moments of all pairs of outputs of the first layer, then all masks and gates of the second."""
    widths, fan_ins = [3, 2, 2], [2, 1]
    pairs = np.zeros((2, 2), dtype=object)  # E z_j^2 z_l^2 after the first layer
    connections, scale = linear_connections(2, 3), 1 / (HALF * fan_ins[0])
    for (mask, mask_chance), (is_open, gate_chance) in product(
        masks_of(mask_type, 2, 3, Fraction(fan_ins[0])), list(gates_of(3, HALF))
    ):
        alone = [moments_given(mask, is_open, [row], 3)[1] for row in connections]
        both = (moments_given(mask, is_open, connections, 3)[1] - alone[0] - alone[1]) / 2
        pairs += mask_chance * gate_chance * scale**2 * np.array([[alone[0], both], [both, alone[1]]])
    square, scale = Fraction(0), 1 / (HALF * fan_ins[1])
    for (mask, mask_chance), (is_open, gate_chance) in product(
        masks_of(mask_type, 2, 2, Fraction(fan_ins[1])), list(gates_of(2, HALF))
    ):
        for (i, j), (other, h) in product(mask, repeat=2):
            if j in is_open and h in is_open:
                weights = 3 if i == other else 1  # given its inputs, an output is normal: E z^4 = 3 (E z^2)^2
                square += mask_chance * gate_chance * scale**2 * weights * pairs[j, h]
    assert close(depth_variances(mask_type, widths, fan_ins)[-1], square - Fraction(2, 3) ** 2)


# Convolutions

CONVOLUTIONS = [  # channels, filters, kernel, image, fan_in, gate_probability
    (2, 2, (1, 1), (1, 2), 1, THIRD),
    (1, 1, (1, 2), (1, 3), 1, THIRD),
    (1, 2, (1, 2), (1, 3), 1, HALF),
    (2, 1, (1, 2), (1, 3), 2, Fraction(1, 5)),
    (1, 1, (1, 3), (1, 5), 2, HALF),
    (2, 2, (1, 2), (1, 3), 2, HALF),
]


@pytest.mark.parametrize(
    ("mask_type", "case"),
    [
        *product(MASK_TYPES, CONVOLUTIONS[:-1]),
        ("constant_fan_in", CONVOLUTIONS[-1]),  # all masks of the other kinds take half a minute
    ],
)
def test_convolutions_are_those_of_all_masks_and_gates(mask_type, case):
    channels, n_filters, kernel, image, fan_in, p = case
    convolution = SparseConvolution(mask_type, channels, n_filters, fan_in, kernel, image, float(p))
    connections = convolution_connections(n_filters, channels, kernel, image)
    shape = n_filters, convolution.rows.n_in
    n_inputs = channels * image[0] * image[1]
    mean, variance = mean_and_variance(mask_type, shape, Fraction(fan_in), p, connections, n_inputs)
    assert close(convolution_norm_mean(convolution), mean)
    assert close(convolution_norm_variance(convolution), variance)


@given(layers().filter(lambda layer: layer[4] == 0), st.sampled_from(MASK_TYPES))
def test_convolution_of_one_pixel_is_a_linear_layer(layer, mask_type):
    n_in, n_out, fan_in, p, _ = layer
    convolution = SparseConvolution(mask_type, n_in, n_out, fan_in, (1, 1), (1, 1), p)
    variance = output_norm_variance(mask_type, n_in, n_out, fan_in, p)
    scale = 1e-11 * (1 + variance + (n_out / n_in) ** 2)
    assert convolution_norm_variance(convolution) == pytest.approx(variance, rel=1e-9, abs=scale)


def test_convolution_of_a_large_image_keeps_the_variance_of_its_filters():
    convolution = SparseConvolution("constant_fan_in", 4, 6, 9, (3, 3), (3000, 3000))
    assert convolution_norm_variance(convolution) == pytest.approx(2 * 6 / (9 * 4**2), rel=1e-4)


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_type": "per-layer"}, "mask_type must be one of .*did you mean 'per_layer'"),
        ({"fan_in": 9}, "fan_in must be at most n_in, 8, not 9"),
        ({"fan_in": 0}, "fan_in must be greater than 0 and finite, not 0"),
        ({"fan_in": 0.5}, "fan_in must be at least 1"),
        ({"fan_in": float("nan")}, "fan_in must be greater than 0 and finite, not nan"),
        ({"mask_type": "per_layer", "fan_in": 0.1}, "fan_in times the active neurons must be at least 1"),
        ({"gate_probability": 0.0}, r"gate_probability must lie in \(0, 1\], not 0.0"),
        ({"gate_probability": 1.5}, r"gate_probability must lie in \(0, 1\], not 1.5"),
        ({"n_ablated": 6}, r"n_ablated must be an integer in \[0, 5\], not 6"),
        ({"n_in": 0}, "n_in must be an integer of at least 1, not 0"),
        ({"n_out": 2.5}, "n_out must be an integer of at least 1, not 2.5"),
    ],
)
def test_bad_layers_are_refused(changes, message):
    arguments = {"mask_type": "constant_fan_in", "n_in": 8, "n_out": 6, "fan_in": 2} | changes
    for function in (output_norm_mean, output_norm_variance):
        with pytest.raises(InputError, match=message):
            function(**arguments)


def test_bad_networks_masks_and_convolutions_are_refused():
    with pytest.raises(InputError, match="widths must be two or more numbers, .* 3 widths and 1 fan_ins"):
        depth_variances("bernoulli", [4, 4, 4], [2])
    with pytest.raises(InputError, match="mask must hold a weight, but none of its 6 positions"):
        fixed_mask_variance(np.zeros((2, 3), dtype=bool))
    with pytest.raises(InputError, match="mask must be a bool array"):
        fixed_mask_variance(np.ones((2, 3)))
    with pytest.raises(InputError, match="image must be larger than 4 for 3 taps, not 4"):
        SparseConvolution("bernoulli", 2, 2, 4, (3, 3), (8, 4))
    assert SparseConvolution("bernoulli", 2, 2, 4, 3, 5) == SparseConvolution("bernoulli", 2, 2, 4, (3, 3), (5, 5))
    with pytest.raises(InputError, match="fan_in must be at most n_in, 18, not 19"):
        SparseConvolution("bernoulli", 2, 2, 19)
