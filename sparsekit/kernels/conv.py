"""Convolution on the kernels of :mod:`sparsekit.kernels.simd`, without im2col.

A filter weight at (c, i, j) adds w times the image of channel c, shifted by (i, j), to an output image. With
(channels, height, width, batch) arrays a row of that image is one contiguous strip, so a stored weight is again
one `y[:] += w * x[:]`, and its index is the distance of the shifted strip.

The batch is cut into groups of one cache line; of one vector where it is not whole lines. For every group the
rows of the input are copied, padded by zeros, to a place of the thread's own just before they are needed, as (row,
channel, phase, column, sample): a horizontal stride of s splits the columns into s phases, so that strips stay
contiguous for any stride. The rows that an output row reads then lie in the second-level cache, and a block of
their channels under one register tile in the first. While they are summed, the row that is copied next is asked
for, and a large result is written past the caches: a store through them reads the line first, and finds no place
to keep it.

The input gradient is the same sum, with the weights of each input channel, over the padded gradient of the
output. With a stride each class of input pixels, by row and column modulo the stride, reads its own subset of
the weights: no zeros are inserted into the gradient. The weight gradient multiplies strips of the gradient with
shifted strips of the input.

Before a convolution there is mostly a normalisation and a ReLU, and behind it a bias and a ReLU. The first two
are applied to the rows as they are copied, so that the normalised images are never written to memory; the others
to the sums before they are.

Each task writes pixels of its own; weight gradients are summed in several parts of memory, and these are added
in a fixed order: the same bits for any number of threads. Nothing is checked here, see
:class:`sparsekit.convolution.Convolution`.
"""

from typing import NamedTuple

import numba
import numpy as np

from sparsekit.kernels.compiled import compiled, run
from sparsekit.kernels.memory import LINE, address
from sparsekit.kernels.plan import Runs
from sparsekit.kernels.processor import CACHE_BYTES, VECTOR_BYTES, lanes
from sparsekit.kernels.rectify import rectify, rectify_scaled
from sparsekit.kernels.scratch import aligned_scratch, copy_part, start_rows
from sparsekit.kernels.simd import copy_rows, fence, final_runs, run_products, weighted_runs
from sparsekit.kernels.transpose import read_only

_NEAR = 48_000  # bytes that stay in the first-level cache, about
_CACHED = CACHE_BYTES // 8 * 5  # bytes that stay in the second-level cache beside the sums
_UNCACHED = 2**23  # bytes of a result from which on it is written past the caches: these read each line first
_PARTIAL_SUMS = 16  # weight gradients that are summed apart, at most
_TASKS = 8  # wanted, so that several threads have work
_ROWS = 4  # of the output in a task, at least: the rows between two tasks are copied twice


