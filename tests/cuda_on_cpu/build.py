"""Builds kernels and the engine with g++, once for each source and set of flags."""

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = ("engine.hpp", "cuda_on_cpu.hpp", "engine.cpp")

# No contraction and no flags of this machine's processor: the same numbers everywhere. CUDA code casts pointers
# freely. Checks that some distributions switch on (_FORTIFY_SOURCE) take a jump to another stack for an error.
FLAGS = (
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-w",
    "-U_FORTIFY_SOURCE",
)

# For each sanitizer: the flags of the kernel, the macro that makes the engine fit, the library to preload.
SANITIZERS = {
    "thread": (("-fsanitize=thread",), "-DENGINE_FOR_THREADS", "libtsan.so"),
    "address": (
        ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
        "-DENGINE_FOR_ADDRESS",
        "libasan.so",
    ),
}


class KernelError(RuntimeError):
    """A kernel that does not compile, a launch that CUDA would refuse, or an error found while it ran."""


def library_of(sanitizer: str) -> Path | None:
    """The run-time library of a sanitizer, or None where the compiler has none."""
    name = SANITIZERS[sanitizer][2]
    found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = Path(found.stdout.strip())
    return path.resolve() if path.is_absolute() and path.exists() else None


def missing_tools(*sanitizers: str) -> str | None:
    """What has to be installed before kernels can run on the CPU; None when nothing is missing."""
    if shutil.which("g++") is None:
        return "g++ is not installed: `apt install g++` or `conda install gxx`, version 12 or newer"
    for sanitizer in sanitizers:
        if library_of(sanitizer) is None:
            name = SANITIZERS[sanitizer][2]
            return (
                f"g++ has no {name}: install the sanitizers of gcc, `apt install libgcc-12-dev` or your version's"
            )
    return None


def cache_folder() -> Path:
    """This user's folder of compiled kernels, below the folder for temporary files."""
    folder = Path(tempfile.gettempdir()) / f"sparsekit-cuda-on-cpu-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():  # a library from it will be loaded
        raise KernelError(f"{folder} belongs to somebody else")
    return folder


@functools.cache
def _key_of_engine() -> str:
    compiler = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout
    return compiler + "".join((HERE / name).read_text(encoding="utf-8") for name in SOURCES)


def _compile(code: str, flags: tuple[str, ...], suffix: str) -> Path:
    """Compile C++ text to an object or a library in the cache.

    Processes may do so at once: each writes a file of its own and moves it into place.
    """
    key = hashlib.sha256("\0".join((_key_of_engine(), code, *flags)).encode()).hexdigest()[:24]
    target = cache_folder() / f"{key}{suffix}"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        source, output = Path(folder) / "source.cpp", Path(folder) / "output"
        source.write_text(code, encoding="utf-8")
        command = ["g++", "-std=c++17", f"-I{HERE}", *FLAGS, str(source), *flags, "-o", str(output)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if done.returncode != 0:
            raise KernelError(f"g++ refuses the kernel:\n{done.stderr[:6000]}")
        os.replace(output, target)
    return target


def build_library(code: str, sanitize: str | None, options: tuple[str, ...] = ()) -> Path:
    """Compile kernels and link them with the engine that fits the sanitizer.

    Parameters
    ----------
    code
        C++ text, `cuda_on_cpu.hpp` included.
    sanitize
        "thread", "address" or None.
    options
        Further flags of g++.

    Returns
    -------
    The path of a shared library.
    """
    flags, define = ("-O2",), ()
    if sanitize is not None:
        instrument, macro, _ = SANITIZERS[sanitize]
        flags, define = ("-O1", *instrument), (macro,)
    engine = '#line 1 "engine.cpp"\n' + (HERE / "engine.cpp").read_text(encoding="utf-8")
    engine = _compile(engine, ("-O2", "-c", *define), ".o")
    return _compile(code, (*flags, *options, "-shared", str(engine)), ".so")
