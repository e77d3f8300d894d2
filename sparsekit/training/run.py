"""Runs: a configuration becomes a trained network in a folder, and a folder becomes a network again.

A run folder holds config.toml, history.csv (rewritten after every epoch), model.safetensors, result.json and
the figures history.png and topology.png.
"""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsekit import __version__, counting
from sparsekit.atomic import atomic_path, write_text
from sparsekit.config import RunConfig, make_config, read_toml
from sparsekit.data import Dataset, Standardization, load_dataset
from sparsekit.errors import InputError
from sparsekit.kernels.threads import thread_limit
from sparsekit.models import mlp, weight_layers
from sparsekit.models.building import Sparsification
from sparsekit.nn import Sequential
from sparsekit.optim import SGD, AdamW, LearningRate, Optimizer
from sparsekit.topology import SET, RigL, SRigL, Static, TopologyMethod
from sparsekit.training.callbacks import Callback
from sparsekit.training.checkpoint import load_model, save_model
from sparsekit.training.classifier import Classifier
from sparsekit.training.folder import (
    CONFIG,
    FIGURES,
    HISTORY,
    MODEL,
    RESULT,
    check_folder,
    make_folder,
    replacing,
)
from sparsekit.training.history import History
from sparsekit.training.trainer import Trainer


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes
    ----------
    config, history, result : what was asked for, recorded and measured
    classifier : the trained network
    """

    config: RunConfig
    history: History
    result: dict[str, Any]
    classifier: Classifier

    @property
    def model(self) -> Sequential:
        """The trained network, feature-major and for standardised inputs."""
        return self.classifier.model

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Most likely class (n,) of samples x (n, *sample_shape), unscaled."""
        return self.classifier.predict(x)


def train_run(config: RunConfig, folder: str | Path, *, overwrite: bool = False, progress: bool = True) -> Run:
    """Train as configured, write the run folder, return the run.

    Raises
    ------
    InputError
        If the configuration does not fit the data, or the folder may not be written.
    """
    folder = Path(folder)
    dataset = load_data(config)
    model = build_model(config, dataset)
    check_folder(folder, overwrite=overwrite)
    trainer = build_trainer(config, model, progress=progress, callbacks=[_FolderWriter(folder, config)])
    with thread_limit(config.threads) as threads, replacing(folder):
        compile_seconds = _compile_kernels(model, min(config.batch_size, len(dataset.x_train)))
        history = trainer.fit(dataset)
        result = _result(config, trainer, dataset) | {"compile_seconds": compile_seconds, "threads": threads}
        run = Run(config, history, result, trainer.classifier)
        _save(run, folder, dataset)
    return run


def load_run(path: str | Path) -> Run:
    """Load a run folder; `load_run(path).predict(x)` classifies samples x (n, *sample_shape).

    The network only predicts: the weights of its sparse layers are read-only.

    Raises
    ------
    InputError
        If the folder is not a finished run, or a file in it is damaged.
    """
    folder = Path(path)
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} is not a run: it has no config.toml")
    if not (folder / RESULT).is_file():
        raise InputError(f"{folder} is a run that did not finish: it has no result.json")
    config = make_config(read_toml(folder / CONFIG))
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        sample_shape, n_classes = tuple(result["sample_shape"]), int(result["n_classes"])
        history = History.load(folder / HISTORY)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} has a damaged result.json or history.csv: {error}") from None
    model = build_network(config, sample_shape, n_classes)
    extra = load_model(folder / MODEL, model)
    for layer in weight_layers(model).values():
        layer.freeze()
    standardization = Standardization(extra["mean"], extra["std"])
    return Run(config, history, result, Classifier(model, standardization, sample_shape, np.dtype(config.dtype)))


def load_data(config: RunConfig) -> Dataset:
    """The data set that the configuration names, with its validation split."""
    rng = np.random.default_rng([config.seed, 1])  # apart from the stream of the weights
    return load_dataset(config.dataset, validation=config.validation, rng=rng)


def build_model(config: RunConfig, dataset: Dataset) -> Sequential:
    """The network that the configuration describes, for the data's features and classes."""
    return build_network(config, dataset.sample_shape, dataset.n_classes)


def build_topology(config: RunConfig) -> TopologyMethod | None:
    """The configuration's topology method; None for dense training."""
    methods: dict[str, TopologyMethod] = {
        "static": Static(constant_fan_in=True),
        "static-unstructured": Static(constant_fan_in=False),
        "set": SET(),
        "rigl": RigL(),
        "srigl": SRigL(config.gamma_sal, config.saliency_gradient, config.revive, config.compat),
    }
    return methods.get(config.method)


