"""Exact moments of the output norm of tiny layers, by going through every mask and every set of open gates.

Independent of ``analysis``: nothing is assumed about which pairs matter. With mask and gates given, |z|^2 and
|z|^4 are written out as sums of products of single weights and single inputs, and each product's expectation is
taken on its own. All numbers are fractions, so there is no rounding.

A convolution is a linear layer in which several connections share a weight. So a layer is described by its
connections: for each output a list of (weight, input), a weight being a position (row, column) of the mask.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import combinations, product

Position = tuple[int, int]
Mask = frozenset[Position]
Connections = list[list[tuple[Position, int]]]


def masks_of(mask_type: str, n_rows: int, n_columns: int, fan_in: Fraction) -> Iterator[tuple[Mask, Fraction]]:
    """Every mask with its probability."""
    positions = list(product(range(n_rows), range(n_columns)))
    if mask_type == "bernoulli":
        density = Fraction(fan_in) / n_columns
        for bits in product((0, 1), repeat=len(positions)):
            nnz = sum(bits)
            yield (
                frozenset(position for position, bit in zip(positions, bits, strict=True) if bit),
                density**nnz * (1 - density) ** (len(positions) - nnz),
            )
        return
    if mask_type == "per_layer":
        nnz = fan_in * n_rows
        assert nnz == int(nnz)
        choices = [frozenset(chosen) for chosen in combinations(positions, int(nnz))]
    else:
        assert fan_in == int(fan_in)
        rows = combinations(range(n_columns), int(fan_in))
        choices = [
            frozenset((row, column) for row, columns in enumerate(chosen) for column in columns)
            for chosen in product(list(rows), repeat=n_rows)
        ]
    for mask in choices:
        yield mask, Fraction(1, len(choices))


def gates_of(n_inputs: int, gate_probability: Fraction) -> Iterator[tuple[frozenset[int], Fraction]]:
    """Every set of open inputs with its probability."""
    for bits in product((0, 1), repeat=n_inputs):
        is_open = frozenset(j for j, bit in enumerate(bits) if bit)
        yield is_open, gate_probability ** len(is_open) * (1 - gate_probability) ** (n_inputs - len(is_open))


def linear_connections(n_out: int, n_in: int) -> Connections:
    """Output i reads every input j with weight (i, j)."""
    return [[((i, j), j) for j in range(n_in)] for i in range(n_out)]


def convolution_connections(
    n_filters: int, channels: int, kernel: tuple[int, int], image: tuple[int, int]
) -> Connections:
    """One output a filter and position; what lies beyond the edge of the image is taken from the other side."""
    height, width = image
    taps = list(product(range(channels), range(kernel[0]), range(kernel[1])))
    outputs = []
    for i, y, x in product(range(n_filters), range(height), range(width)):
        inputs = [(c * height + (y + dy) % height) * width + (x + dx) % width for c, dy, dx in taps]
        outputs.append([((i, tap), pixel) for tap, pixel in enumerate(inputs)])
    return outputs


def normal_moment(factors: Iterable[object]) -> int:
    """E of a product of independent standard normals: 1 * 3 * ... * (c-1) for each that occurs c times, c even."""
    moment = 1
    for count in Counter(factors).values():
        for factor in range(count):
            moment *= factor if factor % 2 else 1
        moment *= count % 2 == 0
    return moment


def sphere_moment(factors: tuple[int, ...], n_inputs: int) -> Fraction:
    """E of a product of coordinates of a uniform point of the unit sphere: that of normals over E |g|^c."""
    radius = Fraction(1)
    for step in range(0, len(factors), 2):
        radius *= n_inputs + step
    return normal_moment(factors) / radius


def moments_given(mask: Mask, is_open: frozenset[int], connections: Connections, n_inputs: int):
    """E |z|^2 and E |z|^4 without the scale, mask and gates given."""
    terms = []  # |z|^2 is the sum of weight * weight' * input * input'
    for output in connections:
        present = [(weight, j) for weight, j in output if weight in mask and j in is_open]
        terms += [((w1, w2), (j1, j2)) for (w1, j1), (w2, j2) in product(present, repeat=2)]
    second = sum(normal_moment(w) * sphere_moment(j, n_inputs) for w, j in terms)
    fourth = 0
    for (w1, j1), (w2, j2) in product(terms, repeat=2):
        if weights := normal_moment(w1 + w2):
            fourth += weights * normal_moment(j1 + j2)
    return Fraction(second), Fraction(fourth, n_inputs * (n_inputs + 2))


def mean_and_variance(
    mask_type: str,
    shape: tuple[int, int],
    fan_in: Fraction,
    gate_probability: Fraction,
    connections: Connections | None = None,
    n_inputs: int | None = None,
) -> tuple[Fraction, Fraction]:
    """Exact mean and variance of |z|^2 over masks of the shape (n_rows, n_columns), gates, weights and inputs."""
    n_rows, n_columns = shape
    connections = connections or linear_connections(n_rows, n_columns)
    n_inputs = n_inputs or n_columns
    scale = 1 / (gate_probability * fan_in)
    mean = square = Fraction(0)
    gates = list(gates_of(n_inputs, gate_probability))
    for mask, mask_chance in masks_of(mask_type, n_rows, n_columns, fan_in):
        for is_open, gate_chance in gates:
            second, fourth = moments_given(mask, is_open, connections, n_inputs)
            mean += mask_chance * gate_chance * scale * second
            square += mask_chance * gate_chance * scale**2 * fourth
    return mean, square - mean**2
