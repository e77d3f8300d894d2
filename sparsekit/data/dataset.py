"""A labelled data set held in memory, checked once when it is built."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sparsekit.checks import require_fraction
from sparsekit.data.splits import stratified_split
from sparsekit.errors import InputError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training, test and, if asked for, validation samples of one classification task.

    Parameters
    ----------
    name : what messages and results call it
    x_train, x_test, x_validation : uint8 or float32 (n, features) or (n, channels, height, width), samples
        first; any other numeric dtype is converted to float32
    y_train, y_test, y_validation : int64 (n,), labels in [0, n_classes); any other integer dtype is converted
    class_names : at least two; kept as a tuple

    Raises
    ------
    InputError
        If an array is empty or has a wrong shape or dtype, if a value is NaN or infinite, if lengths or
        sample shapes differ, if a label is out of range, or if only one of the two validation arrays is
        there.
    """

    name: str
    x_train: np.ndarray = field(repr=False)
    y_train: np.ndarray = field(repr=False)
    x_test: np.ndarray = field(repr=False)
    y_test: np.ndarray = field(repr=False)
    class_names: tuple[str, ...]
    x_validation: np.ndarray | None = field(default=None, repr=False)
    y_validation: np.ndarray | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._set("class_names", tuple(str(name) for name in self.class_names))
        if self.n_classes < 2:
            raise InputError(f"class_names must name at least 2 classes, not {self.n_classes}")
        if (self.x_validation is None) != (self.y_validation is None):
            raise InputError("x_validation and y_validation must be given together")
        self._set("x_train", _numbers(self.x_train, "x_train"))
        if self.x_train.ndim not in (2, 4) or self.n_features == 0:
            expected = "(n, features) or (n, channels, height, width) without a size 0"
            raise InputError(f"x_train must have shape {expected}, not {self.x_train.shape}")
        for part in ("train", "test") if self.x_validation is None else ("train", "test", "validation"):
            x = finite_samples(getattr(self, f"x_{part}"), self.sample_shape, f"x_{part}")
            self._set(f"x_{part}", x)
            self._set(f"y_{part}", _labels(getattr(self, f"y_{part}"), len(x), self.n_classes, f"y_{part}"))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen

    @property
    def n_classes(self) -> int:
        return len(self.class_names)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """``(features,)`` or ``(channels, height, width)``."""
        return self.x_train.shape[1:]

    @property
    def n_features(self) -> int:
        """Values in one sample."""
        return math.prod(self.sample_shape)

    def with_validation(self, fraction: float, rng: np.random.Generator) -> "Dataset":
        """Move a stratified random part of the training set to the validation arrays.

        Parameters
        ----------
        fraction : in [0, 1), part of the training samples to move, rounded to whole samples; 0 moves nothing
            and every class keeps at least one training sample
        rng : random source of the samples to move

        Returns
        -------
        a new data set (this one where `fraction` is 0); the order of the samples is kept in both parts

        Raises
        ------
        InputError
            If `fraction` is out of range or gives no sample, or if there is a validation set already.
        """
        fraction = require_fraction("validation fraction", fraction, high_open=True)
        if fraction == 0:
            return self
        if self.x_validation is not None:
            raise InputError(f"data set {self.name} already has {len(self.x_validation)} validation samples")
        n = len(self.x_train)
        train, validation = stratified_split(self.y_train, min(int(fraction * n + 0.5), n - 1), rng)
        if len(validation) == 0:
            raise InputError(
                f"validation fraction must be 0 or give at least 1 of the {n} training samples, not {fraction}"
            )
        return replace(
            self,
            x_train=self.x_train[train],
            y_train=self.y_train[train],
            x_validation=self.x_train[validation],
            y_validation=self.y_train[validation],
        )


def as_samples(x: object, sample_shape: Sequence[int], name: str = "x") -> np.ndarray:
    """Check samples that a user hands in, and give them the shape of a model's input.

    Parameters
    ----------
    x : array-like (n, *sample_shape), (n, features), or (n, height, width) where there is one channel; the
        leading axis is always that of the batch: an array (1, height, width) is a batch of one image
    sample_shape : ``(features,)`` or ``(channels, height, width)``
    name : what the error messages call `x`

    Returns
    -------
    array (n, *sample_shape); uint8 stays uint8, any other numeric dtype becomes float32; not a copy where none
    is needed

    Raises
    ------
    InputError
        If the shape is none of these, n is 0, the dtype is not numeric, or a value is NaN or too large for
        float32.
    """
    array = _numbers(x, name)
    shape = tuple(sample_shape)
    allowed = [shape] + ([shape[1:]] if len(shape) == 3 and shape[0] == 1 else [])
    if len(shape) > 1:
        allowed.append((math.prod(shape),))
    if array.shape[1:] not in allowed:
        expected = " or ".join(map(_batch_of, allowed))
        hint = f" (one sample alone needs a batch axis: {name}[np.newaxis])" if array.shape in allowed else ""
        raise InputError(f"{name} must have shape {expected}, not {array.shape}{hint}")
    return finite_samples(array.reshape(len(array), *shape), shape, name)


def finite_samples(x: object, sample_shape: tuple[int, ...], name: str) -> np.ndarray:
    """`x` as a uint8 or float32 array (n, *sample_shape), n > 0, all finite; anything else is refused."""
    array = _numbers(x, name)
    if array.ndim == 0 or array.shape[1:] != sample_shape:
        raise InputError(f"{name} must have shape {_batch_of(sample_shape)}, not {array.shape}")
    if len(array) == 0:
        raise InputError(f"{name} must have at least 1 sample, not 0")
    if array.dtype == np.float32 and not (finite := np.isfinite(array)).all():
        bad = int(np.argmin(finite.reshape(len(array), -1).all(axis=1)))
        raise InputError(f"{name} must be finite in float32, but sample {bad} has a NaN or infinite value")
    return array


def _batch_of(sample_shape: tuple[int, ...]) -> str:
    return f"(n, {', '.join(map(str, sample_shape))})"


def _numbers(x: object, name: str) -> np.ndarray:
    try:
        array = np.asarray(x)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{name} must be an array of real numbers, not {type(x).__name__}: {reason}") from error
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name} must be real numbers, not {array.dtype}")
    if array.dtype == np.uint8:
        return array
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit becomes infinite, and is refused
        return array.astype(np.float32, copy=False)


def _labels(y: object, n: int, n_classes: int, name: str) -> np.ndarray:
    """int64 array (n,) with values in [0, n_classes)."""
    labels = np.asarray(y)
    if labels.dtype.kind not in "iu":
        raise InputError(f"{name} must be integers, not {labels.dtype}")
    if labels.shape != (n,):
        raise InputError(f"{name} must have shape ({n},), one label per sample, not {labels.shape}")
    outside = (labels < 0) | (labels >= n_classes)
    if outside.any():
        bad = int(np.argmax(outside))
        raise InputError(f"{name}[{bad}] must lie in [0, {n_classes}), not {labels[bad]}")
    return labels.astype(np.int64, copy=False)
