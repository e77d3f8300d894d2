"""NVRTC through ctypes: CUDA C++ to machine code of a named architecture, with neither a GPU nor a driver.

The libraries come from wheels, `nvidia-cuda-nvrtc` (CUDA 13: sm_75 and later) and `nvidia-cuda-nvrtc-cu12`
(CUDA 12: also sm_70); both can be loaded in one process. The disassembler is in the wheel `nvidia-cuda-nvdisasm`.
"""

import ctypes
import functools
import importlib.util
import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# Major version: the library inside the namespace package `nvidia`, and the wheel that holds it.
_LIBRARIES = {
    12: ("cuda_nvrtc/lib/libnvrtc.so.12", "nvidia-cuda-nvrtc-cu12"),
    13: ("cu13/lib/libnvrtc.so.13", "nvidia-cuda-nvrtc"),
}
_NVDISASM = "cu13/bin/nvdisasm"


class NvrtcError(RuntimeError):
    """NVRTC refused something; the message is its log."""


@dataclass(frozen=True)
class Resources:
    """What one kernel needs, as `ptxas -v` reports it: registers of a thread, bytes of the rest."""

    registers: int
    stack_frame: int
    spill_stores: int
    spill_loads: int
    static_shared: int


@dataclass(frozen=True)
class Compiled:
    """Machine code of some kernels; `resources` and `lowered_names` have their C++ names as keys."""

    cubin: bytes
    log: str
    lowered_names: dict[str, str]
    resources: dict[str, Resources]


def _in_wheels(relative: str) -> Path | None:
    """A file of NVIDIA's wheels, which share the namespace package `nvidia`."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else spec.submodule_search_locations or []
    return next((Path(folder) / relative for folder in folders if (Path(folder) / relative).exists()), None)


def nvrtc_version_for(architecture: int) -> int:
    """The major version of NVRTC that compiles for sm_`architecture`: CUDA 13 has dropped sm_70."""
    return 12 if architecture < 75 else 13


def missing_wheel(architecture: int) -> str | None:
    """What to install before `compile_cuda` works for an architecture; None when nothing is missing."""
    relative, wheel = _LIBRARIES[nvrtc_version_for(architecture)]
    return None if _in_wheels(relative) else f"NVRTC for sm_{architecture} is not installed: `pip install {wheel}`"


def missing_disassembler() -> str | None:
    """What to install before `disassemble` works; None when nothing is missing."""
    return None if _in_wheels(_NVDISASM) else "nvdisasm is not installed: `pip install nvidia-cuda-nvdisasm`"


@functools.cache
def _library(version: int) -> ctypes.CDLL:
    relative, wheel = _LIBRARIES[version]
    path = _in_wheels(relative)
    if path is None:
        raise NvrtcError(f"NVRTC {version} is not installed: `pip install {wheel}`")
    # NVRTC opens its built-ins by name, and the loader does not look into wheels: have them loaded already.
    for builtins in path.parent.glob("libnvrtc-builtins.so.*"):
        ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(path))
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


class _Program:
    """An `nvrtcProgram`, destroyed at the end of the `with` block."""

    def __init__(self, library: ctypes.CDLL, code: str):
        self._library = library
        self._handle = ctypes.c_void_p()
        arguments = (code.encode(), b"kernel.cu", 0, None, None)
        self.check(library.nvrtcCreateProgram(ctypes.byref(self._handle), *arguments))

    def __enter__(self) -> "_Program":
        return self

    def __exit__(self, *_) -> None:
        self._library.nvrtcDestroyProgram(ctypes.byref(self._handle))

    def check(self, status: int) -> None:
        if status:
            raise NvrtcError(self._library.nvrtcGetErrorString(status).decode())

    def add_name(self, name: str) -> None:
        self.check(self._library.nvrtcAddNameExpression(self._handle, name.encode()))

    def compile(self, options: list[str]) -> str:
        """Compile, and return the log."""
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = self._library.nvrtcCompileProgram(self._handle, len(options), array)
        log = self._bytes("ProgramLog").rstrip(b"\0").decode()
        if status:
            raise NvrtcError(log or self._library.nvrtcGetErrorString(status).decode())
        return log

    def cubin(self) -> bytes:
        return self._bytes("CUBIN")

    def lowered_name(self, name: str) -> str:
        lowered = ctypes.c_char_p()
        self.check(self._library.nvrtcGetLoweredName(self._handle, name.encode(), ctypes.byref(lowered)))
        return lowered.value.decode()

    def _bytes(self, what: str) -> bytes:
        size = ctypes.c_size_t()
        self.check(getattr(self._library, f"nvrtcGet{what}Size")(self._handle, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        self.check(getattr(self._library, f"nvrtcGet{what}")(self._handle, buffer))
        return buffer.raw


def compile_cuda(code: str, architecture: int, names: Iterable[str], options: Iterable[str] = ()) -> Compiled:
    """Compile kernels to machine code.

    Parameters
    ----------
    code
        CUDA C++ text.
    architecture
        70 for sm_70, and so on.
    names
        C++ names of the kernels, such as "forward<float, 4>".
    options
        Further options of NVRTC, such as "-std=c++17".

    Raises
    ------
    NvrtcError
        If the text does not compile; the message is the compiler's log.
    """
    names = list(names)
    with _Program(_library(nvrtc_version_for(architecture)), code) as program:
        for name in names:
            program.add_name(name)
        # "sm", not "compute": only then machine code is made. NVRTC puts the report of ptxas into its log.
        log = program.compile([f"-arch=sm_{architecture}", "-Xptxas=-v", *options])
        lowered = {name: program.lowered_name(name) for name in names}
        reports = _resources(log)
        return Compiled(program.cubin(), log, lowered, {name: reports[lowered[name]] for name in names})


def _resources(log: str) -> dict[str, Resources]:
    """The reports in a log of `ptxas -v`, by lowered name."""
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        spills = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers = re.search(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        frame = (int(n) for n in spills.groups())
        found[part.split("'")[0]] = Resources(int(registers[1]), *frame, int(shared[1]) if shared else 0)
    return found


def disassemble(compiled: Compiled) -> dict[str, str]:
    """The machine instructions of each kernel, by C++ name. For sm_75 and later."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.cubin)
        file.flush()
        command = [str(_in_wheels(_NVDISASM)), "--print-code", "--no-dataflow", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # A function begins with the line ".text.LOWERED_NAME:".
    pieces = re.split(r"^\.text\.(\S+):$", text, flags=re.MULTILINE)
    functions = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    return {name: functions[lowered] for name, lowered in compiled.lowered_names.items()}


def mnemonics(sass: str) -> set[str]:
    """The instructions that occur, such as "LDS.128" or "LDG.E.128.CONSTANT"."""
    return set(re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", sass, flags=re.MULTILINE))
