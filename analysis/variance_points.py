"""The layers and networks whose output norm is simulated and compared with the theory, and the theory's curves."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.monte_carlo import (
    Estimate,
    Seed,
    simulate_convolution,
    simulate_depth,
    simulate_fixed_mask,
    simulate_layer,
)
from analysis.theory import MASK_TYPES, MaskType, fan_in_after_ablation, output_norm_mean, output_norm_variance
from analysis.theory_convolution import SparseConvolution, convolution_norm_mean, convolution_norm_variance
from analysis.theory_depth import depth_mean, depth_variances
from analysis.theory_fixed_mask import fixed_mask_mean, fixed_mask_variance
from sparsekit.errors import InputError

Row = dict[str, Any]

SPARSITIES = (0.8, 0.9, 0.95)
FIELDS = (
    "experiment",
    "name",  # of a trained layer
    "mask_type",  # "trained" for the mask of a trained layer
    "sparsity",
    "n_in",
    "n_out",
    "n_ablated",
    "fan_in",  # of the neurons that are left, the mean where it varies
    "gate_probability",
    "depth",
    "mean_theory",
    "variance_theory",
)
_N = 64  # neurons and inputs where nothing else is said
_POSITIONS = _N * _N
_FAN_IN = 6  # divides into what is left after ablation
_DEEP_FAN_IN = 8  # the smaller, the heavier the tails after several layers
_CHANNELS, _FILTERS, _KERNEL, _IMAGE = 8, 8, (3, 3), (6, 6)
_TINY = 4  # inputs and neurons of the layer in which gates turn the order of the masks
_WEIGHTS = 10_000  # a trained layer with more gets fewer samples, such that as many weights are drawn


@dataclass(frozen=True)
class Point:
    """What theory says of one layer or network, and how to simulate it.

    Attributes
    ----------
    row : values of `FIELDS`; those that do not apply are left out
    simulate : from the number of samples and the seed
    share : of the samples that are asked for, how many this point gets
    """

    row: Row
    simulate: Callable[[int, Seed], Estimate]
    share: float = 1.0


def simulated_points(*, full: bool) -> list[Point]:
    """What is simulated; `full` has more sizes for the figures."""
    sizes = range(40, 101, 10 if full else 20)
    shapes = [2**i for i in range(4, 9)]
    ablated = (0, 16, 32, 40, 48, 52, 56) if full else (0, 32, 48, 56)
    return [
        *(
            _size(mask_type, sparsity, n)
            for sparsity in SPARSITIES
            for n in sizes
            if _is_whole((1 - sparsity) * n)
            for mask_type in MASK_TYPES
        ),
        *_each(_fan_in, (1, 2, 4, 8, 16, 32, 64) if full else (1, 2, 4, 8, 16, 32)),
        *_each(_gates, (0.2, 0.3, 0.5, 0.7, 1.0)),
        *_each(_rectangular, shapes),
        *_each(_ablation, ablated),
        *_each(_depth, (1, 2, 3, 4, 6, 8) if full else (1, 2, 3, 5)),
        *_each(_convolution, (4, 9, 18, 36, 72) if full else (4, 9, 18, 36)),
    ]


def curve_points() -> list[Point]:
    """The curves of the theory that the figures show beneath the simulated points."""
    return [
        *(
            _size(mask_type, sparsity, n)
            for sparsity in SPARSITIES
            for n in range(40, 101)
            for mask_type in MASK_TYPES
        ),
        *_each(_fan_in, [float(k) for k in np.geomspace(1, _N, 61)]),
        *_each(_gates, [float(p) for p in np.linspace(0.18, 1, 83)]),
        *_each(_rectangular, [n for n in range(16, 257) if abs(n * round(_POSITIONS / n) - _POSITIONS) <= 12]),
        *_each(_ablation, range(57)),
        *_each(_depth, range(1, 9)),
        *_each(_convolution, range(4, 73)),
    ]


def trained_points(folder: Path) -> list[Point]:
    """The masks of the sparse layers of a finished run.

    The mask of a convolution is taken at one position of the image: a neuron reads the taps of its filter.

    Raises
    ------
    InputError
        If the folder is no finished run, or its network has no sparse layers.
    """
    from sparsekit import load_run
    from sparsekit.models import weight_layers

    masks = {name: layer.matrix.mask() for name, layer in weight_layers(load_run(folder).model).items()}
    sparse = {name: mask for name, mask in masks.items() if not mask.all()}
    if not sparse:
        raise InputError(f"run {folder} must be of a sparse network, but all its layers are dense")
    return [_trained(name, mask) for name, mask in sparse.items()]


def random_points(trained: Iterable[Point]) -> list[Point]:
    """Layers with random masks of the sizes of trained layers, to compare with."""
    points = []
    for point in trained:
        row = point.row
        for mask_type in MASK_TYPES:
            shape = row["n_in"], row["n_out"], row["fan_in"]
            random = _layer("trained", mask_type, *shape, n_ablated=row["n_ablated"])
            points.append(Point(random.row | {"name": row["name"]}, random.simulate))
    return points


def _each(make: Callable[[MaskType, Any], Point], values: Iterable[Any]) -> Iterator[Point]:
    return (make(mask_type, value) for value in values for mask_type in MASK_TYPES)


def _is_whole(number: float) -> bool:
    return abs(number - round(number)) < 1e-9


def _size(mask_type: MaskType, sparsity: float, n: int) -> Point:
    """A square layer; the fan-in is the density times n, whole where rounding alone keeps it from being so."""
    fan_in = (1 - sparsity) * n
    return _layer("size", mask_type, n, n, round(fan_in) if _is_whole(fan_in) else fan_in, sparsity=sparsity)


def _fan_in(mask_type: MaskType, fan_in: float) -> Point:
    return _layer("fan_in", mask_type, _N, _N, fan_in)


def _gates(mask_type: MaskType, gate_probability: float) -> Point:
    """One weight a neuron, so that masks matter most; the masks change order at p(2 n_in + 1) = 3."""
    return _layer("gates", mask_type, _TINY, _TINY, 1, gate_probability=gate_probability, share=10.0)


def _rectangular(mask_type: MaskType, n_in: int) -> Point:
    """4096 positions, within 0.3 %, and an eighth of them active."""
    return _layer("rectangular", mask_type, n_in, round(_POSITIONS / n_in), n_in / 8)


def _ablation(mask_type: MaskType, n_ablated: int) -> Point:
    fan_in = fan_in_after_ablation(_N, _N, _FAN_IN, n_ablated)
    return _layer("ablation", mask_type, _N, _N, fan_in, n_ablated=n_ablated)


def _layer(
    experiment: str,
    mask_type: MaskType,
    n_in: int,
    n_out: int,
    fan_in: float,
    *,
    gate_probability: float = 0.5,
    n_ablated: int = 0,
    sparsity: float | None = None,
    share: float = 1.0,
) -> Point:
    arguments = mask_type, n_in, n_out, fan_in, gate_probability, n_ablated
    row = {
        "experiment": experiment,
        "mask_type": mask_type,
        "sparsity": 1 - fan_in / n_in if sparsity is None else sparsity,
        "n_in": n_in,
        "n_out": n_out,
        "n_ablated": n_ablated,
        "fan_in": fan_in,
        "gate_probability": gate_probability,
        "mean_theory": output_norm_mean(*arguments),
        "variance_theory": output_norm_variance(*arguments),
    }
    return Point(row, lambda samples, seed: simulate_layer(*arguments, samples=samples, seed=seed), share)


def _depth(mask_type: MaskType, depth: int) -> Point:
    widths, fan_ins = [_N] * (depth + 1), [_DEEP_FAN_IN] * depth
    row = {
        "experiment": "depth",
        "mask_type": mask_type,
        "sparsity": 1 - _DEEP_FAN_IN / _N,
        "n_in": _N,
        "n_out": _N,
        "fan_in": _DEEP_FAN_IN,
        "gate_probability": 0.5,
        "depth": depth,
        "mean_theory": depth_mean(widths),
        "variance_theory": depth_variances(mask_type, widths, fan_ins)[-1],
    }
    return Point(row, lambda samples, seed: simulate_depth(mask_type, widths, fan_ins, samples=samples, seed=seed))


def _convolution(mask_type: MaskType, fan_in: int) -> Point:
    convolution = SparseConvolution(mask_type, _CHANNELS, _FILTERS, fan_in, _KERNEL, _IMAGE)
    row = {
        "experiment": "convolution",
        "mask_type": mask_type,
        "sparsity": 1 - convolution.rows.density,
        "n_in": convolution.rows.n_in,
        "n_out": _FILTERS,
        "fan_in": fan_in,
        "gate_probability": convolution.gate_probability,
        "mean_theory": convolution_norm_mean(convolution),
        "variance_theory": convolution_norm_variance(convolution),
    }
    return Point(row, lambda samples, seed: simulate_convolution(convolution, samples=samples, seed=seed))


def _trained(name: str, mask: np.ndarray) -> Point:
    n_out, n_in = mask.shape
    nnz, n_active = int(mask.sum()), int(mask.any(axis=1).sum())
    row = {
        "experiment": "trained",
        "name": name,
        "mask_type": "trained",
        "sparsity": 1 - nnz / mask.size,
        "n_in": n_in,
        "n_out": n_out,
        "n_ablated": n_out - n_active,
        "fan_in": nnz / n_active,
        "gate_probability": 0.5,
        "mean_theory": fixed_mask_mean(mask),
        "variance_theory": fixed_mask_variance(mask),
    }
    share = min(1.0, _WEIGHTS / nnz)
    return Point(row, lambda samples, seed: simulate_fixed_mask(mask, samples=samples, seed=seed), share)
