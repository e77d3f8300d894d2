"""A network on disk: sparse weights in their own format, as values and indices; biases and buffers."""

from pathlib import Path

import numpy as np

from sparsekit.condensed import CondensedMatrix
from sparsekit.csr import CSRMatrix
from sparsekit.dense import DenseMatrix
from sparsekit.errors import InputError
from sparsekit.models import weight_layers
from sparsekit.nn import Module
from sparsekit.stored import StoredMatrix
from sparsekit.training.arrays import one_line, read_arrays, write_arrays

FORM = "model-1"


def save_model(path: str | Path, model: Module, extra: dict[str, np.ndarray]) -> None:
    """Write all weights, biases and buffers of a network, and `extra` arrays by name, atomically."""
    write_arrays(path, FORM, model_arrays(model, extra))


def load_model(path: str | Path, model: Module) -> dict[str, np.ndarray]:
    """Fill a network of the same architecture with what :func:`save_model` wrote; return the extra arrays.

    Raises
    ------
    InputError
        If the file is missing, damaged, of another format, or of another architecture.
    """
    return fill_model(path, model, read_arrays(path, FORM))


def model_arrays(model: Module, extra: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All arrays of a network by name, and the extra ones; not copies."""
    arrays = _other_arrays(model)
    for name, layer in weight_layers(model).items():
        arrays |= {_part(name, part): array for part, array in _parts(layer.matrix).items()}
    return arrays | {f"extra.{name}": np.asarray(array) for name, array in extra.items()}


def fill_model(path: str | Path, model: Module, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Give a network the arrays of an equal one, see :func:`model_arrays`, from `path`; return the extra ones.

    Raises
    ------
    InputError
        If the arrays are not those of such a network, which then is as it was.
    """
    extra = {name.removeprefix("extra."): a for name, a in arrays.items() if name.startswith("extra.")}
    wanted, found = model_arrays(model, {}).keys(), arrays.keys() - {f"extra.{name}" for name in extra}
    for verb, names in (("lacks", wanted - found), ("also holds", found - wanted)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise misfit(path, f"it {verb} {min(names)}{more}")
    layers, others = weight_layers(model), _other_arrays(model)
    try:
        matrices = {name: _matrix_from(arrays, name, layer.matrix) for name, layer in layers.items()}
        for name, array in others.items():
            _require_like(name, arrays[name], array)
    except InputError as error:
        raise misfit(path, error) from None
    for name, layer in layers.items():
        layer.use(matrices[name])
    for name, array in others.items():
        array[...] = arrays[name]
    return extra


def misfit(path: str | Path, reason: object) -> InputError:
    """The error for a file of another architecture."""
    return InputError(one_line(f"{path} does not fit this network: {reason}"))


def _part(layer: str, part: str) -> str:
    return f"{layer}.weight.{part}" if layer else f"weight.{part}"


def _parts(matrix: StoredMatrix) -> dict[str, np.ndarray]:
    """What is stored of a matrix, by name."""
    if isinstance(matrix, CondensedMatrix):
        return {"values": matrix.values, "indices": matrix.indices, "rows": matrix.rows}
    if isinstance(matrix, CSRMatrix):
        return {"values": matrix.values, "indices": matrix.indices, "indptr": matrix.indptr}
    return {"values": matrix.values}


def _other_arrays(model: Module) -> dict[str, np.ndarray]:
    """Parameters that are not the weights of layers with weights, and buffers."""
    weights = {id(layer.weight) for layer in weight_layers(model).values()}
    parameters = model.named_parameters().items()
    return {name: p.values for name, p in parameters if id(p) not in weights} | model.named_buffers()


def _matrix_from(arrays: dict[str, np.ndarray], name: str, like: StoredMatrix) -> StoredMatrix:
    """The matrix of the layer of that name in the storage, shape and dtype of `like`, validated as always."""
    parts = {part: arrays[_part(name, part)] for part in _parts(like)}
    values = parts["values"]
    if isinstance(like, CondensedMatrix):
        matrix = CondensedMatrix(values, parts["indices"], parts["rows"], like.shape)
    elif isinstance(like, CSRMatrix):
        matrix = CSRMatrix(values, parts["indices"], parts["indptr"], like.shape)
    else:
        _require_like(_part(name, "values"), values, like.values)
        matrix = DenseMatrix(values)
    if matrix.dtype != like.dtype:
        raise InputError(f"{_part(name, 'values')} is {matrix.dtype}, not {like.dtype}")
    return matrix


def _require_like(name: str, array: np.ndarray, own: np.ndarray) -> None:
    if (array.dtype, array.shape) != (own.dtype, own.shape):
        raise InputError(f"{name} is {array.dtype} {array.shape}, not {own.dtype} {own.shape}")
