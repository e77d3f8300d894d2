"""Memory that compiled loops take for themselves, and how they fill it."""

import numba
import numpy as np

from sparsekit.kernels.memory import LINE


@numba.njit
def aligned_scratch(n, like):
    """Uninitialised (n,) of the dtype of `like`, on a cache line."""
    buffer = np.empty(n + LINE // like.itemsize, like.dtype)
    skip = (-buffer.ctypes.data % LINE) // like.itemsize
    return buffer[skip : skip + n]


@numba.njit
def start_rows(y, bias, first_row, width):
    """y = bias or 0, for rows from `first_row` on."""
    y[:] = 0
    if bias.size:
        for r in range(y.size // width):
            y[r * width : (r + 1) * width] = bias[first_row + r]


@numba.njit(inline="always")
def copy_part(target, t0, source, s0, n):
    """target[t0 : t0 + n] = source[s0 : s0 + n].

    Numba takes half a second to compile such an assignment, and two if one of the arrays is a matrix.
    """
    to, part = target[t0 : t0 + n], source[s0 : s0 + n]
    for k in range(n):
        to[k] = part[k]


@numba.njit
def widen(x, wide):
    """Fill the rows of `wide` with those of x, and zeros."""
    batch, width = x.shape[1], wide.shape[1]
    flat_x, flat_wide = x.reshape(-1), wide.reshape(-1)
    flat_wide[:] = 0
    for i in range(x.shape[0]):
        copy_part(flat_wide, i * width, flat_x, i * batch, batch)


@numba.njit
def narrow(wide, x):
    """Fill the rows of x with the beginnings of those of `wide`."""
    batch, width = x.shape[1], wide.shape[1]
    flat_x, flat_wide = x.reshape(-1), wide.reshape(-1)
    for i in range(x.shape[0]):
        copy_part(flat_x, i * batch, flat_wide, i * width, batch)
