"""A labelled data set held in memory, checked once when it is built."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from numbers import Real

import numpy as np

from sparsekit.data.splits import stratified_split
from sparsekit.errors import InputError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training, test and, if asked for, validation samples of one classification task.

    Parameters
    ----------
    name : str
    x_train, x_test, x_validation : uint8 or float32 arrays (n, features) or (n, channels, height, width)
        Samples first. Any other numeric dtype is converted to float32.
    y_train, y_test, y_validation : int64 arrays (n,)
        Labels in [0, n_classes). Any other integer dtype is converted to int64.
    class_names : sequence of str
        At least two; kept as a tuple.

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
            raise InputError(f"x_train has shape {self.x_train.shape}, but expected {expected}")
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
        fraction : float in [0, 1)
            Part of the training samples to move, rounded to whole samples; 0 moves nothing. Every class keeps
            at least one training sample.
        rng : numpy.random.Generator

        Returns
        -------
        Dataset
            A new one (this one where `fraction` is 0); the order of the samples is kept in both parts.

        Raises
        ------
        InputError
            If `fraction` is out of range or gives no sample, or if there is a validation set already.
        """
        if not isinstance(fraction, Real) or not 0 <= fraction < 1:
            raise InputError(f"validation fraction is {fraction!r}, but must be a number in [0, 1)")
        if fraction == 0:
            return self
        if self.x_validation is not None:
            raise InputError(f"data set {self.name} already has {len(self.x_validation)} validation samples")
        n = len(self.x_train)
        train, validation = stratified_split(self.y_train, min(int(fraction * n + 0.5), n - 1), rng)
        if len(validation) == 0:
            raise InputError(f"validation fraction {fraction} of {n} training samples gives no sample")
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
    x : array-like (n, *sample_shape), (n, features), or (n, height, width) where there is one channel
        The leading axis is always that of the batch: an array (1, height, width) is a batch of one image.
    sample_shape : sequence of int
        ``(features,)`` or ``(channels, height, width)``.
    name : str
        What the error messages call `x`.

    Returns
    -------
    uint8 or float32 array (n, *sample_shape)
        uint8 stays uint8, any other numeric dtype becomes float32. Not a copy where none is needed.

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
        expected = " or ".join("(n, " + ", ".join(map(str, one)) + ")" for one in allowed)
        hint = "; one sample alone needs a batch axis: x[np.newaxis]" if array.shape in allowed else ""
        raise InputError(f"{name} has shape {array.shape}, but expected {expected}{hint}")
    return finite_samples(array.reshape(len(array), *shape), shape, name)


def finite_samples(x: object, sample_shape: tuple[int, ...], name: str) -> np.ndarray:
    """`x` as a uint8 or float32 array (n, *sample_shape), n > 0, all finite; anything else is refused."""
    array = _numbers(x, name)
    if array.ndim == 0 or array.shape[1:] != sample_shape:
        raise InputError(f"{name} has shape {array.shape}, but its samples must have shape {sample_shape}")
    if len(array) == 0:
        raise InputError(f"{name} is empty: at least one sample is needed")
    if array.dtype == np.float32 and not (finite := np.isfinite(array)).all():
        bad = int(np.argmin(finite.reshape(len(array), -1).all(axis=1)))
        raise InputError(f"{name} must be finite in float32, but sample {bad} has a NaN or infinite value")
    return array


def _numbers(x: object, name: str) -> np.ndarray:
    try:
        array = np.asarray(x)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{name} cannot be made one array of numbers: {reason}") from error
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name} has dtype {array.dtype}, but must hold real numbers")
    if array.dtype == np.uint8:
        return array
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit becomes infinite, and is refused
        return array.astype(np.float32, copy=False)


def _labels(y: object, n: int, n_classes: int, name: str) -> np.ndarray:
    """int64 array (n,) with values in [0, n_classes)."""
    labels = np.asarray(y)
    if labels.dtype.kind not in "iu":
        raise InputError(f"{name} has dtype {labels.dtype}, but labels must be integers")
    if labels.shape != (n,):
        raise InputError(f"{name} has shape {labels.shape}, but expected ({n},), one label per sample")
    outside = (labels < 0) | (labels >= n_classes)
    if outside.any():
        bad = int(np.argmax(outside))
        raise InputError(f"{name}[{bad}] is {labels[bad]}, but labels must be in [0, {n_classes})")
    return labels.astype(np.int64, copy=False)
