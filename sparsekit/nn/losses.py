"""Losses: each returns its value and the gradient with respect to its input in one call."""

import numpy as np

from sparsekit.checks import require_fraction
from sparsekit.errors import InputError


def softmax_cross_entropy(
    logits: np.ndarray, labels: np.ndarray, label_smoothing: float = 0.0
) -> tuple[float, np.ndarray]:
    """Mean cross-entropy of softmax(logits) against the labels.

        loss = mean over b of -sum over c of t[c, b] log softmax(logits)[c, b]
        t = (1 - s) one_hot(label) + s / n_classes          d loss / d logits = (softmax(logits) - t) / batch

    Parameters
    ----------
    logits : float (n_classes, batch)
    labels : integer (batch,), in [0, n_classes)
    label_smoothing : s in [0, 1), share of the target spread evenly over all classes

    Returns
    -------
    loss : float, in nats, averaged over the batch
    grad : like logits
    """
    n_classes, batch = logits.shape
    smoothing = require_fraction("label_smoothing", label_smoothing, high_open=True)
    if labels.shape != (batch,) or labels.dtype.kind not in "iu":
        raise InputError(f"labels must be integers of shape ({batch},), not {labels.dtype} {labels.shape}")
    if batch == 0 or labels.min() < 0 or labels.max() >= n_classes:
        found = f"between {labels.min()} and {labels.max()}" if batch else "empty"
        raise InputError(f"labels must lie in [0, {n_classes}), not {found}")
    shifted = logits - logits.max(axis=0)
    exponentials = np.exp(shifted)
    sums = exponentials.sum(axis=0)
    samples = np.arange(batch)
    log_sums = np.log(sums)
    of_label = (log_sums - shifted[labels, samples]).mean(dtype=np.float64)
    of_all = (log_sums - shifted.mean(axis=0)).mean(dtype=np.float64) if smoothing else 0.0
    grad = exponentials / sums
    grad -= logits.dtype.type(smoothing / n_classes)
    grad[labels, samples] -= logits.dtype.type(1 - smoothing)
    grad /= batch
    return float((1 - smoothing) * of_label + smoothing * of_all), grad
