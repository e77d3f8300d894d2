"""The output norm |z|^2 by simulation: draw mask, weights, gates and input as the definition says, and measure.

Nothing of the derivations is used here: no weight is integrated out and no moment is known. What is simulated are
the definitions in :mod:`analysis.theory` (:func:`simulate_layer`), :mod:`analysis.theory_depth`
(:func:`simulate_depth`), :mod:`analysis.theory_convolution` (:func:`simulate_convolution`) and
:mod:`analysis.theory_fixed_mask` (:func:`simulate_fixed_mask`).

Samples are drawn in up to 256 blocks, in parallel. Each block has a random stream of its own and keeps a running
mean and sum of squared deviations (Welford), which are joined in the order of the blocks: equal seeds and samples
give the same bits for any number of threads. The blocks also tell how accurate the variance is, by the jackknife:
how much does it change when one block is left out? Nothing is assumed about the tails of |z|^2, which are heavy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.monte_carlo_kernels import (
    BERNOULLI,
    CONSTANT_FAN_IN,
    PER_LAYER,
    convolution_blocks,
    fixed_mask_blocks,
    network_blocks,
)
from analysis.random_streams import streams
from analysis.theory import MASK_TYPES, MaskType, SparseLayer
from analysis.theory_convolution import SparseConvolution
from analysis.theory_depth import layers_of
from sparsekit.checks import require_fraction, require_integer
from sparsekit.errors import InputError
from sparsekit.kernels.threads import start_threads
from sparsekit.masks import fan_in as fan_ins_of
from sparsekit.masks import require_mask

BLOCKS = 256
Seed = int | Sequence[int]  # several numbers: a seed and what it is for

_CODES = dict(zip(MASK_TYPES, (BERNOULLI, PER_LAYER, CONSTANT_FAN_IN), strict=True))


@dataclass(frozen=True)
class Estimate:
    """Mean and variance of |z|^2 over the samples, each with its standard error."""

    samples: int
    mean: float
    mean_error: float
    variance: float
    variance_error: float


def simulate_layer(
    mask_type: MaskType,
    n_in: int,
    n_out: int,
    fan_in: float,
    gate_probability: float = 0.5,
    n_ablated: int = 0,
    *,
    samples: int,
    seed: Seed,
) -> Estimate:
    """|z|^2 of one layer; the other arguments are those of :func:`analysis.theory.output_norm_variance`.

    Parameters
    ----------
    fan_in : whole for ``constant_fan_in``; times the active neurons whole for ``per_layer``
    samples : at least 3, each with a new mask, new weights, gates and input
    seed : one integer of at least 0, or several

    Raises
    ------
    InputError
        For a value that is not allowed.
    """
    return _simulate([SparseLayer(mask_type, n_in, n_out, fan_in, gate_probability, n_ablated)], samples, seed)


def simulate_depth(
    mask_type: MaskType, widths: Sequence[int], fan_ins: Sequence[float], *, samples: int, seed: Seed
) -> Estimate:
    """|z_L|^2 after the last of several ReLU layers.

    Arguments of the network as in :func:`analysis.theory_depth.depth_variances`, all else as in
    :func:`simulate_layer`.
    """
    return _simulate(layers_of(mask_type, widths, fan_ins), samples, seed)


def simulate_fixed_mask(mask: np.ndarray, gate_probability: float = 0.5, *, samples: int, seed: Seed) -> Estimate:
    """|z|^2 of one layer with the mask given, for example by training; weights, gates and inputs are random.

    Parameters
    ----------
    mask : bool array (n_out, n_in); rows without weights are ablated neurons
    gate_probability, samples, seed : as in :func:`simulate_layer`

    Raises
    ------
    InputError
        For a value that is not allowed.
    """
    counts = fan_ins_of(require_mask(mask))
    if not counts.any():
        raise InputError(f"mask must hold a weight, but none of its {mask.size} positions is active")
    p = require_fraction("gate_probability", gate_probability, low_open=True)
    active = mask[counts > 0]
    rows, columns = np.nonzero(active)
    scales = 1 / np.sqrt(p * counts[counts > 0])
    return _estimate(fixed_mask_blocks, samples, seed, p, active.shape[1], rows, columns, scales)


def simulate_convolution(convolution: SparseConvolution, *, samples: int, seed: Seed) -> Estimate:
    """|z|^2 over all filters and positions of a convolution; samples and seed as in :func:`simulate_layer`.

    Raises
    ------
    InputError
        For a value that is not allowed.
    """
    rows = convolution.rows
    sizes = np.array([convolution.channels, *convolution.kernel, *convolution.image, rows.n_out])
    scale = 1 / (rows.gate_probability * rows.fan_in) ** 0.5
    return _estimate(
        convolution_blocks, samples, seed,
        _CODES[rows.mask_type], _amount(rows), sizes, scale, rows.gate_probability,
    )  # fmt: skip


def _simulate(layers: Sequence[SparseLayer], samples: int, seed: Seed) -> Estimate:
    widths = np.array([layers[0].n_in, *(layer.n_active for layer in layers)])
    amounts = np.array([_amount(layer) for layer in layers])
    scales = np.array([1 / (layer.gate_probability * layer.fan_in) ** 0.5 for layer in layers])
    code, p = _CODES[layers[0].mask_type], layers[0].gate_probability
    return _estimate(network_blocks, samples, seed, code, amounts, widths, scales, p)


def _amount(layer: SparseLayer) -> float:
    """What the mask keeps fixed: its density, the weights of the layer, or those of each neuron."""
    if layer.mask_type == "bernoulli":
        return layer.density
    per_layer = layer.mask_type == "per_layer"
    amount = layer.nnz if per_layer else layer.fan_in
    if abs(amount - round(amount)) > 1e-9 * amount:  # fan_in = K/m, times m, may be off by rounding
        name = "fan_in times the active neurons" if per_layer else "fan_in"
        raise InputError(f"{name} must be a whole number in a simulation of {layer.mask_type}, not {amount:g}")
    return round(amount)


def _estimate(blocks, samples: int, seed: Seed, *arguments) -> Estimate:
    """Run a kernel over all blocks, each with its own stream and its share of the samples."""
    samples = require_integer("samples", samples, 3)  # so that the variance has one without each of them
    for number in seed if isinstance(seed, Sequence) else [seed]:
        require_integer("seed", number, 0)
    n_blocks = min(BLOCKS, samples)
    counts = np.full(n_blocks, samples // n_blocks)
    counts[: samples % n_blocks] += 1
    start_threads()
    moments = blocks(streams(np.random.SeedSequence(seed), n_blocks), counts, *arguments)
    return joined(counts, moments[:, 0], moments[:, 1])


def joined(counts: np.ndarray, means: np.ndarray, squares: np.ndarray) -> Estimate:
    """The estimate of all blocks together.

    Parameters
    ----------
    counts, means, squares : of each block: samples, their mean, the sum of their squared deviations from it

    Notes
    -----
    With N samples in all, mean M and sum of squared deviations S, leaving out block b of n samples and mean M_b
    removes squares_b and n N / (N - n) (M_b - M)^2 from S. The variances v_b without each of B blocks give the
    error sqrt((B-1)/B * sum_b (v_b - mean of v)^2).
    """
    total, n_blocks = counts.sum(), len(counts)
    mean = (counts * means).sum() / total
    off = (means - mean) ** 2
    square = (squares + counts * off).sum()
    variance = square / (total - 1)
    left = total - counts
    without = (square - squares - counts * total / left * off) / (left - 1)
    error = ((n_blocks - 1) / n_blocks * ((without - without.mean()) ** 2).sum()) ** 0.5
    mean_error = (variance / total) ** 0.5
    return Estimate(int(total), float(mean), float(mean_error), float(variance), float(error))
