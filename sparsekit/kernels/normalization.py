"""Batch normalisation with what surrounds it, one pass forward and one back.

Arrays are (channels, samples), a channel contiguous; for images a sample is a pixel of an image. Between two
convolutions these passes are bound by memory, so each handles one channel at a time: what its statistics have
read is still in the cache when it is read again.

Statistics are summed in float64, each channel's in one fixed order: the same bits for any number of threads.
"""

import numba
import numpy as np

from sparsekit.kernels.compiled import compiled, run
from sparsekit.kernels.rectify import at_least, scaled


def statistics(x, mean, var):
    """Write mean and biased variance of each channel, float64 (channels,)."""
    run(_statistics, x.size, x, mean, var)


def affine(x, scale, shift, relu, out, side=None):
    """out = scale * x + shift + side, with negative ones zero if `relu`; scale and shift (channels,), like x."""
    run(_affine, x.size, x, scale, shift, x[:0] if side is None else side, relu, out)


def gradient(g, x, mean, inverse_std, weight, scale, shift, relu, out, grad_weight, grad_bias):
    """Back through y = weight * (x - mean) * inverse_std + bias, and through the ReLU behind it if `relu`.

    g, x : gradient with respect to the output, and the input
    mean, inverse_std, weight : float64 (channels,)
    scale, shift : like x, what y was computed with; they tell where it was positive
    out : gradient with respect to x, by way of mean and variance too
    grad_weight, grad_bias : float64 (channels,), gradients of the parameters
    """
    parameters = mean, inverse_std, weight, scale, shift
    run(_gradient, x.size, g, x, *parameters, relu, out, grad_weight, grad_bias)


@compiled
def _statistics(x, mean, var):
    n = x.shape[1]
    for c in numba.prange(x.shape[0]):
        first = np.float64(x[c, 0])  # sums of differences keep their precision where the mean is large
        total = squares = 0.0
        for k in range(n):
            difference = np.float64(x[c, k]) - first
            total += difference
            squares += difference * difference
        mean[c] = first + total / n
        var[c] = at_least(squares / n - (total / n) ** 2, 0.0)  # NaN stays NaN


@compiled
def _affine(x, scale, shift, side, relu, out):
    low = x.dtype.type(0) if relu else x.dtype.type(-np.inf)
    for c in numba.prange(x.shape[0]):
        if side.size:
            for k in range(x.shape[1]):
                out[c, k] = at_least(scaled(x[c, k], scale[c], shift[c]) + side[c, k], low)
        else:
            for k in range(x.shape[1]):
                out[c, k] = at_least(scaled(x[c, k], scale[c], shift[c]), low)


@compiled
def _gradient(g, x, mean, inverse_std, weight, scale, shift, relu, out, grad_weight, grad_bias):
    n = x.shape[1]
    zero = x.dtype.type(0)
    low = zero if relu else x.dtype.type(-np.inf)
    for c in numba.prange(x.shape[0]):
        total = product = 0.0
        for k in range(n):
            value = zero if scaled(x[c, k], scale[c], shift[c]) <= low else g[c, k]
            total += np.float64(value)
            product += np.float64(value) * (np.float64(x[c, k]) - mean[c])
        grad_bias[c], grad_weight[c] = total, product * inverse_std[c]
        of_g = weight[c] * inverse_std[c]
        of_x = -of_g * grad_weight[c] * inverse_std[c] / n
        of_all = -of_g * total / n - of_x * mean[c]
        a, b, d = x.dtype.type(of_g), x.dtype.type(of_x), x.dtype.type(of_all)
        for k in range(n):
            value = zero if scaled(x[c, k], scale[c], shift[c]) <= low else g[c, k]
            out[c, k] = a * value + (b * x[c, k] + d)
