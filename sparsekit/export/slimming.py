"""A trained network without the neurons that it can do without."""

import numpy as np

from sparsekit.csr import CSRMatrix
from sparsekit.dense import DenseMatrix
from sparsekit.export.constants import Constants, spread
from sparsekit.nn import BatchNorm, Conv2d, Dropout, Linear, Module, Residual, Sequential


def slimmed(model: Sequential, constants: Constants) -> Sequential:
    """The same function of the same inputs with fewer neurons: up to rounding the outputs are the same.

    Neurons that nothing needs are gone, from their layer, its normalisation and whatever reads them, and their
    constants stand in the biases of those. Dropout, which does nothing in a prediction, is left out. Sparse
    weights come in CSR storage, because neurons that have lost inputs have fewer weights than others.

    Parameters
    ----------
    model : the trained network, left as it is
    constants : those of this network
    """
    return Sequential(_without_dropout(model, constants))


def _without_dropout(model: Sequential, constants: Constants) -> dict[str, Module]:
    layers = {name: layer for name, layer in model.layers.items() if not isinstance(layer, Dropout)}
    return {name: _slimmed(layer, constants) for name, layer in layers.items()}


def _slimmed(module: Module, constants: Constants) -> Module:
    if isinstance(module, Sequential):
        return slimmed(module, constants)
    if isinstance(module, Residual):
        shortcut = None if module.shortcut is None else _without_dropout(module.shortcut, constants)
        return Residual(_without_dropout(module.branch, constants), shortcut, relu=module.relu)
    if isinstance(module, BatchNorm):
        return _slimmed_norm(module, constants)
    if isinstance(module, Linear | Conv2d):
        return _slimmed_layer(module, constants)
    return module


def _slimmed_norm(norm: BatchNorm, constants: Constants) -> BatchNorm:
    kept = spread(~constants.inputs[norm].neurons.removable, len(norm.running_mean))
    slim = type(norm)(int(kept.sum()), norm.weight.values.dtype, norm.momentum, norm.eps)
    for name, parameter in norm.parameters().items():
        slim.parameters()[name].values[...] = parameter.values[kept]
    for name, buffer in norm.buffers().items():
        slim.buffers()[name][...] = buffer[kept]
    return slim


def _slimmed_layer(layer: Linear | Conv2d, constants: Constants) -> Linear | Conv2d:
    signal, rows = constants.inputs[layer], ~constants.outputs[layer].removable
    removed = spread(signal.neurons.removable, layer.matrix.shape[1])
    weight, mask = layer.matrix.to_dense()[rows], layer.matrix.mask()[rows]
    absorbed = weight[:, removed].astype(np.float64) @ _columns(layer, signal.x)[removed]
    matrix = _like(layer, weight[:, ~removed], mask[:, ~removed])
    with_bias = layer.bias is not None or bool(absorbed.any())
    budget = matrix.nnz if layer.is_sparse else None
    if isinstance(layer, Conv2d):
        products = layer.products
        channels = int((~signal.neurons.removable).sum())
        geometry = channels, products.kernel_size, products.stride, products.padding
        slim = Conv2d(matrix, *geometry, bias=with_bias, budget=budget)
    else:
        slim = Linear(matrix, bias=with_bias, budget=budget)
    if slim.bias is not None:
        own = 0 if layer.bias is None else layer.bias.values[rows]
        slim.bias.values[...] = own + absorbed[:, np.newaxis]
    return slim


def _like(layer: Linear | Conv2d, weight: np.ndarray, mask: np.ndarray) -> CSRMatrix | DenseMatrix:
    return CSRMatrix.from_dense(weight, mask) if layer.is_sparse else DenseMatrix(weight)


def _columns(layer: Linear | Conv2d, x: np.ndarray) -> np.ndarray:
    """What each column of the weight reads of one sample, where that is the same at every pixel; float64."""
    values = x.reshape(layer.products.in_channels, -1)[:, 0] if isinstance(layer, Conv2d) else x[:, 0]
    return spread(values, layer.matrix.shape[1]).astype(np.float64)
