"""Dropout."""

import numpy as np

from sparsekit.checks import require_fraction
from sparsekit.kernels.memory import aligned_empty
from sparsekit.nn.module import Module


class Dropout(Module):
    """In training, zero each element with probability p and scale the rest by 1 / (1 - p); else the identity.

    Parameters
    ----------
    p : probability of zero, in [0, 1)
    rng : random source of the drops
    """

    def __init__(self, p: float, rng: np.random.Generator) -> None:
        self.p = require_fraction("p", p, high_open=True)
        self.rng = rng
        self._kept: np.ndarray | None = None

    def forward(self, x, training=False):
        if not training or self.p == 0:
            self._kept = None
            return x
        self._kept = self.rng.random(x.shape, dtype=np.float32) >= self.p
        return self._scaled(x, self._kept)

    def backward(self, grad_output):
        return grad_output if self._kept is None else self._scaled(grad_output, self._kept)

    def _scaled(self, x: np.ndarray, kept: np.ndarray) -> np.ndarray:
        y = np.multiply(x, kept, out=aligned_empty(x.shape, x.dtype))
        y *= x.dtype.type(1 / (1 - self.p))
        return y
