"""The contract of every layer."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TypeVar

import numpy as np

from sparsekit.errors import InputError
from sparsekit.nn.parameter import Parameter

Kept = TypeVar("Kept")


def remembered(kept: Kept | None) -> Kept:
    """What forward kept for backward; an error in words where there was no forward pass in training."""
    if kept is None:
        raise InputError("backward needs a forward pass with training=True before it")
    return kept


class Module(ABC):
    """A differentiable function of an array, with its backward pass written by hand.

    A subclass implements :meth:`forward` and :meth:`backward`, keeps in between what backward needs, and names
    its parameters (trained), buffers (remembered, not trained) and children (modules within).
    """

    @abstractmethod
    def forward(self, x: np.ndarray, training: bool = False) -> np.ndarray:
        """The layer's output for x (features, batch). `training` also remembers what backward needs."""

    @abstractmethod
    def backward(self, grad_output: np.ndarray) -> np.ndarray | None:
        """Set the gradients of the parameters and return that of the input.

        Parameters
        ----------
        grad_output : gradient of the loss with respect to the output of the last forward pass in training
        """

    def output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the output for one sample of this shape, without the batch; that of the input by default.

        Raises
        ------
        InputError
            If the module cannot take such a sample.
        """
        return input_shape

    def shapes(
        self, input_shape: tuple[int, ...], prefix: str = ""
    ) -> Iterator[tuple[str, "Module", tuple[int, ...]]]:
        """Each innermost module within, by dotted name, and the shape of its input for a sample of this shape."""
        yield prefix, self, input_shape

    def parameters(self) -> dict[str, Parameter]:
        """This module's own parameters by name."""
        return {}

    def buffers(self) -> dict[str, np.ndarray]:
        """This module's own buffers by name."""
        return {}

    def children(self) -> dict[str, "Module"]:
        """The modules within, by name, in forward order."""
        return {}

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """This module and all within, with dotted names; the outermost one is ''."""
        yield prefix, self
        for name, child in self.children().items():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> dict[str, Parameter]:
        """All parameters within, with dotted names."""
        return {
            f"{prefix}.{name}" if prefix else name: parameter
            for prefix, module in self.named_modules()
            for name, parameter in module.parameters().items()
        }

    def named_buffers(self) -> dict[str, np.ndarray]:
        """All buffers within, with dotted names."""
        return {
            f"{prefix}.{name}" if prefix else name: buffer
            for prefix, module in self.named_modules()
            for name, buffer in module.buffers().items()
        }
