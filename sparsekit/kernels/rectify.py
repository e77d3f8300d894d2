"""ReLU and scaling within compiled loops, over parts of flat arrays. NaN stays NaN."""

import numba


@numba.njit(fastmath=False)  # said, because a function inherits what its caller may do
def scaled(value, scale, shift):
    """scale * value + shift, product and sum rounded one after the other wherever it is compiled into.

    So a backward pass that computes it anew finds the same values positive as the forward pass.
    """
    return value * scale + shift


@numba.njit
def at_least(value, low):
    """max(value, low) as a selection, which LLVM vectorises."""
    return low if value < low else value


@numba.njit(inline="always")
def rectify(values, start, end):
    """values[start:end] = max(values, 0)."""
    zero = values.dtype.type(0)
    for k in range(start, end):
        values[k] = at_least(values[k], zero)


@numba.njit(inline="always")
def rectify_scaled(values, start, end, scale, shift):
    """values[start:end] = max(scale * values + shift, 0)."""
    zero = values.dtype.type(0)
    for k in range(start, end):
        values[k] = at_least(scaled(values[k], scale, shift), zero)


@numba.njit(inline="always")
def finish_row(y, start, end, bias, row, relu):
    """y[start:end] = max(y + bias, 0); NaN stays NaN."""
    if bias.size:
        for b in range(start, end):
            y[b] += bias[row]
    if relu:
        rectify(y, start, end)
