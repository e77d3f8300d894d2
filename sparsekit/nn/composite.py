"""Modules made of modules, and changes of shape between them."""

import math

import numpy as np

from sparsekit.errors import InputError
from sparsekit.kernels.memory import aligned_empty
from sparsekit.nn.activation import rectified_gradient
from sparsekit.nn.fusion import fused
from sparsekit.nn.module import Module, remembered
from sparsekit.nn.normalization import BatchNorm, BatchNorm2d


class Sequential(Module):
    """Modules one after the other; some neighbours are computed in one pass, see :mod:`sparsekit.nn.fusion`.

    Parameters
    ----------
    layers : the modules by name, in forward order
    """

    def __init__(self, layers: dict[str, Module]) -> None:
        self.layers = dict(layers)

        self._steps = fused(list(layers.values()))

    def forward(self, x, training=False):
        for step in self._steps:
            x = step.forward(x, training)
        return x

    def forward_sum(self, x: np.ndarray, side: np.ndarray, training: bool, relu: bool) -> np.ndarray:
        """forward(x) + side, negative ones zero if `relu`; a normalisation that comes last adds it by itself."""
        *steps, last = self._steps
        for step in steps:
            x = step.forward(x, training)
        if type(last) is BatchNorm or type(last) is BatchNorm2d:
            return last.forward(x, training, relu=relu, side=side)
        y = last.forward(x, training)
        if side.shape != y.shape:
            raise InputError(f"branch and shortcut must give the same shape, not {y.shape} and {side.shape}")
        y = np.add(y, side, out=aligned_empty(y.shape, y.dtype))
        return np.maximum(y, 0, out=y) if relu else y

    def backward(self, grad_output):
        for step in reversed(self._steps):
            if grad_output is None:  # what lies before the first layer with weights has none to train
                return None
            grad_output = step.backward(grad_output)
        return grad_output

    def children(self):
        return self.layers

    def output_shape(self, input_shape):
        for layer in self.layers.values():
            input_shape = layer.output_shape(input_shape)
        return input_shape

    def shapes(self, input_shape, prefix=""):
        for name, layer in self.layers.items():
            yield from layer.shapes(input_shape, f"{prefix}.{name}" if prefix else name)
            input_shape = layer.output_shape(input_shape)


class Residual(Module):
    """y = branch(x) + shortcut(x), or max(y, 0).

    Parameters
    ----------
    branch : modules by name, in forward order
    shortcut : likewise; None for the identity
    relu : whether a ReLU follows the sum
    """

    def __init__(
        self, branch: dict[str, Module], shortcut: dict[str, Module] | None = None, *, relu: bool = False
    ) -> None:
        if not branch:
            raise InputError("branch must have at least one module, not none")
        if "shortcut" in branch:
            raise InputError("branch must not name a module 'shortcut', which is what the other way is called")
        self.branch = Sequential(branch)
        self.shortcut = None if shortcut is None else Sequential(shortcut)
        self.relu = relu
        self._output: np.ndarray | None = None

    def forward(self, x, training=False):
        side = x if self.shortcut is None else self.shortcut.forward(x, training)
        y = self.branch.forward_sum(x, side, training, self.relu)
        self._output = y if training and self.relu else None
        return y

    def backward(self, grad_output):
        if self.relu:
            y, self._output = remembered(self._output), None
            grad_output = rectified_gradient(grad_output, y)
        of_branch = self.branch.backward(grad_output)
        of_side = grad_output if self.shortcut is None else self.shortcut.backward(grad_output)
        if of_branch is None or of_side is None:
            return None
        owned = not np.may_share_memory(of_branch, grad_output)  # it may be what the caller handed in
        out = of_branch if owned else aligned_empty(of_branch.shape, of_branch.dtype)
        return np.add(of_branch, of_side, out=out)

    def children(self):
        return self.branch.layers | ({} if self.shortcut is None else {"shortcut": self.shortcut})

    def output_shape(self, input_shape):
        shape = self.branch.output_shape(input_shape)
        side = input_shape if self.shortcut is None else self.shortcut.output_shape(input_shape)
        if shape != side:
            raise InputError(f"branch and shortcut must give the same shape, not {shape} and {side}")
        return shape

    def shapes(self, input_shape, prefix=""):
        yield from self.branch.shapes(input_shape, prefix)
        if self.shortcut is not None:
            yield from self.shortcut.shapes(input_shape, f"{prefix}.shortcut" if prefix else "shortcut")


class Flatten(Module):
    """(channels, height, width, batch) -> (channels * height * width, batch); without a copy."""

    def __init__(self) -> None:
        self._shape: tuple[int, ...] = ()

    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        self._shape = x.shape
        return x.reshape(-1, x.shape[-1])

    def backward(self, grad_output):
        return grad_output.reshape(self._shape)

    def output_shape(self, input_shape):
        return (math.prod(input_shape),)