def build_trainer(
    config: RunConfig, model: Sequential, *, progress: bool = True, callbacks: list[Callback] | None = None
) -> Trainer:
    """The trainer that the configuration describes."""
    optimizer: Optimizer
    if config.optimizer == "adamw":
        optimizer = AdamW(weight_decay=config.weight_decay)
    else:
        nesterov = config.nesterov and config.momentum > 0
        optimizer = SGD(config.momentum, nesterov, config.weight_decay)
    return Trainer(
        model,
        topology=build_topology(config),
        optimizer=optimizer,
        learning_rate=LearningRate(
            config.learning_rate,
            config.lr_schedule,
            config.warmup_epochs,
            config.step_epochs,
            config.step_factor,
        ),
        epochs=config.epochs,
        batch_size=config.batch_size,
        delta_t=config.delta_t,
        alpha=config.alpha,
        t_end_fraction=config.t_end_fraction,
        label_smoothing=config.label_smoothing,
        seed=config.seed,
        callbacks=callbacks or [],
        progress=progress,
    )


class _FolderWriter(Callback):
    """Makes the folder once nothing can be refused any more, and saves the history after every epoch."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder = folder
        self.config = config

    def on_fit_start(self, trainer):
        make_folder(self.folder)
        write_text(self.folder / CONFIG, self.config.to_toml())

    def on_epoch_end(self, trainer, row):
        trainer.history.save(self.folder / HISTORY)


def build_network(config: RunConfig, sample_shape: tuple[int, ...], n_classes: int) -> Sequential:
    """The network that the configuration describes, for samples of this shape."""
    topology = build_topology(config)
    storage = "dense" if topology is None else "condensed" if topology.constant_fan_in else "csr"
    sparsification: Sparsification = {
        "storage": storage,
        "sparsity": config.sparsity,
        "distribution": config.distribution,
        "first_layer_dense": config.first_layer_dense,
        "dense_layers": config.dense_layers,
        "no_ablation_layers": config.no_ablation_layers,
        "backend": config.backend,
    }
    dtype = np.dtype(config.dtype)
    return mlp(
        (math.prod(sample_shape), *config.hidden, n_classes),
        activation=config.activation,
        batch_norm=config.batch_norm,
        dropout=config.dropout,
        dtype=dtype,
        rng=config.seed,
        **sparsification,
    )


def _compile_kernels(model: Sequential, batch: int) -> float:
    """Run the products of every sparse layer once, so that epochs are timed without compilation; seconds."""
    started = time.perf_counter()
    for layer in weight_layers(model).values():
        if layer.is_sparse:
            n_out, n_in = layer.matrix.shape
            x, g = np.zeros((n_in, batch), layer.matrix.dtype), np.zeros((n_out, batch), layer.matrix.dtype)
            layer.matrix.matmul(x, layer.backend)
            if layer.needs_grad_input:
                layer.matrix.rmatmul(g, layer.backend)
            layer.matrix.sampled_outer(g, x, layer.backend)
    return time.perf_counter() - started


def _result(config: RunConfig, trainer: Trainer, dataset: Dataset) -> dict[str, Any]:
    test_loss, test_accuracy = trainer.evaluate(dataset.x_test, dataset.y_test)
    layers = counting.layer_summary(trainer.model)
    return {
        "sparsekit_version": __version__,
        "dataset": config.dataset,
        "method": config.method,
        "seed": config.seed,
        "sample_shape": list(dataset.sample_shape),
        "n_classes": dataset.n_classes,
        "test_accuracy": test_accuracy,
        "test_loss": test_loss,
        "sparsity": counting.sparsity(trainer.model),
        "stored_weights": sum(layer["nnz"] for layer in layers),
        "layers": layers,
        "weight_bytes": counting.weight_bytes(trainer.model),
        "seconds_per_epoch": float(np.median(trainer.history.column("seconds"))),
        "peak_memory_bytes": counting.peak_memory_bytes(),
    }


def _save(run: Run, folder: Path, dataset: Dataset) -> None:
    """Write what the run produced; result.json comes last and says that the rest is there."""
    from sparsekit.figures import history_figure, topology_figure

    standardization = run.classifier.standardization
    save_model(folder / MODEL, run.model, {"mean": standardization.mean, "std": standardization.std})
    figures = history_figure(run.history), topology_figure(run.model, dataset.sample_shape)
    for name, figure in zip(FIGURES, figures, strict=True):
        with atomic_path(folder / name) as temporary:
            figure.savefig(temporary)
    write_text(folder / RESULT, json.dumps(run.result, indent=2, allow_nan=False) + "\n")
