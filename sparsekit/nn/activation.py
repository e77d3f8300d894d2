"""Activation functions, element by element; any shape."""

import math

import numpy as np

from sparsekit.kernels.memory import aligned_empty
from sparsekit.nn.module import Module, remembered


class ReLU(Module):
    """y = max(x, 0); dx = dy where x > 0, else 0."""

    def __init__(self) -> None:
        self._output: np.ndarray | None = None

    def forward(self, x, training=False):
        return self.remember(np.maximum(x, 0, out=aligned_empty(x.shape, x.dtype)), training)

    def remember(self, y: np.ndarray, training: bool) -> np.ndarray:
        """Take y as the output; for a layer before this one that has applied the ReLU itself."""
        self._output = y if training else None
        return y

    def backward(self, grad_output):
        y, self._output = remembered(self._output), None
        return rectified_gradient(grad_output, y)


def rectified_gradient(grad_output: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The gradient where y = max(x, 0) is positive, else 0, as a new array."""
    return np.multiply(grad_output, y > 0, out=aligned_empty(grad_output.shape, grad_output.dtype))


class GELU(Module):
    """y = x Phi(x) with the normal distribution function Phi; dx = dy (Phi(x) + x phi(x)).

    The exact form, not the tanh approximation. Source: Hendrycks and Gimpel, arXiv 1606.08415.
    """

    def __init__(self) -> None:
        self._input: np.ndarray | None = None

    def forward(self, x, training=False):
        self._input = x if training else None
        return x * _normal_cdf(x)

    def backward(self, grad_output):
        x, self._input = remembered(self._input), None
        density = np.exp(-0.5 * x * x) * x.dtype.type(1 / math.sqrt(2 * math.pi))
        return grad_output * (_normal_cdf(x) + x * density)


def _normal_cdf(x: np.ndarray) -> np.ndarray:
    from scipy.special import erf  # imported here: only networks with GELU need SciPy's special functions

    half = x.dtype.type(0.5)
    return half * (1 + erf(x * x.dtype.type(math.sqrt(0.5))))
