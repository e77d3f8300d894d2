"""What must hold when a tiny network is trained with the method: weights and optimizer state follow the masks."""

from collections.abc import Callable
from itertools import cycle
from typing import Any

import numpy as np

from sparsekit.data import Dataset
from sparsekit.models import mlp
from sparsekit.nn import WeightLayer
from sparsekit.optim import SGD, AdamW, Optimizer
from sparsekit.testing.case import BrokenPromiseError
from sparsekit.topology import TopologyMethod, TopologyUpdate
from sparsekit.training import Callback, Trainer

OPTIMIZERS: dict[str, Callable[[], Optimizer]] = {"SGD": lambda: SGD(weight_decay=1e-3), "AdamW": AdamW}


class Watched(Callback):
    """Hands every update on to the method, and compares the layer before and after it.

    Attributes
    ----------
    constant_fan_in, needs_grad : those of the method
    n_updates : how many were watched
    """

    def __init__(self, method: TopologyMethod) -> None:
        self.method = method
        self.constant_fan_in, self.needs_grad = method.constant_fan_in, method.needs_grad
        self.n_updates = 0

    def on_fit_start(self, trainer):
        self._turn = cycle(trainer.layers.values())

    def update(self, weight, mask, grad, drop_fraction, **options) -> TopologyUpdate:
        """Remember the layer as it is, then let the method update it."""
        layer = next(self._turn)
        self._before, self._mask = dense_arrays(layer), layer.matrix.mask()
        if layer.bias is not None:
            self._bias = layer.bias.values.tobytes(), {k: v.tobytes() for k, v in layer.bias.state.items()}
        return self.method.update(weight, mask, grad, drop_fraction, **options)

    def on_topology_update(self, trainer, layer, update):
        self.n_updates += 1
        where = f"layer {layer!r}, step {trainer.step}, {type(trainer.optimizer).__name__}"
        check_rewired(trainer.layers[layer], update, self._before, self._mask, where)
        bias = trainer.layers[layer].bias
        if bias is not None:
            after = bias.values.tobytes(), {k: v.tobytes() for k, v in bias.state.items()}
            if after != self._bias:
                raise BrokenPromiseError(
                    f"biases and their optimizer state must not change in an update ({where})"
                )


def training(method: TopologyMethod) -> None:
    """Train with updates after every step, with both optimizers."""
    for name, make_optimizer in OPTIMIZERS.items():
        watched = Watched(method)
        trainer = tiny_trainer(watched, make_optimizer())
        try:
            trainer.fit(noise())
        except BrokenPromiseError:
            raise
        except Exception as error:
            raise BrokenPromiseError(f"training with {name} raises {type(error).__name__}: {error}") from error
        if watched.n_updates != 2 * (trainer.total_steps - 1):
            raise BrokenPromiseError(f"training with {name} has updated {watched.n_updates} times only")


def tiny_trainer(topology: Any, optimizer: Optimizer) -> Trainer:
    """A network of two sparse layers, one of them the output layer, whose masks move after every step."""
    storage = "condensed" if topology.constant_fan_in else "csr"
    model = mlp((8, 10, 4), storage=storage, sparsity=0.6, dtype=np.float64, rng=1, backend="vectorized")
    return Trainer(
        model,
        topology=topology,
        optimizer=optimizer,
        learning_rate=0.05,
        epochs=4,
        batch_size=8,
        delta_t=1,
        alpha=0.5,
        t_end_fraction=1.0,
        callbacks=[topology],
        progress=False,
    )


def noise() -> Dataset:
    """Random samples: what they teach does not matter."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((24, 8)).astype(np.float32), np.arange(24) % 4
    return Dataset("noise", x, y, x, y, tuple("abcd"))


def dense_arrays(layer: WeightLayer) -> dict[str, np.ndarray]:
    """The weight and the optimizer's arrays of it (n_out, n_in) by name, zero where nothing is stored."""
    arrays = {}
    for name, stored in {"weight": layer.weight.values, **layer.weight.state}.items():
        dense = np.zeros(layer.matrix.shape, dtype=stored.dtype)
        dense.flat[layer.matrix.flat_positions()] = stored.reshape(-1)
        arrays[name] = dense
    return arrays


def check_rewired(
    layer: WeightLayer, update: TopologyUpdate, before: dict[str, np.ndarray], old: np.ndarray, where: str
) -> None:
    """Compare a layer with what it was before an update.

    Parameters
    ----------
    layer : after the update
    before : :func:`dense_arrays` before it
    old : bool (n_out, n_in), the mask before it
    where : words for the error
    """
    if not np.array_equal(layer.matrix.mask(), update.mask):
        raise BrokenPromiseError(f"the layer must store the weights of the new mask ({where})")
    if layer.weight.values is not layer.matrix.values:
        raise BrokenPromiseError(f"the optimizer must step the values that the layer computes with ({where})")
    for name, array in dense_arrays(layer).items():
        grown, stays = update.mask & ~old, update.mask & old
        if array[grown].any():
            raise BrokenPromiseError(f"newly grown weights must start with a {name} of zero ({where})")
        if array[stays].tobytes() != before[name][stays].tobytes():
            raise BrokenPromiseError(f"weights that stay, regrown ones too, must keep their {name} ({where})")
