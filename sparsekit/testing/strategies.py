"""Hypothesis strategies: random layers at the moment of a topology update.

Sizes are small and values few on purpose: ties, empty rows, full rows and weights that are exactly zero are
rare in a random float array but decide whether an update is right.
"""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

MAX_OUT, MAX_IN = 8, 12

# Each array takes its values from one of these. All are float32 numbers, so that the dtype does not change
# the ranking. Hypothesis shrinks towards the first value.
VALUES = [
    np.array([0.0, 0.5, -0.5, 1.0, -1.0], dtype=np.float32),
    np.array([1.0, -1.0], dtype=np.float32),
    np.array([0.0, -0.0, 1.0, -1.0, 1e-40, -1e-40, 3e38, -3e38], dtype=np.float32),
    np.arange(256, dtype=np.float32) - 100.5,
    np.zeros(1, dtype=np.float32),
]


@dataclass(frozen=True)
class Layer:
    """Everything that one update needs.

    Attributes
    ----------
    weight, grad : float32 or float64, (n_out, n_in)
        The weight is zero where inactive, as the trainer guarantees; the gradient is dense.
    mask : bool, (n_out, n_in)
    drop_fraction : float in [0, 1]
    budget : int in [n_out, n_out * n_in]; equal to, above or below the number of active weights
    """

    weight: np.ndarray
    mask: np.ndarray
    grad: np.ndarray
    drop_fraction: float
    budget: int

    @property
    def arguments(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Positional arguments of ``update``."""
        return self.weight, self.mask, self.grad, self.drop_fraction


def shapes() -> st.SearchStrategy[tuple[int, int]]:
    """(n_out, n_in) from 1 x 1 to 8 x 12, the larger ones more often."""
    any_shape = st.tuples(st.integers(1, MAX_OUT), st.integers(1, MAX_IN))
    larger = st.tuples(st.integers(4, MAX_OUT), st.integers(6, MAX_IN))
    return st.one_of(any_shape, larger, larger)


def drop_fractions() -> st.SearchStrategy[float]:
    """Fractions in [0, 1], both ends included often."""
    return st.one_of(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 1.0]), st.floats(0.0, 1.0))


def gammas() -> st.SearchStrategy[float]:
    """gamma_sal in [0, 0.99], both ends included often."""
    return st.one_of(st.sampled_from([0.0, 0.3, 0.6, 0.9, 0.99]), st.floats(0.0, 0.99))


def random_bytes(shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
    """uint8 array, from one draw, which is many times faster than one draw per entry.

    Bytes chosen by Hypothesis are often equal and shrink well; those of a seeded generator are well spread.
    """
    size = int(np.prod(shape))
    chosen = st.binary(min_size=size, max_size=size)
    spread = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).bytes(size))
    return st.one_of(chosen, spread).map(lambda data: np.frombuffer(data, dtype=np.uint8).reshape(shape))


@st.composite
def masks(draw: st.DrawFn, shape: tuple[int, int], constant_fan_in: bool = False) -> np.ndarray:
    """Bool mask: unstructured, of any density or one per row, or constant fan-in; some rows may be empty.

    With `constant_fan_in` it is always that.
    """
    n_out, n_in = shape
    entries = draw(random_bytes(shape))
    kinds = ["constant fan-in"] if constant_fan_in else ["unstructured", "uneven rows", "constant fan-in"]
    kind = draw(st.sampled_from(kinds))
    if kind == "unstructured":
        mask = entries < draw(st.integers(16, 256))
    elif kind == "uneven rows":
        mask = entries < draw(random_bytes((n_out, 1)))
    else:
        mask = entries.argsort(axis=1, kind="stable") < draw(st.integers(1, n_in))
    if draw(st.booleans()):
        mask[draw(random_bytes((n_out,))) % 4 == 1] = False
    return mask


@st.composite
def scores(draw: st.DrawFn, shape: tuple[int, int]) -> np.ndarray:
    """float32 or float64 values: few, of one magnitude, of extreme magnitudes, many, or all zero.

    Some neurons may be weaker than others, so that they keep or grow little.
    """
    values = draw(st.sampled_from(VALUES))
    array = values.take(draw(random_bytes(shape)), mode="wrap")
    if draw(st.booleans()):
        array = np.where(draw(random_bytes((shape[0], 1))) % 2 == 1, array / 64, array)
    return array.astype(draw(st.sampled_from([np.float32, np.float64])))


def budgets(mask: np.ndarray) -> st.SearchStrategy[int]:
    """Allowed budgets: the two ends, the number of active weights where allowed, or anything between."""
    lowest, highest = mask.shape[0], mask.size
    present = max(int(mask.sum()), lowest)
    return st.one_of(st.sampled_from([lowest, present, highest]), st.integers(lowest, highest))


@st.composite
def edge_layers(draw: st.DrawFn, constant_fan_in: bool = False) -> Layer:
    """Any ``Layer``, edge cases above all; weight and gradient may differ in precision."""
    shape = draw(shapes())
    mask = draw(masks(shape, constant_fan_in))
    weight = draw(scores(shape))
    weight[~mask] = 0.0
    return Layer(weight, mask, draw(scores(shape)), draw(drop_fractions()), draw(budgets(mask)))


def ordinary_layer(seed: int) -> Layer:
    """A ``Layer`` in mid-training: constant fan-in, unequal neurons, a few of them ablated before, some ties.

    Here neurons that hold salient weights are ablated, which hardly ever happens in an edge case.
    """
    rng = np.random.default_rng(seed)
    shape = n_out, n_in = int(rng.integers(5, MAX_OUT + 1)), int(rng.integers(8, MAX_IN + 1))
    fan_in = int(rng.integers(2, n_in // 2 + 1))
    mask = rng.random(shape).argsort(axis=1) < fan_in
    mask[rng.random(n_out) < 0.2] = False

    def unequal_neurons() -> np.ndarray:
        return np.round(8 * rng.lognormal(size=(n_out, 1)) * rng.standard_normal(shape)) / 8

    weight = np.where(mask, unequal_neurons(), 0.0)
    budget = n_out * fan_in + int(rng.integers(0, n_out))
    return Layer(weight, mask, unequal_neurons(), float(rng.choice([0.1, 0.3, 0.5])), budget)


def layers(constant_fan_in: bool = False) -> st.SearchStrategy[Layer]:
    """A random ``Layer``: an edge case or an ordinary one; with `constant_fan_in`, of such a mask only."""
    return st.one_of(edge_layers(constant_fan_in), st.integers(0, 2**32 - 1).map(ordinary_layer))
