"""Runs: a configuration becomes a trained network in a folder, and a folder becomes a network again.

A run folder holds config.toml, history.csv and topology.csv (rewritten after every epoch), model.safetensors,
result.json and the figures history.png and topology.png. With validation data there is also best.safetensors, the
network of the epoch with the highest validation accuracy; without them there is none, because the test set must
not choose. Until the run is finished checkpoint.safetensors holds what a killed one goes on from. Later
inspection.png and the exported condensed.safetensors, csr.safetensors and dense.safetensors may be added.
"""

import copy
import json
import math
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsekit import __version__, counting, models
from sparsekit.atomic import atomic_path, write_text
from sparsekit.checks import require_fraction, require_integer
from sparsekit.config import RunConfig, make_config, parse_toml, read_toml
from sparsekit.data import CropAndFlip, Dataset, Standardization, load_dataset
from sparsekit.errors import InputError
from sparsekit.kernels.threads import thread_limit
from sparsekit.models import weight_layers
from sparsekit.models.building import Sparsification
from sparsekit.nn import Module, Sequential, WeightLayer
from sparsekit.optim import SGD, AdamW, LearningRate, Optimizer
from sparsekit.topology import SET, RigL, SRigL, Static, TopologyMethod
from sparsekit.training.arrays import DAMAGE
from sparsekit.training.callbacks import Callback
from sparsekit.training.checkpoint import load_checkpoint, save_checkpoint
from sparsekit.training.classifier import Classifier
from sparsekit.training.evolution import MaskEvolution
from sparsekit.training.folder import (
    BEST,
    CHECKPOINT,
    CONFIG,
    EVOLUTION,
    FIGURES,
    HISTORY,
    MODEL,
    RESULT,
    check_folder,
    make_folder,
    replacing,
    require_unfinished,
    resuming,
)
from sparsekit.training.history import History
from sparsekit.training.model_file import load_model, save_model
from sparsekit.training.trainer import Trainer

_MOST = 2**22  # values of a sample, and classes


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
    check_folder(folder, overwrite=overwrite)
    return _train(config, folder, replacing(folder), progress)


def resume_run(folder: str | Path, *, threads: int | None = None, progress: bool = True) -> Run:
    """Train a run that did not finish to its end, from its last checkpoint, or anew where there is none.

    On one thread the network is bit for bit that of a run which was never stopped.

    Parameters
    ----------
    folder : of a run that was killed, interrupted or stopped by an error
    threads : instead of those in config.toml

    Raises
    ------
    InputError
        If the folder is no such run, its checkpoint is damaged or of another configuration, or the data are
        others than the run began with.
    """
    folder = Path(folder)
    require_unfinished(folder)
    config = make_config(read_toml(folder / CONFIG), {} if threads is None else {"threads": threads})
    return _train(config, folder, resuming(folder), progress)


def _train(
    config: RunConfig, folder: Path, keeping_the_folder: AbstractContextManager[None], progress: bool
) -> Run:
    """Train to the end, from the checkpoint in the folder if there is one, and write the results."""
    dataset = load_data(config)
    model = build_model(config, dataset)
    evolution = MaskEvolution()
    callbacks = [evolution, _FolderWriter(folder, config, evolution)]
    trainer = build_trainer(config, model, progress=progress, callbacks=callbacks)
    with thread_limit(config.threads) as threads, keeping_the_folder:
        if (folder / CHECKPOINT).is_file():
            _require_config(folder / CHECKPOINT, config, load_checkpoint(folder / CHECKPOINT, trainer))
        compile_seconds = compile_kernels(
            model, dataset.sample_shape, min(config.batch_size, len(dataset.x_train))
        )
        history = trainer.fit(dataset)
        if trainer.step == trainer.first_step:
            _make_gradients(model, dataset.sample_shape, config.batch_size)
        result = _result(config, trainer, dataset) | {"compile_seconds": compile_seconds, "threads": threads}
        run = Run(config, history, result, trainer.classifier)
        _save(run, folder, dataset)
    return run


def load_run(path: str | Path, *, best: bool = False) -> Run:
    """Load a run folder; `load_run(path).predict(x)` classifies samples x (n, *sample_shape).

    The network only predicts: the weights of its sparse layers are read-only.

    Parameters
    ----------
    best : load the network of the epoch with the highest validation accuracy (the first of equals), not the last
        one; `result` is that of the last one

    Raises
    ------
    InputError
        If the folder is not a finished run, a file in it is damaged, or the best network is wanted of a run
        without validation data.
    """
    folder = Path(path)
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} is not a run: it has no config.toml")
    if not (folder / RESULT).is_file():
        raise InputError(f"{folder} is a run that did not finish: it has no result.json")
    config = make_config(read_toml(folder / CONFIG))
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        sample_shape = tuple(require_integer("sample_shape", size, 1, _MOST) for size in result["sample_shape"])
        n_classes = require_integer("n_classes", result["n_classes"], 2, _MOST)
        require_integer("the product of sample_shape", math.prod(sample_shape), 1, _MOST)
        require_fraction("sparsity", result["sparsity"])
        history = History.load(folder / HISTORY)
        require_integer("step", history.rows[-1]["step"], 1)
    except (OSError, *DAMAGE) as error:
        raise InputError(f"{folder} has a damaged result.json or history.csv: {error}") from None
    if best and history.best() is None:
        raise InputError(f"best must be False for {folder}, a run without validation data, not True")
    model = build_network(config, sample_shape, n_classes)
    file = folder / (BEST if best else MODEL)
    extra = load_model(file, model)
    for layer in weight_layers(model).values():
        layer.freeze()
    if not {"mean", "std"} <= extra.keys():
        raise InputError(f"{file} is damaged: it has no mean and std of the inputs")
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
    augmentation = None
    if config.augmentation == "crop-flip":
        augmentation = CropAndFlip(np.random.default_rng([config.seed, 2]))  # apart from those of weights and data
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
        scaling=config.scaling,
        augmentation=augmentation,
        seed=config.seed,
        callbacks=callbacks or [],
        progress=progress,
    )


