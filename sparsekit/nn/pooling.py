"""Pooling of images (channels, height, width, batch)."""

from abc import abstractmethod

import numpy as np

from sparsekit.checks import require_pair
from sparsekit.errors import InputError
from sparsekit.kernels.memory import aligned_empty
from sparsekit.nn.module import Module, remembered


class _Pool2d(Module):
    """One number for each window of a channel.

    Parameters
    ----------
    kernel_size : height and width of a window, one integer or (vertical, horizontal)
    stride : distance of two windows; None: they lie side by side. Pixels that fill no window are left out.
    """

    def __init__(self, kernel_size: int | tuple[int, int], stride: int | tuple[int, int] | None = None) -> None:
        self.kernel_size = require_pair("kernel_size", kernel_size, 1)
        self.stride = require_pair("stride", kernel_size if stride is None else stride, 1)
        self._input_shape: tuple[int, ...] | None = None

    def output_shape(self, input_shape):
        channels, *size = _images(input_shape)
        if size[0] < self.kernel_size[0] or size[1] < self.kernel_size[1]:
            kernel = f"{self.kernel_size[0]} x {self.kernel_size[1]}"
            raise InputError(f"kernel_size must be at most the image {size[0]} x {size[1]}, not {kernel}")
        pooled = ((n - k) // s + 1 for n, k, s in zip(size, self.kernel_size, self.stride, strict=True))
        return (channels, *pooled)

    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        """(channels, pooled height, pooled width, batch)."""
        shape = (*self.output_shape(x.shape[:-1]), x.shape[-1])
        self._input_shape = x.shape if training else None
        return self._pooled(x, shape, training)

    def backward(self, grad_output):
        input_shape = remembered(self._input_shape)
        shape = (*self.output_shape(input_shape[:3]), input_shape[3])
        if grad_output.shape != shape:
            raise InputError(f"grad_output must have shape {shape}, not {grad_output.shape}")
        out = aligned_empty(input_shape, grad_output.dtype)
        out[...] = 0
        self._input_shape = None
        self._add_gradient(np.require(grad_output, requirements=["C", "A", "W"]), out)
        return out

    @abstractmethod
    def _pooled(self, x: np.ndarray, shape: tuple[int, ...], training: bool) -> np.ndarray: ...

    @abstractmethod
    def _add_gradient(self, grad_output: np.ndarray, out: np.ndarray) -> None: ...


class MaxPool2d(_Pool2d):
    """The largest value of each window; the gradient goes to the pixel that had it, the first among equals."""

    _winner: np.ndarray | None = None

    def _pooled(self, x, shape, training):
        from sparsekit.kernels.pooling import max_pool

        out = aligned_empty(shape, x.dtype)
        winner = np.empty(shape, np.uint8 if self.kernel_size[0] * self.kernel_size[1] <= 256 else np.uint32)
        max_pool(np.require(x, requirements=["C", "A", "W"]), self.kernel_size, self.stride, out, winner)
        self._winner = winner if training else None
        return out

    def _add_gradient(self, grad_output, out):
        from sparsekit.kernels.pooling import max_pool_gradient

        winner, self._winner = remembered(self._winner), None
        max_pool_gradient(grad_output, winner, self.kernel_size, self.stride, out)


class AvgPool2d(_Pool2d):
    """The mean of each window; the gradient is shared out evenly."""

    def _pooled(self, x, shape, training):
        out = aligned_empty(shape, x.dtype)
        out[...] = 0
        for view in self._views(x, shape):
            out += view
        out *= x.dtype.type(1 / (self.kernel_size[0] * self.kernel_size[1]))
        return out

    def _add_gradient(self, grad_output, out):
        share = grad_output * grad_output.dtype.type(1 / (self.kernel_size[0] * self.kernel_size[1]))
        for view in self._views(out, grad_output.shape):
            view += share

    def _views(self, x: np.ndarray, shape: tuple[int, ...]):
        """For each place in a window the pixels of x that have it, one a window."""
        (down, right), (height, width) = self.stride, shape[1:3]
        for i, j in np.ndindex(*self.kernel_size):
            yield x[:, i : i + down * height : down, j : j + right * width : right]


class GlobalAvgPool(Module):
    """The mean of each channel's image: (channels, height, width, batch) -> (channels, batch)."""

    def __init__(self) -> None:
        self._input_shape: tuple[int, ...] | None = None

    def forward(self, x, training=False):
        self.output_shape(x.shape[:-1])
        self._input_shape = x.shape if training else None
        return x.mean(axis=(1, 2))

    def backward(self, grad_output):
        shape, self._input_shape = remembered(self._input_shape), None
        out = aligned_empty(shape, grad_output.dtype)
        out[...] = (grad_output * grad_output.dtype.type(1 / (shape[1] * shape[2])))[:, np.newaxis, np.newaxis]
        return out

    def output_shape(self, input_shape):
        return _images(input_shape)[:1]


def _images(input_shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(input_shape) != 3:
        raise InputError(f"x must be images (channels, height, width, batch), not {(*input_shape, 'batch')}")
    return input_shape
