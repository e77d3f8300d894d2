"""Neighbouring modules that are computed in one pass.

Memory is what such passes save: a normalised or rectified image is never written just to be read once.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsekit.nn.activation import ReLU
from sparsekit.nn.conv import Conv2d
from sparsekit.nn.linear import Linear
from sparsekit.nn.module import Module
from sparsekit.nn.normalization import BatchNorm, BatchNorm2d


def fused(modules: Sequence[Module]) -> list[Module]:
    """The same function with fewer passes: what can be computed together is one module here.

    Only the very types are looked for: subclasses may compute something else.
    """
    steps: list[Module] = []
    rest: list[Any] = list(modules)
    while rest:
        first, second, third = [*map(type, rest[:3]), None, None, None][:3]
        if (first, second, third) == (BatchNorm2d, ReLU, Conv2d):
            steps.append(NormalizedConv(rest[0], rest[2]))
            del rest[:3]
        elif first in (BatchNorm, BatchNorm2d) and second is ReLU:
            steps.append(RectifiedNorm(rest[0]))
            del rest[:2]
        elif first in (Linear, Conv2d) and second is ReLU:
            steps.append(RectifiedProduct(rest[0], rest[1]))
            del rest[:2]
        else:
            steps.append(rest.pop(0))
    return steps


class RectifiedProduct(Module):
    """A linear layer or convolution that applies the ReLU behind it to its sums."""

    def __init__(self, layer: Linear | Conv2d, relu: ReLU) -> None:
        self.layer, self.relu = layer, relu

    def forward(self, x, training=False):
        return self.relu.remember(self.layer.forward(x, training, relu=True), training)

    def backward(self, grad_output):
        return self.layer.backward(self.relu.backward(grad_output))


class RectifiedNorm(Module):
    """Batch normalisation and ReLU in one; where that was positive is told from the input, in backward too."""

    def __init__(self, norm: BatchNorm) -> None:
        self.norm = norm

    def forward(self, x, training=False):
        return self.norm.forward(x, training, relu=True)

    def backward(self, grad_output):
        return self.norm.backward(grad_output)


class NormalizedConv(Module):
    """Batch normalisation, ReLU, convolution: the convolution applies the other two to what it reads."""

    def __init__(self, norm: BatchNorm2d, conv: Conv2d) -> None:
        self.norm, self.conv = norm, conv

    def forward(self, x, training=False):
        affine = self.norm.affine(x, training, relu=True)
        return self.conv.forward(x, training, before=affine)

    def backward(self, grad_output: np.ndarray):
        grad = self.conv.backward(grad_output)
        return None if grad is None else self.norm.backward(grad, overwrite=True)
