"""The linear layer, dense or sparse."""

import numpy as np

from sparsekit.errors import InputError
from sparsekit.nn.module import remembered
from sparsekit.nn.weighted import WeightLayer
from sparsekit.stored import StoredMatrix


class Linear(WeightLayer):
    """Y = W X + b.

        dX = W^T dY          dW = dY X^T at the stored positions          db = sum of dY over the batch

    Parameters are those of :class:`WeightLayer`; X is (n_in, batch) and Y (n_out, batch).
    """

    def __init__(
        self,
        matrix: StoredMatrix,
        *,
        bias: bool = True,
        backend: str = "cpu",
        budget: int | None = None,
        ablate: bool = True,
    ) -> None:
        super().__init__(matrix, bias=bias, backend=backend, budget=budget, ablate=ablate)
        self._input: np.ndarray | None = None
        self._grad_output: np.ndarray | None = None

    def forward(self, x: np.ndarray, training: bool = False, relu: bool = False) -> np.ndarray:
        """Y = W X + b, or max(Y, 0) with `relu`: in one pass, where the kernels can."""
        self._input = x if training else None
        bias = self.bias.values if self.bias is not None else None
        return self.matrix.matmul(x, self.backend, bias=bias, relu=relu)

    def backward(self, grad_output):
        x, weight = remembered(self._input), self.weight
        weight.grad = self.matrix.sampled_outer(grad_output, x, self.backend, out=weight.grad)
        if self.bias is not None:
            self.bias.grad = grad_output.sum(axis=1, keepdims=True)
        if self.keep_dense_gradient:
            self._grad_output = grad_output
        else:
            self._input = None
        return self.matrix.rmatmul(grad_output, self.backend) if self.needs_grad_input else None

    def dense_gradient(self):
        """It is computed on demand from input and output gradient, which are smaller than it mostly is."""
        if self._input is None or self._grad_output is None:
            raise InputError("dense_gradient needs a backward pass with keep_dense_gradient=True before it")
        grad = self._grad_output @ self._input.T
        self._input = self._grad_output = None
        return grad

    def uses_per_sample(self, input_shape):
        return 1

    def output_shape(self, input_shape):
        n_out, n_in = self.matrix.shape
        if input_shape != (n_in,):
            raise InputError(f"x must have shape ({n_in}, batch) for this layer, not {(*input_shape, 'batch')}")
        return (n_out,)
