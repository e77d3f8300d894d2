"""How long a prediction takes: the network as stored, against the same weights dense and in SciPy CSR."""

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from sparsekit.csr import CSRMatrix
from sparsekit.dense import DenseMatrix
from sparsekit.errors import InputError
from sparsekit.kernels.threads import one_blas_thread
from sparsekit.models import sparse_layers, weight_layers
from sparsekit.nn import Linear, Module, Parameter, Residual, Sequential, WeightLayer
from sparsekit.stored import StoredMatrix

FORMATS = ("stored", "dense", "csr")

_TURNS = 3
_LONGEST = 1.0  # seconds of a turn; at least one sample is taken
_PAUSE = 0.05  # seconds, after which the waiting threads of the network before have gone to sleep


def inference_times(
    model: Sequential, sample_shape: Sequence[int], batches: Sequence[int] = (1, 256), repeats: int = 30
) -> dict[int, dict[str, float]]:
    """Median time of a forward pass, microseconds a sample, by batch and storage.

    The network as it is ("stored"), with every layer dense and multiplied by BLAS ("dense"), and with every
    layer multiplied by scipy.sparse CSR, which is single-threaded ("csr"), take turns in one process, so that
    a noisy machine is noisy for all of them. Inputs are feature-major already. The outputs are compared first.
    For "dense" and "csr" the patches of a convolution become columns (im2col).

    Parameters
    ----------
    model : the network
    sample_shape : shape of one sample of its input
    batches : samples a forward pass
    repeats : samples of about a millisecond, taken in three turns; fewer where a single one lasts long

    Returns
    -------
    {batch: {"stored" | "dense" | "csr": microseconds}}
    """
    networks = {
        "stored": model,
        "dense": _converted(model, _dense_copy),
        "csr": _converted(model, _scipy_copy),
    }
    rng = np.random.default_rng(0)
    dtype = next(iter(weight_layers(model).values())).matrix.dtype
    times = {}
    for batch in batches:
        x = rng.standard_normal((*sample_shape, batch)).astype(dtype)
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


def _dense_copy(layer: WeightLayer) -> WeightLayer:
    return _copy(layer, DenseMatrix(layer.matrix.to_dense()))


def _scipy_copy(layer: WeightLayer) -> Module:
    if isinstance(layer, Linear):
        return _ScipyLinear(layer)
    matrix = CSRMatrix.from_mask(layer.matrix.mask(), layer.matrix.dtype)
    matrix.values[...] = layer.matrix.values.reshape(-1)
    copied = _copy(layer, matrix)
    copied.backend = "csr"
    return copied


def _copy(layer: WeightLayer, matrix: StoredMatrix) -> WeightLayer:
    """The same layer with the same weights in another storage."""
    copied = copy.copy(layer)
    copied.weight = Parameter(matrix.values)
    copied.use(matrix)
    return copied


def _converted(module: Module, convert: Callable[[WeightLayer], Module]) -> Any:
    """The same network with every layer with weights converted; the other modules are shared."""
    if isinstance(module, WeightLayer):
        return convert(module)
    if isinstance(module, Sequential):
        return Sequential({name: _converted(child, convert) for name, child in module.layers.items()})
    if isinstance(module, Residual):
        branch = _converted(module.branch, convert).layers
        shortcut = None if module.shortcut is None else _converted(module.shortcut, convert).layers
        return Residual(branch, shortcut, relu=module.relu)
    return module


def _median_times(networks: dict[str, Sequential], x: np.ndarray, repeats: int) -> dict[str, float]:
    """Median microseconds of a forward pass, the networks taking turns."""
    samples: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(_TURNS):
        for name, network in networks.items():
            time.sleep(_PAUSE)
            with one_blas_thread() if name == "stored" and sparse_layers(network) else nullcontext():
                calls, n_samples = _calls_and_samples(network.forward, x, -(-repeats // _TURNS))
                for _ in range(n_samples):
                    started = time.perf_counter()
                    for _ in range(calls):
                        network.forward(x)
                    samples[name].append((time.perf_counter() - started) / calls)
    return {name: 1e6 * float(np.median(values)) for name, values in samples.items()}


def _calls_and_samples(
    function: Callable[[np.ndarray], np.ndarray], x: np.ndarray, wanted: int
) -> tuple[int, int]:
    """How many calls take about a millisecond, and how many such samples to take."""
    function(x)
    started = time.perf_counter()
    function(x)
    seconds = time.perf_counter() - started
    calls = max(1, int(1e-3 / seconds))
    return calls, max(1, min(wanted, int(_LONGEST / (calls * seconds))))
