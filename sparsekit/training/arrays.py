"""Named arrays in a file: safetensors with a digest of our own.

The safetensors format notices a damaged header but loads a flipped bit in the data without a word; the digest in
its metadata does not.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparsekit.atomic import atomic_path
from sparsekit.errors import InputError

_CODES = {"bool": "BOOL", "float32": "F32", "float64": "F64"}  # the format's names of dtypes
_CODES |= {f"{sign}int{bits}": f"{sign.upper() or 'I'}{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}

# What made-up contents raise where they are used: of another type, out of range, missing, endlessly nested.
DAMAGE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def write_arrays(path: str | Path, form: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the arrays atomically; `form` says what they are, as "model-1". Equal arrays give equal files.

    The writers of the library copy everything in memory, or first write to a file of a name of their own, which
    would stay in the folder if the process is killed.
    """
    header: dict[str, Any] = {"__metadata__": {"sparsekit": f"{form} {digest(arrays)}"}}
    ordered = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))  # so that all are aligned
    offset = 0
    for name in ordered:
        array = arrays[name]
        end = offset + array.nbytes
        header[name] = {"dtype": _CODES[array.dtype.name], "shape": array.shape, "data_offsets": (offset, end)}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            file.write(_bytes(arrays[name]))


def read_arrays(path: str | Path, form: str) -> dict[str, np.ndarray]:
    """What :func:`write_arrays` wrote with the same `form`; the arrays are writable.

    Raises
    ------
    InputError
        If the file is missing, damaged or of another form.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise InputError(f"{path} is missing")
    try:
        with safe_open(path, framework="numpy") as file:
            found, _, expected = (file.metadata() or {}).get("sparsekit", "").partition(" ")
            for name in file.keys():  # noqa: SIM118
                if (code := file.get_slice(name).get_dtype()) not in _CODES.values():
                    raise ValueError(f"{name!r} is of dtype {code}")  # some of the format's are none of NumPy's
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is damaged or no safetensors file: {error}") from None
    if found != form:
        kind = form.partition("-")[0]
        raise InputError(f"{path} is not a {kind} of this version of sparsekit: format {found!r}, not {form!r}")
    if expected != digest(arrays):
        raise InputError(f"{path} is damaged: its contents do not match its digest")
    return arrays


def one_line(message: object) -> str:
    """A message in one line, whatever it repeats of a made-up file."""
    return " ".join(str(message).splitlines())


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of names, dtypes, shapes and contents, in hexadecimal."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        total.update(f"{name} {array.dtype.newbyteorder('<').str} {array.shape} ".encode())
        total.update(_bytes(array))
    return total.hexdigest()


def _bytes(array: np.ndarray) -> memoryview:
    """The contents, little-endian and in C order: the array's own memory, or a copy where they are not."""
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return array.reshape(-1).view(np.uint8).data
