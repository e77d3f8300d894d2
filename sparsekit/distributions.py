"""Distributions: how many weights each layer gets when the whole network has a density to keep.

Shapes are (n_out, n_in) for linear layers and (n_out, n_in, kernel_height, kernel_width) for convolutions,
in forward order. Density is 1 - sparsity. Uniform, Erdos-Renyi (ER) and Erdos-Renyi-kernel (ERK) follow
Evci et al., "Rigging the Lottery" (arXiv 1911.11134); ER goes back to Mocanu et al. (SET, arXiv 1707.04780).
"""

import math
from collections.abc import Sequence

from sparsekit.checks import require_fraction, require_integer, require_number
from sparsekit.errors import InputError

LayerShape = tuple[int, ...]


def uniform(shapes: Sequence[LayerShape], density: float, first_layer_dense: bool = True) -> list[float]:
    """The same density for every layer, the first one dense by default.

    With a dense first layer the network as a whole is a little denser than `density`: that is the
    convention of the RigL paper. A network of a single layer is never left dense.

    Returns
    -------
    list of float, one density a layer.
    """
    shapes, density = _require(shapes, density)
    densities = [density] * len(shapes)
    if first_layer_dense and len(shapes) > 1:
        densities[0] = 1.0
    return densities


def erdos_renyi(shapes: Sequence[LayerShape], density: float) -> list[float]:
    """Layer densities in proportion to (n_in + n_out) / (n_in n_out); kernel sizes are ignored.

    Returns
    -------
    list of float in (0, 1], one a layer; together they store `density` of all weights.

    Raises
    ------
    InputError
        For a density outside (0, 1] or a shape that is not (out, in) or (out, in, kh, kw).
    """
    shapes, density = _require(shapes, density)
    raw = [(shape[0] + shape[1]) / (shape[0] * shape[1]) for shape in shapes]
    return _share_out(shapes, density, raw)[0]


def erdos_renyi_kernel(shapes: Sequence[LayerShape], density: float, power: float = 1.0) -> list[float]:
    """Layer densities in proportion to (sum(shape) / prod(shape)) ** power: ERK.

    `power` = 0 gives every layer the same density. For linear layers ERK equals ER.

    Returns
    -------
    list of float in (0, 1], one a layer; together they store `density` of all weights.

    Raises
    ------
    InputError
        For a density outside (0, 1] or a shape that is not (out, in) or (out, in, kh, kw).
    """
    shapes, density = _require(shapes, density)
    power = require_number("power", power, low=0)
    raw = [(sum(shape) / math.prod(shape)) ** power for shape in shapes]
    return _share_out(shapes, density, raw)[0]


def budget(shape: LayerShape, density: float) -> int:
    """Weights that a layer may store: density * n_out * n_in, rounded half up, at least one a neuron.

    For convolutions n_in counts in_channels * kernel_height * kernel_width.
    """
    shape = _require_layer_shape(shape)
    density = require_fraction("density", density, low_open=True)
    return max(shape[0], math.floor(density * math.prod(shape) + 0.5))


def initial_fan_in(shape: LayerShape, density: float) -> int:
    """Fan-in k0 of a constant fan-in layer before any ablation: budget // n_out."""
    return budget(shape, density) // shape[0]


def _share_out(
    shapes: Sequence[LayerShape], density: float, raw: Sequence[float]
) -> tuple[list[float], list[int]]:
    """Scale the raw densities by one epsilon so that the network keeps its budget.

    A layer whose scaled density would exceed 1 becomes dense and leaves its surplus to the others, one
    layer at a time, the one of largest raw density first (the first of them among equals).

    Returns
    -------
    densities, and the indices of the dense layers in the order in which they became dense.
    """
    sizes = [math.prod(shape) for shape in shapes]
    dense: list[int] = []
    while len(dense) < len(shapes):
        sparse = [i for i in range(len(shapes)) if i not in dense]
        zeros = {i: math.floor(sizes[i] * (1 - density)) for i in range(len(shapes))}
        to_share = sum(sizes[i] - zeros[i] for i in sparse) - sum(zeros[i] for i in dense)
        epsilon = to_share / sum(raw[i] * sizes[i] for i in sparse)
        largest = max(sparse, key=lambda i: raw[i])
        if epsilon * raw[largest] <= 1:
            return [1.0 if i in dense else epsilon * raw[i] for i in range(len(shapes))], dense
        dense.append(largest)
    return [1.0] * len(shapes), dense


def _require(shapes: Sequence[LayerShape], density: float) -> tuple[list[LayerShape], float]:
    if len(shapes) == 0:
        raise InputError("shapes must name at least one layer, not none")
    return [_require_layer_shape(s) for s in shapes], require_fraction("density", density, low_open=True)


def _require_layer_shape(shape: LayerShape) -> LayerShape:
    if len(shape) not in (2, 4):
        raise InputError(f"shape must be (out, in) or (out, in, kh, kw), not {tuple(shape)}")
    return tuple(require_integer("a size in shape", size, 1) for size in shape)
