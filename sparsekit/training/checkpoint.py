"""A trained network on disk: safetensors with a digest of our own.

Sparse weights are stored in their own format, as values and indices. The safetensors format notices a damaged
header but loads a flipped bit in the data without a word; the digest in its metadata does not.
"""

import hashlib
from pathlib import Path

import numpy as np

from sparsekit.atomic import atomic_path
from sparsekit.condensed import CondensedMatrix
from sparsekit.csr import CSRMatrix
from sparsekit.dense import DenseMatrix
from sparsekit.errors import InputError
from sparsekit.models import weight_layers
from sparsekit.nn import Module
from sparsekit.stored import StoredMatrix

FORMAT = "model-1"


def save_model(path: str | Path, model: Module, extra: dict[str, np.ndarray]) -> None:
    """Write all weights, biases and buffers of a network, and `extra` arrays by name, atomically."""
    from safetensors.numpy import save_file

    arrays = _model_arrays(model) | {f"extra.{name}": np.asarray(array) for name, array in extra.items()}
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with atomic_path(path) as temporary:
        # one entry, because the order of several is not kept: equal models give equal files
        save_file(arrays, temporary, metadata={"sparsekit": f"{FORMAT} {_digest(arrays)}"})


def load_model(path: str | Path, model: Module) -> dict[str, np.ndarray]:
    """Fill a network of the same architecture with what :func:`save_model` wrote; return the extra arrays.

    Raises
    ------
    InputError
        If the file is missing, damaged, of another format, or of another architecture.
    """
    arrays = _read(Path(path))
    extra = {name.removeprefix("extra."): a for name, a in arrays.items() if name.startswith("extra.")}
    own = {name: a for name, a in arrays.items() if not name.startswith("extra.")}
    try:
        for name, layer in weight_layers(model).items():
            prefix = f"{name}.weight." if name else "weight."
            parts = {part.removeprefix(prefix): own.pop(part) for part in list(own) if part.startswith(prefix)}
            matrix = _matrix_from(parts, layer.matrix)
            layer.matrix, layer.weight.values = matrix, matrix.values
        for name, array in _other_arrays(model).items():
            array[...] = own.pop(name)
    except (KeyError, ValueError) as error:
        raise InputError(f"{path} does not fit this network: {error}") from None
    if own:
        raise InputError(f"{path} does not fit this network: it also holds {', '.join(sorted(own))}")
    return extra


def _model_arrays(model: Module) -> dict[str, np.ndarray]:
    arrays = dict(_other_arrays(model))
    for name, layer in weight_layers(model).items():
        matrix = layer.matrix
        parts: dict[str, np.ndarray] = {"values": matrix.values}
        if isinstance(matrix, CondensedMatrix):
            parts |= {"indices": matrix.indices, "rows": matrix.rows}
        elif isinstance(matrix, CSRMatrix):
            parts |= {"indices": matrix.indices, "indptr": matrix.indptr}
        arrays |= {f"{name}.weight.{part}" if name else f"weight.{part}": a for part, a in parts.items()}
    return arrays


def _other_arrays(model: Module) -> dict[str, np.ndarray]:
    """Parameters that are not the weights of linear layers, and buffers."""
    weights = {id(layer.weight) for layer in weight_layers(model).values()}
    parameters = model.named_parameters().items()
    return {name: p.values for name, p in parameters if id(p) not in weights} | model.named_buffers()


def _matrix_from(parts: dict[str, np.ndarray], like: StoredMatrix) -> StoredMatrix:
    """A matrix in the storage and shape of `like`, validated as always."""
    wanted = {CondensedMatrix: {"values", "indices", "rows"}, CSRMatrix: {"values", "indices", "indptr"}}
    if set(parts) != wanted.get(type(like), {"values"}):
        raise InputError(f"its weights are {sorted(parts)}, not those of a {type(like).__name__}")
    if isinstance(like, CondensedMatrix):
        return CondensedMatrix(parts["values"], parts["indices"], parts["rows"], like.shape)
    if isinstance(like, CSRMatrix):
        return CSRMatrix(parts["values"], parts["indices"], parts["indptr"], like.shape)
    if parts["values"].shape != like.shape:
        raise InputError(f"a weight has shape {parts['values'].shape}, not {like.shape}")
    return DenseMatrix(parts["values"])


def _read(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{path} is missing")
    try:
        with safe_open(path, framework="numpy") as file:
            found, _, digest = (file.metadata() or {}).get("sparsekit", "").partition(" ")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is damaged or no safetensors file: {error}") from None
    if found != FORMAT:
        raise InputError(f"{path} is not a model of this version of sparsekit: format {found!r}, not {FORMAT!r}")
    if digest != _digest(arrays):
        raise InputError(f"{path} is damaged: its contents do not match its digest")
    return arrays


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape} ".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()
