"""The IDX format of MNIST and Fashion-MNIST: a short header, then raw unsigned bytes."""

import gzip
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sparsekit.data.unpacking import most_unpacked_bytes
from sparsekit.errors import InputError

_UNSIGNED_BYTE = 8  # the type code in the header
_MAX_DIMENSIONS = 16  # far above any real file, and below NumPy's limit
_CHUNK = 1 << 20  # bytes


def read_idx(path: str | Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes.

    The file holds two zero bytes, the type code 8, the number of dimensions, each size as a big-endian
    uint32, and then exactly as many bytes as the sizes say, last dimension fastest. A name that ends in
    ``.gz`` is read as gzip.

    Parameters
    ----------
    path : of the file

    Returns
    -------
    uint8 array of the shape in the header

    Raises
    ------
    InputError
        If the file cannot be read, is not gzip although named so, is not an IDX file of unsigned bytes, or is
        shorter or longer than its header says. Memory grows with what is read, never with what the header
        claims, and a gzip file may unpack to a GiB or 200 times its size.
    """
    path = Path(path)
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as stream:
            shape = _read_shape(stream, path)
            if opener is gzip.open and math.prod(shape) > (most := most_unpacked_bytes(path)):
                raise InputError(f"{path} must unpack to at most {most} bytes, but its header says shape {shape}")
            values = _read_at_most(stream, math.prod(shape) + 1)  # one more, to notice bytes too many
    except gzip.BadGzipFile as error:
        raise InputError(f"{path} is not a sound gzip file: {error}") from error
    except (EOFError, zlib.error) as error:
        raise InputError(f"{path} is a damaged or truncated gzip file: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    expected = math.prod(shape)
    if len(values) != expected:
        fault = "truncated" if len(values) < expected else "too long"
        found = f"{len(values)} were found" if len(values) < expected else "more were found"
        raise InputError(f"{path} is {fault}: its header says {expected} values, shape {shape}, but {found}")
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)


def _read_shape(stream: BinaryIO, path: Path) -> tuple[int, ...]:
    magic = bytes(_read_at_most(stream, 4))
    if len(magic) < 4 or magic[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
        raise InputError(f"{path} is not an IDX file of unsigned bytes: it starts with {magic!r}")
    n_dimensions = magic[3]
    if not 1 <= n_dimensions <= _MAX_DIMENSIONS:
        raise InputError(f"{path} must have 1 to {_MAX_DIMENSIONS} dimensions, not {n_dimensions}")
    sizes = _read_at_most(stream, 4 * n_dimensions)
    if len(sizes) < 4 * n_dimensions:
        raise InputError(f"{path} is truncated: it ends within the sizes of its {n_dimensions} dimensions")
    shape = struct.unpack(f">{n_dimensions}I", sizes)
    if 0 in shape:
        raise InputError(f"{path} holds no values: its header says shape {shape}")
    return shape


def _read_at_most(stream: BinaryIO, n_bytes: int) -> bytearray:
    content = bytearray()
    while len(content) < n_bytes and (chunk := stream.read(min(_CHUNK, n_bytes - len(content)))):
        content += chunk
    return content
