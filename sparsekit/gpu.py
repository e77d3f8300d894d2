"""Networks for prediction on the GPU, captured in one CUDA graph.

A small batch takes the GPU a few microseconds a layer, and Python longer than that to launch it. A CUDA graph is
recorded once and launched as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from sparsekit.checks import require_integer
from sparsekit.condensed import CondensedMatrix
from sparsekit.dense import DenseMatrix
from sparsekit.errors import InputError
from sparsekit.gpu_convolution import GpuConvolution
from sparsekit.gpu_matrix import GpuCondensedMatrix
from sparsekit.kernels.gpu_arrays import require_cupy, require_device_array, require_float32
from sparsekit.nn import (
    BatchNorm,
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    Linear,
    MaxPool2d,
    Module,
    ReLU,
    Sequential,
)
from sparsekit.nn.weighted import WeightLayer

__all__ = ["GpuCondensedMatrix", "GpuConvolution", "GpuNetwork"]


class GpuNetwork:
    """A network that predicts batches of one size on the GPU, launched as one CUDA graph.

    It takes Linear and Conv2d with condensed or dense weights, batch normalisation right behind them (it becomes
    part of their weights), ReLU, MaxPool2d, Flatten, and Dropout, which does nothing in prediction. Dense weights
    run on the same kernels, as a fan-in of all inputs: CuPy cannot record cuBLAS in a graph.

    The weights are those of the moment: later changes of the model are not seen.

    Parameters
    ----------
    model : the network, float32
    sample_shape : shape of one sample of its input
    batch : samples of every call

    Raises
    ------
    GpuUnavailableError
        If there is no CuPy, driver or device.
    InputError
        For a module or storage that is not listed here, by name, and for samples the network cannot take.

    Attributes
    ----------
    input : float32 (*sample_shape, batch), what the graph reads
    output : float32 (*output_shape, batch), what it writes
    """

    def __init__(self, model: Sequential, sample_shape: tuple[int, ...], batch: int) -> None:
        cupy = require_cupy()
        batch = require_integer("batch", batch, 1)
        model.output_shape(tuple(sample_shape))  # refuses samples that do not fit
        self.input = cupy.zeros((*sample_shape, batch), dtype=np.float32)
        self._steps: list[Callable[[], Any]] = []
        self.output = self.input
        for name, layers in _groups(model):
            self.output = self._add(name, layers, self.output)
        self._graph = self._captured(cupy)

    def __call__(self, x: Any) -> Any:
        """Predict.

        Parameters
        ----------
        x : float32 (*sample_shape, batch) on the device

        Returns
        -------
        float32 (*output_shape, batch): `output`, which the next call overwrites.
        """
        require_float32("x", require_device_array("x", x, self.input).dtype)
        if x.shape != self.input.shape:
            raise InputError(f"x must have the shape {self.input.shape} of this network's input, not {x.shape}")
        self.input[...] = x
        return self.replay()

    def replay(self) -> Any:
        """Predict what is in `input`; returns `output`."""
        self._graph.launch()
        return self.output

    def _captured(self, cupy: Any) -> Any:
        """The steps as a graph. They run once before: while it is recorded nothing can be compiled."""
        cupy.cuda.get_current_stream().synchronize()  # what was copied to the device is there
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            self._run()
            stream.synchronize()
            stream.begin_capture()
            try:
                self._run()
            finally:
                graph = stream.end_capture()
        return graph

    def _run(self) -> None:
        for step in self._steps:
            step()

    def _add(self, name: str, layers: list[Module], x: Any) -> Any:
        """Append the steps of one group of modules that reads x; returns the array they write."""
        first, batch = layers[0], x.shape[-1]
        if isinstance(first, Flatten):
            return x.reshape(-1, batch)
        y = require_cupy().empty((*first.output_shape(x.shape[:-1]), batch), dtype=np.float32)
        if isinstance(first, WeightLayer):
            self._steps.append(_product(name, first, layers[1:], x, y))
        elif isinstance(first, MaxPool2d):
            self._steps.append(partial(_max_pool, first, x, y))
        else:
            self._steps.append(partial(require_cupy().maximum, x, 0, out=y))
        return y


def _groups(model: Sequential) -> Iterator[tuple[str, list[Module]]]:
    """The modules that are computed together, under the name of the first of them; all of known types."""
    modules = [pair for pair in _flat(model, "") if type(pair[1]) is not Dropout]
    while modules:
        name, first = modules.pop(0)
        group = [first]
        if type(first) in (Linear, Conv2d):
            if modules and type(modules[0][1]) in (BatchNorm, BatchNorm2d):
                group.append(modules.pop(0)[1])
            if modules and type(modules[0][1]) is ReLU:
                group.append(modules.pop(0)[1])
        elif type(first) not in (ReLU, Flatten, MaxPool2d):
            where = " that does not follow a weight" if type(first) in (BatchNorm, BatchNorm2d) else ""
            raise InputError(f"model must have no {type(first).__name__}{where} on the GPU, as {name!r} is")
        yield name, group


def _flat(model: Sequential, prefix: str) -> Iterator[tuple[str, Module]]:
    for name, module in model.layers.items():
        if type(module) is Sequential:
            yield from _flat(module, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", module


def _product(name: str, layer: WeightLayer, behind: list[Module], x: Any, y: Any) -> Callable[[], Any]:
    """The step of a linear layer or convolution, with the normalisation and the ReLU behind it."""
    matrix = _condensed(name, layer)
    bias = np.zeros(matrix.shape[0]) if layer.bias is None else layer.bias.values[:, 0]
    for module in behind:
        if isinstance(module, BatchNorm):
            matrix, bias = _normalized(matrix, bias, module)
    on_device, relu = matrix.to_gpu().frozen(), bool(behind) and isinstance(behind[-1], ReLU)
    bias = require_cupy().asarray(bias.astype(np.float32))
    if isinstance(layer, Conv2d):
        image = layer.products
        geometry = image.in_channels, image.kernel_size, image.stride, image.padding
        convolution = GpuConvolution(on_device, *geometry)
        return partial(convolution.forward, x, y, bias=bias, relu=relu)
    return partial(on_device.matmul, x, out=y, bias=bias, relu=relu)


def _condensed(name: str, layer: WeightLayer) -> CondensedMatrix:
    matrix = layer.matrix
    if isinstance(matrix, DenseMatrix):
        return CondensedMatrix.from_dense(matrix.values, np.ones(matrix.shape, dtype=bool))
    if not isinstance(matrix, CondensedMatrix):
        stored = type(matrix).__name__
        raise InputError(f"model must have condensed or dense weights on the GPU, not the {stored} of {name!r}")
    return matrix


def _normalized(matrix: CondensedMatrix, bias: np.ndarray, norm: BatchNorm) -> tuple[CondensedMatrix, np.ndarray]:
    """Weight and bias of scale * (W x + bias) + shift, with scale and shift of a normalisation in prediction."""
    scale = norm.weight.values[:, 0] / np.sqrt(norm.running_var[:, 0] + norm.eps)
    shift = norm.bias.values[:, 0] - norm.running_mean[:, 0] * scale
    values = (matrix.values * scale[matrix.rows, None]).astype(matrix.dtype)
    return CondensedMatrix(values, matrix.indices, matrix.rows, matrix.shape), bias * scale + shift


def _max_pool(pool: MaxPool2d, x: Any, y: Any) -> None:
    """The largest value of each window: for each place in a window, all windows at once."""
    cupy, (down, right), (height, width) = require_cupy(), pool.stride, y.shape[1:3]
    y[...] = x[:, : down * height : down, : right * width : right]
    for i, j in np.ndindex(*pool.kernel_size):
        if i or j:
            cupy.maximum(y, x[:, i : i + down * height : down, j : j + right * width : right], out=y)
