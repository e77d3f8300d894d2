"""What layers with a stored weight matrix share."""

from abc import abstractmethod

import numpy as np

from sparsekit.nn.module import Module
from sparsekit.nn.parameter import Parameter
from sparsekit.stored import StoredMatrix


class WeightLayer(Module):
    """A layer whose weight is a stored matrix (n_out, n_in): what topology methods, counting and files work on.

    Parameters
    ----------
    matrix : the weight in any storage: dense, CSR or condensed; one row a neuron (or output channel)
    bias : whether to add a bias (n_out, 1), zero at the start
    backend : which kernels compute the products of a sparse weight
    budget : weights a sparse layer may store, what its topology updates share out; None for dense layers
    ablate : whether topology updates may ablate neurons of this layer

    Attributes
    ----------
    matrix : the weight; `weight.values` is the same memory as `matrix.values`
    needs_grad_input : set False in the first layer of a network, whose input has no use for a gradient
    keep_dense_gradient : set True before a backward pass that :meth:`dense_gradient` is to follow
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
        self.keep_dense_gradient = False

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight as the literature has it: (out, in), or (out, in, height, width)."""
        return self.matrix.shape

    @property
    def is_sparse(self) -> bool:
        """Whether a topology method may move this layer's weights."""
        return self.budget is not None

    @abstractmethod
    def dense_gradient(self) -> np.ndarray:
        """Gradient of the loss at every position (n_out, n_in), stored or not, from the last backward pass.

        Needs a backward pass with `keep_dense_gradient` before it, and can be asked for once.
        """

    @abstractmethod
    def uses_per_sample(self, input_shape: tuple[int, ...]) -> int:
        """How often a forward pass multiplies each weight for one sample of this shape."""

    def freeze(self) -> None:
        """From now on the layer only predicts: a sparse weight becomes read-only, and its products faster."""
        self.use(self.matrix.frozen())

    def use(self, matrix: StoredMatrix) -> None:
        """Compute with this matrix from now on, and train its values."""
        self.matrix = matrix
        self.weight.values = matrix.values

    def rewire(self, mask: np.ndarray) -> None:
        """Store the weights at the True positions of `mask` (n_out, n_in) from now on.

        Weights stored before and after keep value and optimizer state, new ones start at zero in both.
        """
        old = self.matrix.flat_positions()
        matrix = type(self.matrix).from_mask(mask, self.matrix.dtype)
        self.weight.rewire(matrix.values, old, matrix.flat_positions())
        self.use(matrix)

    def parameters(self):
        return {"weight": self.weight} | ({"bias": self.bias} if self.bias is not None else {})
