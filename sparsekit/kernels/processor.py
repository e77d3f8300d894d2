"""What the processor has: the width of its vectors, and instructions that only some have.

Attributes
----------
SIMD : whether loops are written in vectors; if not, plain loops take their place
VECTOR_BYTES : width of a vector register; 64 too where there are no vectors
LOOKUP_INPUTS : inputs to hold in registers and look up by their bytes: 256 where an instruction picks bytes of two
    registers of 64 (AVX-512 VBMI), 32 where it picks them of 16 (AVX2), 0 on other processors
CACHE_BYTES : size of the second-level cache that processors with such vectors have, about
"""

import platform
from typing import Any

from numba.core import config
from numba.core.codegen import get_host_cpu_features
from numba.extending import overload


def _features() -> dict[str, bool]:
    """What the processor can that Numba compiles for: this one, or what NUMBA_CPU_FEATURES names."""
    chosen: str | None = config.CPU_FEATURES  # pyright: ignore[reportAttributeAccessIssue]
    if chosen is None:
        chosen = get_host_cpu_features()  # without what NUMBA_ENABLE_AVX=0 leaves out
    return {name[1:]: name[0] == "+" for name in chosen.split(",") if name}


def _vector_bytes() -> int:
    """Width of the registers of this processor; 0 where the intrinsics are not used."""
    compiled = not config.DISABLE_JIT  # pyright: ignore[reportAttributeAccessIssue]
    if not compiled or platform.machine().lower() not in ("x86_64", "amd64", "aarch64", "arm64"):
        return 0
    return 64 if _features().get("avx512f") else 32 if _features().get("avx2") else 16


SIMD = _vector_bytes() > 0
VECTOR_BYTES = _vector_bytes() or 64
CACHE_BYTES = VECTOR_BYTES << 14  # 1 MB with AVX-512, 512 KB with AVX2; every system is asked in another way
LOOKUP_INPUTS = {64: 256 if _features().get("avx512vbmi") else 0, 32: 32}.get(_vector_bytes(), 0)


def lanes(array: Any) -> int:
    """Elements of `array` in one vector; in compiled code a constant, by which LLVM unrolls loops."""
    return VECTOR_BYTES // array.itemsize


@overload(lanes)
def _lanes(array):
    n = VECTOR_BYTES * 8 // array.dtype.bitwidth
    return lambda array: n
