"""Dropout."""

import numpy as np

from sparsekit.checks import require_fraction
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
        self._scale: np.ndarray | None = None

    def forward(self, x, training=False):
        if not training or self.p == 0:
            self._scale = None
            return x
        kept = self.rng.random(x.shape, dtype=np.float32) >= self.p
        self._scale = kept * x.dtype.type(1 / (1 - self.p))
        return x * self._scale

    def backward(self, grad_output):
        return grad_output if self._scale is None else grad_output * self._scale
