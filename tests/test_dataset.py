"""Data sets in memory: what is refused and how, and how samples are split."""

import subprocess
import sys

import numpy as np
import pytest
from data_helpers import NAN, SEEDS, X, Y, refused
from hypothesis import given
from hypothesis import strategies as st

from sparsekit.data import Dataset, as_samples, stratified_split

LABELS = st.lists(st.integers(0, 4), min_size=2, max_size=60).map(np.array)


def dataset(**changes):
    parts = {"x_train": X, "y_train": Y, "x_test": X[:2], "y_test": Y[:2], "class_names": "abc"}
    return Dataset("fake", **{**parts, **changes})


def test_import_stays_light():
    heavy = "{'numba', 'cupy', 'sklearn', 'matplotlib', 'typer', 'pooch', 'scipy', 'pandas'}"
    code = f"import sys, sparsekit.data; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_dataset_converts_once_and_describes_itself():
    made = dataset(x_train=X.astype(np.float64), y_train=Y.astype(np.uint8), x_test=list(X[:2]))
    assert (made.x_train.dtype, made.x_test.dtype, made.y_train.dtype) == (np.float32, np.uint8, np.int64)
    assert (made.n_classes, made.sample_shape, made.n_features) == (3, (1, 2, 2), 4)
    assert made.class_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x_train": NAN, "x_test": NAN[:1]}, ("x_train", "sample 3")),
        ({"x_test": np.full((2, 1, 2, 2), 1e300)}, ("x_test", "sample 0", "float32")),
        ({"x_test": X[:2, 0]}, ("x_test must have shape (n, 1, 2, 2), not (2, 2, 2)",)),
        ({"x_test": X[:0], "y_test": Y[:0]}, ("x_test must have at least 1 sample",)),
        ({"x_train": X[:, 0]}, ("x_train must have shape (n, features)", "not (6, 2, 2)")),
        ({"x_train": [[1], [2, 3]]}, ("x_train must be an array of real numbers, not list",)),
        ({"x_train": X.astype(str)}, ("x_train must be real numbers, not <U",)),
        ({"y_train": Y[1:]}, ("y_train must have shape (6,), one label per sample, not (5,)",)),
        ({"y_train": Y + 0.0}, ("y_train must be integers, not float64",)),
        ({"y_test": [0, 3]}, ("y_test[1] must lie in [0, 3), not 3",)),
        ({"y_test": [-1, 0]}, ("y_test[0] must lie in [0, 3), not -1",)),
        ({"class_names": ["one"]}, ("class_names must name at least 2 classes, not 1",)),
        ({"x_validation": X}, ("x_validation", "y_validation")),
        ({"x_validation": X, "y_validation": Y + 1}, ("y_validation[2] must lie in [0, 3), not 3",)),
    ],
)
def test_dataset_refuses(changes, words):
    refused(*words, call=lambda: dataset(**changes))


@given(LABELS, st.data(), SEEDS)
def test_stratified_split_takes_each_class_by_its_share(y, data, seed):
    n_picked = data.draw(st.integers(0, len(y) - 1))
    left, picked = stratified_split(y, n_picked, np.random.default_rng(seed))
    assert sorted([*left, *picked]) == list(range(len(y)))
    assert np.array_equal(left, np.sort(left))
    assert set(y[left]) == set(y)  # no class gives its last sample
    all_counts, counts = np.bincount(y), np.bincount(y[picked], minlength=y.max() + 1)
    assert (np.abs(counts - all_counts * n_picked / len(y)) < 1).all()
    assert len(picked) <= n_picked
    if (all_counts[all_counts > 0] * (len(y) - n_picked) >= 2 * len(y)).all():
        assert len(picked) == n_picked
    again = stratified_split(y, n_picked, np.random.default_rng(seed))[1]
    assert np.array_equal(picked, again)


def test_stratified_split_is_random_and_checks():
    y, draw = np.repeat([0, 1], 50), np.random.default_rng
    assert not np.array_equal(stratified_split(y, 20, draw(0))[1], stratified_split(y, 20, draw(1))[1])
    for bad in (-1, 100, 2.0):
        words = f"n_picked must be an integer in [0, 99], not {bad}"
        refused(words, call=lambda bad=bad: stratified_split(y, bad, draw(0)))
    refused("rng must be a numpy.random.Generator, not int", call=lambda: stratified_split(y, 20, 0))


def test_with_validation_moves_samples():
    whole, rng = dataset(), np.random.default_rng(0)
    assert whole.with_validation(0, rng) is whole
    split = whole.with_validation(0.5, rng)
    assert sorted(split.y_validation) == sorted(split.y_train) == [0, 1, 2]
    moved = [*split.x_train[:, 0, 0, 0], *split.x_validation[:, 0, 0, 0]]
    labels = [*split.y_train, *split.y_validation]
    assert dict(zip(moved, labels, strict=True)) == dict(zip(X[:, 0, 0, 0], Y, strict=True))
    assert len(whole.with_validation(0.999, rng).x_train) == 3
    refused("already", call=lambda: split.with_validation(0.5, rng))
    refused("validation fraction", "6 training samples", "not 0.01", call=lambda: whole.with_validation(0.01, rng))
    for bad in (1, -0.1, float("nan"), "0.1", None, True, 10**400, np.array([0.1, 0.2])):
        words = ("validation fraction must", "[0, 1)", f"not {bad!r}")
        refused(*words, call=lambda bad=bad: whole.with_validation(bad, rng))


@pytest.mark.parametrize("x", [X, X[:, 0], X.reshape(6, 4), X.tolist(), X.astype(np.int16), X[:1, 0]])
def test_as_samples_accepts(x):
    samples = as_samples(x, (1, 2, 2))
    assert np.array_equal(samples, X[: len(x)])
    assert samples.dtype == (np.uint8 if getattr(x, "dtype", None) == np.uint8 else np.float32)


@pytest.mark.parametrize(
    ("x", "shape", "words"),
    [
        (X[0, 0], (1, 2, 2), ("pixels", "(2, 2)", "(n, 1, 2, 2) or (n, 2, 2) or (n, 4)", "batch axis")),
        (np.zeros((3, 2, 2)), (3, 2, 2), ("(3, 2, 2)", "(n, 3, 2, 2) or (n, 12)", "batch axis")),
        (np.zeros(5), (5,), ("(5,)", "(n, 5)", "batch axis")),
        (np.zeros((5, 3)), (4,), ("(5, 3)", "(n, 4)")),
        (7.0, (4,), ("()", "(n, 4)")),
        (np.zeros((0, 4)), (4,), ("pixels must have at least 1 sample",)),
        (NAN, (2,), ("pixels", "sample 3")),
        (np.zeros((2, 4), complex), (4,), ("complex128", "real")),
        (np.zeros((2, 4), object), (4,), ("object",)),
    ],
)
def test_as_samples_refuses(x, shape, words):
    refused(*words, call=lambda: as_samples(x, shape, "pixels"))
