"""What the tests of the CPU kernels share: layers, the rounding bound, and memory of every kind."""

import numpy as np

from sparsekit.csr import CSRMatrix


def mask_of(storage, shape, fan_in, rng):
    """`fan_in` inputs a neuron; CSR: as many on average, with a full row, an empty one, one of a single input."""
    n_out, n_in = shape
    lengths = np.full(n_out, fan_in)
    if storage is CSRMatrix:
        lengths = np.minimum(rng.integers(0, 2 * fan_in + 1, n_out), n_in)
        lengths[[0, n_out // 2, n_out - 1]] = n_in, 0, 1
    return rng.random(shape).argsort(axis=1) < lengths[:, None]


def integers(shape, dtype, rng):
    """Small ones: every order of summation gives the same float."""
    return rng.integers(-4, 5, shape, dtype=np.int8).astype(dtype)


def assert_within_rounding(got, exact, magnitude, terms):
    """|error| <= (terms + 8) * eps * sum of |products|: true for any order of summation.

    eps is twice the rounding error of an operation, so there is room for that of `exact`, a float64, too.
    """
    assert got.shape == exact.shape
    assert (np.abs(got - exact) <= (terms + 8) * np.finfo(got.dtype).eps * magnitude).all()


FRAME = 64  # elements on each side


def misaligned(array, offset):
    """The array in memory that starts `offset` bytes after a 64-byte boundary."""
    buffer = np.empty(array.nbytes + 128, np.uint8)
    start = -buffer.ctypes.data % 64 + offset
    moved = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    moved[...] = array
    return moved


def framed(array, frame):
    """The array in the middle of memory that holds `frame`: who reads or writes too far is seen."""
    buffer = np.full(array.size + 2 * FRAME, frame, dtype=array.dtype)
    inside = buffer[FRAME : FRAME + array.size].reshape(array.shape)
    inside[...] = array
    return inside


def assert_frame_is(array, frame):
    """Nothing was written around an array made by :func:`framed`."""
    np.testing.assert_array_equal(array.base[:FRAME], frame)
    np.testing.assert_array_equal(array.base[-FRAME:], frame)


def read_only(array):
    copy = array.copy()
    copy.flags.writeable = False
    return copy


# For small integers as float32 or float64: the content stays the same in all of these.
VARIANTS = {
    "Fortran order": np.asfortranarray,
    "every other element": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "every other row": lambda a: np.repeat(a, 2, axis=0)[::2],
    "reversed": lambda a: a[::-1, ..., ::-1].copy()[::-1, ..., ::-1],
    "batch first": lambda a: np.moveaxis(np.moveaxis(a, -1, 0).copy(), 0, -1),
    "read-only": read_only,
    "read-only and strided": lambda a: read_only(np.repeat(a, 2, axis=-1))[..., ::2],
    "4 bytes off a cache line": lambda a: misaligned(a, 4),
    "16 bytes off a cache line": lambda a: misaligned(a, 16),
    "1 byte off, which no float is": lambda a: misaligned(a, 1),
    "int8": lambda a: a.astype(np.int8),
    "int64": lambda a: a.astype(np.int64),
    "float16": lambda a: a.astype(np.float16),
    "float32": lambda a: a.astype(np.float32),
    "float64": lambda a: a.astype(np.float64),
    "longdouble": lambda a: a.astype(np.longdouble),
    "other byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "list": np.ndarray.tolist,
}
