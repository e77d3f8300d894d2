"""The loops of the simulations: draw as the definition says, measure |z|^2, keep its running mean and deviations.

Every iteration of a parallel loop is one block of samples. It owns its stream and its row of the result: the mean
of its samples, and the sum of their squared deviations from it. Nothing is checked here.
"""

import math

import numba
import numpy as np

from analysis.random_streams import next_below, next_normal, next_uniform

# How a mask is drawn, and what `amount` is: a density, the weights of the layer, the weights of each neuron.
BERNOULLI, PER_LAYER, CONSTANT_FAN_IN = range(3)


@numba.njit(parallel=True)
def network_blocks(states, counts, code, amounts, widths, scales, gate_probability):
    """Moments (blocks, 2) of |z_L|^2, layer l with `amounts[l]` weights, scaled, from widths[l] to widths[l + 1].

    The gates are those of the input; between the layers is ReLU.
    """
    moments = np.empty((len(counts), 2))
    for block in numba.prange(len(counts)):
        moments[block, 0], moments[block, 1] = _network_block(
            states[block], counts[block], code, amounts, widths, scales, gate_probability
        )
    return moments


@numba.njit
def _network_block(state, count, code, amounts, widths, scales, gate_probability):
    rows, columns, orders = mask_buffers(widths)
    x, z = np.empty(widths.max()), np.empty(widths.max())
    mean = squares = 0.0
    for sample in range(count):
        draw_input(state, gate_probability, x[: widths[0]])
        norm = 0.0
        for layer in range(len(amounts)):
            n_in, n_out = widths[layer], widths[layer + 1]
            if layer > 0:
                for j in range(n_in):
                    x[j] = max(z[j], 0.0)
            nnz = draw_mask(state, code, amounts[layer], n_out, n_in, orders[layer], rows, columns)
            norm = draw_output(state, rows[:nnz], columns[:nnz], x, scales[layer], z[:n_out])
        mean, squares = _with(norm, sample, mean, squares)
    return mean, squares


@numba.njit(parallel=True)
def fixed_mask_blocks(states, counts, gate_probability, n_in, rows, columns, scales):
    """Moments (blocks, 2) of |z|^2 of a layer with weights at (rows, columns) and a scale for each row."""
    moments = np.empty((len(counts), 2))
    for block in numba.prange(len(counts)):
        moments[block, 0], moments[block, 1] = _fixed_mask_block(
            states[block], counts[block], gate_probability, n_in, rows, columns, scales
        )
    return moments


@numba.njit
def _fixed_mask_block(state, count, gate_probability, n_in, rows, columns, scales):
    x, z = np.empty(n_in), np.empty(len(scales))
    mean = squares = 0.0
    for sample in range(count):
        draw_input(state, gate_probability, x)
        draw_output(state, rows, columns, x, 1.0, z)
        norm = 0.0
        for i in range(len(scales)):
            norm += (scales[i] * z[i]) ** 2
        mean, squares = _with(norm, sample, mean, squares)
    return mean, squares


@numba.njit(parallel=True)
def convolution_blocks(states, counts, code, amount, sizes, scale, gate_probability):
    """Moments (blocks, 2) of |z|^2 of a convolution; sizes are channels, kernel (2), image (2), filters."""
    moments = np.empty((len(counts), 2))
    for block in numba.prange(len(counts)):
        moments[block, 0], moments[block, 1] = _convolution_block(
            states[block], counts[block], code, amount, sizes, scale, gate_probability
        )
    return moments


