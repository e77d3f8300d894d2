"""Batch normalisation."""

import numpy as np

from sparsekit.errors import InputError
from sparsekit.nn.module import Module, remembered
from sparsekit.nn.parameter import Parameter


class BatchNorm(Module):
    """Normalise every feature over the batch, then scale and shift it.

        z = (x - mean) / sqrt(var + eps)          y = weight * z + bias
        dx = weight / sqrt(var + eps) * (dy - mean(dy) - z * mean(dy * z))

    In training mean and (biased) variance are those of the batch, and running averages of the mean and the
    unbiased variance are updated; else the running averages are used. Statistics are summed in float64.

    Parameters
    ----------
    n_features : rows of the input (n_features, batch)
    dtype : float32 or float64
    momentum : weight of the newest batch in the running averages
    eps : added to the variance

    Source: Ioffe and Szegedy, arXiv 1502.03167.
    """

    def __init__(
        self, n_features: int, dtype: np.dtype | type = np.float32, momentum: float = 0.1, eps: float = 1e-5
    ) -> None:
        self.weight = Parameter(np.ones((n_features, 1), dtype=dtype))
        self.bias = Parameter(np.zeros((n_features, 1), dtype=dtype))
        self.running_mean = np.zeros((n_features, 1))
        self.running_var = np.ones((n_features, 1))
        self.momentum = momentum
        self.eps = eps
        self._normalized: np.ndarray | None = None
        self._inverse_std: np.ndarray | None = None

    def forward(self, x, training=False):
        if not training:
            self._normalized = None
            return (
                self.weight.values * self._normalize(x, self.running_mean, self.running_var)[0] + self.bias.values
            )
        batch = x.shape[1]
        if batch < 2:
            raise InputError(f"x must have a batch of at least 2 for BatchNorm in training, not {batch}")
        mean = x.mean(axis=1, keepdims=True, dtype=np.float64)
        var = x.var(axis=1, keepdims=True, dtype=np.float64)
        self.running_mean += self.momentum * (mean - self.running_mean)
        self.running_var += self.momentum * (var * batch / (batch - 1) - self.running_var)
        self._normalized, self._inverse_std = self._normalize(x, mean, var)
        return self.weight.values * self._normalized + self.bias.values

    def backward(self, grad_output):
        z, self._normalized = remembered(self._normalized), None
        self.weight.grad = (grad_output * z).sum(axis=1, keepdims=True)
        self.bias.grad = grad_output.sum(axis=1, keepdims=True)
        batch = grad_output.shape[1]
        centred = grad_output - self.bias.grad / batch - z * (self.weight.grad / batch)
        return self.weight.values * self._inverse_std * centred

    def parameters(self):
        return {"weight": self.weight, "bias": self.bias}

    def buffers(self):
        return {"running_mean": self.running_mean, "running_var": self.running_var}

    def _normalize(self, x, mean, var):
        inverse_std = (1 / np.sqrt(var + self.eps)).astype(x.dtype)
        return (x - mean.astype(x.dtype)) * inverse_std, inverse_std
