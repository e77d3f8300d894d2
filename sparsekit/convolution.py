"""Two-dimensional convolution with a stored weight: what it is, and how it is computed for sparse ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from sparsekit.checks import Pair, require_integer, require_pair
from sparsekit.errors import InputError
from sparsekit.kernels.memory import aligned_empty
from sparsekit.kernels.transpose import index_dtype
from sparsekit.stored import SparseMatrix, StoredMatrix, real_array, require_output

if TYPE_CHECKING:
    from sparsekit.kernels.conv import Affine


class ImageProducts(ABC):
    """Cross-correlation of images with a stored weight, and its gradients; a subclass says how.

        y[o, h, w, n] = sum over stored (c, i, j) of weight[o, c, i, j] * x[c, h * stride + i - padding, ..., n]

    where x is zero outside the image. Only stored weights are touched, in the gradients too.

    Images are feature-major: (channels, height, width, batch). Where a copy makes an operand right it is copied:
    other real dtypes are converted to the dtype of the weights, strided and read-only arrays become contiguous
    ones. Anything else raises an :class:`InputError` that names the argument.

    Parameters
    ----------
    matrix : weight (out_channels, in_channels * kernel height * kernel width), columns in C order of
        (in_channels, kernel height, kernel width); its values may change in place, its topology does not
    in_channels : channels of the input
    kernel_size, stride, padding : one integer, or (vertical, horizontal)

    Raises
    ------
    InputError
        If an argument is out of range or the matrix has not in_channels * kernel height * kernel width columns.
    """

    def __init__(
        self,
        matrix: StoredMatrix,
        in_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
    ) -> None:
        self.matrix = matrix
        self.in_channels = require_integer("in_channels", in_channels, 1)
        self.kernel_size = require_pair("kernel_size", kernel_size, 1)
        self.stride = require_pair("stride", stride, 1)
        self.padding = require_pair("padding", padding, 0)
        columns = self.in_channels * self.kernel_size[0] * self.kernel_size[1]
        if matrix.shape[1] != columns:
            expected = f"in_channels * kernel height * kernel width = {columns}"
            raise InputError(f"matrix must have {expected} columns, not {matrix.shape[1]}")

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.matrix.shape[0]

    def output_size(self, height: int, width: int) -> Pair:
        """Height and width of the output: floor((size + 2 padding - kernel) / stride) + 1 for those of the input.

        Raises
        ------
        InputError
            If the kernel is larger than the padded input.
        """
        height, width = require_integer("height", height, 1), require_integer("width", width, 1)
        padded = [size + 2 * padding for size, padding in zip((height, width), self.padding, strict=True)]
        if padded[0] < self.kernel_size[0] or padded[1] < self.kernel_size[1]:
            raise InputError(
                f"kernel_size must be at most the padded input {padded[0]} x {padded[1]}, "
                f"not {self.kernel_size[0]} x {self.kernel_size[1]}"
            )
        vertical, horizontal = (
            (size - kernel) // stride + 1
            for size, kernel, stride in zip(padded, self.kernel_size, self.stride, strict=True)
        )
        return vertical, horizontal

    def forward(
        self,
        x: np.ndarray,
        out: np.ndarray | None = None,
        *,
        before: Affine | None = None,
        bias: np.ndarray | None = None,
        relu: bool = False,
    ) -> np.ndarray:
        """The convolution of x; what stands before and behind it in a network may be done in the same pass.

        Parameters
        ----------
        x : (in_channels, height, width, batch)
        out : C-contiguous (out_channels, out height, out width, batch) of the matrix's dtype, overwritten; a new
            array if None
        before : scale and shift, (in_channels,) each: the convolution is of relu(scale * x + shift) instead of x;
            the padding stays zero
        bias : (out_channels,) or (out_channels, 1), added to each pixel; None for none
        relu : whether negative results become zero

        Returns
        -------
        (out_channels, out height, out width, batch); channels of ablated neurons are zero before the bias.
        """
        x = self._images("x", x, self.in_channels)
        size = self.output_size(*x.shape[1:3])
        shape = (self.out_channels, *size, x.shape[3])
        before = self._affine(before)
        if bias is not None:
            bias = self._vector("bias", bias, self.out_channels)
        if out is None:
            out = aligned_empty(shape, self.matrix.dtype)
        else:
            out = require_output(out, shape, self.matrix.dtype, x=x, values=self.matrix.values)
        self._forward(x, out, before, bias, relu)
        return out

    def input_gradient(self, g: np.ndarray, input_size: Pair) -> np.ndarray:
        """The gradient of the loss with respect to the input (behind `before`).

        Parameters
        ----------
        g : (out_channels, out height, out width, batch), gradient with respect to the output
        input_size : height and width of the input

        Returns
        -------
        (in_channels, height, width, batch)
        """
        input_size = require_pair("input_size", input_size, 1)
        g = self._images("g", g, self.out_channels, self.output_size(*input_size))
        out = aligned_empty((self.in_channels, *input_size, g.shape[3]), self.matrix.dtype)
        self._input_gradient(g, out)
        return out

    def weight_gradient(self, g: np.ndarray, x: np.ndarray, *, before: Affine | None = None) -> np.ndarray:
        """The gradient of the loss with respect to the stored weights.

        Parameters
        ----------
        g : (out_channels, out height, out width, batch), gradient with respect to the output
        x : (in_channels, height, width, batch), the input
        before : as in :meth:`forward`

        Returns
        -------
        array shaped like the values of the matrix
        """
        x = self._images("x", x, self.in_channels)
        g = self._images("g", g, self.out_channels, self.output_size(*x.shape[1:3]))
        if g.shape[3] != x.shape[3]:
            raise InputError(f"g and x must have the same batch, not {g.shape[3]} and {x.shape[3]}")
        return self._weight_gradient(g, x, self._affine(before))

    @abstractmethod
    def _forward(
        self, x: np.ndarray, out: np.ndarray, before: Affine | None, bias: np.ndarray | None, relu: bool
    ) -> None: ...

    @abstractmethod
    def _input_gradient(self, g: np.ndarray, out: np.ndarray) -> None: ...

    @abstractmethod
    def _weight_gradient(self, g: np.ndarray, x: np.ndarray, before: Affine | None) -> np.ndarray: ...

    def _images(self, name: str, images: np.ndarray, channels: int, size: Pair | None = None) -> np.ndarray:
        images = real_array(name, images, self.matrix.dtype)
        fits = images.ndim == 4 and images.shape[0] == channels and min(images.shape[1:3]) > 0
        if not fits or (size is not None and images.shape[1:3] != size):
            expected = "height, width" if size is None else f"{size[0]}, {size[1]}"
            raise InputError(f"{name} must have shape ({channels}, {expected}, batch), not {images.shape}")
        return images

    def _affine(self, before: Affine | None) -> Affine | None:
        if before is None:
            return None
        from sparsekit.kernels.conv import Affine

        return Affine(*(self._vector(f"before[{k}]", before[k], self.in_channels) for k in (0, 1)))

    def _vector(self, name: str, vector: np.ndarray, length: int) -> np.ndarray:
        vector = real_array(name, vector, self.matrix.dtype)
        if vector.shape not in ((length,), (length, 1)):
            raise InputError(f"{name} must have shape ({length},) or ({length}, 1), not {vector.shape}")
        return vector.reshape(length)

    def __repr__(self) -> str:
        kernel, stride, padding = (
            "x".join(map(str, pair)) for pair in (self.kernel_size, self.stride, self.padding)
        )
        return f"{type(self).__name__}({self.matrix!r}, kernel {kernel}, stride {stride}, padding {padding})"


class Convolution(ImageProducts):
    """Convolution with a condensed or CSR weight on the kernels of :mod:`sparsekit.kernels.conv`, without im2col.

    Parameters are those of :class:`ImageProducts`.
    """

    matrix: SparseMatrix

    def __init__(
        self,
        matrix: SparseMatrix,
        in_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
    ) -> None:
        if not isinstance(matrix, SparseMatrix):
            raise InputError(f"matrix must be a CondensedMatrix or CSRMatrix, not {type(matrix).__name__}")
        super().__init__(matrix, in_channels, kernel_size, stride, padding)

    def _forward(self, x, out, before, bias, relu):
        from sparsekit.kernels.conv import correlate

        values, window = self.matrix.kernel_values.reshape(-1), self._forward_window(out.shape[1:3])
        correlate(values, self._forward_taps, window, x, out, before=before, bias=bias, relu=relu)

    def _input_gradient(self, g, out):
        from sparsekit.kernels.conv import correlate

        values = self.matrix.kernel_values.reshape(-1)
        for start in np.ndindex(*(min(pair) for pair in zip(self.stride, out.shape[1:3], strict=True))):
            taps = self._gradient_taps[start]
            correlate(values[taps.positions], taps, self._gradient_window(start, out.shape[1:3]), g, out)

    def _weight_gradient(self, g, x, before):
        from sparsekit.kernels.conv import weight_gradient

        out = np.empty_like(self.matrix.values)
        window = self._forward_window(g.shape[1:3])
        weight_gradient(self._forward_taps, window, g, x, out.reshape(-1), before=before)
        return out

    def _forward_window(self, size: Pair):
        from sparsekit.kernels.conv import Window

        first = (-self.padding[0], -self.padding[1])
        return Window(self.kernel_size, first, self.stride, size, start=(0, 0), step=(1, 1))

    def _gradient_window(self, start: Pair, input_size: Pair):
        """Input pixels start, start + stride, ...: they see, of the output's gradient, what they contributed to.

        Pixel y is tap i of output pixel (y + padding - i) / stride. Of the taps that leave no remainder the last
        one belongs to the first of these output pixels, so a window over the gradient meets the taps in reverse
        order.
        """
        from sparsekit.kernels.conv import Window

        taps = [_taps_of_class(*dimension) for dimension in self._dimensions(start)]
        dimensions = zip(start, self.padding, self.stride, taps, input_size, strict=True)
        kernel, first, size = [], [], []
        for begin, padding, stride, tap, pixels in dimensions:
            kernel.append(max(1, len(tap)))
            first.append((begin + padding - tap[-1]) // stride if len(tap) else 0)
            size.append(-(-(pixels - begin) // stride))
        return Window(_two(kernel), _two(first), (1, 1), _two(size), start, self.stride)

    def _dimensions(self, start: Pair):
        return zip(start, self.kernel_size, self.stride, self.padding, strict=True)

    def _weight_places(self) -> np.ndarray:
        """Output channel, input channel, kernel row and kernel column of each stored weight, int64 (4, nnz)."""
        shape = (self.out_channels, self.in_channels, *self.kernel_size)
        return np.stack(np.unravel_index(self.matrix.flat_positions(), shape))

    @cached_property
    def _forward_taps(self):
        _, channels, rows, columns = self._weight_places()
        return _taps(self.matrix.row_pointers(), channels, rows, columns, None)

    @cached_property
    def _gradient_taps(self):
        """For every class of input pixels the taps that reach it, by input channel."""
        outputs, inputs, rows, columns = self._weight_places()
        taps = {}
        for start in np.ndindex(*self.stride):
            vertical, horizontal = (_taps_of_class(*dimension) for dimension in self._dimensions(start))
            chosen = np.flatnonzero(np.isin(rows, vertical) & np.isin(columns, horizontal))
            chosen = chosen[np.argsort(inputs[chosen], kind="stable")]
            counts = np.bincount(inputs[chosen], minlength=self.in_channels)
            taps[start] = _taps(
                np.concatenate([[0], np.cumsum(counts)]),
                outputs[chosen],
                (vertical[-1] - rows[chosen]) // self.stride[0] if len(vertical) else rows[chosen],
                (horizontal[-1] - columns[chosen]) // self.stride[1] if len(horizontal) else columns[chosen],
                chosen.astype(np.int32 if chosen.size < 2**31 else np.int64),
            )
        return taps


def _taps_of_class(start: int, kernel: int, stride: int, padding: int) -> range:
    """The taps by which input pixels start, start + stride, ... reach an output pixel."""
    return range((start + padding) % stride, kernel, stride)


def _taps(indptr, channels, rows, columns, positions):
    from sparsekit.kernels.conv import Taps

    small = index_dtype(max((int(a.max(initial=0)) for a in (channels, rows, columns)), default=0) + 1)
    channels, rows, columns = (array.astype(small) for array in (channels, rows, columns))
    return Taps(indptr.astype(np.int64), channels, rows, columns, positions)


def _two(values: list[int]) -> Pair:
    vertical, horizontal = values
    return vertical, horizontal
