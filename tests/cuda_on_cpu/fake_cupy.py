"""What stands in for the module `cupy`, so that code that drives a GPU runs where there is none.

An array on the device is an `ndarray` of this module, a subclass of NumPy's, so that it can be told from one on
the host: kernels take no others, the two do not mix in arithmetic, and NumPy's functions refuse it. (One thing
cannot be refused: `numpy.asarray` of a subclass succeeds in silence, where the real CuPy raises `TypeError`.)
New arrays are 512-byte aligned, as CuPy's, and those of `empty` are full of NaN and -1.

Kernels are executed by `CpuRawModule`. While a stream captures, nothing is executed and nothing can be allocated:
launches, and operations on arrays that have an `out`, are recorded for the graph.

Only what the package needs is here; everything else raises `AttributeError`, so a test fails rather than passes.
"""

import ctypes as _ctypes
import sys as _sys
import types as _types
import weakref as _weakref

import numpy as _np

from cuda_on_cpu import fake_cuda as cuda
from cuda_on_cpu import module as _module

__version__ = "14.0.0"

_ALIGNMENT = 512
_libc = _ctypes.CDLL(None)
_libc.free.argtypes = [_ctypes.c_void_p]

for _name in ("bool_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"):
    globals()[_name] = getattr(_np, _name)
for _name in ("float16", "float32", "float64", "dtype", "newaxis", "inf", "nan", "pi"):
    globals()[_name] = getattr(_np, _name)
# Universal functions: `ndarray.__array_ufunc__` below keeps them on the device, and records them while capturing.
for _name in (
    "add",
    "subtract",
    "multiply",
    "divide",
    "maximum",
    "minimum",
    "matmul",
    "isnan",
    "isfinite",
    "sqrt",
):
    globals()[_name] = getattr(_np, _name)


# ----------------------------------------------------------------------------------------------------
# Arrays
# ----------------------------------------------------------------------------------------------------
class ndarray(_np.ndarray):  # noqa: N801, the name in CuPy
    """An array on the device."""

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **options):
        out = tuple(array for array in out if array is not None)
        _refuse_host_arrays(*inputs, *out)
        operands = [_host(x) for x in inputs]
        return _operate(lambda **to: getattr(ufunc, method)(*operands, **to, **options), *out)

    def __array_function__(self, function, types, args, kwargs):
        raise TypeError(f"numpy.{function.__name__} of a device array: use cupy.{function.__name__}, or asnumpy")

    def __getitem__(self, key):
        result = super().__getitem__(key)
        if not isinstance(result, _np.ndarray):  # CuPy has no scalars of its own
            return super().__getitem__((*key, ...) if isinstance(key, tuple) else (key, ...))
        if _np.may_share_memory(_host(self), _host(result)):
            return result
        return _operate(lambda: _host(result))

    def __setitem__(self, key, value):
        _refuse_host_arrays(value)
        target, source = _host(self), _host(value)
        cuda.enqueue(lambda: target.__setitem__(key, source))

    def __repr__(self):
        return repr(_host(self))

    __str__ = __repr__

    def astype(self, dtype, *args, **kwargs):
        cuda.forbid_while_capturing("astype")
        return _device(_host(self).astype(dtype, *args, **kwargs))

    def copy(self, order="C"):
        cuda.forbid_while_capturing("copy")
        return _device(_host(self).copy(order), order)

    def get(self):
        """Copy to the host."""
        cuda.forbid_while_capturing("copy to the host")
        return _host(self).copy()

    def set(self, array):
        """Copy from the host."""
        cuda.forbid_while_capturing("copy from the host")
        if isinstance(array, ndarray) or array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError("set takes a NumPy array of the same shape and dtype")
        _host(self)[...] = array

    @property
    def data(self):
        return _types.SimpleNamespace(ptr=self.ctypes.data)


def _host(x):
    """The same memory as an array of NumPy's own class."""
    return x.view(_np.ndarray) if isinstance(x, ndarray) else x


def _refuse_host_arrays(*arrays) -> None:
    for array in arrays:
        if isinstance(array, _np.ndarray) and not isinstance(array, ndarray):
            raise TypeError(f"Unsupported type {type(array)}")


def _allocate(shape, dtype, order="C") -> ndarray:
    cuda.forbid_while_capturing("allocation")
    shape = (shape,) if isinstance(shape, (int, _np.integer)) else tuple(shape)
    dtype = _np.dtype(dtype)
    size = max(1, int(_np.prod(shape)) * dtype.itemsize)
    pointer = _ctypes.c_void_p()
    if _libc.posix_memalign(_ctypes.byref(pointer), _ALIGNMENT, size) != 0:
        raise MemoryError
    _ctypes.memset(pointer, 0xFF, size)
    memory = (_ctypes.c_ubyte * size).from_address(pointer.value)
    _weakref.finalize(memory, _libc.free, pointer.value).atexit = False
    return _np.ndarray.__new__(ndarray, shape, dtype, buffer=memory, order=order)


def _device(array, order="K") -> ndarray:
    """A copy on the device of what NumPy computed."""
    array = _np.asarray(array)
    fortran = order == "F" or (order in ("K", "A") and array.flags.f_contiguous and not array.flags.c_contiguous)
    copy = _allocate(array.shape, array.dtype, "F" if fortran else "C")
    _host(copy)[...] = array
    return copy


