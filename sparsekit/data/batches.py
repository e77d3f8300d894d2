"""Standardised mini-batches in the feature-major layout of the network."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from sparsekit.checks import require_integer, require_rng
from sparsekit.data.augmentation import CropAndFlip
from sparsekit.errors import InputError

_TABLE = "(n, features)"
_IMAGES = "(n, channels, height, width)"
_CHUNK_VALUES = 1 << 20  # values converted to float64 at a time, 8 MiB


@dataclass(frozen=True, eq=False)
class Standardization:
    """The map x -> (x - mean) / std, with the statistics of a training set (`fit`) or fixed (`unit`).

    Parameters
    ----------
    mean, std : float64, both (features,) or both (channels, 1, 1); they broadcast over one sample

    Raises
    ------
    InputError
        If the shapes differ or are none of these, a value is not finite, or a std is not positive.
    """

    mean: np.ndarray
    std: np.ndarray

    def __post_init__(self) -> None:
        mean, std = np.asarray(self.mean, dtype=np.float64), np.asarray(self.std, dtype=np.float64)
        if mean.shape != std.shape or not (mean.ndim == 1 or (mean.ndim == 3 and mean.shape[1:] == (1, 1))):
            expected = "both have shape (features,) or both (channels, 1, 1)"
            raise InputError(f"mean and std must {expected}, not {mean.shape} and {std.shape}")
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
            raise InputError("mean and std must be finite, and std positive")
        object.__setattr__(self, "mean", mean)  # the dataclass is frozen
        object.__setattr__(self, "std", std)

    @classmethod
    def fit(cls, x: np.ndarray) -> "Standardization":
        """Statistics of samples: one mean and std per feature of a table, per channel of images.

        Sums are float64, over chunks of samples, so that no float copy of all of `x` is made. The variance
        divides by the number of values (not by one less). What is constant gets std 1, and so becomes 0.

        Parameters
        ----------
        x : array (n, features) or (n, channels, height, width), n > 0

        Raises
        ------
        InputError
            If `x` has another shape or no sample.
        """
        _require_samples(x)
        axes = (0, *range(2, x.ndim))
        n_values = x.size // x.shape[1]
        mean = sum(part.sum(axis=axes, keepdims=True) for part in _float64_chunks(x)) / n_values
        squares = sum(((part - mean) ** 2).sum(axis=axes, keepdims=True) for part in _float64_chunks(x))
        std = np.sqrt(squares / n_values)
        # Rounding of the mean gives a constant feature a tiny std, so compare the values themselves. A std
        # that float32 cannot hold with full precision counts as constant too: its inverse would be infinite.
        constant = x.min(axis=axes, keepdims=True) == x.max(axis=axes, keepdims=True)
        std[constant | (std < np.finfo(np.float32).tiny)] = 1.0
        return cls(mean[0], std[0])

    @classmethod
    def unit(cls, x: np.ndarray) -> "Standardization":
        """Scale by what the dtype can hold: mean 0, std 255 for uint8 and 1 for any other dtype.

        uint8 becomes [0, 1] for values that use all of [0, 255], as images do (those of the digits data set,
        0 to 16, do not), without centring. Floats stay as they are. torchvision's ``ToTensor`` does the same.

        Parameters
        ----------
        x : array (n, features) or (n, channels, height, width), n > 0; only its shape and dtype matter

        Raises
        ------
        InputError
            If `x` has another shape or no sample.
        """
        _require_samples(x)
        shape = (x.shape[1], *(1,) * (x.ndim - 2))
        return cls(np.zeros(shape), np.full(shape, 255.0 if x.dtype == np.uint8 else 1.0))

    def transform(self, x: np.ndarray, dtype: DTypeLike = np.float32) -> np.ndarray:
        """Standardise samples and turn them to feature-major.

        Parameters
        ----------
        x : array (n, *sample_shape)
        dtype : float32 or float64

        Returns
        -------
        array (*sample_shape, n) of `dtype`, C-contiguous and newly allocated

        Raises
        ------
        InputError
            If the features or channels of `x` are not those of the statistics, or `dtype` is another.
        """
        dtype = _float_dtype(dtype)
        if x.ndim != self.mean.ndim + 1 or x.shape[1] != len(self.mean):
            expected = _TABLE if self.mean.ndim == 1 else _IMAGES
            raise InputError(f"x must have shape {expected}, second size {len(self.mean)}, not {x.shape}")
        mean = self.mean[..., np.newaxis].astype(dtype)
        scale = (1.0 / self.std[..., np.newaxis]).astype(dtype)
        # Transposing first moves single bytes where x is uint8, a quarter of the float32 it becomes.
        samples_last = np.ascontiguousarray(np.moveaxis(x, 0, -1))
        out = np.subtract(samples_last, mean, dtype=dtype)
        out *= scale
        return out


class BatchLoader:
    """Mini-batches of one data set, as often as it is iterated over.

    Each pass yields ``(x_batch, y_batch)``: an array (*sample_shape, batch) of `dtype`, C-contiguous and
    standardised, and an int64 array (batch,).

    Parameters
    ----------
    x : array (n, *sample_shape)
    y : int64 array (n,)
    batch_size : samples per batch; the last batch of a pass has what is left
    standardization : what each batch goes through
    dtype : float32 or float64
    rng : each pass takes one fresh permutation from it, at its first batch; None: the order of `x`
    drop_last : whether to leave an incomplete last batch out
    augmentation : what the samples of each batch go through before they are standardised, if anything. Its
        random numbers come from a source of its own, so that the order of the samples is the same without it.

    Attributes
    ----------
    rng, augmentation : as they were given. The state of ``rng`` and of ``augmentation.rng`` between two passes
        is all that the following passes depend on, apart from the arguments.

    Raises
    ------
    InputError
        If an argument is out of range, or if `drop_last` would leave no batch.
    """

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        batch_size: int,
        standardization: Standardization,
        *,
        dtype: DTypeLike = np.float32,
        rng: np.random.Generator | None = None,
        drop_last: bool = False,
        augmentation: CropAndFlip | None = None,
    ) -> None:
        if len(x) == 0 or np.shape(y) != (len(x),):
            expected = "x and y must have shapes (n, *sample_shape) and (n,) with n > 0"
            raise InputError(f"{expected}, not {x.shape} and {np.shape(y)}")
        self._x, self._y = x, y
        self._batch_size = require_integer("batch_size", batch_size, 1)
        if drop_last and self._batch_size > len(x):
            raise InputError(f"batch_size must be at most {len(x)}, the samples, with drop_last, not {batch_size}")
        if augmentation is not None:
            augmentation.check(x.shape[1:])
        self._standardization = standardization
        self._dtype = _float_dtype(dtype)
        self.rng = None if rng is None else require_rng("rng", rng)
        self._drop_last = drop_last
        self.augmentation = augmentation

    def __len__(self) -> int:
        n_batches = len(self._x) / self._batch_size
        return math.floor(n_batches) if self._drop_last else math.ceil(n_batches)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        order = None if self.rng is None else self.rng.permutation(len(self._x))
        for start in range(0, len(self) * self._batch_size, self._batch_size):
            batch = slice(start, start + self._batch_size)
            samples = batch if order is None else order[batch]
            x_batch = self._x[samples]
            if self.augmentation is not None:
                x_batch = self.augmentation(x_batch)
            yield self._standardization.transform(x_batch, self._dtype), self._y[samples]


def _require_samples(x: np.ndarray) -> None:
    if x.ndim not in (2, 4) or len(x) == 0:
        raise InputError(f"x must have shape {_TABLE} or {_IMAGES} with n > 0, not {x.shape}")


def _float_dtype(dtype: DTypeLike) -> np.dtype:
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise InputError(f"dtype must be float32 or float64, not {dtype}")
    return dtype


def _float64_chunks(x: np.ndarray) -> Iterator[np.ndarray]:
    """The samples as float64, a few at a time."""
    rows = max(1, _CHUNK_VALUES // x[0].size)
    for start in range(0, len(x), rows):
        yield x[start : start + rows].astype(np.float64)
