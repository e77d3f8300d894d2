"""Convolution as a product of matrices: for dense weights, and for the backends without convolution kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from sparsekit.checks import Pair
from sparsekit.convolution import ImageProducts
from sparsekit.kernels.memory import aligned_empty
from sparsekit.stored import StoredMatrix

if TYPE_CHECKING:
    from sparsekit.kernels.conv import Affine

_CACHED = 512 << 10  # bytes of patches at a time


class Im2colConvolution(ImageProducts):
    """Convolution as a product of matrices: the patch around each output pixel becomes a column.

    For dense weights, which BLAS multiplies, and for the backends that have no convolution of their own. A few
    pixels of the output are computed at a time, so that their columns stay in the cache.

    Parameters
    ----------
    matrix : weight in any storage
    backend : which kernels multiply a sparse weight

    The others are those of :class:`ImageProducts`.
    """

    def __init__(
        self,
        matrix: StoredMatrix,
        in_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        backend: str = "cpu",
    ) -> None:
        super().__init__(matrix, in_channels, kernel_size, stride, padding)
        self.backend = backend

    def _forward(self, x, out, before, bias, relu):
        for rows, columns, patches in self._patches(x, out.shape[1:3], before):
            part = out[:, rows, columns]
            part[...] = self.matrix.matmul(patches, self.backend, bias=bias, relu=relu).reshape(part.shape)

    def _input_gradient(self, g, out):
        (height, width), (top, left) = out.shape[1:3], self.padding
        padded = out
        if top or left:
            shape = (self.in_channels, height + 2 * top, width + 2 * left, g.shape[3])
            padded = aligned_empty(shape, out.dtype)
        padded[...] = 0
        for rows, column_bands in self._bands(g.shape[1:3], g.shape[3]):
            windows = self._windows(padded[:, self._rows_seen(rows)], g.shape[2])
            for columns in column_bands:
                part = windows[..., columns, :]
                patches = self.matrix.rmatmul(g[:, rows, columns].reshape(self.out_channels, -1), self.backend)
                patches = patches.reshape(part.shape)
                for i, j in np.ndindex(*self.kernel_size):  # windows overlap where i or j differ, only there
                    part[:, i, j] += patches[:, i, j]
        if padded is not out:
            out[...] = padded[:, top : top + height, left : left + width]

    def _weight_gradient(self, g, x, before):
        total = np.zeros_like(self.matrix.values)
        for rows, columns, patches in self._patches(x, g.shape[1:3], before):
            part = g[:, rows, columns].reshape(self.out_channels, -1)
            total += self.matrix.sampled_outer(part, patches, self.backend)
        return total

    def _patches(
        self, x: np.ndarray, size: Pair, before: Affine | None
    ) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """Rows and columns of the output and the patches they see, (in_channels * kernel, pixels * batch)."""
        for rows, column_bands in self._bands(size, x.shape[3]):
            windows = self._windows(self._padded_rows(x, self._rows_seen(rows), before), size[1])
            for columns in column_bands:
                part = windows[..., columns, :]
                patches = aligned_empty(part.shape, x.dtype)
                patches[...] = part
                yield rows, columns, patches.reshape(self.matrix.shape[1], -1)

    def _bands(self, size: Pair, batch: int) -> Iterator[tuple[slice, list[slice]]]:
        """Rows of the output and, within them, columns: as many pixels as stay in the cache as patches."""
        pixels = max(1, _CACHED // max(1, self.matrix.shape[1] * batch * self.matrix.values.itemsize))
        column_bands = _slices(size[1], min(pixels, size[1]))
        for rows in _slices(size[0], max(1, pixels // size[1])):
            yield rows, column_bands

    def _rows_seen(self, rows: slice) -> slice:
        """Rows of the padded input that rows of the output see."""
        stride, kernel = self.stride[0], self.kernel_size[0]
        return slice(rows.start * stride, (rows.stop - 1) * stride + kernel)

    def _padded_rows(self, x: np.ndarray, rows: slice, before: Affine | None) -> np.ndarray:
        """Some rows of the padded input, behind what happens to it before."""
        channels, height, width, batch = x.shape
        top, left = self.padding
        first, last = max(0, rows.start - top), min(height, rows.stop - top)
        if before is None and not left and last - first == rows.stop - rows.start:
            return x[:, first:last]
        band = aligned_empty((channels, rows.stop - rows.start, width + 2 * left, batch), x.dtype)
        band[...] = 0
        if first < last:
            part = x[:, first:last]
            if before is not None:
                scale, shift = (vector[:, np.newaxis, np.newaxis, np.newaxis] for vector in before)
                part = np.maximum(part * scale + shift, 0)
            band[:, first + top - rows.start : last + top - rows.start, left : left + width] = part
        return band

    def _windows(self, band: np.ndarray, width: int) -> np.ndarray:
        """(in_channels, kernel height, kernel width, rows, width, batch), a view of rows of the padded images."""
        kernel, stride = self.kernel_size, self.stride
        windows = sliding_window_view(band, kernel, axis=(1, 2), writeable=True)[:, :: stride[0], :: stride[1]]
        return windows[:, :, :width].transpose(0, 4, 5, 1, 2, 3)


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]