def _require_config(path: Path, config: RunConfig, saved: str) -> None:
    """Refuse a checkpoint of another configuration; only the threads may be others."""
    old = make_config(parse_toml(saved.encode(), f"what {path} has of {CONFIG}"), {"threads": config.threads})
    for name in RunConfig.model_fields:
        was, now = getattr(old, name), getattr(config, name)
        if was != now:
            raise InputError(f"{path} is of a run with {name} {was!r}, not {now!r} as {CONFIG} says")


class _FolderWriter(Callback):
    """Makes the folder once nothing can be refused any more, and keeps it up to date after every epoch.

    What a kill between two files leaves is right: the checkpoint is written first, and what follows from it is
    written again on resuming. The best epoch always has a checkpoint, so that none can remember a best network
    that a resumed run does not come to.
    """

    def __init__(self, folder: Path, config: RunConfig, evolution: MaskEvolution) -> None:
        self.folder = folder
        self.config = config
        self.evolution = evolution

    def on_fit_start(self, trainer):
        make_folder(self.folder)
        write_text(self.folder / CONFIG, self.config.to_toml())
        if trainer.first_step:
            self._write_what_follows(trainer)

    def on_epoch_end(self, trainer, row):
        is_due = row["epoch"] % self.config.checkpoint_every == 0 or row["epoch"] == trainer.epochs
        if is_due or trainer.history.best() is row:
            save_checkpoint(self.folder / CHECKPOINT, trainer, self.config.to_toml())
        self._write_what_follows(trainer)

    def _write_what_follows(self, trainer: Trainer) -> None:
        if trainer.history.best() is trainer.history.rows[-1]:
            _save_network(self.folder / BEST, trainer.classifier)
        self.evolution.save(self.folder / EVOLUTION)
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
        "initializer": config.initializer,
        "backend": config.backend,
    }
    options = {"dtype": np.dtype(config.dtype), "rng": config.seed, **sparsification}
    dropout = config.dropout
    if dropout is not None and config.model in ("cnn", "resnet18"):
        raise InputError(f"dropout must be left out with model {config.model}, which has none, not {dropout}")
    if config.model == "mlp":
        sizes = (math.prod(sample_shape), *config.hidden, n_classes)
        hidden = {"activation": config.activation, "batch_norm": config.batch_norm, "dropout": dropout or 0.0}
        return models.mlp(sizes, **hidden, **options)
    if config.model == "cnn":
        return models.cnn(sample_shape, n_classes, channels=config.channels, **options)
    if config.model == "mnist_cnn":
        rates = {} if dropout is None else {"dropout": (dropout, dropout)}
        return models.mnist_cnn(sample_shape, n_classes, **rates, **options)
    if config.model == "wide_resnet22":
        rates = {} if dropout is None else {"dropout": dropout}
        return models.wide_resnet22(sample_shape, n_classes, **rates, **options)
    return models.resnet18(sample_shape, n_classes, **options)


def compile_kernels(model: Sequential, sample_shape: tuple[int, ...], batch: int) -> float:
    """Run a copy of each module once, forward and back, so that epochs are timed without compilation; seconds.

    One after the other, because all of them would hold the memory of a training step.
    """
    started = time.perf_counter()
    dtype = next(iter(model.named_parameters().values())).values.dtype
    for _, module, shape in model.shapes(sample_shape):
        _run_on_zeros(copy.deepcopy(module), (*shape, batch), dtype)
    return time.perf_counter() - started


def _make_gradients(model: Sequential, sample_shape: tuple[int, ...], batch: int) -> None:
    """Where no epoch was left to train: let the layers hold what they hold after one, because it is counted."""
    for _, module, shape in model.shapes(sample_shape):
        if isinstance(module, WeightLayer):
            _run_on_zeros(module, (*shape, batch), module.matrix.dtype)


def _run_on_zeros(module: Module, shape: tuple[int, ...], dtype: np.dtype) -> None:
    output = module.forward(np.zeros(shape, dtype), training=True)
    module.backward(np.zeros_like(output))


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
    """Write what the run produced; result.json comes last and says that the rest is there.

    Then the checkpoint has no use any more. A kill in between leaves it in a finished run, where nothing reads it.
    """
    from sparsekit.figures import history_figure, topology_figure

    _save_network(folder / MODEL, run.classifier)
    figures = history_figure(run.history), topology_figure(run.model, dataset.sample_shape)
    for name, figure in zip(FIGURES, figures, strict=True):
        with atomic_path(folder / name) as temporary:
            figure.savefig(temporary)
    write_text(folder / RESULT, json.dumps(run.result, indent=2, allow_nan=False) + "\n")
    (folder / CHECKPOINT).unlink(missing_ok=True)


def _save_network(path: Path, classifier: Classifier) -> None:
    standardization = classifier.standardization
    save_model(path, classifier.model, {"mean": standardization.mean, "std": standardization.std})
