"""How long a prediction takes: the network as stored, against the same weights dense and in SciPy CSR."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
from scipy.sparse import csr_matrix

from sparsekit.dense import DenseMatrix
from sparsekit.errors import InputError
from sparsekit.kernels.threads import one_blas_thread
from sparsekit.models import sparse_layers, weight_layers
from sparsekit.nn import Linear, Module, Sequential

FORMATS = ("stored", "dense", "csr")

_TURNS = 3
_PAUSE = 0.05  # seconds, after which the waiting threads of the network before have gone to sleep


def inference_times(
    model: Sequential, n_features: int, batches: Sequence[int] = (1, 256), repeats: int = 30
) -> dict[int, dict[str, float]]:
    """Median time of a forward pass, microseconds a sample, by batch and storage.

    The network as it is ("stored"), with every layer dense and multiplied by BLAS ("dense"), and with every
    layer multiplied by scipy.sparse CSR, which is single-threaded ("csr"), take turns in one process, so that
    a noisy machine is noisy for all of them. Inputs are feature-major already. The outputs are compared first.

    Parameters
    ----------
    model : a network of linear layers
    n_features : size of its input
    batches : samples a forward pass
    repeats : samples of about a millisecond, taken in three turns

    Returns
    -------
    {batch: {"stored" | "dense" | "csr": microseconds}}
    """
    networks = {
        "stored": model,
        "dense": _converted(model, _dense_copy),
        "csr": _converted(model, _ScipyLinear),
    }
    rng = np.random.default_rng(0)
    dtype = next(iter(weight_layers(model).values())).matrix.dtype
    times = {}
    for batch in batches:
        x = rng.standard_normal((n_features, batch)).astype(dtype)
        expected = networks["dense"].forward(x)
        for network in networks.values():
            np.testing.assert_allclose(network.forward(x), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
        times[batch] = _median_times(networks, x, repeats)
    return {batch: {name: t / batch for name, t in row.items()} for batch, row in times.items()}


class _ScipyLinear(Module):
    """A linear layer on scipy.sparse, converted once."""

    def __init__(self, layer: Linear) -> None:
        rows, columns = np.divmod(layer.matrix.flat_positions(), layer.matrix.shape[1])
        self.weight = csr_matrix((layer.matrix.values.ravel(), (rows, columns)), shape=layer.matrix.shape)
        self.bias = layer.bias.values if layer.bias is not None else 0

    def forward(self, x, training=False):
        y = self.weight @ x
        y += self.bias
        return y

    def backward(self, grad_output):
        raise InputError("the SciPy baseline predicts only")


def _dense_copy(layer: Linear) -> Linear:
    dense = Linear(DenseMatrix(layer.matrix.to_dense()), bias=layer.bias is not None)
    if layer.bias is not None:
        dense.bias = layer.bias
    return dense


def _converted(model: Sequential, convert: Callable[[Linear], Module]) -> Sequential:
    """The same network with every linear layer converted; the other layers are shared."""
    layers = model.children().items()
    return Sequential({name: convert(child) if isinstance(child, Linear) else child for name, child in layers})


def _median_times(networks: dict[str, Sequential], x: np.ndarray, repeats: int) -> dict[str, float]:
    """Median microseconds of a forward pass, the networks taking turns."""
    samples: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(_TURNS):
        for name, network in networks.items():
            time.sleep(_PAUSE)
            with one_blas_thread() if name == "stored" and sparse_layers(network) else nullcontext():
                calls = _calls_in_a_millisecond(network.forward, x)
                for _ in range(-(-repeats // _TURNS)):
                    started = time.perf_counter()
                    for _ in range(calls):
                        network.forward(x)
                    samples[name].append((time.perf_counter() - started) / calls)
    return {name: 1e6 * float(np.median(values)) for name, values in samples.items()}


def _calls_in_a_millisecond(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> int:
    function(x)
    started = time.perf_counter()
    function(x)
    return max(1, int(1e-3 / (time.perf_counter() - started)))