@numba.njit
def _convolution_block(state, count, code, amount, sizes, scale, gate_probability):
    channels, kh, kw, height, width, n_filters = sizes
    n_in = channels * kh * kw
    rows, columns, orders = mask_buffers(np.array([n_in, n_filters]))
    image, z = np.empty((channels, height, width)), np.empty((n_filters, height, width))
    around = np.empty((channels, height + kh - 1, width + kw - 1))  # continued on the other side
    mean = squares = 0.0
    for sample in range(count):
        draw_input(state, gate_probability, image.reshape(-1))
        for c in range(channels):
            for y in range(height + kh - 1):
                for x in range(width + kw - 1):
                    around[c, y, x] = image[c, y % height, x % width]
        nnz = draw_mask(state, code, amount, n_filters, n_in, orders[0], rows, columns)
        z[:] = 0.0
        for t in range(nnz):
            c, tap = columns[t] // (kh * kw), columns[t] % (kh * kw)
            weight = scale * next_normal(state)
            for y in range(height):
                for x in range(width):
                    z[rows[t], y, x] += weight * around[c, y + tap // kw, x + tap % kw]
        norm = 0.0
        for value in z.reshape(-1):
            norm += value * value
        mean, squares = _with(norm, sample, mean, squares)
    return mean, squares


@numba.njit
def _with(value, before, mean, squares):
    """Mean and squared deviations of `before` + 1 values (Welford)."""
    off = value - mean
    mean += off / (before + 1)
    return mean, squares + off * (value - mean)


@numba.njit
def draw_input(state, gate_probability, x):
    """A point of the unit sphere with coordinates let through by their gates, to `x`."""
    square = 0.0
    for j in range(len(x)):
        x[j] = next_normal(state)
        square += x[j] * x[j]
    for j in range(len(x)):
        is_open = gate_probability == 1.0 or next_uniform(state) < gate_probability
        x[j] = x[j] / math.sqrt(square) if is_open else 0.0


@numba.njit
def draw_output(state, rows, columns, x, scale, z):
    """z = scale * W x with new weights at the given positions; returns |z|^2."""
    z[:] = 0.0
    for t in range(len(rows)):
        z[rows[t]] += next_normal(state) * x[columns[t]]
    norm = 0.0
    for i in range(len(z)):
        z[i] *= scale
        norm += z[i] * z[i]
    return norm


@numba.njit
def mask_buffers(widths):
    """Room for the positions of a mask, and for each layer its positions in some order, to choose from."""
    most = 0
    for layer in range(len(widths) - 1):
        most = max(most, widths[layer] * widths[layer + 1])
    orders = np.empty((len(widths) - 1, most), dtype=np.int32)
    for layer in range(len(widths) - 1):
        for position in range(most):
            orders[layer, position] = position
    return np.empty(most, dtype=np.int32), np.empty(most, dtype=np.int32), orders


@numba.njit
def draw_mask(state, code, amount, n_out, n_in, order, rows, columns):
    """Write the active positions of a new mask to `rows` and `columns` and return how many they are.

    `order` is a permutation, of all positions or of the columns, whose first part is shuffled. It stays one, so
    it can be used again as it is: the first t of a shuffle are a random choice whatever the order was before.
    """
    nnz = 0
    if code == BERNOULLI:
        log_inactive = np.log1p(-amount)  # -infinity for density 1, where every gap is 0
        position = _gap(state, log_inactive)
        while position < n_out * n_in:
            rows[nnz], columns[nnz] = position // n_in, position % n_in
            nnz += 1
            position += 1 + _gap(state, log_inactive)
    elif code == PER_LAYER:
        nnz = int(amount)
        _choose(state, nnz, n_out * n_in, order)
        for t in range(nnz):
            rows[t], columns[t] = order[t] // n_in, order[t] % n_in
    else:
        for i in range(n_out):
            _choose(state, int(amount), n_in, order)
            for t in range(int(amount)):
                rows[nnz], columns[nnz] = i, order[t]
                nnz += 1
    return nnz


@numba.njit
def _gap(state, log_inactive):
    """Inactive positions before the next active one: at least t with probability (1 - density)^t."""
    return int(min(math.log(1 - next_uniform(state)) / log_inactive, 2.0**40))  # beyond any layer


@numba.njit
def _choose(state, count, total, order):
    """Make the first `count` of the first `total` entries a random choice of them (Fisher and Yates)."""
    for t in range(count):
        other = t + next_below(state, total - t)
        order[t], order[other] = order[other], order[t]
