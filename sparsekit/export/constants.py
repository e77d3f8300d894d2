"""Which neurons of a trained network always give the same value, and which of them it can do without.

A neuron without stored weights gives its bias, whatever the input is, and so do neurons that only read such
constants. Normalisation, activations and pooling make another constant of it. The next layer reads the constant
times its weights, which might as well stand in its bias: then nothing reads the neuron any more. This is exact for
linear layers and for convolutions without padding. With padding the border of the image reads zeros instead of the
constant, so only a constant that is zero can go. What is added to another branch, in a residual sum, and the
outputs of the network stay.
"""

from dataclasses import dataclass

import numpy as np

from sparsekit.errors import InputError
from sparsekit.nn import (
    GELU,
    AvgPool2d,
    BatchNorm,
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Linear,
    MaxPool2d,
    Module,
    ReLU,
    Residual,
    Sequential,
)

# What computes every channel (a feature, or a whole image) from the same channel of the input alone.
_CHANNEL_BY_CHANNEL = (
    AvgPool2d, BatchNorm, BatchNorm2d, Dropout, Flatten, GELU, GlobalAvgPool, MaxPool2d, ReLU,
)  # fmt: skip


class Neurons:
    """The outputs of a layer, or other channels that a network goes on with.

    Attributes
    ----------
    constant : bool (n,), neurons that give the same value for every sample and pixel
    removable : bool (n,), those that nothing needs any more once their constants stand in the next layer's bias
    """

    def __init__(self, constant: np.ndarray) -> None:
        self.constant = constant
        self.removable = constant.copy()


@dataclass(frozen=True, eq=False)
class Signal:
    """What flows between two modules.

    Attributes
    ----------
    x : float (*shape, 1), for one sample; any will do, because only constants are looked at
    constant : bool (n,), channels whose values in `x` are those of every sample; after Flatten a channel is
        several features, one after the other
    neurons : what it was computed from, channel by channel
    """

    x: np.ndarray
    constant: np.ndarray
    neurons: Neurons

    @property
    def is_zero(self) -> np.ndarray:
        """Bool (n,), channels that are zero everywhere."""
        return (self.x.reshape(self.constant.size, -1) == 0).all(axis=1)


class Constants:
    """The constants of a network.

    Parameters
    ----------
    model : the network, as it predicts
    sample_shape : shape of one sample

    Attributes
    ----------
    inputs : what every layer with weights, and every normalisation, reads
    outputs : the neurons of every layer with weights

    Raises
    ------
    InputError
        If there is a module in the network of which it is not known what it does to constants.
    """

    def __init__(self, model: Module, sample_shape: tuple[int, ...]) -> None:
        self.inputs: dict[Module, Signal] = {}
        self.outputs: dict[Module, Neurons] = {}
        dtype = next(iter(model.named_parameters().values())).values.dtype
        nothing = np.zeros(sample_shape[0], dtype=bool)
        logits = self._follow(model, Signal(np.zeros((*sample_shape, 1), dtype), nothing, Neurons(nothing)))
        logits.neurons.removable[:] = False
        for neurons in self.outputs.values():
            if neurons.removable.all():
                neurons.removable[0] = False  # a layer without neurons could not be stored

    def _follow(self, module: Module, signal: Signal) -> Signal:
        if isinstance(module, Sequential):
            for layer in module.layers.values():
                signal = self._follow(layer, signal)
            return signal
        if isinstance(module, Residual):
            return self._sum(module, signal)
        if isinstance(module, Linear | Conv2d):
            return self._product(module, signal)
        if not isinstance(module, _CHANNEL_BY_CHANNEL):
            kind = type(module).__name__
            raise InputError(f"model must not hold a {kind}: what it makes of constant inputs is unknown")
        self.inputs[module] = signal
        return Signal(module.forward(signal.x), signal.constant, signal.neurons)

    def _sum(self, module: Residual, signal: Signal) -> Signal:
        branch = self._follow(module.branch, signal)
        side = signal if module.shortcut is None else self._follow(module.shortcut, signal)
        for addend in (branch, side):
            addend.neurons.removable[:] = False
        x = branch.x + side.x
        if module.relu:
            x = np.maximum(x, 0)
        constant = branch.constant & side.constant
        return Signal(x, constant, Neurons(np.zeros_like(constant)))

    def _product(self, layer: Linear | Conv2d, signal: Signal) -> Signal:
        self.inputs[layer] = signal
        absorbed = signal.constant
        if isinstance(layer, Conv2d) and any(layer.products.padding):
            absorbed = absorbed & signal.is_zero
        signal.neurons.removable &= absorbed
        columns = spread(absorbed, layer.matrix.shape[1])
        neurons = self.outputs[layer] = Neurons(~np.any(layer.matrix.mask() & ~columns, axis=1))
        return Signal(layer.forward(signal.x), neurons.constant, neurons)


def spread(channels: np.ndarray, size: int) -> np.ndarray:
    """One entry a channel as one for each of its values, which lie one after the other and are `size` in all."""
    return np.repeat(channels, size // channels.size)
