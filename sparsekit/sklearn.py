"""A scikit-learn estimator: sparse training in a Pipeline, a GridSearchCV or wherever MLPClassifier fits."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import check_is_fitted, validate_data

from sparsekit.checks import require_choice, require_integer
from sparsekit.config import RunConfig, make_config
from sparsekit.data import BatchLoader, Dataset
from sparsekit.errors import InputError
from sparsekit.kernels.threads import thread_limit
from sparsekit.nn import Sequential
from sparsekit.training.classifier import Classifier
from sparsekit.training.run import build_network, build_trainer
from sparsekit.training.trainer import Trainer

_OPTIMIZERS = {"sgd": "sgd", "adam": "adamw"}
_BATCH_SIZE = 128
_DTYPES = (np.float64, np.float32)


class SparseMLPClassifier(ClassifierMixin, BaseEstimator):
    """A multi-layer perceptron that is sparse from the first step to the last.

    Arguments that scikit-learn's MLPClassifier has too are named and mean as there; the others are those of
    :class:`sparsekit.config.RunConfig`. Inputs are standardised by their training mean and deviation.

    Parameters
    ----------
    hidden_layer_sizes : neurons of the hidden layers
    method : "srigl", "rigl", "set", "static" (constant fan-in), "static-unstructured" or "dense"
    sparsity : share of the weights that is not stored, in [0, 1)
    distribution : "erk", "er" or "uniform", how the layers share the weights
    gamma_sal : SRigL: share of salient weights a neuron needs not to be ablated; 0: no ablation
    delta_t : optimizer steps between topology updates
    drop_fraction : share of the weights that the first update drops (alpha in the RigL paper)
    activation : "relu" or "gelu"
    solver : "sgd" (Nesterov) or "adam" (with decoupled weight decay)
    weight_decay : not alpha, because both papers call the drop fraction so
    batch_size : samples a step; "auto": 128, or all samples where there are fewer
    learning_rate_init : in `fit` the start of a cosine over `max_iter` epochs, in `partial_fit` constant
    max_iter : epochs of `fit`; in `partial_fit` the calls over which the topology moves
    momentum : of "sgd"
    random_state : of masks, weights, batches and random growth
    verbose : whether `fit` shows a progress bar
    n_threads : of kernels and BLAS; None: all processors

    Attributes
    ----------
    classes_ : (n_classes,), sorted
    n_features_in_, feature_names_in_ : of the data it was fitted to; names where the data had them
    n_iter_ : epochs trained
    loss_curve_ : mean loss of each epoch, while the weights were changing; `loss_` is the last
    model_ : the network, a :class:`sparsekit.nn.Sequential`; see :func:`sparsekit.counting.layer_summary`

    Weights are stored in the precision of X, float32 or float64, and inputs in float32.
    """

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (256, 256),
        *,
        method: str = "srigl",
        sparsity: float = 0.9,
        distribution: str = "erk",
        gamma_sal: float = 0.3,
        delta_t: int = 100,
        drop_fraction: float = 0.3,
        activation: str = "relu",
        solver: str = "sgd",
        weight_decay: float = 5e-4,
        batch_size: int | str = "auto",
        learning_rate_init: float = 0.1,
        max_iter: int = 20,
        momentum: float = 0.9,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
        n_threads: int | None = None,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.method = method
        self.sparsity = sparsity
        self.distribution = distribution
        self.gamma_sal = gamma_sal
        self.delta_t = delta_t
        self.drop_fraction = drop_fraction
        self.activation = activation
        self.solver = solver
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.learning_rate_init = learning_rate_init
        self.max_iter = max_iter
        self.momentum = momentum
        self.random_state = random_state
        self.verbose = verbose
        self.n_threads = n_threads

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train a new network on samples X (n, features), float, and labels y (n,) of any kind.

        Raises
        ------
        ValueError
            For a setting or data that are not allowed; :class:`sparsekit.InputError` is one.
        DivergedError
            If the loss becomes NaN or infinite.
        """
        X, y = self._samples_and_labels(X, y, reset=True)
        self.classes_ = unique_labels(y)
        dataset = self._dataset(X, y)
        trainer = self._new_trainer(X, lr_schedule="cosine")
        with thread_limit(self.n_threads):
            history = trainer.fit(dataset)
        self._keep(trainer, history.column("train_loss"))
        return self

    def partial_fit(self, X: ArrayLike, y: ArrayLike, classes: ArrayLike | None = None) -> Self:
        """Train one epoch on the samples given, and go on from the last call if there was one.

        The first call fixes the classes, the scale of the inputs and, by the number of its batches, how long the
        topology moves: for `max_iter` such calls. After `fit` it begins anew.

        Parameters
        ----------
        X, y : as in :meth:`fit`
        classes : (n_classes,), all labels that will ever come; needed in the first call only, and may be left out
            if y holds all of them
        """
        first = not hasattr(self, "_trainer")
        X, y = self._samples_and_labels(X, y, reset=first)
        if first:
            self.classes_ = unique_labels(y if classes is None else classes)
        elif classes is not None and not np.array_equal(unique_labels(classes), self.classes_):
            raise InputError(f"classes must be those of the first call, {self.classes_}, not {classes}")
        dataset = self._dataset(X, y)
        if first:
            trainer = self._new_trainer(X, lr_schedule="constant")
            trainer.prepare(dataset)
            self._keep(trainer, [])
            self._trainer = trainer
        with thread_limit(self.n_threads):
            self._keep(self._trainer, [*self.loss_curve_, self._epoch(self._trainer, dataset)])
        return self

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Most likely label (n,) of each sample of X (n, features)."""
        logits = self._logits(X)  # first of all: what is not fitted has no classes
        return self.classes_[logits.argmax(axis=1)]

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Probabilities (n, n_classes) of the labels in `classes_` for each sample of X (n, features)."""
        logits = self._logits(X).astype(np.float64)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    @property
    def model_(self) -> Sequential:
        """The trained network."""
        check_is_fitted(self)
        return self._classifier.model

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_classifier")

    def _logits(self, X: ArrayLike) -> np.ndarray:
        check_is_fitted(self)
        samples: Any = validate_data(self, X, dtype=_DTYPES, reset=False)  # pyright: ignore[reportArgumentType]
        with thread_limit(self.n_threads):
            return self._classifier.logits(samples)

    def _samples_and_labels(self, X: Any, y: Any, *, reset: bool) -> tuple[np.ndarray, np.ndarray]:
        checked: Any = validate_data(self, X, y, dtype=_DTYPES, reset=reset)
        check_classification_targets(checked[1])
        return checked

    def _dataset(self, X: np.ndarray, y: np.ndarray) -> Dataset:
        """The samples with labels as numbers; a training needs no test data, so they are a single sample."""
        if len(self.classes_) < 2:
            raise InputError(f"y must hold at least 2 classes, not 1 class, {self.classes_.tolist()[0]!r}")
        labels = np.searchsorted(self.classes_, y)
        known = self.classes_[np.minimum(labels, len(self.classes_) - 1)] == y
        if not np.all(known):
            unknown = np.asarray(y)[~np.asarray(known)][0]
            raise InputError(f"y must hold classes of the first call, {self.classes_}, not {unknown!r}")
        return Dataset("X", X, labels, X[:1], labels[:1], tuple(map(str, self.classes_)))

    def _new_trainer(self, X: np.ndarray, lr_schedule: str) -> Trainer:
        if hasattr(self, "_trainer"):
            del self._trainer
        config = self._config(X, lr_schedule)
        model = build_network(config, X.shape[1:], len(self.classes_))
        return build_trainer(config, model, progress=self.verbose)

    def _config(self, X: np.ndarray, lr_schedule: str) -> RunConfig:
        batch_size: Any = self.batch_size
        if batch_size == "auto":
            batch_size = min(_BATCH_SIZE, len(X))
        settings: dict[str, Any] = {
            "hidden": tuple(np.atleast_1d(np.asarray(self.hidden_layer_sizes, dtype=object)).tolist()),
            "activation": self.activation,
            "method": self.method,
            "sparsity": self.sparsity,
            "distribution": self.distribution,
            "gamma_sal": self.gamma_sal,
            "delta_t": self.delta_t,
            "alpha": self.drop_fraction,
            "optimizer": _OPTIMIZERS[require_choice("solver", self.solver, _OPTIMIZERS)],
            "weight_decay": self.weight_decay,
            "batch_size": require_integer("batch_size", batch_size, 1),
            "learning_rate": self.learning_rate_init,
            "lr_schedule": lr_schedule,
            "epochs": require_integer("max_iter", self.max_iter, 1),
            "momentum": self.momentum,
            "seed": int(check_random_state(self.random_state).randint(2**31 - 1)),
            "dtype": X.dtype.name,
        }
        # NumPy's numbers, as a grid search may hand them in, are no numbers for the configuration
        return make_config({k: v.item() if isinstance(v, np.generic) else v for k, v in settings.items()})

    def _epoch(self, trainer: Trainer, dataset: Dataset) -> float:
        """Train on every batch once; return the mean loss."""
        loader = BatchLoader(
            dataset.x_train,
            dataset.y_train,
            min(trainer.batch_size, len(dataset.x_train)),
            self._classifier.standardization,
            dtype=self._classifier.dtype,
            rng=trainer.batch_rng,
            drop_last=True,
        )
        trainer.train_epoch(loader)
        return trainer.running_loss

    def _keep(self, trainer: Trainer, losses: list[float]) -> None:
        self._classifier: Classifier = trainer.classifier
        self.loss_curve_ = losses
        self.loss_ = losses[-1] if losses else None
        self.n_iter_ = len(losses)
