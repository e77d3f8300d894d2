"""`CpuRawModule`: the interface of `cupy.RawModule`, executed on the CPU."""

import ctypes
import functools
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from cuda_on_cpu.build import HERE, KernelError, build_library, library_of

# Limits of a block.
MAX_THREADS = 1024
MAX_SHARED_WITHOUT_ASKING = 48 * 1024
MAX_PARAMETERS = 64

# The device that is being played. Its shared memory is an H100's unless a test sets less.
device = SimpleNamespace(max_shared=227 * 1024)

# A process that runs under a sanitizer (sanitized.py) says so here, and every module is built for it.
SANITIZE_VARIABLE = "SPARSEKIT_SANITIZE_KERNELS"

_thread_order: ContextVar[int] = ContextVar("thread_order", default=0)
_one_launch_at_a_time = threading.Lock()


@contextmanager
def thread_order(order: int) -> Iterator[None]:
    """Choose the order in which threads and blocks take turns in the launches inside the `with` block.

    Parameters
    ----------
    order
        0: forward (as without this), 1: reverse, else the seed of a permutation.
        With even orders asynchronous copies arrive as late as they may, with odd ones at once.
    """
    if order < 0:
        raise ValueError(f"thread order {order}: must be 0 or more")
    token = _thread_order.set(order)
    try:
        yield
    finally:
        _thread_order.reset(token)


