"""A trained network together with what its inputs need: users hand in samples first, unscaled."""

import math
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np

from sparsekit.data import BatchLoader, Standardization, as_samples
from sparsekit.errors import InputError
from sparsekit.kernels.threads import one_blas_thread
from sparsekit.models import sparse_layers
from sparsekit.nn import Sequential, softmax_cross_entropy

_AT_ONCE = 1 << 19  # values of the samples that go through the network together


class Classifier:
    """Predicts classes of samples.

    Parameters
    ----------
    model : maps standardised feature-major inputs (*sample_shape, batch) to logits (n_classes, batch)
    standardization : the map from samples to the network's inputs
    sample_shape : shape of one sample, (features,) or (channels, height, width)
    dtype : float32 or float64, that of the weights
    batch_size : samples handled at a time; None: at most 512, and fewer where they are large
    """

    def __init__(
        self,
        model: Sequential,
        standardization: Standardization,
        sample_shape: tuple[int, ...],
        dtype: np.dtype | type = np.float32,
        batch_size: int | None = None,
    ) -> None:
        self.model = model
        self.standardization = standardization
        self.sample_shape = tuple(sample_shape)
        self.dtype = np.dtype(dtype)
        self.batch_size = batch_size or max(1, min(512, _AT_ONCE // math.prod(sample_shape)))

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Logits (n, n_classes) of samples x (n, *sample_shape); flattened samples are taken too.

        Raises
        ------
        InputError
            If the samples have another shape or hold NaN or infinity.
        """
        x = as_samples(x, self.sample_shape)
        labels = np.zeros(len(x), dtype=np.int64)
        return np.concatenate([logits.T for logits, _ in self._batches(x, labels)])

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Most likely class (n,), int64, of samples x (n, *sample_shape)."""
        return self.logits(x).argmax(axis=1)

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        """Probabilities (n, n_classes) of samples x (n, *sample_shape); each row sums to 1."""
        logits = self.logits(x)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    def evaluate(self, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
        """Mean cross-entropy in nats and accuracy in [0, 1] on samples x (n, *sample_shape), labels y (n,)."""
        x, y = as_samples(x, self.sample_shape), np.asarray(y)
        if y.shape != (len(x),) or y.dtype.kind not in "iu":
            raise InputError(f"y must be integers of shape ({len(x)},), not {y.dtype} {y.shape}")
        loss = correct = 0.0
        for logits, labels in self._batches(x, y):
            loss += softmax_cross_entropy(logits, labels)[0] * len(labels)
            correct += np.count_nonzero(logits.argmax(axis=0) == labels)
        return loss / len(x), correct / len(x)

    def _batches(self, x: np.ndarray, y: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        sparse = bool(sparse_layers(self.model))
        for inputs, labels in BatchLoader(x, y, self.batch_size, self.standardization, dtype=self.dtype):
            with one_blas_thread() if sparse else nullcontext():
                logits = self.model.forward(inputs)
            yield logits, labels
