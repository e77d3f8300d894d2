"""One run becomes one row: what was asked for, what came out of it, and how the masks got there."""

import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np

from analysis.sweep.grid import Task
from sparsekit import __version__, counting
from sparsekit.config import RunConfig, make_config
from sparsekit.data import Dataset
from sparsekit.kernels.threads import thread_limit
from sparsekit.models import weight_layers
from sparsekit.nn import Module, WeightLayer
from sparsekit.training.evolution import MaskEvolution
from sparsekit.training.run import build_model, build_trainer, load_data

Row = dict[str, Any]

_ONE_AT_A_TIME = Lock()  # a Dask worker may call from several threads, which would share Numba's and BLAS's


def train_row(task: Task) -> Row:
    """Train a run and return its row; a run that fails returns a row that says why.

    Keys
    ----
    key, label : of the task; all settings follow by their names
    status : 'done' or 'failed'
    error : why it failed, one line; empty otherwise
    test_accuracy, test_loss : after the last epoch
    train_loss, train_accuracy : means over the last epoch's batches
    seconds : of the whole training; seconds_per_epoch is the median epoch
    reached_sparsity, stored_weights : of all layers with weights together
    itop : share of the positions in sparse layers that were active at any time; absent in dense training
    layers : one dict for each layer with weights: name, shape, n_active, nnz, itop, and fan_ins, pairs
        [fan-in, neurons] in ascending order, ablated neurons left out
    updates : one dict for each step with topology updates: step, n_active and itop over all sparse layers
    """
    row = start_row(task)
    try:
        with _ONE_AT_A_TIME:
            return row | _train(task.config)
    except Exception as error:  # whatever it is, the other runs of the sweep go on
        return row | failed(f"{type(error).__name__}: {error}")


def start_row(task: Task) -> Row:
    """The columns that are known before training."""
    settings = {name: value for name, value in task.settings().items() if name != "threads"}
    return {"key": task.key, "label": task.label, "status": "done", "error": "", **settings}


def failed(reason: str) -> Row:
    """The columns of a run that has no results."""
    return {"status": "failed", "error": " ".join(reason.split())}


@lru_cache(maxsize=1)
def _data(dataset: str, validation: float, seed: int) -> Dataset:
    return load_data(make_config({"dataset": dataset, "validation": validation, "seed": seed}))


def _train(config: RunConfig) -> Row:
    # without a validation split the data are the same for all seeds
    dataset = _data(config.dataset, config.validation, config.seed if config.validation else 0)
    model = build_model(config, dataset)
    evolution = MaskEvolution()
    trainer = build_trainer(config, model, progress=False, callbacks=[evolution])
    started = time.perf_counter()
    with thread_limit(config.threads):
        history = trainer.fit(dataset)
        seconds = time.perf_counter() - started
        loss, accuracy = trainer.evaluate(dataset.x_test, dataset.y_test)
    return {
        "test_accuracy": float(accuracy),
        "test_loss": float(loss),
        **{name: float(history.rows[-1][name]) for name in ("train_loss", "train_accuracy")},
        "seconds": seconds,
        "seconds_per_epoch": float(np.median(history.column("seconds"))),
        "reached_sparsity": counting.sparsity(model),
        "stored_weights": sum(layer.matrix.nnz for layer in weight_layers(model).values()),
        **_evolution(evolution.rows, trainer.layers),
        "layers": _layers(model, evolution.rows),
        "sparsekit_version": __version__,
    }


def _evolution(rows: Sequence[Row], layers: Mapping[str, WeightLayer]) -> Row:
    """ITOP rate and active neurons of all sparse layers together, after every update."""
    sizes = {name: layer.matrix.shape[0] * layer.matrix.shape[1] for name, layer in layers.items()}
    steps: dict[int, list[Row]] = {}
    for row in rows:
        steps.setdefault(row["step"], []).append(row)
    updates = [
        {
            "step": step,
            "n_active": sum(row["n_active"] for row in of_step),
            "itop": sum(row["itop"] * sizes[row["layer"]] for row in of_step) / sum(sizes.values()),
        }
        for step, of_step in steps.items()
    ]
    return {"itop": updates[-1]["itop"], "updates": updates} if updates else {}


def _layers(model: Module, rows: Sequence[Row]) -> list[Row]:
    itop = {row["layer"]: row["itop"] for row in rows}
    return [
        {
            "name": name,
            "shape": list(layer.matrix.shape),
            "n_active": int((fan_ins := layer.matrix.fan_ins()).astype(bool).sum()),
            "nnz": layer.matrix.nnz,
            "itop": itop.get(name),
            "fan_ins": _counts(fan_ins[fan_ins > 0]),
        }
        for name, layer in weight_layers(model).items()
    ]


def _counts(values: np.ndarray) -> list[list[int]]:
    return np.stack(np.unique(values, return_counts=True), axis=1).tolist()
