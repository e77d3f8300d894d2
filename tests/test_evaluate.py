"""Evaluating runs: the numbers are those of the predictions, and only data that fit are taken."""

import json

import numpy as np
import pytest

from sparsekit import InputError, load_dataset, load_run
from sparsekit.config import make_config
from sparsekit.evaluation import evaluate, evaluate_run
from sparsekit.training.run import load_data, train_run

SMALL = {
    "hidden": [16],
    "epochs": 2,
    "batch_size": 64,
    "delta_t": 5,
    "threads": 1,
    "learning_rate": 0.02,
    "backend": "vectorized",
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run whose best network is surely not its last one."""
    path = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        train_run(make_config(SMALL, {"seed": seed, "validation": 0.2}), path / str(seed), progress=False)
    (path / "1" / "model.safetensors").replace(path / "0" / "best.safetensors")
    return path / "0"


def check(part, classifier, x, y):
    right = classifier.predict(x) == y
    loss, accuracy = classifier.evaluate(x, y)
    assert part["n_samples"] == len(y)
    assert part["loss"] == pytest.approx(loss, rel=1e-5)
    assert part["accuracy"] == pytest.approx(accuracy) == pytest.approx(right.mean())
    assert part["milliseconds_per_batch"] > 0
    for label, row in enumerate(part["classes"]):
        assert row["n_samples"] == (y == label).sum()
        assert row["accuracy"] == pytest.approx(right[y == label].mean())


@pytest.mark.parametrize("best", [False, True])
def test_both_parts_are_evaluated(best, run_folder):
    run = load_run(run_folder, best=best)
    data = load_data(run.config)
    result = evaluate_run(run_folder, best=best, threads=1)
    json.dumps(result)
    assert set(result) == {"dataset", "test", "validation"}
    assert result["dataset"] == "digits"
    check(result["test"], run.classifier, data.x_test, data.y_test)
    check(result["validation"], run.classifier, data.x_validation, data.y_validation)
    assert [row["name"] for row in result["test"]["classes"]] == list("0123456789")
    expected = pytest.approx(run.result["test_accuracy"]), pytest.approx(run.result["test_loss"], rel=1e-5)
    assert ((result["test"]["accuracy"], result["test"]["loss"]) == expected) == (not best)


def test_another_data_set(run_folder, tmp_path):
    digits = load_dataset("digits")
    x, y = digits.x_train[:200], digits.y_train[:200]
    names = np.array([f"class {i}" for i in range(10)])
    np.savez(tmp_path / "mine.npz", x=x, y=y, x_test=x[:90], y_test=y[:90], class_names=names)
    result = evaluate_run(run_folder, tmp_path / "mine.npz", threads=1)
    assert set(result) == {"dataset", "test"}
    assert result["dataset"] == "mine"
    check(result["test"], load_run(run_folder).classifier, x[:90], y[:90])
    assert result["test"]["classes"][3]["name"] == "class 3"


@pytest.mark.parametrize(
    ("shape", "n_classes", "words"),
    [
        ((64,), 10, r"samples of shape \(1, 8, 8\) in 10 classes, .*not samples of shape \(64,\) in 10 classes"),
        (
            (1, 8, 8),
            4,
            r"in 10 classes, as the run has, not samples of shape \(1, 8, 8\) in 4 classes, as odd has",
        ),
    ],
)
def test_data_that_do_not_fit_are_refused(shape, n_classes, words, run_folder, tmp_path):
    np.savez(tmp_path / "odd.npz", x=np.zeros((50, *shape)), y=np.arange(50) % n_classes)
    with pytest.raises(InputError, match=f"dataset must have .*{words}"):
        evaluate_run(run_folder, tmp_path / "odd.npz", threads=1)


def test_classes_without_samples_and_batches(run_folder):
    """The last batch is smaller than the others, and counts no less."""
    classifier = load_run(run_folder).classifier
    classifier.batch_size = 100
    digits = load_dataset("digits")
    chosen = digits.y_test < 9
    x, y = digits.x_test[chosen], digits.y_test[chosen]
    part = evaluate(classifier, x, y, digits.class_names)
    assert part["batch_size"] == 100
    assert part["classes"].pop() == {"name": "9", "n_samples": 0, "accuracy": None}
    check(part, classifier, x, y)
    assert evaluate(classifier, x[:30], y[:30], digits.class_names)["batch_size"] == 30


def test_no_run_and_no_best_network(run_folder, tmp_path):
    with pytest.raises(InputError, match="is not a run"):
        evaluate_run(tmp_path)
    train_run(make_config(SMALL, {"epochs": 1}), tmp_path / "run", progress=False)
    with pytest.raises(InputError, match="a run without validation data"):
        evaluate_run(tmp_path / "run", best=True)
    with pytest.raises(InputError, match=r"threads must be an integer in \[1, "):
        evaluate_run(run_folder, threads=10**6)
