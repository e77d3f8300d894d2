"""CuPy, if it is there, and checks of arrays on the device. All errors come before any launch."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from sparsekit.errors import GpuUnavailableError, InputError
from sparsekit.kernels.gpu_instances import KINDS


def require_cupy() -> Any:
    """The module cupy.

    Raises
    ------
    GpuUnavailableError
        If CuPy is not installed, or finds no driver or device.
    """
    try:
        cupy = importlib.import_module("cupy")
    except ModuleNotFoundError:
        message = "the GPU needs CuPy, which is not installed: pip install 'sparsekit[gpu]'"
        raise GpuUnavailableError(message) from None
    if not cupy.cuda.is_available():
        raise GpuUnavailableError("the GPU needs a CUDA device and its driver, and CuPy finds none here")
    return cupy


class Limits(NamedTuple):
    """What a device allows.

    Attributes
    ----------
    shared_memory : bytes a block may have
    processors : streaming multiprocessors
    """

    shared_memory: int
    processors: int


def device_limits(cupy: Any) -> Limits:
    """Limits of the current device."""
    device = cupy.cuda.Device()
    return _limits(cupy, device.id, device.compute_capability)


@cache
def _limits(cupy: Any, device: int, compute_capability: str) -> Limits:
    attributes = cupy.cuda.Device(device).attributes
    return Limits(attributes["MaxSharedMemoryPerBlockOptin"], attributes["MultiProcessorCount"])


def require_device_array(name: str, array: Any, like: Any) -> Any:
    """Return `array` if it is a C-contiguous array on the device of the CuPy array `like`."""
    cupy = require_cupy()
    if not isinstance(array, cupy.ndarray):
        kind = type(array).__module__.split(".")[0] + "." + type(array).__name__
        raise InputError(f"{name} must be an array on the GPU, not {kind}: call cupy.asarray({name})")
    if array.device != like.device:
        raise InputError(f"{name} must be on the device of the matrix, {like.device}, not on {array.device}")
    if not array.flags.c_contiguous:
        raise InputError(f"{name} must be C-contiguous: call cupy.ascontiguousarray({name})")
    return array


def require_kind(name: str, array: Any) -> Any:
    """Return `array` if its dtype is one that the kernels read: float32, float16, bfloat16 (also as uint16)."""
    if array.dtype.name not in KINDS:
        allowed = "float32, float16 or bfloat16 (or uint16 with its bits)"
        raise InputError(f"{name} must be {allowed} on the GPU, not {array.dtype}")
    return array


def require_float32(name: str, dtype: np.dtype) -> None:
    """Refuse other dtypes for what the kernels have in one precision only."""
    if dtype != np.float32:
        raise InputError(f"{name} must be float32 on the GPU, not {dtype}")


def require_index_dtype(name: str, dtype: np.dtype, size: int) -> None:
    """Refuse an index that cannot count `size` places, or that no kernel is made for."""
    if dtype not in (np.dtype(np.uint16), np.dtype(np.int32)):
        raise InputError(f"{name} must be uint16 or int32 on the GPU, not {dtype}")
    if np.iinfo(dtype).max < size - 1:
        raise InputError(f"{name} must be int32 to count {size} inputs, not {dtype}")


def require_gpu_output(out: Any, shape: tuple[int, ...], like: Any, **read: Any) -> Any:
    """Return `out` if a product of this shape that reads the named arrays can be written to it."""
    require_device_array("out", out, like)
    if out.shape != shape or out.dtype != np.float32:
        raise InputError(f"out must be a float32 array {shape}, not {out.dtype} {out.shape}")
    for name, array in read.items():
        if array is not None and _overlap(out, array):
            raise InputError(f"out must not share memory with {name}")
    return out


def _overlap(a: Any, b: Any) -> bool:
    """Whether two contiguous arrays have a byte in common."""
    return a.data.ptr < b.data.ptr + b.nbytes and b.data.ptr < a.data.ptr + a.nbytes


def bfloat16_bits(x: Any) -> Any:
    """The bits (uint16) of a float32 array of NumPy or CuPy rounded to bfloat16: to nearest, ties to even.

    bfloat16 is the upper half of float32, so adding half of what is cut off rounds; NaN stays NaN.
    """
    require_float32("x", x.dtype)
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    is_nan = (x != x).astype(np.uint32)
    return (rounded + is_nan * (quiet - rounded)).astype(np.uint16)
