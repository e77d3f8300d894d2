"""The baseline: scipy.sparse CSR, single-threaded as SciPy is.

SciPy has no sampled product: its users compute the dense g x^T and take the stored entries, and so does this
module. Arguments as in :mod:`sparsekit.kernels.reference`.
"""

import numpy as np
from scipy.sparse import csr_matrix

from sparsekit.kernels.epilogue import finish


def condensed_matmul(values, indices, rows, x, out, plan, bias=None, relu=False):
    """out = W x."""
    weight = _condensed_to_csr(values, indices, rows, (out.shape[0], x.shape[0]))
    return finish(_product(weight, x, out), bias, relu)


def condensed_rmatmul(values, indices, rows, g, out, plan):
    """out = W^T g."""
    return _product(_condensed_to_csr(values, indices, rows, (g.shape[0], out.shape[0])).T, g, out)


def condensed_sampled_outer(indices, rows, g, x, out, plan):
    """out[i, k] = (g x^T)[rows[i], indices[i, k]]."""
    out[...] = np.take_along_axis(g[rows] @ x.T, indices.astype(np.intp), axis=1)
    return out


def csr_matmul(values, indices, indptr, x, out, plan, bias=None, relu=False):
    """out = W x."""
    weight = _csr(values, indices, indptr, (out.shape[0], x.shape[0]))
    return finish(_product(weight, x, out), bias, relu)


def csr_rmatmul(values, indices, indptr, g, out, plan):
    """out = W^T g."""
    return _product(_csr(values, indices, indptr, (g.shape[0], out.shape[0])).T, g, out)


def csr_sampled_outer(indices, indptr, g, x, out, plan):
    """out[s] = (g x^T)[row of s, indices[s]]."""
    out[...] = (g @ x.T)[np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)), indices]
    return out


def _product(matrix, operand, out):
    out[...] = matrix @ operand
    return out


def _csr(values, indices, indptr, shape):
    return csr_matrix((values, indices.astype(np.int32), indptr), shape=shape, copy=False)


def _condensed_to_csr(values, indices, rows, shape):
    """Ablated neurons become empty rows; the stored order stays the same."""
    slots = np.zeros(shape[0] + 1, dtype=np.int64)
    slots[rows.astype(np.intp) + 1] = values.shape[1]
    return _csr(values.ravel(), indices.ravel(), np.cumsum(slots), shape)
