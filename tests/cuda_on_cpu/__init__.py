"""CUDA kernels executed on the CPU, and a stand-in for CuPy: see README.md."""

from cuda_on_cpu.build import KernelError, missing_tools
from cuda_on_cpu.module import CpuRawModule, thread_order

__all__ = ["CpuRawModule", "KernelError", "missing_tools", "thread_order"]