class Taps:
    """The weights of one class of output pixels, by output channel and, in it, by input channel.

    Parameters
    ----------
    indptr : int64 (n_rows + 1,), output channel r owns the slots indptr[r] to indptr[r + 1]
    channels, rows, columns : int (nnz,), what each slot reads relative to the pixel's window
    positions : int (nnz,), place of each slot's weight in the flat stored values; None: their own order
    """

    def __init__(self, indptr, channels, rows, columns, positions) -> None:
        self.indptr, self.positions = indptr, positions
        self._channels, self._rows, self._columns = channels, rows, columns
        self._last: tuple[tuple[int, ...], tuple[np.ndarray, ...]] | None = None

    def strips(self, n_channels: int, stride: int, phase_width: int, block: int) -> tuple[np.ndarray, ...]:
        """How the slots read the copied rows; the last geometry's is kept.

        Returns
        -------
        offsets : int32 (nnz,), distance of each slot's strip from the window's start, in pixels of the copied rows
        starts, ends, outputs : the :class:`~sparsekit.kernels.plan.Runs` of output channels, block by block
        """
        key = n_channels, stride, phase_width, block
        if self._last is None or self._last[0] != key:
            strip = (self._rows.astype(np.int64) * n_channels + self._channels) * stride + self._columns % stride
            offsets = (strip * phase_width + self._columns // stride).astype(np.int32)
            n_rows = self.indptr.size - 1
            row_and_channel = np.repeat(np.arange(n_rows), np.diff(self.indptr)) * n_channels + self._channels
            firsts = np.minimum(np.arange(-(-n_channels // block) + 1) * block, n_channels)
            edges = np.searchsorted(row_and_channel, np.arange(n_rows) * n_channels + firsts[:, None])
            self._last = key, (offsets, *Runs.by_length(edges))
        return tuple(map(read_only, self._last[1]))  # said anew, because copies of networks forget it


class Window(NamedTuple):
    """Which pixels of the input an output pixel sees, and where output pixels are written.

    Output pixel (a, b) sees input rows from first[0] + a * stride[0] on, kernel[0] of them, and columns alike;
    it is pixel (start[0] + a * step[0], start[1] + b * step[1]) of the result; there are size[0] x size[1] of
    them.
    """

    kernel: tuple[int, int]
    first: tuple[int, int]
    stride: tuple[int, int]
    size: tuple[int, int]
    start: tuple[int, int]
    step: tuple[int, int]


class Affine(NamedTuple):
    """Stands for relu(scale * x + shift), channel by channel, where x is handed in."""

    scale: np.ndarray
    shift: np.ndarray


def correlate(values, taps: Taps, window: Window, x, out, *, before: Affine | None = None, bias=None, relu=False):
    """Write the class of pixels of `out` (n_rows, height, width, batch) that `window` describes.

    values : (nnz,), in the order of the taps
    x : (n_channels, height, width, batch)
    before : what happens to x first, (n_channels,) each; None for nothing
    bias, relu : (n_rows,), added to the sums, or None; and whether negative ones become zero then
    """
    batch = x.shape[3]
    samples = _samples(x)
    if batch <= VECTOR_BYTES // x.itemsize // 2:
        samples = max(1, batch)  # several pixels share a vector
    columns, rows = _bands(window, x, samples)
    phase_width = columns + (window.kernel[1] - 1) // window.stride[1]
    strips = taps.strips(len(x), window.stride[1], phase_width, _channel_block(window, x, samples))
    work = values.size * window.size[0] * window.size[1] * batch
    tiling = samples, columns, rows, phase_width
    run(
        _correlate, work, values, *strips, *window, *tiling, *_affine(before, x), x,
        _nothing(x) if bias is None else bias, relu, _goes_past(out), out,
    )  # fmt: skip


def weight_gradient(taps: Taps, window: Window, g, x, out, *, before: Affine | None = None):
    """out[s] = sum over pixels and samples of g times what slot s reads; taps in the weights' own order.

    g : (n_rows, *window.size, batch)
    before : what happens to x first, as in :func:`correlate`
    """
    samples = _samples(x)
    columns, rows = _bands(window, x, samples)
    phase_width = columns + (window.kernel[1] - 1) // window.stride[1]
    strips = taps.strips(len(x), window.stride[1], phase_width, _channel_block(window, x, samples))
    n_tasks = -(-x.shape[3] // samples) * -(-window.size[1] // columns) * -(-window.size[0] // rows)
    sums = np.zeros((min(n_tasks, _PARTIAL_SUMS), out.size), dtype=out.dtype)
    work = out.size * window.size[0] * window.size[1] * x.shape[3]
    tiling = samples, columns, rows, phase_width
    run(_products, work, *strips, *window[:4], *tiling, *_affine(before, x), g, x, sums)
    np.sum(sums, axis=0, out=out)


def _affine(before: Affine | None, x: np.ndarray) -> Affine:
    """What the compiled loops take: arrays of no element for nothing."""
    return Affine(_nothing(x), _nothing(x)) if before is None else before


def _goes_past(out: np.ndarray) -> bool:
    """Whether the result is written past the caches: none could keep it beside the input, and lines are whole."""
    line = out.shape[3] * out.itemsize % LINE == 0 and address(out) % LINE == 0
    return line and out.nbytes >= _UNCACHED


def _nothing(x: np.ndarray) -> np.ndarray:
    return np.empty(0, dtype=x.dtype)


def _samples(x: np.ndarray) -> int:
    """Samples that are computed together: a cache line of them, which is fetched once then; else a vector."""
    line = LINE // x.itemsize
    return line if x.shape[3] % line == 0 else VECTOR_BYTES // x.itemsize


def _bands(window: Window, x: np.ndarray, samples: int) -> tuple[int, int]:
    """Columns and rows of the output in a task: what an output row reads stays in the second-level cache."""
    n_channels, _, _, batch = x.shape
    column = n_channels * window.kernel[0] * samples * x.itemsize
    columns = (_CACHED // column - window.kernel[1] + 1) // window.stride[1]
    n_column_bands = -(-window.size[1] // max(1, columns))
    n_row_bands = _TASKS // max(1, -(-batch // samples) * n_column_bands)
    n_row_bands = min(max(1, n_row_bands), max(1, window.size[0] // _ROWS))
    return -(-window.size[1] // n_column_bands), -(-window.size[0] // n_row_bands)


def _channel_block(window: Window, x: np.ndarray, samples: int) -> int:
    """Input channels whose part of the copied rows under a register tile stays in the first-level cache."""
    seen = window.kernel[0] * (8 * VECTOR_BYTES + (window.kernel[1] - 1) * samples * x.itemsize)
    return min(len(x), max(1, _NEAR // seen))


_sum_1, _sum_2, _sum_4, _sum_8 = (weighted_runs(vectors, 8 // vectors) for vectors in (1, 2, 4, 8))
_last_1, _last_2, _last_4, _last_8 = (final_runs(vectors, 8 // vectors) for vectors in (1, 2, 4, 8))
_copy_vectors, _fence = copy_rows(1), fence()
_products_1, _products_2, _products_4, _products_8 = (run_products(vectors) for vectors in (1, 2, 4, 8))


@numba.njit
def _copy_row(x, row, first_column, phases, phase_width, first, samples, place, copied, scale, shift):
    """Copy one row of a group of samples, all channels, to `copied` from `place` on; zero outside the image."""
    n_channels, height, width, batch = x.shape
    have = min(samples, batch - first)
    flat = x.reshape(-1)
    for c in range(n_channels):
        for phase in range(phases):
            column = first_column + phase
            before = min(phase_width, max(0, -(column // phases)))  # columns left of the image
            n = min(phase_width, -(-(width - column) // phases)) - before
            if row < 0 or row >= height or n <= 0:
                copied[place : place + phase_width * samples] = 0
            else:
                start = place + before * samples
                source = ((c * height + row) * width + column + before * phases) * batch + first
                copied[place:start] = 0
                _copy_pixels(copied, start, samples, flat, source, phases * batch, n, samples, have)
                if scale.size:
                    rectify_scaled(copied, start, start + n * samples, scale[c], shift[c])
                copied[start + n * samples : place + phase_width * samples] = 0
            place += phase_width * samples


@numba.njit(inline="always")
def _copy_pixels(target, t0, t_stride, source, s0, s_stride, n_pixels, samples, have):
    """Copy the `have` samples of each pixel that there are, and zeros for the others where the target has room."""
    if have % lanes(source) == 0:
        for k in range(0, have, lanes(source)):
            _copy_vectors(target, t0 + k, t_stride, source, s0 + k, s_stride, n_pixels)
    elif have == t_stride and have == s_stride:
        copy_part(target, t0, source, s0, n_pixels * have)
    else:
        for k in range(n_pixels):
            here = t0 + k * t_stride
            copy_part(target, here, source, s0 + k * s_stride, have)
            if t_stride == samples:
                target[here + have : here + samples] = 0


@numba.njit
def _tile_vectors(left):
    """Vectors of the next register tile of a strip of which so many are left."""
    return 8 if left >= 8 else 4 if left >= 4 else 2 if left >= 2 else 1


@numba.njit
def _sum_strips(
    values, offsets, starts, ends, outputs, n_rows, copied, base, samples, strip, bias, y,
    source, next_row, channel_step, pixel_step, n_pixels, direct, bound, out, target, row_step, column_step, past,
):  # fmt: skip
    """For every output channel r: y[r * strip : (r + 1) * strip] = bias + its weighted strips of the copied rows.

    One part of the strip after the other, one block of input channels after the other, so that what all output
    channels read next is in the first-level cache.

    Meanwhile `n_pixels` of each channel, at source[next_row + channel * channel_step + pixel * pixel_step], are
    asked for: the row that is copied next. If `direct`, the sums go to out[target + r * row_step + pixel *
    column_step] instead of y, at least `bound`, and if `past` past the caches.
    """
    width = lanes(copied)
    start_rows(y, bias, 0, strip)
    n_blocks, runs = outputs.size // n_rows, (starts, ends, outputs)
    at_once = -(-n_pixels // (n_blocks * -(-strip // (8 * width))))
    c, pixel = 0, 0
    while c < strip:
        vectors = _tile_vectors((strip - c) // width)
        for j in range(n_blocks):
            n = min(at_once, n_pixels - pixel)
            sums = values, offsets, runs, j * n_rows, (j + 1) * n_rows, copied, base + c, samples
            ahead = source, next_row + pixel * pixel_step, channel_step, n_rows, pixel_step, n
            pixel += n
            if direct and j == n_blocks - 1:
                to = bound, out, target + c // samples * column_step, row_step, column_step, samples // width, past
                if vectors == 8:
                    _last_8(y, c, strip, *sums, ahead, to)
                elif vectors == 4:
                    _last_4(y, c, strip, *sums, ahead, to)
                elif vectors == 2:
                    _last_2(y, c, strip, *sums, ahead, to)
                else:
                    _last_1(y, c, strip, *sums, ahead, to)
            elif vectors == 8:
                _sum_8(y, c, strip, *sums, ahead)
            elif vectors == 4:
                _sum_4(y, c, strip, *sums, ahead)
            elif vectors == 2:
                _sum_2(y, c, strip, *sums, ahead)
            else:
                _sum_1(y, c, strip, *sums, ahead)
        c += vectors * width


@numba.njit
def _task(number, batch, samples, size, columns, rows):
    """The first sample, column and row of a task, and the ends of its columns and rows."""
    n_column_bands, n_row_bands = -(-size[1] // columns), -(-size[0] // rows)
    left = number // n_row_bands % n_column_bands * columns
    top = number % n_row_bands * rows
    first = number // (n_column_bands * n_row_bands) * samples
    return first, left, top, min(size[1], left + columns), min(size[0], top + rows)


@numba.njit
def _n_tasks(batch, samples, size, columns, rows):
    return -(-batch // samples) * -(-size[1] // columns) * -(-size[0] // rows)


@compiled
def _correlate(
    values, offsets, starts, ends, outputs, kernel, first, stride, size, origin, step, samples, columns, rows,
    phase_width, scale, shift, x, bias, relu, past, out,
):  # fmt: skip
    n_channels, batch = x.shape[0], x.shape[3]
    n_rows = out.shape[0]
    row_size = n_channels * stride[1] * phase_width * samples
    flat_x, flat_out = x.reshape(-1), out.reshape(-1)
    bound = x.dtype.type(0 if relu else -np.inf)
    zero = np.intp(0)  # for a literal Numba would compile the function once more
    for number in numba.prange(_n_tasks(batch, samples, size, columns, rows)):
        sample, left, top, right, bottom = _task(number, batch, samples, size, columns, rows)
        strip = -(-(right - left) * samples // lanes(x)) * lanes(x)
        n_copied = (bottom - top - 1) * stride[0] + kernel[0]
        copied = aligned_scratch(n_copied * row_size + strip, x)
        copied[n_copied * row_size :] = 0  # the last strips, filled up to whole vectors, end here
        y = aligned_scratch(n_rows * strip, x)
        have = min(samples, batch - sample)
        direct = have == samples and samples % lanes(x) == 0
        done = 0
        for a in range(top, bottom):
            base = (a - top) * stride[0]
            while done < base + kernel[0]:
                row, column = first[0] + top * stride[0] + done, first[1] + left * stride[1]
                place = done * row_size
                _copy_row(x, row, column, stride[1], phase_width, sample, samples, place, copied, scale, shift)
                done += 1
            row = first[0] + top * stride[0] + done
            column = max(0, first[1] + left * stride[1])
            n_pixels = min(x.shape[2] - column, phase_width) if 0 <= row < x.shape[1] and a + 1 < bottom else 0
            next_row = (row * x.shape[2] + column) * batch + sample
            row, column = origin[0] + a * step[0], origin[1] + left * step[1]
            target = (row * out.shape[2] + column) * batch + sample
            row_step, column_step = out.shape[1] * out.shape[2] * batch, step[1] * batch
            _sum_strips(
                values, offsets, starts, ends, outputs, n_rows, copied, base * row_size, samples, strip, bias, y,
                flat_x, next_row, flat_x.size // n_channels, batch, n_pixels,
                direct, bound, flat_out, target, row_step, column_step, past,
            )  # fmt: skip
            if not direct:
                if relu:
                    rectify(y, 0, y.size)
                for r in range(n_rows):
                    there = target + r * row_step
                    _copy_pixels(flat_out, there, column_step, y, r * strip, samples, right - left, zero, have)
        if past:
            _fence()


@compiled
def _products(
    offsets, starts, ends, outputs, kernel, first, stride, size, samples, columns, rows, phase_width, scale, shift,
    g, x, sums,
):  # fmt: skip
    n_channels, batch = x.shape[0], x.shape[3]
    n_rows = g.shape[0]
    zero, one = np.intp(0), np.intp(1)  # for literals Numba would compile the function once more
    nothing = scale[:0]
    row_size = n_channels * stride[1] * phase_width * samples
    for part in numba.prange(sums.shape[0]):
        for number in range(part, _n_tasks(batch, samples, size, columns, rows), sums.shape[0]):
            sample, left, top, right, bottom = _task(number, batch, samples, size, columns, rows)
            copied = aligned_scratch(((bottom - top - 1) * stride[0] + kernel[0]) * row_size, x)
            strip = (right - left) * samples
            strips = aligned_scratch(n_rows * strip, x)
            done = 0
            for a in range(top, bottom):
                base = (a - top) * stride[0]
                while done < base + kernel[0]:
                    row, column = first[0] + top * stride[0] + done, first[1] + left * stride[1]
                    place = done * row_size
                    _copy_row(x, row, column, stride[1], phase_width, sample, samples, place, copied, scale, shift)
                    done += 1
                _copy_row(g, a, left, one, right - left, sample, samples, zero, strips, nothing, nothing)
                _multiply_strips(
                    offsets,
                    starts,
                    ends,
                    outputs,
                    n_rows,
                    strips,
                    copied,
                    base * row_size,
                    samples,
                    strip,
                    sums[part],
                )


@numba.njit
def _multiply_strips(offsets, starts, ends, outputs, n_rows, strips, copied, base, samples, strip, total):
    """For every slot s of every output channel: total[s] += its strip of the gradient times its copied strip."""
    width = lanes(copied)
    c = 0
    while c < strip:
        vectors = _tile_vectors((strip - c) // width)
        for low in range(0, outputs.size, n_rows):
            runs = offsets, (starts, ends, outputs), low, low + n_rows
            if vectors == 8:
                _products_8(total, *runs, strips, c, strip, copied, base + c, samples)
            elif vectors == 4:
                _products_4(total, *runs, strips, c, strip, copied, base + c, samples)
            elif vectors == 2:
                _products_2(total, *runs, strips, c, strip, copied, base + c, samples)
            else:
                _products_1(total, *runs, strips, c, strip, copied, base + c, samples)
        c += vectors * width
