"""Layer densities: the published ERK vectors, the budget identity, and integer budgets."""

import json
import math
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsekit import distributions
from sparsekit.errors import InputError

VECTORS = json.loads((Path(__file__).parent / "data" / "erk_test_vectors.json").read_text())
ROWS = [(net, density) for net, table in VECTORS.items() for density in table["erk"]]

linear_shapes = st.tuples(st.integers(1, 300), st.integers(1, 300))
conv_shapes = st.tuples(st.integers(1, 60), st.integers(1, 60), st.integers(1, 5), st.integers(1, 5))
networks = st.lists(linear_shapes | conv_shapes, min_size=1, max_size=8)
densities = st.floats(0.005, 1.0)


@pytest.mark.parametrize(("net", "density"), ROWS)
def test_erk_reproduces_the_published_vectors(net, density):
    shapes = [tuple(shape) for shape in VECTORS[net]["shapes"]]
    row = VECTORS[net]["erk"][density]
    got = distributions.erdos_renyi_kernel(shapes, float(density))
    assert [1 - d for d in got] == pytest.approx(row["S"], abs=1e-12)
    assert {i for i, d in enumerate(got) if d == 1} == set(row["dense_order"])
    fan_ins = [distributions.initial_fan_in(shape, d) for shape, d in zip(shapes, got, strict=True)]
    assert fan_ins == row["k0"]
    assert sum(k * shape[0] for k, shape in zip(fan_ins, shapes, strict=True)) == row["nnz_const_fan_in"]
    assert sum(math.prod(shape) for shape in shapes) == VECTORS[net]["n_weights"]


@pytest.mark.parametrize(("net", "density"), ROWS)
def test_layers_become_dense_in_the_published_order(net, density):
    shapes = [tuple(shape) for shape in VECTORS[net]["shapes"]]
    raw = [sum(shape) / math.prod(shape) for shape in shapes]
    _, order = distributions._share_out(shapes, float(density), raw)
    assert order == VECTORS[net]["erk"][density]["dense_order"]


@given(networks, densities, st.sampled_from(["er", "erk", "erk_half"]))
def test_the_network_keeps_its_budget(shapes, density, name):
    distribute = {
        "er": distributions.erdos_renyi,
        "erk": distributions.erdos_renyi_kernel,
        "erk_half": lambda s, d: distributions.erdos_renyi_kernel(s, d, power=0.5),
    }[name]
    got = distribute(shapes, density)
    sizes = [math.prod(shape) for shape in shapes]
    # each layer's zeros are rounded down, so the whole may store up to one weight a layer more
    surplus = sum(d * n for d, n in zip(got, sizes, strict=True)) - density * sum(sizes)
    assert -1e-6 * sum(sizes) <= surplus <= len(shapes) + 1e-6 * sum(sizes)
    assert all(0 < d <= 1 for d in got)


@given(networks, densities)
def test_densities_are_in_proportion_outside_the_dense_layers(shapes, density):
    got = distributions.erdos_renyi_kernel(shapes, density)
    ratios = [d * math.prod(s) / sum(s) for d, s in zip(got, shapes, strict=True) if d < 1]
    assert ratios == pytest.approx([ratios[0]] * len(ratios)) if ratios else True


@given(st.lists(linear_shapes, min_size=1, max_size=6), densities)
def test_er_equals_erk_for_weight_layers(shapes, density):
    er, erk = distributions.erdos_renyi(shapes, density), distributions.erdos_renyi_kernel(shapes, density)
    assert er == pytest.approx(erk)


def test_er_ignores_kernel_sizes_and_erk_does_not():
    shapes = [(64, 64, 3, 3), (64, 64, 1, 1), (10, 64)]
    er = distributions.erdos_renyi(shapes, 0.1)
    assert er[0] == pytest.approx(er[1])
    erk = distributions.erdos_renyi_kernel(shapes, 0.1)
    assert erk[0] < erk[1]


def test_erk_with_power_zero_is_uniform():
    shapes = [(30, 20), (10, 30, 3, 3), (5, 10)]
    assert distributions.erdos_renyi_kernel(shapes, 0.25, power=0) == pytest.approx([0.25] * 3, rel=0.02)


def test_uniform():
    shapes = [(30, 20), (10, 30), (5, 10)]
    assert distributions.uniform(shapes, 0.2) == [1.0, 0.2, 0.2]
    assert distributions.uniform(shapes, 0.2, first_layer_dense=False) == [0.2, 0.2, 0.2]
    assert distributions.uniform(shapes[:1], 0.2) == [0.2]


@given(linear_shapes | conv_shapes, st.floats(1e-6, 1.0))
def test_budget_rounds_half_up_and_feeds_every_neuron(shape, density):
    n = math.prod(shape)
    exact = math.floor(Fraction(density) * n + Fraction(1, 2))
    got = distributions.budget(shape, density)
    assert abs(got - max(shape[0], exact)) <= (1 if n > 2**20 else 0) or math.isclose(density * n % 1, 0.5)
    assert shape[0] <= got <= n
    assert distributions.initial_fan_in(shape, density) == got // shape[0] >= 1


@pytest.mark.parametrize(
    ("shape", "density", "expected"),
    [((10, 100), 0.1, 100), ((100, 100), 0.2, 2000), ((1000, 1000), 1 - 0.9, 100_000), ((4, 10), 0.01, 4)],
)
def test_budgets_that_truncation_would_get_wrong(shape, density, expected):
    assert distributions.budget(shape, density) == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distributions.erdos_renyi_kernel([(3, 4)], 0.0), r"density must lie in \(0, 1\], not 0.0"),
        (lambda: distributions.erdos_renyi([(3, 4)], 1.1), r"density must lie in \(0, 1\]"),
        (lambda: distributions.uniform([], 0.5), "shapes must name at least one layer"),
        (lambda: distributions.uniform([(3, 4, 5)], 0.5), r"shape must be \(out, in\)"),
        (lambda: distributions.budget((3, 0), 0.5), "a size in shape must be"),
        (lambda: distributions.erdos_renyi_kernel([(3, 4)], 0.5, power=-1), "power must be at least 0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
