"""The scikit-learn estimator: its conventions hold, and it trains what the package trains."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import check_estimator

from sparsekit import InputError
from sparsekit.condensed import CondensedMatrix
from sparsekit.counting import layer_summary, sparsity
from sparsekit.csr import CSRMatrix
from sparsekit.dense import DenseMatrix
from sparsekit.models import weight_layers
from sparsekit.sklearn import SparseMLPClassifier

SMALL = {"hidden_layer_sizes": (32,), "batch_size": 32, "delta_t": 20, "random_state": 0, "n_threads": 1}


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return train_test_split(X, np.array([f"digit {label}" for label in y]), random_state=0)


@pytest.fixture(scope="module")
def fitted(digits):
    X, _, y, _ = digits
    return SparseMLPClassifier(sparsity=0.8, max_iter=15, **SMALL).fit(X, y)


@pytest.mark.parametrize("method", ["srigl", "rigl"])
def test_the_conventions_of_scikit_learn_hold(method):
    estimator = SparseMLPClassifier((32,), method=method, sparsity=0.5, max_iter=30, delta_t=10)
    results = check_estimator(estimator, on_fail=None, on_skip=None)
    failed = {r["check_name"]: r["exception"] for r in results if r["status"] not in ("passed", "skipped")}
    assert failed == {}
    assert {r["check_name"] for r in results if r["status"] == "skipped"} <= {"check_array_api_input"}
    assert len(results) > 40


def test_it_learns_and_says_how(fitted, digits):
    _, X, _, y = digits
    assert fitted.score(X, y) > 0.93
    assert fitted.classes_.tolist() == [f"digit {i}" for i in range(10)]
    assert set(fitted.predict(X)) <= set(fitted.classes_)
    assert fitted.n_iter_ == len(fitted.loss_curve_) == 15
    assert fitted.loss_ == fitted.loss_curve_[-1] < fitted.loss_curve_[0]
    probabilities = fitted.predict_proba(X)
    assert probabilities.shape == (len(X), 10)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(len(X)))
    assert (fitted.classes_[probabilities.argmax(axis=1)] == fitted.predict(X)).all()


def test_its_network_is_sparse(fitted):
    assert sparsity(fitted.model_) == pytest.approx(0.8, abs=0.02)
    assert [layer["name"] for layer in layer_summary(fitted.model_)] == ["fc1", "fc2"]
    assert all(row["fan_in_min"] == row["fan_in_max"] for row in layer_summary(fitted.model_))


@pytest.mark.parametrize(
    ("method", "storage"),
    [
        ("srigl", CondensedMatrix),
        ("static", CondensedMatrix),
        ("rigl", CSRMatrix),
        ("set", CSRMatrix),
        ("static-unstructured", CSRMatrix),
        ("dense", DenseMatrix),
    ],
)
def test_every_method_is_stored_as_it_should_be(digits, method, storage):
    X, _, y, _ = digits
    model = SparseMLPClassifier(method=method, max_iter=1, **SMALL).fit(X, y).model_
    assert {type(layer.matrix) for layer in weight_layers(model).values()} == {storage}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_have_the_precision_of_the_data(digits, dtype):
    X, _, y, _ = digits
    model = SparseMLPClassifier(max_iter=1, **SMALL).fit(X.astype(dtype), y).model_
    assert {layer.matrix.dtype for layer in weight_layers(model).values()} == {np.dtype(dtype)}


def test_equal_seeds_give_equal_networks(digits):
    X, X_test, y, _ = digits
    first, second, other = (
        SparseMLPClassifier(max_iter=2, **(SMALL | {"random_state": seed})).fit(X, y) for seed in (3, 3, 4)
    )
    assert (first.predict_proba(X_test) == second.predict_proba(X_test)).all()
    assert (first.predict_proba(X_test) != other.predict_proba(X_test)).any()


def test_a_pickle_predicts_the_same_and_goes_on(digits):
    X, X_test, y, _ = digits
    estimator = SparseMLPClassifier(max_iter=6, **SMALL)
    for _ in range(2):
        estimator.partial_fit(X, y)
    copy = pickle.loads(pickle.dumps(estimator))
    assert (copy.predict_proba(X_test) == estimator.predict_proba(X_test)).all()
    estimator.partial_fit(X, y)
    copy.partial_fit(X, y)
    assert (copy.predict_proba(X_test) == estimator.predict_proba(X_test)).all()
    assert copy.n_iter_ == 3


def test_partial_fit_learns_from_parts(digits):
    X, X_test, y, y_test = digits
    estimator = SparseMLPClassifier(sparsity=0.8, learning_rate_init=0.05, max_iter=30, **SMALL)
    parts = np.array_split(np.arange(len(X)), 3)
    with pytest.raises(InputError, match="y must hold classes of the first call"):
        estimator.partial_fit(X[:64], np.repeat("digit 3", 64), classes=["digit 1", "digit 2"])
    estimator = clone(estimator)
    for _ in range(10):
        for part in parts:
            estimator.partial_fit(X[part], y[part], classes=np.unique(y))
    assert estimator.n_iter_ == len(estimator.loss_curve_) == 30
    assert estimator.score(X_test, y_test) > 0.9
    with pytest.raises(InputError, match="classes must be those of the first call"):
        estimator.partial_fit(X, y, classes=["digit 1", "digit 2"])
    estimator.partial_fit(X[:5], y[:5])  # fewer than a batch


def test_fit_forgets_what_was_fitted_before(digits):
    X, X_test, y, _ = digits
    fresh = SparseMLPClassifier(max_iter=2, **SMALL).fit(X, y)
    used = SparseMLPClassifier(max_iter=2, **SMALL).partial_fit(X, y).fit(X, y)
    assert (fresh.predict_proba(X_test) == used.predict_proba(X_test)).all()
    assert used.n_iter_ == 2


def test_it_works_in_a_pipeline_and_a_grid_search(digits):
    X, X_test, y, y_test = digits
    pipeline = make_pipeline(MinMaxScaler(), SparseMLPClassifier(max_iter=5, **SMALL))
    grid = {"sparsemlpclassifier__sparsity": np.array([0.5, 0.99]), "sparsemlpclassifier__delta_t": np.array([20])}
    search = GridSearchCV(pipeline, grid, cv=2).fit(X, y)
    assert search.best_params_["sparsemlpclassifier__sparsity"] == 0.5
    assert search.score(X_test, y_test) > 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.0}, "sparsity must be a number >= 0 and < 1, not 1.0"),
        ({"method": "srigle"}, "method must be one of .* (did you mean 'srigl'?)"),
        ({"solver": "lbfgs"}, "solver must be one of sgd, adam, not 'lbfgs'"),
        ({"max_iter": 0}, "max_iter must be an integer of at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, not 0"),
        ({"batch_size": "all"}, "batch_size must be an integer of at least 1, not 'all'"),
        ({"batch_size": 100_000}, "batch_size must be at most 1347, the training samples, not 100000"),
        ({"hidden_layer_sizes": (32, 0)}, "hidden must be integers of at least 1"),
        ({"drop_fraction": 2.0}, "alpha must be a number"),
    ],
)
def test_settings_that_are_not_allowed_are_refused(digits, settings, message):
    X, _, y, _ = digits
    with pytest.raises(InputError) as error:
        SparseMLPClassifier(**(SMALL | settings)).fit(X, y)
    assert message.split(".*")[0] in str(error.value)


def test_one_class_is_refused_and_so_is_predicting_too_early(digits):
    X = digits[0]
    with pytest.raises(InputError, match="y must hold at least 2 classes, not 1 class, 'a'"):
        SparseMLPClassifier(**SMALL).fit(X, np.repeat("a", len(X)))
    for method in ("predict", "predict_proba"):
        with pytest.raises(NotFittedError):
            getattr(SparseMLPClassifier(), method)(X)
    with pytest.raises(NotFittedError):
        SparseMLPClassifier().model_  # noqa: B018


def test_hidden_layers_may_be_one_number(digits):
    X, _, y, _ = digits
    model = SparseMLPClassifier(max_iter=1, **(SMALL | {"hidden_layer_sizes": 24})).fit(X, y).model_
    assert [layer["shape"] for layer in layer_summary(model)] == [[24, 64], [10, 24]]
