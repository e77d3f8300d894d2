"""What a benchmark ran on: processor, versions, libraries. Times mean nothing without it."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_info

from sparsekit import __version__
from sparsekit.bench import torch_competitors

_SETTINGS = ("OPENBLAS_", "MKL_", "OMP_", "GOMP_", "KMP_", "NUMBA_", "DNNL_", "ONEDNN_")


def environment() -> dict[str, Any]:
    """Names and versions, and environment variables that change how the libraries compute.

    `torch` is None where PyTorch is not installed.
    """
    import llvmlite.binding
    import numba

    blas = [library for library in threadpool_info() if library["user_api"] == "blas"]
    try:
        threading_layer = numba.threading_layer()  # pyright: ignore[reportPrivateImportUsage]
    except ValueError:  # no parallel kernel has run yet
        threading_layer = None
    return {
        "cpu": _cpu(),
        "cpu_name_of_llvm": llvmlite.binding.get_host_cpu_name(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "sparsekit": __version__,
        "numpy": version("numpy"),
        "blas": ", ".join(sorted({_describe(library) for library in blas})),
        "scipy": version("scipy"),
        "numba": version("numba"),
        "numba_threading_layer": threading_layer,
        "torch": torch_competitors.version(),
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_SETTINGS)},
    }


def _describe(library: dict[str, Any]) -> str:
    return " ".join(str(library[key]) for key in ("internal_api", "version", "architecture") if library.get(key))


def _cpu() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
