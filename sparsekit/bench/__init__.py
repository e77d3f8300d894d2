"""Benchmarks: the sparse kernels against NumPy, SciPy and, where it is installed, PyTorch.

:func:`sparsekit.bench.run.run` does what the command `sparsekit bench` does.
"""
