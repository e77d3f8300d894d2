"""How well a trained network does, by class too, and how long it takes."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from sparsekit.data import Dataset, load_dataset
from sparsekit.errors import InputError
from sparsekit.kernels.threads import thread_limit
from sparsekit.nn import softmax_cross_entropy
from sparsekit.training import Classifier
from sparsekit.training.run import load_data, load_run


def evaluate_run(
    folder: str | Path, dataset: str | Path | None = None, *, best: bool = False, threads: int | None = None
) -> dict[str, Any]:
    """Loss and accuracy of a run's network on its test set, and on its validation set where it has one.

    Parameters
    ----------
    folder : of a finished run
    dataset : the test set of another data set, by name or .npz file; None for the run's own
    best : the network of the epoch with the highest validation accuracy, not the last one
    threads : of kernels and BLAS; None for all processors

    Returns
    -------
    dict
        dataset : its name
        test, validation : see :func:`evaluate`; the latter where the run has a validation set

    Raises
    ------
    InputError
        If the folder is no such run, or the data set has samples of another shape or another number of classes.
    """
    run = load_run(folder, best=best)
    data = load_data(run.config) if dataset is None else load_dataset(dataset)
    _require_fitting(data, run.classifier.sample_shape, run.result["n_classes"])
    with thread_limit(threads):
        result = {
            "dataset": data.name,
            "test": evaluate(run.classifier, data.x_test, data.y_test, data.class_names),
        }
        if data.x_validation is not None and data.y_validation is not None:
            result["validation"] = evaluate(run.classifier, data.x_validation, data.y_validation, data.class_names)
    return result


def evaluate(classifier: Classifier, x: np.ndarray, y: np.ndarray, class_names: tuple[str, ...]) -> dict[str, Any]:
    """Loss and accuracy, of each class too, and the time of a batch.

    Parameters
    ----------
    x, y : samples (n, *sample_shape), unscaled, and their labels (n,)

    Returns
    -------
    dict
        n_samples : n
        loss : mean cross-entropy in nats
        accuracy : in [0, 1]
        classes : name, n_samples and accuracy (None without samples) of each class
        batch_size : samples handled at a time
        milliseconds_per_batch : median time from samples to logits
    """
    size = min(classifier.batch_size, len(x))
    classifier.logits(x[:size])  # compiles the kernels
    logits, seconds = [], []
    for start in range(0, len(x), size):
        batch = x[start : start + size]
        started = time.perf_counter()
        logits.append(classifier.logits(batch))
        if len(batch) == size:
            seconds.append(time.perf_counter() - started)
    logits = np.concatenate(logits)
    right = logits.argmax(axis=1) == y
    totals = np.bincount(y, minlength=len(class_names))
    rights = np.bincount(y[right], minlength=len(class_names))
    classes = [
        {"name": name, "n_samples": int(total), "accuracy": float(hits / total) if total else None}
        for name, total, hits in zip(class_names, totals, rights, strict=True)
    ]
    return {
        "n_samples": len(x),
        "loss": softmax_cross_entropy(logits.T, y)[0],
        "accuracy": float(right.mean()),
        "classes": classes,
        "batch_size": size,
        "milliseconds_per_batch": 1000 * float(np.median(seconds)),
    }


def _require_fitting(dataset: Dataset, sample_shape: tuple[int, ...], n_classes: int) -> None:
    own, given = (sample_shape, n_classes), (dataset.sample_shape, dataset.n_classes)
    if given != own:
        expected, found = (f"samples of shape {shape} in {classes} classes" for shape, classes in (own, given))
        raise InputError(f"dataset must have {expected}, as the run has, not {found}, as {dataset.name} has")