class _Launch(ctypes.Structure):
    """`cuda_on_cpu::Launch` of engine.hpp."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("dynamic_shared", ctypes.c_size_t),
        ("shared_limit", ctypes.c_size_t),
        ("order", ctypes.c_uint),
    )


class _Parameter(ctypes.Structure):
    """`cuda_on_cpu::Parameter` of cuda_on_cpu.hpp."""

    _fields_ = (
        ("size", ctypes.c_int),
        ("is_pointer", ctypes.c_int),
        ("is_const", ctypes.c_int),
        ("element_size", ctypes.c_int),
        ("element_kind", ctypes.c_char),
    )

    def accepts(self, dtype: np.dtype) -> bool:
        """Whether numbers of this type are what the parameter is, or points to."""
        kind = self.element_kind.decode()
        if kind == "s":  # float4: any numbers that fill it; void, of no size: anything
            return self.element_size % dtype.itemsize == 0
        if dtype.itemsize != self.element_size:
            return False
        # Half precision travels as bits in an unsigned short.
        return dtype.kind == kind or (dtype == np.float16 and kind == "u") or (dtype == np.bool_ and kind == "u")

    def __str__(self) -> str:
        names = {"f": "floating point", "i": "signed integer", "u": "unsigned integer", "s": "struct"}
        element = f"{self.element_size}-byte {names[self.element_kind.decode()]}"
        return f"pointer to {element}" if self.is_pointer else element


class CpuKernel:
    """One kernel; `cupy.RawKernel` as far as launching goes.

    Parameters
    ----------
    name
        The C++ name, for the messages.
    entry
        The function of the library that launches it.
    parameters
        What it takes.
    array_type
        The class whose instances are arrays on the device.
    """

    def __init__(self, name: str, entry, parameters: list[_Parameter], array_type: type = np.ndarray):
        self.name = name
        self._entry = entry
        self._parameters = parameters
        self._array_type = array_type
        self._max_dynamic_shared: int | None = None

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        """Bytes of dynamic shared memory that a launch may ask for: 48 KiB unless set to more."""
        return MAX_SHARED_WITHOUT_ASKING if self._max_dynamic_shared is None else self._max_dynamic_shared

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        if size > device.max_shared:
            raise KernelError(f"{self.name}: the device has no {size} bytes of shared memory for a block")
        self._max_dynamic_shared = size

    def __call__(self, grid: tuple, block: tuple, args: tuple, *, shared_mem: int = 0) -> None:
        """Launch the kernel, and wait for it.

        Parameters
        ----------
        grid, block
            Numbers of blocks and of threads in a block, tuples of one to three.
        args
            C-contiguous arrays for pointers (None for a null pointer), NumPy scalars for numbers.
        shared_mem
            Bytes of dynamic shared memory.

        Raises
        ------
        KernelError
            If CUDA would refuse the launch, if the arguments are not what the kernel takes, or if the engine finds
            an error while it runs.
        """
        launch = self._description(grid, block, shared_mem)
        self._submit(functools.partial(self._run, launch, self._values(args)), args)

    def _submit(self, work: Callable[[], None], args: tuple) -> None:
        """Do the work of a checked launch: at once, as there are no streams here."""
        work()

    def _run(self, launch: _Launch, values: list) -> None:
        pointers = (ctypes.c_void_p * max(1, len(values)))(*map(ctypes.addressof, values))
        with _one_launch_at_a_time:
            launch.order = _thread_order.get()
            message = self._entry(ctypes.byref(launch), pointers)
        if message:
            raise KernelError(f"{self.name}: {message.decode()}")

    def _description(self, grid: tuple, block: tuple, shared_mem: int) -> _Launch:
        grid, block = self._extent("grid", grid), self._extent("block", block)
        if math.prod(block) > MAX_THREADS or block[2] > 64:
            raise KernelError(f"{self.name}: a block of {block} threads; at most {MAX_THREADS}, at most 64 in z")
        if grid[0] >= 2**31 or max(grid[1:]) > 65535:
            raise KernelError(f"{self.name}: a grid of {grid} blocks; at most 2^31 - 1 in x, 65535 in y and z")
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise KernelError(
                f"{self.name}: {shared_mem} bytes of dynamic shared memory, "
                f"max_dynamic_shared_size_bytes is {self.max_dynamic_shared_size_bytes}"
            )
        asked = self._max_dynamic_shared is not None
        limit = device.max_shared if asked else min(MAX_SHARED_WITHOUT_ASKING, device.max_shared)
        if shared_mem > limit:
            raise KernelError(f"{self.name}: {shared_mem} bytes of shared memory, the device allows {limit}")
        three = ctypes.c_uint * 3
        return _Launch(three(*grid), three(*block), shared_mem, limit, 0)

    def _extent(self, what: str, extent: tuple) -> tuple[int, int, int]:
        if not isinstance(extent, tuple) or not 1 <= len(extent) <= 3:
            raise KernelError(f"{self.name}: {what} {extent!r} is no tuple of one to three numbers")
        if min(extent) < 1:  # CuPy would launch one block instead
            raise KernelError(f"{self.name}: {what} {extent!r} is empty")
        return tuple(int(n) for n in (*extent, 1, 1)[:3])

    def _values(self, args: tuple) -> list:
        if len(args) != len(self._parameters):
            raise KernelError(f"{self.name}: {len(args)} arguments for {len(self._parameters)} parameters")
        return [
            self._value(f"{self.name}: argument {i}", argument, parameter)
            for i, (argument, parameter) in enumerate(zip(args, self._parameters, strict=True))
        ]

    def _value(self, what: str, argument, parameter: _Parameter):
        """The bytes that CuPy would pass for an argument, as a ctypes object."""
        if argument is None or isinstance(argument, np.ndarray):
            if not parameter.is_pointer:
                raise KernelError(f"{what} is a pointer, the parameter a {parameter}")
            return ctypes.c_void_p(0 if argument is None else self._address(what, argument, parameter))
        if isinstance(argument, (bool, int, float)):
            size = 1 if isinstance(argument, bool) else 8
            raise KernelError(
                f"{what} is a Python {type(argument).__name__}, of which CuPy passes {size} bytes; "
                f"the parameter is a {parameter}: give a NumPy scalar"
            )
        if not isinstance(argument, np.generic):
            raise KernelError(f"{what} is a {type(argument).__name__}: give an array or a NumPy scalar")
        if parameter.is_pointer or argument.itemsize != parameter.size or not parameter.accepts(argument.dtype):
            raise KernelError(f"{what} is a {argument.dtype}, the parameter a {parameter}")
        return (ctypes.c_char * argument.itemsize).from_buffer_copy(argument.tobytes())

    def _address(self, what: str, array: np.ndarray, parameter: _Parameter) -> int:
        if not isinstance(array, self._array_type):
            raise KernelError(f"{what} is an array in host memory")
        if not array.flags.c_contiguous:
            raise KernelError(f"{what} is not C-contiguous")
        if not parameter.is_const and not array.flags.writeable:
            raise KernelError(f"{what} is read-only, and the kernel's pointer is not to const")
        if not parameter.accepts(array.dtype):
            raise KernelError(f"{what} is an array of {array.dtype}, the parameter a {parameter}")
        return array.ctypes.data


class CpuRawModule:
    """The kernels of one source; `cupy.RawModule` as far as the package uses it.

    Parameters
    ----------
    code
        CUDA C++ text.
    options
        Options of NVRTC. `-D`, `-U`, `-I` and `-std` go to g++; those that only concern the GPU are ignored.
        C++14 is the default, as it is CuPy's.
    name_expressions
        C++ names of kernels, such as ``"forward<float, 4>"``. Without them `get_function` takes the names of
        kernels that are not templates.
    sanitize
        "thread" or "address": build for that sanitizer. Such a module can only be loaded in a process that has
        the sanitizer's library preloaded (see sanitized.py). None: as the process was started.
    """

    _array_type: type = np.ndarray
    _kernel_type: type = CpuKernel

    def __init__(
        self,
        *,
        code: str,
        options: tuple[str, ...] = (),
        name_expressions: list[str] | None = None,
        sanitize: str | None = None,
    ):
        if not isinstance(options, tuple):
            raise TypeError("options must be a tuple")
        self.code = code
        self.options = options
        self.name_expressions = None if name_expressions is None else list(name_expressions)
        self._sanitize = sanitize or os.environ.get(SANITIZE_VARIABLE)
        self._kernels: dict[str, CpuKernel] = {}

    def compile(self) -> None:
        """Build all kernels now rather than at the first `get_function`."""
        if self.name_expressions is not None:
            _ = self._library

    def get_function(self, name: str) -> CpuKernel:
        """The kernel of that name, always the same object."""
        if name not in self._kernels:
            if self.name_expressions is None:
                library, number = self._load([name]), 0
            elif name in self.name_expressions:
                library, number = self._library, self.name_expressions.index(name)
            else:
                raise KernelError(f"{name} is not in name_expressions")
            self._kernels[name] = self._kernel_type(name, *_exports(library, number), self._array_type)
        return self._kernels[name]

    @functools.cached_property
    def _library(self) -> ctypes.CDLL:
        return self._load(self.name_expressions)

    def _load(self, names: list[str]) -> ctypes.CDLL:
        code = "\n".join(
            [f'#include "{HERE}/cuda_on_cpu.hpp"', '#line 1 "kernel.cu"', self.code, '#line 1 "launch.cpp"']
            + [_LAUNCHER.format(number=i, name=name) for i, name in enumerate(names)]
        )
        if self._sanitize is not None:
            _check_preloaded(self._sanitize)
        return ctypes.CDLL(str(build_library(code, self._sanitize, _options_of_gcc(self.options))))


def _check_preloaded(sanitizer: str) -> None:
    """AddressSanitizer would end a process that loads it late; better an exception."""
    library = library_of(sanitizer)
    if library is None or str(library) not in Path("/proc/self/maps").read_text(encoding="utf-8"):
        raise KernelError(f"the {sanitizer} sanitizer is not preloaded: run the script with sanitized.py")


# What C++ adds for each kernel: a function to launch it, and one to ask for its parameters.
_LAUNCHER = """\
#define CPU_EXPORT extern "C" __attribute__((visibility("default")))
CPU_EXPORT const char* launch_{number}(const cuda_on_cpu::Launch* launch, void** arguments) {{
    return cuda_on_cpu::bind(&{name}, arguments).launch(*launch);
}}
CPU_EXPORT int parameters_{number}(cuda_on_cpu::Parameter* list, int room) {{
    return cuda_on_cpu::parameters(&{name}, list, room);
}}
"""


def _exports(library: ctypes.CDLL, number: int):
    entry = getattr(library, f"launch_{number}")
    entry.restype = ctypes.c_char_p
    parameters = (_Parameter * MAX_PARAMETERS)()
    count = getattr(library, f"parameters_{number}")(parameters, MAX_PARAMETERS)
    if count > MAX_PARAMETERS:
        raise KernelError(f"a kernel with {count} parameters; {MAX_PARAMETERS} are supported")
    return entry, parameters[:count]


_GPU_ONLY = (
    "--use_fast_math",
    "-use_fast_math",
    "-arch=",
    "--gpu-architecture=",
    "-Xptxas",
    "--fmad",
    "-lineinfo",
)


def _options_of_gcc(options: tuple[str, ...]) -> tuple[str, ...]:
    """Those of NVRTC's options that mean something here."""
    kept = ["-std=c++14"]
    for option in options:
        option = option.replace("--std=", "-std=")
        if option.startswith(("-D", "-U", "-I", "-std=")):
            kept.append(option)
        elif not option.startswith(_GPU_ONLY):
            raise KernelError(f"option {option} is not known to the CPU's stand-in for NVRTC")
    return tuple(kept)
