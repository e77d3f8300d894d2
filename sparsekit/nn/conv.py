"""The two-dimensional convolution, dense or sparse."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sparsekit.checks import Pair
from sparsekit.convolution import Convolution, ImageProducts
from sparsekit.dense import DenseMatrix
from sparsekit.errors import InputError
from sparsekit.im2col import Im2colConvolution
from sparsekit.nn.module import remembered
from sparsekit.nn.weighted import WeightLayer
from sparsekit.stored import SparseMatrix, StoredMatrix

if TYPE_CHECKING:
    from sparsekit.kernels.conv import Affine


class Conv2d(WeightLayer):
    """Cross-correlation of images with filters.

        y[o, h, w] = b[o] + sum over c, i, j of W[o, c, i, j] x[c, h stride + i - padding, w stride + j - padding]

    x is (in_channels, height, width, batch) and zero outside the image. A sparse weight is never made dense: its
    stored weights alone are multiplied, in the gradients too.

    Parameters
    ----------
    matrix : the weight W (out_channels, in_channels * kernel height * kernel width) in any storage: dense, CSR
        or condensed, columns in C order of (in_channels, kernel height, kernel width)
    in_channels : channels of the input
    kernel_size, stride, padding : one integer, or (vertical, horizontal)

    The others are those of :class:`WeightLayer`; other backends than "cpu" multiply patches turned to columns.
    """

    def __init__(
        self,
        matrix: StoredMatrix,
        in_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        *,
        bias: bool = True,
        backend: str = "cpu",
        budget: int | None = None,
        ablate: bool = True,
    ) -> None:
        super().__init__(matrix, bias=bias, backend=backend, budget=budget, ablate=ablate)
        self._geometry = in_channels, kernel_size, stride, padding
        self._products: ImageProducts | None = None
        self._made_for = backend
        self._input: np.ndarray | None = None
        self._before: Affine | None = None
        self._dense_gradient: np.ndarray | None = None
        self.products  # noqa: B018  what does not fit is refused now

    @property
    def products(self) -> ImageProducts:
        """The convolution and its gradients with the present weight."""
        if self._products is None or self._products.matrix is not self.matrix or self._made_for != self.backend:
            if isinstance(self.matrix, SparseMatrix) and self.backend == "cpu":
                self._products = Convolution(self.matrix, *self._geometry)
            else:
                self._products = Im2colConvolution(self.matrix, *self._geometry, self.backend)
            self._made_for = self.backend
        return self._products

    @property
    def weight_shape(self):
        return (self.matrix.shape[0], self.products.in_channels, *self.products.kernel_size)

    def forward(
        self, x: np.ndarray, training: bool = False, relu: bool = False, before: Affine | None = None
    ) -> np.ndarray:
        """The convolution; with `relu` of it, and with `before` of relu(scale * x + shift), in the same pass."""
        self._input, self._before = (x, before) if training else (None, None)
        bias = self.bias.values if self.bias is not None else None
        return self.products.forward(x, before=before, bias=bias, relu=relu)

    def backward(self, grad_output):
        x, before, products = remembered(self._input), self._before, self.products
        if self.keep_dense_gradient:
            self._dense_gradient = self._gradient_everywhere(grad_output, x, before)
            stored = self._dense_gradient.reshape(-1)[self.matrix.flat_positions()]
            self.weight.grad = stored.reshape(self.weight.values.shape)
        else:
            self.weight.grad = products.weight_gradient(grad_output, x, before=before)
        if self.bias is not None:
            self.bias.grad = grad_output.reshape(len(grad_output), -1).sum(axis=1, keepdims=True)
        self._input = self._before = None
        return products.input_gradient(grad_output, x.shape[1:3]) if self.needs_grad_input else None

    def dense_gradient(self):
        """It is computed in the backward pass: the images it needs are far larger than the gradient itself."""
        if self._dense_gradient is None:
            raise InputError("dense_gradient needs a backward pass with keep_dense_gradient=True before it")
        grad, self._dense_gradient = self._dense_gradient, None
        return grad

    def uses_per_sample(self, input_shape):
        _, height, width = self.output_shape(input_shape)
        return height * width

    def output_shape(self, input_shape):
        channels = self.products.in_channels
        if len(input_shape) != 3 or input_shape[0] != channels:
            raise InputError(f"x must be images ({channels}, height, width, batch), not {(*input_shape, 'batch')}")
        return (self.matrix.shape[0], *self.products.output_size(*input_shape[1:]))

    def _gradient_everywhere(self, grad_output: np.ndarray, x: np.ndarray, before: Affine | None) -> np.ndarray:
        dense = DenseMatrix(np.zeros(self.matrix.shape, self.matrix.dtype))
        return Im2colConvolution(dense, *self._geometry).weight_gradient(grad_output, x, before=before)
