"""An exported network's architecture as JSON has it: what its modules are, not their weights."""

from typing import Any

import numpy as np

from sparsekit.checks import require_integer
from sparsekit.condensed import CondensedMatrix
from sparsekit.csr import CSRMatrix
from sparsekit.dense import DenseMatrix
from sparsekit.nn import (
    GELU,
    AvgPool2d,
    BatchNorm,
    BatchNorm2d,
    Conv2d,
    Flatten,
    GlobalAvgPool,
    Linear,
    MaxPool2d,
    Module,
    ReLU,
    Residual,
    Sequential,
)
from sparsekit.stored import StoredMatrix, require_shape

STORAGES: dict[str, type[StoredMatrix]] = {"condensed": CondensedMatrix, "csr": CSRMatrix, "dense": DenseMatrix}
_PLAIN: dict[str, type[Module]] = {kind.__name__: kind for kind in (Flatten, GELU, GlobalAvgPool, ReLU)}
_POOLS: dict[str, type[AvgPool2d | MaxPool2d]] = {kind.__name__: kind for kind in (AvgPool2d, MaxPool2d)}
_NORMS: dict[str, type[BatchNorm]] = {kind.__name__: kind for kind in (BatchNorm, BatchNorm2d)}
_LAYERS: dict[str, type[Conv2d | Linear]] = {kind.__name__: kind for kind in (Conv2d, Linear)}


def describe(model: Sequential) -> dict[str, dict[str, Any]]:
    """What :func:`build` needs to make such a network, as JSON has it: its modules by name, in forward order."""
    return {name: _about(layer) for name, layer in model.layers.items()}


def build(layers: dict[str, dict[str, Any]], dtype: np.dtype) -> Sequential:
    """A network as :func:`describe` has described it; its sparse weights are empty, everything else is zero.

    Raises
    ------
    KeyError, TypeError, ValueError
        If it is no such description.
    """
    return Sequential(_built(layers, dtype))


def n_values(layers: dict[str, dict[str, Any]]) -> int:
    """At least as many values as :func:`build` has room made for; errors are the same."""
    total = 0
    for about in layers.values():
        if about["type"] in _LAYERS:
            n_out, n_in = require_shape((about["shape"][0], about["shape"][1]))
            total += n_out + 1 + (n_out * n_in if about["storage"] == "dense" else 0)
        elif about["type"] in _NORMS:
            total += 4 * require_integer("n_features", about["n_features"], 1)
        else:
            parts = (about.get(name) for name in ("layers", "branch", "shortcut"))
            total += sum(n_values(part) for part in parts if part is not None)
    return total


def _about(module: Module) -> dict[str, Any]:
    about: dict[str, Any] = {"type": type(module).__name__}
    if isinstance(module, Sequential):
        return about | {"layers": describe(module)}
    if isinstance(module, Residual):
        shortcut = None if module.shortcut is None else describe(module.shortcut)
        return about | {"branch": describe(module.branch), "shortcut": shortcut, "relu": module.relu}
    if isinstance(module, AvgPool2d | MaxPool2d):
        return about | {"kernel_size": module.kernel_size, "stride": module.stride}
    if isinstance(module, BatchNorm):
        return about | {"n_features": len(module.running_mean), "momentum": module.momentum, "eps": module.eps}
    if isinstance(module, Linear | Conv2d):
        about |= {
            "shape": module.matrix.shape,
            "storage": storage_of(module.matrix),
            "bias": module.bias is not None,
            "budget": module.budget,
        }
    if isinstance(module, Conv2d):
        names = "in_channels", "kernel_size", "stride", "padding"
        about |= {name: getattr(module.products, name) for name in names}
    return about


def storage_of(matrix: StoredMatrix) -> str:
    """The name of a matrix's storage."""
    return next(name for name, kind in STORAGES.items() if isinstance(matrix, kind))


def _built(layers: dict[str, dict[str, Any]], dtype: np.dtype) -> dict[str, Module]:
    return {name: _module(about, dtype) for name, about in layers.items()}


def _module(about: dict[str, Any], dtype: np.dtype) -> Module:
    options = dict(about)
    kind = options.pop("type")
    if kind in _PLAIN:
        return _PLAIN[kind]()
    if kind in _POOLS:
        return _POOLS[kind](**options)
    if kind in _NORMS:
        return _NORMS[kind](**options, dtype=dtype)
    if kind == "Sequential":
        return build(options["layers"], dtype)
    if kind == "Residual":
        shortcut = None if options["shortcut"] is None else _built(options["shortcut"], dtype)
        return Residual(_built(options["branch"], dtype), shortcut, relu=options["relu"])
    matrix = _empty(options.pop("storage"), options.pop("shape"), dtype)
    return _LAYERS[kind](matrix, **options)


def _empty(storage: str, shape: list[int], dtype: np.dtype) -> StoredMatrix:
    """A matrix without weights, or of zeros if it is dense; it takes no more memory than it has neurons."""
    n_out, n_in = require_shape((shape[0], shape[1]))
    none = np.empty(0, dtype=np.int64)
    if storage == "condensed":
        return CondensedMatrix(np.empty((0, 0), dtype), none.reshape(0, 0), none, (n_out, n_in))
    if storage == "csr":
        return CSRMatrix(np.empty(0, dtype), none, np.zeros(n_out + 1, dtype=np.int64), (n_out, n_in))
    return DenseMatrix(np.zeros((n_out, n_in), dtype=dtype))
