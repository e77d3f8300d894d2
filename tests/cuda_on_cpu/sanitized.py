"""Runs a Python script whose kernels are watched by ThreadSanitizer, or by AddressSanitizer and UBSan.

    python tests/cuda_on_cpu/sanitized.py thread SCRIPT [ARGUMENT ...]
    python tests/cuda_on_cpu/sanitized.py address SCRIPT [ARGUMENT ...]

The script needs no change: every `CpuRawModule` in it is built for the sanitizer. The exit status is 0 if the
script ended well and nothing was found, 66 if the sanitizer found something; its report is on standard error and
names lines of "kernel.cu", the text given to the module.

The sanitizer's library has to be in the process before Python is, hence the process of its own.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from cuda_on_cpu.build import KernelError, library_of, missing_tools
from cuda_on_cpu.module import SANITIZE_VARIABLE

FOUND = 66

_OPTIONS = {
    # A short history is enough: reports name the line, and the stack above it is always the engine's.
    "thread": {"TSAN_OPTIONS": f"exitcode={FOUND} history_size=1"},
    # Python frees little at its end.
    "address": {
        "ASAN_OPTIONS": f"exitcode={FOUND} detect_leaks=0",
        "UBSAN_OPTIONS": f"exitcode={FOUND} print_stacktrace=1",
    },
}


def _without_address_randomisation() -> list[str]:
    """ThreadSanitizers older than Linux 6.6's wider randomisation cannot start with it."""
    setarch = shutil.which("setarch")
    if setarch is None:
        return []
    command = [setarch, platform.machine(), "-R"]
    return command if subprocess.run([*command, "true"], capture_output=True).returncode == 0 else []


def run_sanitized(
    sanitizer: str, script: str | Path, *arguments: str, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a Python script under a sanitizer.

    Parameters
    ----------
    sanitizer
        "thread" (races) or "address" (out of bounds, misaligned, undefined behaviour).
    script
        The script; it finds `cuda_on_cpu` and what lies beside it without doing anything for it.
    arguments
        What the script gets in `sys.argv[1:]`.
    timeout
        Seconds after which it is ended.

    Returns
    -------
    The process: `returncode` 0 or 66, or what the script itself ended with; `stdout`; the report in `stderr`.

    Raises
    ------
    KernelError
        If the sanitizer is not installed.
    """
    reason = missing_tools(sanitizer)
    if reason is not None:
        raise KernelError(reason)
    tests = str(Path(__file__).parent.parent)
    settings = {
        **_OPTIONS[sanitizer],
        SANITIZE_VARIABLE: sanitizer,
        "LD_PRELOAD": str(library_of(sanitizer)),
        "OPENBLAS_NUM_THREADS": "1",  # threads of BLAS are not instrumented
        "PYTHONPATH": os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    # `env` sets LD_PRELOAD last, so that `setarch` itself starts without it.
    command = [*_without_address_randomisation(), "env", *(f"{k}={v}" for k, v in settings.items())]
    command += [sys.executable, str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def main() -> int:
    if len(sys.argv) < 3 or sys.argv[1] not in _OPTIONS:
        print(__doc__, file=sys.stderr)
        return 2
    done = run_sanitized(*sys.argv[1:])
    print(done.stdout, end="")
    print(done.stderr, end="", file=sys.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
