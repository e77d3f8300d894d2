"""Kernels: the three products of a sparse weight W that touch only what is stored.

=================  ==============================  ==========================
product            in                              out
=================  ==============================  ==========================
matmul             x (n_in, batch)                 W x      (n_out, batch)
rmatmul            g (n_out, batch)                W^T g    (n_in, batch)
sampled_outer      g (n_out, batch), x as above    g x^T at the stored places
=================  ==============================  ==========================

Every backend is a module with the same six functions, three for condensed and three for CSR storage; plain
arrays in, plain arrays out, documented in :mod:`sparsekit.kernels.reference`. Arrays are feature-major and C
contiguous, `out` is overwritten. A kernel checks nothing: indices are validated when the matrix object is built.

The GPU is no backend of this kind: its arrays are CuPy arrays, and its matrices live on the device. Its kernels
are in `condensed.cu` and the modules gpu*.py; :class:`sparsekit.gpu_matrix.GpuCondensedMatrix` has the products.
"""

import importlib
from functools import cache
from types import ModuleType

from sparsekit.checks import require_choice

_MODULES = {
    "reference": "sparsekit.kernels.reference",
    "vectorized": "sparsekit.kernels.vectorized",
    "csr": "sparsekit.kernels.scipy_csr",
    "cpu": "sparsekit.kernels.cpu",
}
BACKENDS = tuple(_MODULES)


@cache
def get_backend(name: str) -> ModuleType:
    """The module that computes the products; it is imported on first use, so that Numba loads only when needed."""
    return importlib.import_module(_MODULES[require_choice("backend", name, BACKENDS)])
