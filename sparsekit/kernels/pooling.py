"""Maximum over windows of images (channels, height, width, batch)."""

import numba

from sparsekit.kernels.compiled import compiled, run
from sparsekit.kernels.scratch import copy_part


def max_pool(x, kernel, stride, out, winner):
    """out = the largest value of each window, winner = its place within, row by row; the first among equals.

    A NaN is the largest value of its window.
    """
    run(_max_pool, x.size, x, *kernel, *stride, out, winner)


def max_pool_gradient(g, winner, kernel, stride, out):
    """Add each value of g to the pixel of `out`, zeros at first, that won its window."""
    run(_max_pool_gradient, out.size, g, winner, *kernel, *stride, out)


@compiled
def _max_pool(x, kernel_height, kernel_width, down, right, out, winner):
    batch = x.shape[3]
    for c in numba.prange(x.shape[0]):
        for h in range(out.shape[1]):
            for w in range(out.shape[2]):
                best, place = out[c, h, w], winner[c, h, w]
                copy_part(best, 0, x[c, h * down, w * right], 0, batch)
                place[:] = 0
                for k in range(1, kernel_height * kernel_width):
                    candidate = x[c, h * down + k // kernel_width, w * right + k % kernel_width]
                    mark = winner.dtype.type(k)
                    for n in range(batch):
                        value = candidate[n]
                        wins = (value > best[n]) | (value != value)
                        best[n] = value if wins else best[n]
                        place[n] = mark if wins else place[n]


@compiled
def _max_pool_gradient(g, winner, kernel_height, kernel_width, down, right, out):
    zero = g.dtype.type(0)
    for c in numba.prange(g.shape[0]):
        for h in range(g.shape[1]):
            for w in range(g.shape[2]):
                grad, place = g[c, h, w], winner[c, h, w]
                for k in range(kernel_height * kernel_width):
                    target = out[c, h * down + k // kernel_width, w * right + k % kernel_width]
                    for n in range(grad.size):
                        target[n] += grad[n] if place[n] == k else zero
