"""The training loop."""

import math
import time
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import numpy as np

from sparsekit.checks import require_choice, require_fraction, require_integer
from sparsekit.condensed import CondensedMatrix
from sparsekit.counting import layer_summary, sparsity
from sparsekit.csr import CSRMatrix
from sparsekit.data import BatchLoader, CropAndFlip, Dataset, Standardization
from sparsekit.errors import DivergedError, InputError
from sparsekit.kernels.threads import one_blas_thread
from sparsekit.models import sparse_layers
from sparsekit.nn import BatchNorm, Module, Residual, Sequential, WeightLayer, softmax_cross_entropy
from sparsekit.optim import SGD, LearningRate, Optimizer
from sparsekit.topology import TopologyMethod, UpdateSchedule
from sparsekit.training.arrays import digest
from sparsekit.training.callbacks import Callback, ProgressBar
from sparsekit.training.classifier import Classifier
from sparsekit.training.history import History


class Trainer:
    """Trains a network and moves its sparse weights while it does.

    Parameters
    ----------
    model : the network; its sparse layers are stored as the topology method needs them
    topology : Static, SET, RigL, SRigL or anything alike; None leaves the topology alone
    optimizer : SGD or AdamW, a fresh one; by default Nesterov SGD with weight decay 5e-4
    learning_rate : the rate over training; a number starts a cosine
    epochs, batch_size : the last incomplete batch of an epoch is dropped
    delta_t, alpha : steps between topology updates, and the first drop fraction
    t_end_fraction : share of all steps after which the topology is left alone
    label_smoothing : see :func:`softmax_cross_entropy`
    scaling : "standardize": inputs of mean 0 and standard deviation 1; "unit": pixels divided by 255
    augmentation : what the training images go through, see :class:`BatchLoader`
    seed : of the order of the batches and of random growth
    callbacks : objects that look on, see :class:`Callback`
    progress : whether to show a progress bar

    Attributes
    ----------
    history : one row an epoch
    classifier : predicts with the network, once `fit` has begun
    step : optimizer steps taken so far
    first_step : those of them that were taken before a checkpoint which this trainer goes on from
    fingerprint : what tells the training data from others, once `fit` has begun
    """

    def __init__(
        self,
        model: Sequential,
        *,
        topology: TopologyMethod | None = None,
        optimizer: Optimizer | None = None,
        learning_rate: LearningRate | float = 0.1,
        epochs: int = 10,
        batch_size: int = 128,
        delta_t: int = 100,
        alpha: float = 0.3,
        t_end_fraction: float = 0.75,
        label_smoothing: float = 0.0,
        scaling: str = "standardize",
        augmentation: CropAndFlip | None = None,
        seed: int = 0,
        callbacks: Iterable[Callback] = (),
        progress: bool = True,
    ) -> None:
        self.model = model
        self.layers = sparse_layers(model)
        self.topology = topology
        self.optimizer = optimizer if optimizer is not None else SGD(weight_decay=5e-4)
        self.learning_rate = (
            learning_rate if isinstance(learning_rate, LearningRate) else LearningRate(learning_rate)
        )
        self.epochs = require_integer("epochs", epochs, 1)
        self.batch_size = require_integer("batch_size", batch_size, 1)
        self.schedule = UpdateSchedule(delta_t, alpha)
        self.t_end_fraction = require_fraction("t_end_fraction", t_end_fraction)
        self.label_smoothing = require_fraction("label_smoothing", label_smoothing, high_open=True)
        self.scaling = require_choice("scaling", scaling, ("standardize", "unit"))
        self.augmentation = augmentation
        self.callbacks = [*([ProgressBar()] if progress else []), *callbacks]
        self.batch_rng, self.topology_rng = np.random.default_rng(require_integer("seed", seed, 0)).spawn(2)
        self.history = History()
        self.step = self.first_step = self.steps_per_epoch = 0
        self.fingerprint: dict[str, Any] | None = None
        self._loss = self._correct = self._seen = 0.0
        self._check_storage()

    def fit(self, dataset: Dataset) -> History:
        """Train on `dataset.x_train` from the network's present weights; return the history.

        After :func:`load_checkpoint` these are the epochs that were left.

        Raises
        ------
        InputError
            If the batches are too large, or the data are not those that the training began with.
        DivergedError
            If the loss becomes NaN or infinite; it names step, layer and learning rate.
        """
        if self.step != self.first_step:
            raise InputError(
                f"fit must be called once, but this trainer has taken {self.step} steps; make a new one"
            )
        loader = self.prepare(dataset)
        try:
            self._notify("on_fit_start")
            for epoch in range(len(self.history) + 1, self.epochs + 1):
                seconds = self.train_epoch(loader)
                self.history.append(self._row(epoch, dataset) | {"seconds": seconds})
                self._notify("on_epoch_end", self.history.rows[-1])
        finally:
            self._notify("on_fit_end")
        return self.history

    def train_step(self, x: np.ndarray, y: np.ndarray) -> None:
        """One optimizer step on inputs x (*sample_shape, batch) and labels y (batch,), and what follows it."""
        if not self.steps_per_epoch:
            raise InputError("train_step must follow fit or prepare, which set the length of the training")
        self.step += 1
        updating = self.topology if self.schedule.is_due(self.step) else None
        for layer in self.layers.values():
            layer.keep_dense_gradient = updating is not None and updating.needs_grad
        with np.errstate(over="ignore", invalid="ignore"):  # a diverged loss is reported below, in words
            logits = self.model.forward(x, training=True)
            loss, grad_logits = softmax_cross_entropy(logits, y, self.label_smoothing)
            if not math.isfinite(loss):
                raise self._diverged(f"the loss is {loss}", x)
            self.model.backward(grad_logits)
            self.optimizer.step(self.parameters, self.current_learning_rate)
            if updating is not None:
                self._update_topology(updating, x)
        self._loss += loss * len(y)
        self._correct += np.count_nonzero(logits.argmax(axis=0) == y)
        self._seen += len(y)

    def evaluate(self, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
        """Loss and accuracy of the network as it is now, see :meth:`Classifier.evaluate`.

        Raises
        ------
        DivergedError
            If the loss is NaN or infinite.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            loss, accuracy = self.classifier.evaluate(x, y)
            if not math.isfinite(loss):
                inputs = self.classifier.standardization.transform(x, self.classifier.dtype)
                raise self._diverged(f"the loss on data not trained on is {loss}", inputs)
        return loss, accuracy

    def go_on_from(self, history: History, step: int, fingerprint: dict[str, Any]) -> None:
        """Stand after the epochs of `history`; :func:`load_checkpoint` does this and restores everything else."""
        self.history = history
        self.step = self.first_step = step
        self.fingerprint = fingerprint

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.steps_per_epoch * self.epochs

    @property
    def current_learning_rate(self) -> float:
        """The rate of the present step."""
        return self.learning_rate.at(self.step, self.steps_per_epoch, self.epochs)

    @property
    def running_loss(self) -> float:
        """Mean loss over the epoch so far, while the weights were changing."""
        return self._loss / max(self._seen, 1)

    def running_metrics(self) -> dict[str, str]:
        """Loss and accuracy over the epoch so far, and the sparsity, for a progress bar."""
        return {
            "loss": f"{self.running_loss:.4f}",
            "accuracy": f"{self._correct / max(self._seen, 1):.2%}",
            "sparsity": f"{sparsity(self.model):.1%}",
        }

    def prepare(self, dataset: Dataset) -> BatchLoader:
        """Set up what depends on the data; return the batches. `fit` does this by itself.

        For stepping by hand: `for x, y in trainer.prepare(dataset): trainer.train_step(x, y)`.
        """
        n_train = len(dataset.x_train)
        if self.batch_size > n_train:
            raise InputError(f"batch_size must be at most {n_train}, the training samples, not {self.batch_size}")
        if self.batch_size < 2 and any(isinstance(module, BatchNorm) for _, module in self.model.named_modules()):
            raise InputError(f"batch_size must be at least 2 with batch normalisation, not {self.batch_size}")
        self._check_data(dataset)
        self.parameters = list(self.model.named_parameters().values())
        dtype = self.parameters[0].values.dtype
        unit = self.scaling == "unit"
        standardization = (Standardization.unit if unit else Standardization.fit)(dataset.x_train)
        self.classifier = Classifier(self.model, standardization, dataset.sample_shape, dtype)
        loader = BatchLoader(
            dataset.x_train,
            dataset.y_train,
            self.batch_size,
            standardization,
            dtype=dtype,
            rng=self.batch_rng,
            drop_last=True,
            augmentation=self.augmentation,
        )
        self.steps_per_epoch = len(loader)
        t_end = int(self.t_end_fraction * self.total_steps)
        self.schedule = UpdateSchedule(self.schedule.delta_t, self.schedule.alpha, t_end)
        return loader

    def _check_data(self, dataset: Dataset) -> None:
        """A training that was resumed must go on with the data it began with."""
        found = {
            "sample_shape": list(dataset.sample_shape),
            "n_classes": dataset.n_classes,
            "n_train": len(dataset.x_train),
            "sha256": digest({"x_train": dataset.x_train, "y_train": dataset.y_train}),
        }
        if self.first_step and self.fingerprint:
            for name, value in self.fingerprint.items():
                if found[name] != value:
                    expected = f"the one that this training began with, of {name} {value}"
                    raise InputError(f"dataset must be {expected}, not {found[name]}")
        self.fingerprint = found

    def train_epoch(self, loader: BatchLoader) -> float:
        """Train on every batch once; return the seconds it took. `fit` does this `epochs` times."""
        started = time.perf_counter()
        self._loss = self._correct = self._seen = 0.0
        with one_blas_thread() if self.layers else nullcontext():
            for x, y in loader:
                self.train_step(x, y)
                self._notify("on_step_end")
        seconds = time.perf_counter() - started
        if not all(np.isfinite(parameter.values).all() for parameter in self.parameters):
            raise self._diverged("a weight is not finite", next(iter(loader))[0])
        return seconds

    def _update_topology(self, topology: TopologyMethod, x: np.ndarray) -> None:
        """Update layer by layer, so that only one dense weight and gradient exist at a time."""
        for name, layer in self.layers.items():
            self._update_layer(topology, name, layer, x)

    def _update_layer(self, topology: TopologyMethod, name: str, layer: WeightLayer, x: np.ndarray) -> None:
        grad = layer.dense_gradient() if topology.needs_grad else None
        for what, array in (("gradient", grad), ("weight", layer.weight.values)):
            if array is not None and not np.isfinite(array).all():
                raise self._diverged(f"a {what} of layer {name!r} is not finite", x)
        update = topology.update(
            layer.matrix.to_dense(),
            layer.matrix.mask(),
            grad,
            self.schedule.drop_fraction(self.step),
            budget=layer.budget,
            ablate=layer.ablate,
            rng=self.topology_rng,
        )
        if update.grown.any() or update.dropped.any():
            layer.rewire(update.mask)
        self._notify("on_topology_update", name, update)

    def _row(self, epoch: int, dataset: Dataset) -> dict[str, Any]:
        row = {
            "epoch": epoch,
            "step": self.step,
            "learning_rate": self.current_learning_rate,
            "train_loss": self.running_loss,
            "train_accuracy": self._correct / self._seen,
        }
        if dataset.x_validation is not None and dataset.y_validation is not None:
            loss, accuracy = self.evaluate(dataset.x_validation, dataset.y_validation)
            row |= {"validation_loss": loss, "validation_accuracy": accuracy}
        row["sparsity"] = sparsity(self.model)
        for layer in layer_summary(self.model):
            if layer["name"] in self.layers:
                row |= {f"{layer['name']}.{key}": layer[key] for key in ("n_active", "fan_in")}
        return row

    def _diverged(self, what: str, x: np.ndarray) -> DivergedError:
        where = _first_non_finite(self.model, x)
        at = (
            f"the first values that are not finite come from layer {where!r}" if where else "all layers are finite"
        )
        return DivergedError(
            f"training diverged at step {self.step}: {what}; {at}; the learning rate was "
            f"{self.current_learning_rate:.4g}, try a smaller one"
        )

    def _check_storage(self) -> None:
        """A method of constant fan-in needs condensed layers, the others CSR; no layer may be frozen."""
        for name, layer in self.layers.items():
            if not layer.weight.values.flags.writeable:
                raise InputError(
                    f"model must not be frozen, but layer {name!r} only predicts; build a new one to train"
                )
        if self.topology is None:
            return
        if not hasattr(self.topology, "update"):
            raise InputError(f"topology must be a method such as SRigL(), or None, not {self.topology!r}")
        wanted = CondensedMatrix if self.topology.constant_fan_in else CSRMatrix
        for name, layer in self.layers.items():
            if not isinstance(layer.matrix, wanted):
                method, stored = type(self.topology).__name__, type(layer.matrix).__name__
                raise InputError(
                    f"topology {method} needs {wanted.__name__} weights, but layer {name!r} has a {stored}"
                )

    def _notify(self, event: str, *details: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self, *details)


def _first_non_finite(model: Module, x: np.ndarray, prefix: str = "") -> str | None:
    """Dotted name of the first layer whose output for x is not finite, or None."""
    for name, child in model.children().items():
        output = child.forward(x)
        if not np.isfinite(output).all():
            dotted = f"{prefix}{name}"
            within = None if isinstance(child, Residual) else _first_non_finite(child, x, f"{dotted}.")
            return within or dotted
        x = output
    return None
