"""Memory for operands: aligned to cache lines, and transposes that do not thrash the cache.

A vector load that crosses a cache line costs two. NumPy aligns large arrays to 16 bytes, so with 64-byte vectors
every load would cross; arrays from here start on a line.
"""

import math
from contextlib import suppress

import numpy as np
from numpy.typing import DTypeLike

LINE = 64  # bytes
_POOLED = 1 << 20  # bytes from which an array comes from the pool


def aligned_empty(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An uninitialised C-contiguous array that starts on a cache line.

    Large arrays come from a pool: their memory is handed on to the next array of the same size when they are
    gone, and so has its pages already.

    Parameters
    ----------
    shape : its shape
    dtype : its dtype, of at most 64 bytes an element
    """
    dtype = np.dtype(dtype)
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes >= _POOLED:
        return np.asarray(_Lease(_take(n_bytes), n_bytes)).view(dtype).reshape(shape)
    return _on_a_line(np.empty(n_bytes + LINE, dtype=np.uint8), n_bytes).view(dtype).reshape(shape)


def _on_a_line(buffer: np.ndarray, n_bytes: int) -> np.ndarray:
    start = -address(buffer) % LINE
    return buffer[start : start + n_bytes]


# Blocks of memory that no array lies in, by their size; the one that was handed back last is the last.
_free: dict[int, list[np.ndarray]] = {}


class _Lease:
    """A block of memory for as long as an array lies in it."""

    def __init__(self, block: np.ndarray, n_bytes: int) -> None:
        self.block, self.n_bytes = block, n_bytes
        self.__array_interface__ = _on_a_line(block, n_bytes).__array_interface__

    def __del__(self, free=_free):  # a default, because module names may be gone when Python ends
        free.setdefault(self.n_bytes, []).append(self.block)


def _take(n_bytes: int) -> np.ndarray:
    """A free block, or a new one in place of free blocks of other sizes, so that the pool does not grow idle."""
    with suppress(KeyError, IndexError):  # another thread may take the last one between a look and a pop
        return _free[n_bytes].pop()
    dropped = 0
    for size, blocks in list(_free.items()):
        with suppress(IndexError):
            while dropped < n_bytes:
                blocks.pop(0)
                dropped += size
    return np.empty(n_bytes + LINE, dtype=np.uint8)


def address(array: np.ndarray) -> int:
    """Where the first element of `array` lies, in bytes."""
    return array.__array_interface__["data"][0]


def transposed(x: np.ndarray) -> np.ndarray:
    """The transpose of a matrix as a new aligned C-contiguous array: samples first to feature-major and back.

    It is copied block by block: rows whose length is a power of two would push each other out of the cache.

    Parameters
    ----------
    x : C-contiguous float32 or float64 (rows, columns)
    """
    from sparsekit.kernels.cpu import transpose  # Numba loads only when a product needs it

    return transpose(np.ascontiguousarray(x), aligned_empty(x.shape[::-1], x.dtype))