def _operate(work, *out):
    """Do `work(out=...)`, or record it; without an `out` the result is a new array."""
    if not out:
        cuda.forbid_while_capturing("an operation that allocates its result")
        return _device(work())
    targets = tuple(_host(array) for array in out)
    cuda.enqueue(lambda: work(out=targets if len(targets) > 1 else targets[0]))
    return out if len(out) > 1 else out[0]


def _owner(array):
    """The object whose end is the end of the array's memory."""
    while isinstance(array.base, _np.ndarray):
        array = array.base
    return array if array.base is None else array.base


def empty(shape, dtype=_np.float64, order="C"):
    return _allocate(shape, dtype, order)


def full(shape, fill_value, dtype=None, order="C"):
    array = _allocate(shape, _np.asarray(fill_value).dtype if dtype is None else dtype, order)
    array[...] = fill_value
    return array


def zeros(shape, dtype=_np.float64, order="C"):
    return full(shape, 0, dtype, order)


def ones(shape, dtype=_np.float64, order="C"):
    return full(shape, 1, dtype, order)


def empty_like(array, dtype=None):
    return _allocate(array.shape, array.dtype if dtype is None else dtype)


def zeros_like(array, dtype=None):
    return zeros(array.shape, array.dtype if dtype is None else dtype)


def arange(*args, dtype=None):
    return _device(_np.arange(*args, dtype=dtype))


def array(obj, dtype=None, order="K"):
    return _device(_np.asarray(_host(obj), dtype=dtype, order=order), order)


def asarray(a, dtype=None, order=None):
    if isinstance(a, ndarray) and _np.asarray(_host(a), dtype, order=order).ctypes.data == a.ctypes.data:
        return a
    return array(a, dtype, order or "K")


def ascontiguousarray(a, dtype=None):
    return asarray(a, dtype, order="C")


def asnumpy(a):
    return a.get() if isinstance(a, ndarray) else _np.asarray(a)


def copyto(dst, src):
    _refuse_host_arrays(dst, src)
    dst[...] = src


def take(a, indices, axis=None, out=None):
    _refuse_host_arrays(a, indices, out)
    source, places = _host(a), _host(indices)
    if source.size and _np.any((_np.asarray(places) < 0) | (_np.asarray(places) >= source.size)):
        raise IndexError("take: CuPy would wrap this index around, or clip it")
    return _operate(lambda **to: _np.take(source, places, axis=axis, **to), *(() if out is None else (out,)))


def dot(a, b, out=None):
    _refuse_host_arrays(a, b, out)
    left, right = _host(a), _host(b)
    return _operate(lambda **to: _np.dot(left, right, **to), *(() if out is None else (out,)))


def concatenate(tup, axis=0):
    _refuse_host_arrays(*tup)
    parts = [_host(a) for a in tup]
    return _operate(lambda: _np.concatenate(parts, axis=axis))


# ----------------------------------------------------------------------------------------------------
# Kernels
# ----------------------------------------------------------------------------------------------------
class RawKernel(_module.CpuKernel):
    """A kernel that takes arrays on the device only, and is recorded while a stream captures."""

    def _submit(self, work, args):
        # The graph keeps addresses, not arrays: it must not be replayed when one of them is gone.
        owners = [_weakref.ref(_owner(a)) for a in args if isinstance(a, ndarray)]

        def launch():
            if any(owner() is None for owner in owners):
                raise _module.KernelError(f"{self.name}: an array that the graph uses has been freed")
            work()

        cuda.enqueue(launch)


class RawModule(_module.CpuRawModule):
    """`cupy.RawModule`."""

    _array_type = ndarray
    _kernel_type = RawKernel

    def get_function(self, name):
        cuda.check_device()
        return super().get_function(name)

    def compile(self, log_stream=None):
        cuda.check_device()
        super().compile()


# ----------------------------------------------------------------------------------------------------
# For tests: which CuPy there is
# ----------------------------------------------------------------------------------------------------
def _install(monkeypatch, compute_capability: str, failure: str | None):
    cuda._state.reset(compute_capability, failure)
    monkeypatch.setattr(_module.device, "max_shared", cuda.DEVICES[compute_capability][2])
    this = _sys.modules[__name__]
    for name, part in (("cupy", this), ("cupy.cuda", cuda), ("cupy.cuda.runtime", cuda.runtime)):
        monkeypatch.setitem(_sys.modules, name, part)
    return this


def use_fake_cupy(monkeypatch, compute_capability: str = "90"):
    """`import cupy` gives this module, with a device of that compute capability (a key of `fake_cuda.DEVICES`).

    Returns the module.
    """
    return _install(monkeypatch, compute_capability, None)


def use_cupy_without_device(monkeypatch, error: str = "cudaErrorInsufficientDriver"):
    """`import cupy` succeeds, and everything that needs a device raises this error.

    `error` is "cudaErrorInsufficientDriver" where no driver is installed, "cudaErrorNoDevice" where there is one.
    """
    return _install(monkeypatch, "90", error)


def use_no_cupy(monkeypatch):
    """`import cupy` raises `ModuleNotFoundError`."""
    for name in ("cupy", "cupy.cuda", "cupy.cuda.runtime"):
        monkeypatch.setitem(_sys.modules, name, None)
