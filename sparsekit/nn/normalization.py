"""Batch normalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sparsekit.checks import require_integer
from sparsekit.errors import InputError
from sparsekit.kernels.memory import aligned_empty
from sparsekit.nn.module import Module, remembered
from sparsekit.nn.parameter import Parameter
from sparsekit.stored import real_array

if TYPE_CHECKING:
    from sparsekit.kernels.conv import Affine


class _Remembered(NamedTuple):
    """What backward needs of a forward pass in training."""

    x: np.ndarray
    mean: np.ndarray
    inverse_std: np.ndarray
    affine: Affine
    relu: bool


class BatchNorm(Module):
    """Normalise every feature over the batch, then scale and shift it.

        z = (x - mean) / sqrt(var + eps)          y = weight * z + bias
        dx = weight / sqrt(var + eps) * (dy - mean(dy) - z * mean(dy * z))

    In training mean and (biased) variance are those of the batch, and running averages of the mean and the
    unbiased variance are updated; else the running averages are used. Statistics are summed in float64. Of a
    forward pass the input alone is kept, no normalised copy of it.

    Parameters
    ----------
    n_features : rows of the input (n_features, batch)
    dtype : float32 or float64
    momentum : weight of the newest batch in the running averages
    eps : added to the variance

    Source: Ioffe and Szegedy, arXiv 1502.03167.
    """

    _ndim = 2

    def __init__(
        self, n_features: int, dtype: np.dtype | type = np.float32, momentum: float = 0.1, eps: float = 1e-5
    ) -> None:
        n_features = require_integer("n_features", n_features, 1)
        self.weight = Parameter(np.ones((n_features, 1), dtype=dtype))
        self.bias = Parameter(np.zeros((n_features, 1), dtype=dtype))
        self.running_mean = np.zeros((n_features, 1))
        self.running_var = np.ones((n_features, 1))
        self.momentum = momentum
        self.eps = eps
        self._remembered: _Remembered | None = None

    def forward(
        self, x: np.ndarray, training: bool = False, relu: bool = False, side: np.ndarray | None = None
    ) -> np.ndarray:
        """y, or y + side; with `relu` negative ones become zero in the same pass.

        A ReLU behind the sum with `side` is not undone by :meth:`backward`.
        """
        from sparsekit.kernels import normalization

        x = self._checked(x)
        if side is not None and side.shape != x.shape:
            raise InputError(f"side must have shape {x.shape}, not {side.shape}")
        scale, shift = self.affine(x, training, relu=relu and side is None)
        out = aligned_empty(x.shape, x.dtype)
        rows = None if side is None else _rows(real_array("side", side, x.dtype))
        normalization.affine(_rows(x), scale, shift, relu, _rows(out), rows)
        return out

    def affine(self, x: np.ndarray, training: bool, *, relu: bool = False) -> Affine:
        """Scale and shift (n_features,) with which y = scale * x + shift; what follows may apply them itself.

        `relu` says that a ReLU follows, so that :meth:`backward` begins with it.
        """
        from sparsekit.kernels import normalization
        from sparsekit.kernels.conv import Affine

        x = self._checked(x)
        mean, var = self.running_mean[:, 0], self.running_var[:, 0]
        if training:
            if x[0].size < 2:
                few = x[0].size
                raise InputError(f"x must have at least 2 values a feature for BatchNorm in training, not {few}")
            mean, var = np.empty_like(mean), np.empty_like(var)
            normalization.statistics(_rows(x), mean, var)
            self._follow(mean, var, x[0].size)
        inverse_std = 1 / np.sqrt(var + self.eps)
        scale = self.weight.values[:, 0] * inverse_std
        shift = self.bias.values[:, 0] - mean * scale
        affine = Affine(scale.astype(x.dtype), shift.astype(x.dtype))
        self._remembered = _Remembered(x, mean, inverse_std, affine, relu) if training else None
        return affine

    def backward(self, grad_output: np.ndarray, overwrite: bool = False) -> np.ndarray:
        """The gradient of x; with `overwrite` in the memory of `grad_output`."""
        from sparsekit.kernels import normalization

        (x, mean, inverse_std, (scale, shift), relu), self._remembered = remembered(self._remembered), None
        grad_weight, grad_bias = np.empty_like(mean), np.empty_like(mean)
        weight = self.weight.values[:, 0].astype(np.float64)
        if grad_output.shape != x.shape:
            raise InputError(f"grad_output must have shape {x.shape}, not {grad_output.shape}")
        g = real_array("grad_output", grad_output, x.dtype)
        out = g if overwrite else aligned_empty(x.shape, x.dtype)
        normalization.gradient(
            _rows(g), _rows(x), mean, inverse_std, weight, scale, shift, relu, _rows(out), grad_weight, grad_bias
        )
        self.weight.grad = grad_weight.astype(x.dtype)[:, np.newaxis]
        self.bias.grad = grad_bias.astype(x.dtype)[:, np.newaxis]
        return out

    def parameters(self):
        return {"weight": self.weight, "bias": self.bias}

    def buffers(self):
        return {"running_mean": self.running_mean, "running_var": self.running_var}

    def _follow(self, mean: np.ndarray, var: np.ndarray, n: int) -> None:
        """Let the running averages follow the statistics of a batch of n values a feature."""
        self.running_mean += self.momentum * (mean[:, np.newaxis] - self.running_mean)
        self.running_var += self.momentum * (var[:, np.newaxis] * n / (n - 1) - self.running_var)

    def _checked(self, x: np.ndarray) -> np.ndarray:
        n_features = len(self.running_mean)
        if x.ndim != self._ndim or len(x) != n_features:
            shape = ("batch",) if self._ndim == 2 else ("height", "width", "batch")
            raise InputError(f"x must have shape ({n_features}, {', '.join(shape)}), not {x.shape}")
        return real_array("x", x, self.weight.values.dtype)


class BatchNorm2d(BatchNorm):
    """Batch normalisation of images (channels, height, width, batch): each channel over all pixels and samples.

    Parameters are those of :class:`BatchNorm`, with `n_features` channels.
    """

    _ndim = 4


def _rows(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)
