"""Convolution with a condensed weight on the GPU, forward."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsekit.checks import Pair
from sparsekit.convolution import Convolution
from sparsekit.errors import InputError
from sparsekit.gpu_matrix import GpuCondensedMatrix
from sparsekit.kernels import gpu
from sparsekit.kernels.gpu_arrays import (
    require_cupy,
    require_device_array,
    require_gpu_output,
    require_kind,
)


class GpuConvolution:
    """The convolution of :class:`sparsekit.convolution.Convolution` with a weight on the GPU; no gradients yet.

    An output pixel is a product of the weight with the pixels below the kernel. Its tile in shared memory is
    filled from these pixels directly, so patches are never written to memory.

    Parameters
    ----------
    matrix : weight on the device, made by :meth:`CondensedMatrix.to_gpu`; its values may change in place

    The others are those of :class:`Convolution`.
    """

    def __init__(
        self,
        matrix: GpuCondensedMatrix,
        in_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
    ) -> None:
        if not isinstance(matrix, GpuCondensedMatrix):
            raise InputError(f"matrix must be a GpuCondensedMatrix, made by to_gpu(), not {type(matrix).__name__}")
        self.matrix = matrix
        self.geometry = Convolution(matrix.topology, in_channels, kernel_size, stride, padding)
        self._images: dict[Pair, gpu.Image] = {}

    def forward(self, x: Any, out: Any = None, *, bias: Any = None, relu: bool = False) -> Any:
        """The convolution of x, with bias and ReLU in the same pass.

        Parameters
        ----------
        x : float32, float16 or bfloat16 (in_channels, height, width, batch) on the device, C-contiguous
        out : C-contiguous float32 (out_channels, out height, out width, batch), overwritten; a new array if None
        bias : float32 (out_channels,) or (out_channels, 1), added to each pixel; None for none
        relu : whether negative results become zero; NaN stays NaN

        Returns
        -------
        float32 (out_channels, out height, out width, batch); channels of ablated neurons are zero before the bias.
        """
        values, channels = self.matrix.values, self.geometry.in_channels
        require_kind("x", require_device_array("x", x, values))
        if x.ndim != 4 or x.shape[0] != channels or min(x.shape[1:3]) < 1:
            raise InputError(f"x must have shape ({channels}, height, width, batch), not {x.shape}")
        size = x.shape[1], x.shape[2]
        shape = (self.geometry.out_channels, *self.geometry.output_size(*size), x.shape[3])
        bias = self.matrix.checked_bias(bias)
        if out is None:
            out = require_cupy().empty(shape, dtype=np.float32)
        else:
            require_gpu_output(out, shape, values, x=x, values=values, bias=bias)
        rows, weights = self.matrix.packed_weights()
        gpu.gather_images(x, weights, rows, bias, out, relu, self._image(size))
        return out

    def __repr__(self) -> str:
        return f"Gpu{self.geometry!r}"

    def _image(self, size: Pair) -> gpu.Image:
        """Where the taps of the kernel and its corners lie in images of this size."""
        if size not in self._images:
            cupy, geometry = require_cupy(), self.geometry
            taps = kernel_taps(geometry.in_channels, geometry.kernel_size, size)
            corners = kernel_corners(geometry.output_size(*size), geometry.stride, geometry.padding)
            self._images[size] = gpu.Image(cupy.asarray(taps), cupy.asarray(corners), *size)
        return self._images[size]


def kernel_taps(in_channels: int, kernel_size: Pair, size: Pair) -> np.ndarray:
    """Int32 (in_channels * kernel height * kernel width, 4): each tap's pixel, row and column, and a zero.

    Pixels are counted in C order of (channel, height, width), from the one below the kernel's first tap.
    """
    channel, row, column = np.indices((in_channels, *kernel_size)).reshape(3, -1)
    pixel = (channel * size[0] + row) * size[1] + column
    return np.stack([pixel, row, column, np.zeros_like(row)], axis=1).astype(np.int32)


def kernel_corners(output_size: Pair, stride: Pair, padding: Pair) -> np.ndarray:
    """Int32 (positions, 2): row and column of the pixel below the first tap, for each output pixel in C order."""
    places = np.indices(output_size).reshape(2, -1).T
    return np.ascontiguousarray(places * stride - np.array(padding), dtype=np.int32)
