"""The linear layer, dense or sparse."""

import numpy as np

from sparsekit.errors import InputError
from sparsekit.nn.module import Module, remembered
from sparsekit.nn.parameter import Parameter
from sparsekit.stored import StoredMatrix


class Linear(Module):
    """Y = W X + b.

        dX = W^T dY          dW = dY X^T at the stored positions          db = sum of dY over the batch

    Parameters
    ----------
    matrix : the weight W (n_out, n_in) in any storage: dense, CSR or condensed
    bias : whether to add a bias b (n_out, 1), zero at the start
    backend : which kernels compute the products of a sparse weight
    budget : weights a sparse layer may store, what its topology updates share out; None for dense layers
    ablate : whether topology updates may ablate neurons of this layer

    Attributes
    ----------
    matrix : the weight; `weight.values` is the same memory as `matrix.values`
    needs_grad_input : set False in the first layer of a network, whose input has no use for a gradient
    keep_grad_output : set True before a backward pass that :meth:`dense_gradient` is to follow
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
        self.matrix = matrix
        self.weight = Parameter(matrix.values)
        self.bias = Parameter(np.zeros((matrix.shape[0], 1), dtype=matrix.dtype)) if bias else None
        self.backend = backend
        self.budget = budget
        self.ablate = ablate
        self.needs_grad_input = True
        self.keep_grad_output = False
        self._input: np.ndarray | None = None
        self._grad_output: np.ndarray | None = None

    @property
    def is_sparse(self) -> bool:
        """Whether a topology method may move this layer's weights."""
        return self.budget is not None

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
        if self.keep_grad_output:
            self._grad_output = grad_output
        else:
            self._input = None
        return self.matrix.rmatmul(grad_output, self.backend) if self.needs_grad_input else None

    def freeze(self) -> None:
        """From now on the layer only predicts: a sparse weight becomes read-only, and its products faster."""
        self.matrix = self.matrix.frozen()
        self.weight.values = self.matrix.values

    def dense_gradient(self) -> np.ndarray:
        """Gradient of the loss at every position (n_out, n_in), stored or not, from the last backward pass.

        It is computed on demand and once, so that a dense gradient exists for one layer at a time only.
        """
        if self._input is None or self._grad_output is None:
            raise InputError("dense_gradient needs a backward pass with keep_grad_output=True before it")
        grad = self._grad_output @ self._input.T
        self._input = self._grad_output = None
        return grad

    def rewire(self, mask: np.ndarray) -> None:
        """Store the weights at the True positions of `mask` (n_out, n_in) from now on.

        Weights stored before and after keep value and optimizer state, new ones start at zero in both.
        """
        old = self.matrix.flat_positions()
        self.matrix = type(self.matrix).from_mask(mask, self.matrix.dtype)
        self.weight.rewire(self.matrix.values, old, self.matrix.flat_positions())

    def parameters(self):
        return {"weight": self.weight} | ({"bias": self.bias} if self.bias is not None else {})
