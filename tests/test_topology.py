"""Topology updates against an independent oracle (``naive.py``), tables worked by hand, and invariants."""

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from strategies import Layer, drop_fractions, examples, gammas, layers

from sparsekit.errors import InputError
from sparsekit.topology import SET, RigL, SRigL, Static, UpdateSchedule, cosine_drop_fraction

EXAMPLES = settings(max_examples=examples(300), deadline=None)
FEWER_EXAMPLES = settings(max_examples=examples(100), deadline=None)

# In the order of the algorithm, so that the first field that differs tells the step that went wrong.
FIELDS = ("salient", "salient_counts", "ablated", "fan_in", "kept", "mask", "grown", "dropped", "regrown")

OPTIONS = [
    {"saliency_gradient": saliency_gradient, "revive": revive, "ablate": ablate}
    for saliency_gradient, revive, ablate in itertools.product(["inactive", "all"], [True, False], [True, False])
]


def assert_same_update(actual: Any, expected: Any, context: object = "") -> None:
    """Compare two updates field by field; boolean fields must really be boolean."""
    for name in FIELDS:
        got, wanted = getattr(actual, name), getattr(expected, name)
        if wanted is None or isinstance(wanted, int):
            assert got == wanted, f"{name}: {got} instead of {wanted} {context}"
            continue
        assert np.asarray(got).dtype.kind == wanted.dtype.kind, f"{name}: dtype {got.dtype} {context}"
        np.testing.assert_array_equal(got, wanted, err_msg=f"{name} {context}")


def srigl_update(layer: Layer, gamma_sal: float, *, ablate: bool = True, **options: Any) -> Any:
    topology = SRigL(gamma_sal=gamma_sal, **options)
    return topology.update(*layer.arguments, budget=layer.budget, ablate=ablate)


# --- Against the oracle -------------------------------------------------------------------------------------


@EXAMPLES
@given(layers(), gammas())
def test_srigl_equals_oracle(layer: Layer, gamma_sal: float) -> None:
    for options in OPTIONS:
        expected = naive.srigl(*layer.arguments, layer.budget, gamma_sal=gamma_sal, **options)
        assert_same_update(srigl_update(layer, gamma_sal, **options), expected, options)


@EXAMPLES
@given(layers(), gammas(), st.sampled_from(["inactive", "all"]))
def test_official_equals_oracle(layer: Layer, gamma_sal: float, saliency_gradient: str) -> None:
    for ablate in (True, False):
        expected = naive.srigl_official(*layer.arguments, layer.budget, gamma_sal=gamma_sal, ablate=ablate)
        actual = srigl_update(
            layer, gamma_sal, ablate=ablate, compat="official", saliency_gradient=saliency_gradient
        )
        assert_same_update(actual, expected, f"ablate={ablate}")


@EXAMPLES
@given(layers())
def test_rigl_equals_oracle(layer: Layer) -> None:
    assert_same_update(RigL().update(*layer.arguments), naive.rigl(*layer.arguments))


@FEWER_EXAMPLES
@given(layers(), st.integers(0, 2**32))
def test_set_drops_like_oracle_and_grows_elsewhere(layer: Layer, seed: int) -> None:
    weight, mask, _, drop_fraction = layer.arguments
    update = SET().update(weight, mask, None, drop_fraction, rng=np.random.default_rng(seed))
    kept, n_grown = naive.magnitude_drop(weight, mask, drop_fraction)
    np.testing.assert_array_equal(update.kept, kept)
    assert (update.mask & kept).sum() == kept.sum()
    assert (update.mask & ~kept).sum() == n_grown
    assert update.mask.sum() == mask.sum()
    assert_fields_fit_together(update, mask)


SUCCESSIVE_OPTIONS = [
    {"gamma_sal": 0.3},
    {"gamma_sal": 0.9, "saliency_gradient": "all"},
    {"gamma_sal": 0.9, "revive": False},
    {"gamma_sal": 0.9, "compat": "official"},
]


