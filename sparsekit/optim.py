"""Optimizers and learning-rate schedules.

An optimizer changes the values of parameters in place and keeps its memory in `Parameter.state`, so that the
memory follows the weights through every topology update.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sparsekit.checks import require_choice, require_fraction, require_number
from sparsekit.errors import InputError
from sparsekit.nn.parameter import Parameter


class Optimizer(Protocol):
    """Anything that can turn gradients into steps."""

    def step(self, parameters: Iterable[Parameter], learning_rate: float) -> None:
        """Change the values of all parameters by their gradients."""
        ...


class SGD:
    """Stochastic gradient descent.

        g = grad + weight_decay * w          v = momentum * v + g
        w -= learning_rate * (g + momentum * v  if nesterov else  v)

    Weight decay applies to all parameters, biases included, as in the published SRigL experiments.
    """

    def __init__(self, momentum: float = 0.9, nesterov: bool = True, weight_decay: float = 0.0) -> None:
        self.momentum = require_fraction("momentum", momentum, high_open=True)
        self.nesterov = nesterov
        self.weight_decay = require_number("weight_decay", weight_decay, low=0)
        if nesterov and momentum == 0:
            raise InputError("momentum must be greater than 0 with nesterov=True, not 0")

    def step(self, parameters: Iterable[Parameter], learning_rate: float) -> None:
        """Change the values of all parameters by their gradients (whose arrays serve as scratch)."""
        for parameter in parameters:
            values, g = parameter.values, _gradient(parameter)
            if self.weight_decay:
                g += self.weight_decay * values
            if self.momentum:
                velocity = _state(parameter, "velocity")
                velocity *= self.momentum
                velocity += g
                if self.nesterov:
                    g += self.momentum * velocity
                else:
                    g = velocity
            values -= learning_rate * g


class AdamW:
    """Adam with decoupled weight decay; moments of newly grown weights start at zero.

        m = beta1 m + (1 - beta1) grad          v = beta2 v + (1 - beta2) grad^2
        w -= learning_rate * (weight_decay * w + m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps))

    The step count t goes on through topology updates. Source: Loshchilov and Hutter, arXiv 1711.05101.
    """

    def __init__(
        self, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.01
    ) -> None:
        self.beta1 = require_fraction("beta1", beta1, high_open=True)
        self.beta2 = require_fraction("beta2", beta2, high_open=True)
        self.eps = require_number("eps", eps, low=0, low_open=True)
        self.weight_decay = require_number("weight_decay", weight_decay, low=0)
        self.step_count = 0

    def step(self, parameters: Iterable[Parameter], learning_rate: float) -> None:
        """Change the values of all parameters by their gradients."""
        self.step_count += 1
        rate = learning_rate / (1 - self.beta1**self.step_count)
        root_correction = math.sqrt(1 - self.beta2**self.step_count)
        for parameter in parameters:
            grad, mean, square = _gradient(parameter), _state(parameter, "mean"), _state(parameter, "square")
            mean += (1 - self.beta1) * (grad - mean)
            square += (1 - self.beta2) * (grad * grad - square)
            parameter.values *= 1 - learning_rate * self.weight_decay
            parameter.values -= rate * mean / (np.sqrt(square) / root_correction + self.eps)


def _gradient(parameter: Parameter) -> np.ndarray:
    if parameter.grad is None:
        raise InputError("step needs gradients: run a backward pass before it")
    return parameter.grad


def _state(parameter: Parameter, name: str) -> np.ndarray:
    if name not in parameter.state:
        parameter.state[name] = np.zeros_like(parameter.values)
    return parameter.state[name]


@dataclass(frozen=True)
class LearningRate:
    """Learning rate over training: `schedule` from `initial`, after a linear warm-up.

    Attributes
    ----------
    initial : the rate after warm-up, > 0
    schedule : "constant"; "cosine": down towards 0 at the end of training; "step": times `step_factor` after every
        `step_epochs` epochs
    warmup_epochs : epochs over which the rate rises linearly to what the schedule gives
    step_epochs, step_factor : used by "step" only
    """

    initial: float = 0.1
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    step_epochs: float = 30.0
    step_factor: float = 0.1

    def __post_init__(self) -> None:
        require_number("initial", self.initial, low=0, low_open=True)
        require_choice("schedule", self.schedule, ("constant", "cosine", "step"))
        require_number("warmup_epochs", self.warmup_epochs, low=0)
        require_number("step_epochs", self.step_epochs, low=0, low_open=True)
        require_fraction("step_factor", self.step_factor, low_open=True)

    def at(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """The rate of optimizer step `step`, counted from 1, in a training of `epochs` epochs.

        The warm-up rises with every step; the schedule moves on at the start of an epoch, as PyTorch's
        schedulers do where they are stepped once an epoch.
        """
        epoch = (step - 1) // steps_per_epoch
        warmup = min(1.0, step / (self.warmup_epochs * steps_per_epoch)) if self.warmup_epochs else 1.0
        return self.initial * warmup * self._decay(epoch, epochs)

    def _decay(self, epoch: int, epochs: int) -> float:
        if self.schedule == "cosine":
            rest = max(epochs - self.warmup_epochs, 1e-9)
            return 0.5 * (1 + math.cos(math.pi * max(0.0, epoch - self.warmup_epochs) / rest))
        if self.schedule == "step":
            return self.step_factor ** int(epoch / self.step_epochs)
        return 1.0
