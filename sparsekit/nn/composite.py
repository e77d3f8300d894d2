"""Modules made of modules, and changes of shape between them."""

import math

import numpy as np

from sparsekit.nn.activation import ReLU
from sparsekit.nn.linear import Linear
from sparsekit.nn.module import Module


class Sequential(Module):
    """Modules one after the other; a linear layer applies the ReLU that follows it itself.

    Parameters
    ----------
    layers : the modules by name, in forward order
    """

    def __init__(self, layers: dict[str, Module]) -> None:
        self.layers = dict(layers)

    def forward(self, x, training=False):
        layers = list(self.layers.values())
        k = 0
        while k < len(layers):
            layer, following = layers[k], layers[k + 1] if k + 1 < len(layers) else None
            if type(layer) is Linear and type(following) is ReLU:  # subclasses may compute something else
                x = following.remember(layer.forward(x, training, relu=True), training)
                k += 2
            else:
                x = layer.forward(x, training)
                k += 1
        return x

    def backward(self, grad_output):
        for layer in reversed(self.layers.values()):
            if grad_output is None:  # what lies before the first layer with weights has none to train
                return None
            grad_output = layer.backward(grad_output)
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