@pytest.mark.parametrize("options", SUCCESSIVE_OPTIONS, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_successive_updates_of_a_larger_layer_equal_oracle(seed: int, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(seed)
    shape, budget = (64, 96), 614
    mask = np.zeros(shape, dtype=bool)
    for row in mask:
        row[rng.choice(shape[1], budget // shape[0], replace=False)] = True

    def unequal_neurons() -> np.ndarray:
        # Without them hardly any neuron would be ablated, or revived.
        return rng.lognormal(sigma=1.0, size=(shape[0], 1)) * rng.standard_normal(shape)

    weight = np.where(mask, unequal_neurons(), 0.0)

    n_ablated = n_revived = 0
    for step in range(10):
        grad = unequal_neurons()
        drop_fraction = cosine_drop_fraction(step, 0.3, 12)
        update = SRigL(**options).update(weight, mask, grad, drop_fraction, budget=budget)
        expected = oracle(weight, mask, grad, drop_fraction, budget, **options)
        assert_same_update(update, expected, f"update {step}")
        n_ablated += (update.ablated & mask.any(axis=1)).sum()
        n_revived += (~update.ablated & ~mask.any(axis=1)).sum()
        weight = np.where(update.mask & mask, weight, 0.0) + np.where(update.mask, 0.1 * unequal_neurons(), 0.0)
        mask = update.mask

    if options["gamma_sal"] > 0.5:
        assert n_ablated > 0
        assert (n_revived > 0) == options.get("revive", True)


def oracle(*arguments: Any, compat: str | None = None, **options: Any) -> naive.NaiveUpdate:
    algorithm = naive.srigl_official if compat == "official" else naive.srigl
    return algorithm(*arguments, **options)


# --- Tables worked by hand ----------------------------------------------------------------------------------


def bits(text: str) -> np.ndarray:
    """Bool array from rows of 0 and 1: "110 / 011"."""
    return np.array([[character == "1" for character in row.strip()] for row in text.split("/")])


def numbers(text: str) -> np.ndarray:
    """Float array from rows of numbers: "1 -2 / 3 .5"."""
    return np.array([[float(number) for number in row.split()] for row in text.split("/")])


@dataclass(frozen=True)
class Table:
    """One small update whose every field was worked out on paper; grown and dropped follow from the masks."""

    name: str
    mask: str
    weight: str
    grad: str
    drop_fraction: float
    budget: int
    salient: str
    ablated: str
    fan_in: int
    kept: str
    new: str
    regrown: str
    options: dict[str, Any] = field(default_factory=dict)

    def expected(self) -> naive.NaiveUpdate:
        old, new, salient = bits(self.mask), bits(self.new), bits(self.salient)
        return naive.NaiveUpdate(
            mask=new,
            kept=bits(self.kept),
            grown=new & ~old,
            dropped=old & ~new,
            regrown=bits(self.regrown),
            ablated=bits(self.ablated)[0],
            salient=salient,
            salient_counts=salient.sum(axis=1),
            fan_in=self.fan_in,
        )


# Row 1 holds two weak weights. K = int(0.5 * 6) = 3; largest weights: 4, -3 (row 0) and 2 (row 2).
WEAK_ROW = {
    "mask": "1100 / 1010 / 0011",
    "weight": "4 -3 0 0 / .5 0 .25 0 / 0 0 2 -1",
    "grad": "9 -8 1 2 / 7 1.5 0 .5 / -6 5 0 0",
    "drop_fraction": 0.5,
    "budget": 6,
}
# fan_in = 4 // 2 = 2 although f = 0: row 0 loses one of three, row 1 gains one. Gradients 5 and 5 tie.
UNEVEN_ROWS = {
    "mask": "1110 / 1000",
    "weight": "1 -3 2 0 / .5 0 0 0",
    "grad": "0 0 0 0 / 0 -1 5 5",
    "drop_fraction": 0.0,
    "budget": 4,
    "salient": "1110 / 1000",
    "ablated": "00",
    "fan_in": 2,
    "regrown": "0000 / 0000",
}
# Row 0 is empty but has the largest gradients; row 1 has one weak weight; K = int(0.5 * 5) = 2. The floor is
# ceil(5 / 4) = 2 neurons, k0 = 1, threshold 1.
EMPTY_ROW = {
    "mask": "0000 / 1000 / 1111",
    "weight": "0 0 0 0 / .1 0 0 0 / 4 3 2 1",
    "grad": "0 8 7 1 / 0 1 3 2 / 0 0 0 0",
    "drop_fraction": 0.5,
    "budget": 5,
    "salient": "0110 / 0000 / 1110",
}
# All active weights in row 2, nothing dropped or grown for saliency: counts 0, 0, 4.
LONE_ROW = {
    "mask": "0000 / 0000 / 1111",
    "weight": "0 0 0 0 / 0 0 0 0 / 1 2 4 3",
    "grad": "1 2 3 4 / 1 4 2 3 / 0 0 0 0",
    "drop_fraction": 0.0,
    "budget": 5,
    "salient": "0000 / 0000 / 1111",
    "regrown": "0000 / 0000 / 0000",
}
# Row 0 is empty and has the largest gradients, K = int(0.5 * 4) = 2: counts 2, 2. The floor is one neuron.
ONE_EMPTY_OF_TWO = {
    "mask": "0000 / 1111",
    "weight": "0 0 0 0 / 1 2 3 4",
    "grad": "1 2 3 4 / 0 0 1 0",
    "drop_fraction": 0.5,
    "budget": 4,
    "salient": "0011 / 0011",
}
# Row 2 has one salient weight, fewer than int(0.99 * 3) = 2; both floors leave rows 0 and 1. fan_in = 9 // 2.
STRONG_ROWS = {
    "mask": "011110 / 110011 / 000001",
    "weight": "0 1 2 3 4 0 / 5 6 0 0 7 8 / 0 0 0 0 0 9",
    "grad": "1 0 0 0 0 2 / 0 0 3 4 0 0 / 9 9 9 9 9 9",
    "drop_fraction": 0.0,
    "budget": 9,
    "salient": "011110 / 110011 / 000001",
    "ablated": "001",
    "fan_in": 4,
    "regrown": "000000 / 000000 / 000000",
}
# Two of four active weights are exactly zero. K = int(0.25 * 4) = 1, so three weights should be kept.
ZERO_WEIGHTS = {
    "mask": "110 / 101",
    "weight": "2 0 0 / 1 0 0",
    "grad": "0 0 5 / 0 4 0",
    "drop_fraction": 0.25,
    "budget": 4,
    "ablated": "00",
    "fan_in": 2,
    "regrown": "000 / 000",
}

TABLES = [
    # Inactive gradients: 6, 5 (row 2), 2 (row 0). Row 1 has nothing salient; floor ceil(6 / 4) = 2;
    # fan_in = 6 // 2.
    Table(
        "ablation",
        **WEAK_ROW,
        salient="1101 / 0000 / 1110",
        ablated="010",
        fan_in=3,
        kept="1100 / 0000 / 0010",
        new="1101 / 0000 / 1110",
        regrown="0000 / 0000 / 0000",
    ),
    # Over all positions the largest gradients are 9, 8 (salient already) and 7 in row 1, which saves it; its
    # just dropped first weight comes back.
    Table(
        "gradients of all positions save a row",
        **WEAK_ROW,
        salient="1100 / 1000 / 0010",
        ablated="000",
        fan_in=2,
        kept="1100 / 0000 / 0010",
        new="1100 / 1100 / 1010",
        regrown="0000 / 1000 / 0000",
        options={"saliency_gradient": "all"},
    ),
    # The same without ablation: row 1 starts from nothing kept.
    Table(
        "output layer",
        **WEAK_ROW,
        salient="1101 / 0000 / 1110",
        ablated="000",
        fan_in=2,
        kept="1100 / 0000 / 0010",
        new="1100 / 1100 / 1010",
        regrown="0000 / 1000 / 0000",
        options={"ablate": False},
    ),
    Table(
        "gamma_sal zero",
        **WEAK_ROW,
        salient="1101 / 0000 / 1110",
        ablated="000",
        fan_in=2,
        kept="1100 / 0000 / 0010",
        new="1100 / 1100 / 1010",
        regrown="0000 / 1000 / 0000",
        options={"gamma_sal": 0.0},
    ),
    # K = 2: of equal weights the first two stay, of equal gradients the first two positions are taken.
    Table(
        "all scores equal",
        mask="110 / 011",
        weight="1 -1 0 / 0 1 -1",
        grad="2 2 -2 / -2 2 2",
        drop_fraction=0.5,
        budget=4,
        salient="111 / 100",
        ablated="00",
        fan_in=2,
        kept="110 / 000",
        new="110 / 110",
        regrown="000 / 010",
    ),
    Table("no drop", **UNEVEN_ROWS, kept="0110 / 1000", new="0110 / 1010"),
    # K = nnz = 4, but only two positions are inactive: both are salient, and no weight is.
    Table(
        "drop everything",
        mask="110 / 011",
        weight="5 6 0 / 0 7 8",
        grad="3 1 2 / 1 1 1",
        drop_fraction=1.0,
        budget=4,
        salient="001 / 100",
        ablated="00",
        fan_in=2,
        kept="000 / 000",
        new="101 / 110",
        regrown="100 / 010",
    ),
    # Revived: row 0 takes part like any other. Row 2 keeps the largest two of its three kept weights.
    Table(
        "revival",
        **EMPTY_ROW,
        ablated="010",
        fan_in=2,
        kept="0000 / 0000 / 1100",
        new="0110 / 0000 / 1100",
        regrown="0000 / 0000 / 0000",
    ),
    # Not revived: the floor of two neurons falls to rows 1 and 2 although row 0 has the higher count.
    Table(
        "no revival, floor from rows that are not empty",
        **EMPTY_ROW,
        ablated="100",
        fan_in=2,
        kept="0000 / 0000 / 1100",
        new="0000 / 0011 / 1100",
        regrown="0000 / 0000 / 0000",
        options={"revive": False},
    ),
    # Floor ceil(5 / 4) = 2: row 2 by its count, row 0 as the first of equals; without revival as well, since
    # only one row is not empty.
    Table("floor", **LONE_ROW, ablated="010", fan_in=2, kept="0000 / 0000 / 0011", new="0011 / 0000 / 0011"),
    Table(
        "no revival, floor needs an empty row",
        **LONE_ROW,
        ablated="010",
        fan_in=2,
        kept="0000 / 0000 / 0011",
        new="0011 / 0000 / 0011",
        options={"revive": False},
    ),
    # fan_in = 4 // 2 = 2. Row 1 keeps its two largest; row 0 takes its two largest gradients.
    Table(
        "output layer revives",
        **ONE_EMPTY_OF_TWO,
        ablated="00",
        fan_in=2,
        kept="0000 / 0011",
        new="0011 / 0011",
        regrown="0000 / 0000",
        options={"ablate": False},
    ),
    # An empty row stays so without ablation too: fan_in = 4, and row 1 regrows all that it dropped.
    Table(
        "no revival in the output layer",
        **ONE_EMPTY_OF_TWO,
        ablated="10",
        fan_in=4,
        kept="0000 / 0011",
        new="0000 / 1111",
        regrown="0000 / 1100",
        options={"ablate": False, "revive": False},
    ),
    Table(
        "no revival with gamma_sal zero",
        **ONE_EMPTY_OF_TWO,
        ablated="10",
        fan_in=4,
        kept="0000 / 0011",
        new="0000 / 1111",
        regrown="0000 / 1100",
        options={"gamma_sal": 0.0, "revive": False},
    ),
    # Eight weights are left in rows 0 and 1, fewer than n_keep = 9: all of them stay, nothing is missing.
    Table(
        "fewer weights left than to keep",
        **STRONG_ROWS,
        kept="011110 / 110011 / 000000",
        new="011110 / 110011 / 000000",
        options={"gamma_sal": 0.99},
    ),
    # An active zero is preferred to an inactive one: (0, 1), then the single candidate to grow, (0, 2).
    Table("zero weights", **ZERO_WEIGHTS, salient="111 / 100", kept="110 / 100", new="110 / 110"),
    # 1 x 1: the weight is dropped and taken again.
    Table(
        "single weight",
        mask="1",
        weight="1",
        grad="0",
        drop_fraction=1.0,
        budget=1,
        salient="0",
        ablated="0",
        fan_in=1,
        kept="0",
        new="1",
        regrown="1",
    ),
    # Budget of the whole layer: full whatever it was.
    Table(
        "dense budget",
        mask="10 / 00",
        weight="1 0 / 0 0",
        grad="0 0 / 0 0",
        drop_fraction=0.3,
        budget=4,
        salient="10 / 00",
        ablated="00",
        fan_in=2,
        kept="10 / 00",
        new="11 / 11",
        regrown="00 / 00",
    ),
]

OFFICIAL_TABLES = [
    # Fault (a): row 0 keeps its two lowest positions instead of its two largest weights.
    Table("truncation by position", **UNEVEN_ROWS, kept="1100 / 1000", new="1100 / 1010"),
    # Fault (c): nine weights are to be kept and eight are left, so the lowest inactive position, (0, 0), is
    # "kept"; with five kept weights row 0 then loses its last and largest, by fault (a).
    Table(
        "inactive positions kept",
        **STRONG_ROWS,
        kept="111100 / 110011 / 000000",
        new="111100 / 110011 / 000000",
        options={"gamma_sal": 0.99},
    ),
    # n_keep is the number of weights that are not zero, 2, and n_prune the other 2 of 4.
    Table("fewer non-zero weights", **ZERO_WEIGHTS, salient="101 / 110", kept="100 / 100", new="101 / 110"),
    # Counts 0, 0, 4: the second-best is 0, the threshold falls to it, nothing is ablated. fan_in = 5 // 3.
    Table(
        "threshold lowered",
        **LONE_ROW,
        ablated="000",
        fan_in=1,
        kept="0000 / 0000 / 1000",
        new="0001 / 0100 / 1000",
    ),
    # Gradients of all positions count without being asked for: 9, 8 and 7, as above.
    Table(
        "gradients of all positions",
        **WEAK_ROW,
        salient="1100 / 1000 / 0010",
        ablated="000",
        fan_in=2,
        kept="1100 / 0000 / 0010",
        new="1100 / 1100 / 1010",
        regrown="0000 / 1000 / 0000",
        options={"saliency_gradient": "inactive"},
    ),
]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
@pytest.mark.parametrize("source", ["oracle", "package"])
def test_worked_table(table: Table, source: str) -> None:
    arrays = numbers(table.weight), bits(table.mask), numbers(table.grad), table.drop_fraction
    if source == "oracle":
        update = naive.srigl(*arrays, table.budget, **table.options)
    else:
        update = srigl_update(Layer(*arrays, table.budget), **{"gamma_sal": 0.3, **table.options})
    assert_same_update(update, table.expected())


@pytest.mark.parametrize("table", OFFICIAL_TABLES, ids=lambda table: table.name)
@pytest.mark.parametrize("source", ["oracle", "package"])
def test_worked_official_table(table: Table, source: str) -> None:
    arrays = numbers(table.weight), bits(table.mask), numbers(table.grad), table.drop_fraction
    options = {"gamma_sal": 0.3, **table.options}
    if source == "oracle":
        options.pop("saliency_gradient", None)
        update = naive.srigl_official(*arrays, table.budget, **options)
    else:
        update = srigl_update(Layer(*arrays, table.budget), compat="official", **options)
    assert_same_update(update, table.expected())


# K = int(0.5 * 4) = 2 throughout.
@pytest.mark.parametrize("source", ["oracle", "package"])
@pytest.mark.parametrize(
    ("grad", "new", "regrown"),
    [
        # Gradients 9 and 9 belong to kept positions and do not count; 5 and 5 are the largest of the others.
        pytest.param("5 9 9 1 / 2 4 5 0", "1110 / 0010", "1000 / 0000", id="dropped position comes back"),
        pytest.param("1 9 9 1 / 1 1 1 0", "1111 / 0000", "1000 / 0000", id="ties"),
        pytest.param("0 9 9 1 / 2 4 5 0", "0110 / 0110", "0000 / 0000", id="none comes back"),
    ],
)
def test_worked_rigl_table(source: str, grad: str, new: str, regrown: str) -> None:
    mask, weight = bits("1110 / 0001"), numbers("1 -2 3 0 / 0 0 0 -1")
    run = naive.rigl if source == "oracle" else RigL().update
    update = run(weight, mask, numbers(grad), 0.5)
    expected = naive.NaiveUpdate(
        mask=bits(new),
        kept=bits("0110 / 0000"),
        grown=bits(new) & ~mask,
        dropped=mask & ~bits(new),
        regrown=bits(regrown),
        ablated=~bits(new).any(axis=1),
    )
    assert_same_update(update, expected)


@pytest.mark.parametrize(
    ("drop_fraction", "n_kept"),
    # Products truncate in float64: 0.29 * 100 = 28.999..., and the float32 nearest 0.7, times 100, 69.999....
    [(0.0, 100), (0.009, 100), (0.01, 99), (0.29, 72), (np.float32(0.7), 31), (0.999, 1), (1.0, 0), (1, 0)],
)
def test_dropped_count_is_truncated(drop_fraction: float, n_kept: int) -> None:
    weight = np.arange(1.0, 201.0).reshape(4, 50)
    mask = weight <= 100
    weight[~mask] = 0.0
    grad = np.zeros((4, 50))
    updates = [
        RigL().update(weight, mask, grad, drop_fraction),
        SET().update(weight, mask, None, drop_fraction, rng=np.random.default_rng(0)),
    ]
    for update in updates:
        np.testing.assert_array_equal(update.kept, mask & (weight > 100 - n_kept))


@pytest.mark.parametrize(("gamma_sal", "ablated"), [(0.28, False), (0.29, False), (0.3, True)])
def test_saliency_threshold_is_truncated(gamma_sal: float, ablated: bool) -> None:
    # k0 = 100 and row 1 has 28 salient weights; 0.29 * 100 = 28.999... truncates to 28.
    mask = np.zeros((2, 200), dtype=bool)
    mask[0, :172] = True
    mask[1, :28] = True
    update = SRigL(gamma_sal=gamma_sal).update(mask * 1.0, mask, np.zeros((2, 200)), 0.0, budget=200)
    assert update.ablated.tolist() == [False, ablated]


# --- Invariants ---------------------------------------------------------------------------------------------


def assert_fields_fit_together(update: Any, old: np.ndarray) -> None:
    """Relations between the fields that hold for every algorithm."""
    np.testing.assert_array_equal(update.grown, update.mask & ~old)
    np.testing.assert_array_equal(update.dropped, old & ~update.mask)
    np.testing.assert_array_equal(update.regrown, old & ~update.kept & update.mask)
    np.testing.assert_array_equal(update.ablated, ~update.mask.any(axis=1))
    assert not (update.kept & ~update.mask).any()


@FEWER_EXAMPLES
@given(
    layers(),
    gammas(),
    st.sampled_from(["inactive", "all"]),
    st.sampled_from([(None, True), (None, False), ("official", True)]),
    st.booleans(),
)
def test_srigl_invariants(
    layer: Layer, gamma_sal: float, saliency_gradient: str, variant: tuple[str | None, bool], ablate: bool
) -> None:
    compat, revive = variant
    update = srigl_update(
        layer, gamma_sal, ablate=ablate, saliency_gradient=saliency_gradient, compat=compat, revive=revive
    )
    n_out, n_in = layer.mask.shape
    assert_fields_fit_together(update, layer.mask)
    assert 1 <= update.fan_in <= n_in
    np.testing.assert_array_equal(update.mask.sum(axis=1), np.where(update.ablated, 0, update.fan_in))
    n_active = int((~update.ablated).sum())
    assert n_active >= math.ceil(layer.budget / n_in)
    # The budget is met but for the rounding of one fan-in.
    assert n_active * update.fan_in <= layer.budget
    assert layer.budget < n_active * (update.fan_in + 1) or update.fan_in == n_in
    np.testing.assert_array_equal(update.salient.sum(axis=1), update.salient_counts)
    if compat is None:
        assert not (update.kept & ~layer.mask).any()
    if not ablate or gamma_sal == 0:
        may_be_ablated = np.zeros(n_out, dtype=bool) if revive else ~layer.mask.any(axis=1)
        assert not (update.ablated & ~may_be_ablated).any()
    # Of what a neuron did not keep it has the largest gradients.
    magnitude = np.abs(layer.grad)
    for i in np.flatnonzero(~update.ablated):
        taken, left = update.mask[i] & ~update.kept[i], ~update.mask[i]
        assert not taken.any() or not left.any() or magnitude[i, taken].min() >= magnitude[i, left].max()


@FEWER_EXAMPLES
@given(layers())
def test_rigl_invariants(layer: Layer) -> None:
    update = RigL().update(*layer.arguments)
    assert update.mask.sum() == layer.mask.sum()
    assert_fields_fit_together(update, layer.mask)
    assert not (update.kept & ~layer.mask).any()


@FEWER_EXAMPLES
@given(layers())
def test_static_changes_nothing(layer: Layer) -> None:
    update = Static().update(layer.weight, layer.mask, None, layer.drop_fraction)
    np.testing.assert_array_equal(update.mask, layer.mask)
    np.testing.assert_array_equal(update.kept, layer.mask)
    assert_fields_fit_together(update, layer.mask)
    assert (update.salient, update.salient_counts, update.fan_in) == (None, None, None)


@FEWER_EXAMPLES
@given(layers(), st.sampled_from([0.0, 0.3]))
def test_constant_fan_in_without_drop_is_a_fixed_point(layer: Layer, gamma_sal: float) -> None:
    # Every neuron fully salient: none is ablated, and there is nothing to grow.
    n_out, n_in = layer.mask.shape
    fan_in = layer.budget // n_out
    mask = np.zeros((n_out, n_in), dtype=bool)
    for i, row in enumerate(mask):
        row[(i + np.arange(fan_in)) % n_in] = True
    update = SRigL(gamma_sal=gamma_sal).update(layer.grad, mask, layer.grad, 0.0, budget=layer.budget)
    np.testing.assert_array_equal(update.mask, mask)
    np.testing.assert_array_equal(update.kept, mask)


def every_algorithm(layer: Layer, gamma_sal: float, budget: Any = None) -> list[Any]:
    budget = layer.budget if budget is None else budget
    return [
        Static().update(*layer.arguments),
        SET().update(*layer.arguments, rng=np.random.default_rng(7)),
        RigL().update(*layer.arguments),
        SRigL(gamma_sal=gamma_sal).update(*layer.arguments, budget=budget),
        SRigL(gamma_sal=gamma_sal, revive=False).update(*layer.arguments, budget=budget),
        SRigL(gamma_sal=gamma_sal, compat="official").update(*layer.arguments, budget=budget),
    ]


def assert_same_updates(layer: Layer, other: Layer, gamma_sal: float, budget: Any = None) -> None:
    expected = every_algorithm(layer, gamma_sal)
    for actual, wanted in zip(every_algorithm(other, gamma_sal, budget), expected, strict=True):
        assert_same_update(actual, wanted)


@FEWER_EXAMPLES
@given(layers(), gammas())
def test_only_magnitudes_of_active_weights_and_of_gradients_count(layer: Layer, gamma_sal: float) -> None:
    weight = np.where(layer.mask, -layer.weight, np.asarray(5.0, layer.weight.dtype))
    other = Layer(weight, layer.mask, -layer.grad, layer.drop_fraction, layer.budget)
    assert_same_updates(layer, other, gamma_sal)


@FEWER_EXAMPLES
@given(layers(), gammas())
def test_inputs_are_not_modified(layer: Layer, gamma_sal: float) -> None:
    before = [array.copy() for array in layer.arguments[:3]]
    for array in layer.arguments[:3]:
        array.flags.writeable = False
    every_algorithm(layer, gamma_sal)
    for array, copy in zip(layer.arguments[:3], before, strict=True):
        np.testing.assert_array_equal(array, copy)


@FEWER_EXAMPLES
@given(layers(), gammas())
def test_dtype_and_memory_layout_do_not_matter(layer: Layer, gamma_sal: float) -> None:
    def every_second_column(array: np.ndarray) -> np.ndarray:
        return np.repeat(array, 2, axis=1)[:, ::2]

    fraction = np.float64(layer.drop_fraction)
    strided = (every_second_column(array) for array in layer.arguments[:3])
    for other in (
        Layer(layer.weight.astype(np.float64), layer.mask, layer.grad, fraction, layer.budget),
        Layer(layer.weight, layer.mask, layer.grad.astype(np.float64), fraction, layer.budget),
        Layer(*(np.asfortranarray(array) for array in layer.arguments[:3]), fraction, layer.budget),
        Layer(*strided, fraction, layer.budget),
    ):
        assert_same_updates(layer, other, gamma_sal, np.int64(layer.budget))


def test_scores_keep_double_precision() -> None:
    # In float32 these would tie and the lower index would win.
    weight, mask = np.array([[1.0, 1.0 + 1e-12, 0.0, 0.0]]), bits("1100")
    grad = np.array([[0.0, 0.0, 1.0, -1.0 - 1e-12]])
    np.testing.assert_array_equal(RigL().update(weight, mask, grad, 0.5).mask, bits("0101"))
    np.testing.assert_array_equal(SRigL().update(weight, mask, grad, 0.5, budget=2).mask, bits("0101"))


def test_others_ignore_the_budget() -> None:
    weight, mask, grad = np.array([[1.0, 2.0, 0.0]]), bits("110"), np.ones((1, 3))
    rng = np.random.default_rng(0)
    for topology in (Static(), SET(), RigL()):
        assert topology.update(weight, mask, grad, 0.5, budget=10**9, rng=rng).mask.sum() == 2


# --- SET: uniform growth ------------------------------------------------------------------------------------


def test_set_grows_every_subset_equally_often() -> None:
    # Five positions are not kept and two of them are taken: ten subsets, equally likely. A right
    # implementation fails with one seed in a million.
    weight, mask = numbers("9 8 7 1 / 1 0 0 0"), bits("1111 / 1000")
    rng = np.random.default_rng(2023)
    n_updates = 3000
    counts: dict[bytes, int] = {}
    for _ in range(n_updates):
        update = SET().update(weight, mask, None, 0.4, rng=rng)
        np.testing.assert_array_equal(update.kept, bits("1110 / 0000"))
        taken = (update.mask & ~update.kept).tobytes()
        counts[taken] = counts.get(taken, 0) + 1
    assert len(counts) == 10
    expected = n_updates / 10
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < chi2.isf(1e-6, df=9)


def test_set_depends_on_nothing_but_its_rng() -> None:
    weight, mask = np.ones((20, 20)), np.zeros((20, 20), dtype=bool)
    mask[:, :5] = True

    def grown(seed: int) -> np.ndarray:
        return SET().update(weight, mask, None, 0.5, rng=np.random.default_rng(seed)).mask

    np.testing.assert_array_equal(grown(1), grown(1))
    assert (grown(1) != grown(2)).any()


# --- Schedule -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "expected"),
    # cos(pi / 4) = sqrt(1 / 2).
    [(0, 0.3), (250, 0.15 * (1 + 0.5**0.5)), (500, 0.15), (750, 0.15 * (1 - 0.5**0.5)), (1000, 0.0)],
)
def test_cosine_drop_fraction_values(step: int, expected: float) -> None:
    assert cosine_drop_fraction(step, 0.3, 1000) == pytest.approx(expected, abs=1e-15)


@FEWER_EXAMPLES
@given(drop_fractions(), st.integers(1, 10**6), st.data())
def test_cosine_drop_fraction_falls_from_alpha_to_zero(alpha: float, t_end: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, t_end - 1))
    now, later = cosine_drop_fraction(step, alpha, t_end), cosine_drop_fraction(step + 1, alpha, t_end)
    assert 0.0 <= later <= now <= alpha
    # Symmetric about the middle.
    assert now + cosine_drop_fraction(t_end - step, alpha, t_end) == pytest.approx(alpha, abs=1e-12)


@pytest.mark.parametrize(
    ("t_end", "due"),
    [(350, [100, 200, 300]), (300, [100, 200]), (301, [100, 200, 300]), (101, [100]), (100, []), (1, [])],
)
def test_schedule_is_due(t_end: int, due: list[int]) -> None:
    schedule = UpdateSchedule(delta_t=100, alpha=0.3, t_end=t_end)
    assert [step for step in range(1, 1001) if schedule.is_due(step)] == due


def test_schedule_can_update_at_every_step() -> None:
    schedule = UpdateSchedule(delta_t=1, alpha=0.3, t_end=5)
    assert [schedule.is_due(step) for step in range(1, 8)] == [True] * 4 + [False] * 3


def test_schedule_drop_fraction_is_the_cosine() -> None:
    schedule = UpdateSchedule(delta_t=100, alpha=0.3, t_end=750)
    for step in (100, 375, 700):
        assert schedule.drop_fraction(step) == cosine_drop_fraction(step, 0.3, 750)


# --- Errors -------------------------------------------------------------------------------------------------


def assert_input_error(call: Any, argument: str, value: str = "") -> None:
    """One line that names the argument (a regular expression) and shows the value."""
    with pytest.raises(InputError, match=rf"\b({argument})\b") as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert value in message


def good_arguments() -> dict[str, Any]:
    return {
        "weight": np.array([[1.0, 2.0, 0.0], [0.0, 3.0, 4.0]]),
        "mask": bits("110 / 011"),
        "grad": np.ones((2, 3)),
        "drop_fraction": 0.5,
        "budget": 4,
        "rng": np.random.default_rng(0),
    }


ALGORITHMS = {
    "Static": Static(),
    "SET": SET(),
    "RigL": RigL(),
    "SRigL": SRigL(),
    "SRigL official": SRigL(compat="official"),
}
EVERY = tuple(ALGORITHMS)
NEED_GRAD = ("RigL", "SRigL", "SRigL official")
NEED_BUDGET = ("SRigL", "SRigL official")


def with_entry(value: float, position: tuple[int, int]) -> np.ndarray:
    array = np.ones((2, 3))
    array[position] = value
    return array


# Algorithms, argument, bad value, the names that the message may give, what it must show of the value.
BAD_ARGUMENTS = [
    (EVERY, "weight", np.ones(3), "weight", "(3,)"),
    (EVERY, "weight", np.ones((2, 3, 1)), "weight", "(2, 3, 1)"),
    (EVERY, "weight", np.ones((2, 4)), "weight|mask", "(2, 4)"),
    (EVERY, "weight", np.ones((3, 2)), "weight|mask", "(3, 2)"),
    (EVERY, "weight", with_entry(np.nan, (0, 0)), "weight", ""),
    (EVERY, "weight", with_entry(np.inf, (1, 2)), "weight", ""),
    # An inactive position: the value would not count, but something has gone wrong before.
    (EVERY, "weight", with_entry(-np.inf, (0, 2)), "weight", ""),
    (EVERY, "mask", np.ones((2, 3)), "mask", "float64"),
    (EVERY, "mask", np.ones((2, 3), dtype=np.uint8), "mask", "uint8"),
    (EVERY, "mask", np.ones((2, 4), dtype=bool), "weight|mask", "(2, 4)"),
    (EVERY, "mask", np.ones(6, dtype=bool), "mask", "(6,)"),
    (NEED_GRAD, "grad", None, "grad", "None"),
    (EVERY, "grad", np.ones((3, 2)), "grad", "(3, 2)"),
    (EVERY, "grad", np.ones(6), "grad", "(6,)"),
    (EVERY, "grad", with_entry(np.nan, (1, 1)), "grad", ""),
    (EVERY, "grad", with_entry(-np.inf, (0, 2)), "grad", ""),
    (EVERY, "drop_fraction", -0.01, "drop_fraction", "-0.01"),
    (EVERY, "drop_fraction", 1.01, "drop_fraction", "1.01"),
    (EVERY, "drop_fraction", math.nan, "drop_fraction", "nan"),
    (EVERY, "drop_fraction", math.inf, "drop_fraction", "inf"),
    (NEED_BUDGET, "budget", None, "budget", "None"),
    (NEED_BUDGET, "budget", 1, "budget", "1"),
    (NEED_BUDGET, "budget", 7, "budget", "7"),
    (NEED_BUDGET, "budget", -4, "budget", "-4"),
    (NEED_BUDGET, "budget", 4.5, "budget", "4.5"),
    (("SET",), "rng", None, "rng", "None"),
]
BAD_CALLS = [(name, *case[1:]) for case in BAD_ARGUMENTS for name in case[0]]


@pytest.mark.parametrize(("algorithm", "argument", "bad", "named", "shown"), BAD_CALLS)
def test_bad_argument_of_update(algorithm: str, argument: str, bad: Any, named: str, shown: str) -> None:
    topology, arguments = ALGORITHMS[algorithm], good_arguments()
    # The same call without the bad value is fine, so that nothing else can be the cause.
    topology.update(**arguments)
    assert_input_error(lambda: topology.update(**{**arguments, argument: bad}), named, shown)


@pytest.mark.parametrize("compat", [None, "official"])
@pytest.mark.parametrize("budget", [2, np.int64(2), 6])
def test_fan_in_is_a_plain_int(budget: int, compat: str | None) -> None:
    # It goes into JSON files, which know no NumPy integers.
    assert type(SRigL(compat=compat).update(**{**good_arguments(), "budget": budget}).fan_in) is int


def test_budget_may_be_either_end() -> None:
    arguments = good_arguments()
    assert SRigL().update(**{**arguments, "budget": 2}).mask.sum() == 2
    assert SRigL().update(**{**arguments, "budget": 6}).mask.all()


@pytest.mark.parametrize(
    ("options", "named", "shown"),
    [
        ({"gamma_sal": -0.1}, "gamma_sal", "-0.1"),
        ({"gamma_sal": math.nan}, "gamma_sal", "nan"),
        ({"gamma_sal": math.inf}, "gamma_sal", "inf"),
        ({"saliency_gradient": "active"}, "saliency_gradient", "active"),
        ({"compat": "paper"}, "compat", "paper"),
        ({"compat": "official", "revive": False}, "compat|revive", "official"),
    ],
)
def test_bad_option_of_srigl(options: dict[str, Any], named: str, shown: str) -> None:
    assert_input_error(lambda: SRigL(**options), named, shown)


@pytest.mark.parametrize(
    ("argument", "bad"),
    [("step", -1), ("alpha", -0.1), ("alpha", 1.1), ("alpha", math.nan), ("t_end", 0), ("t_end", -5)],
)
def test_bad_argument_of_cosine_drop_fraction(argument: str, bad: float) -> None:
    arguments = {"step": 1, "alpha": 0.3, "t_end": 10, argument: bad}
    assert_input_error(lambda: cosine_drop_fraction(**arguments), argument, str(bad))


@pytest.mark.parametrize(
    ("argument", "bad"),
    [("delta_t", 0), ("delta_t", -1), ("alpha", -0.1), ("alpha", 1.1), ("alpha", math.nan), ("t_end", -5)],
)
def test_bad_argument_of_schedule(argument: str, bad: float) -> None:
    arguments = {"delta_t": 100, "alpha": 0.3, "t_end": 10, argument: bad}
    assert_input_error(lambda: UpdateSchedule(**arguments), argument, str(bad))
