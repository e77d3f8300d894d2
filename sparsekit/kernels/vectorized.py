"""The three products in NumPy: gather the rows that are read, then sum with einsum or reduceat.

The gathered copy holds one row for every stored weight, so wide batches are cut into slices that fit in cache
or at least in memory. Arguments as in :mod:`sparsekit.kernels.reference`.
"""

from collections.abc import Iterator

import numpy as np

from sparsekit.kernels.epilogue import finish

_GATHERED_ELEMENTS = 2**22  # 16 MiB of float32 for one slice of the batch


def condensed_matmul(values, indices, rows, x, out, plan, bias=None, relu=False):
    """out[rows] = W x by einsum over the gathered inputs (n_active, fan_in, batch)."""
    out[...] = 0
    for batch in _batch_slices(values.size, x.shape[1]):
        out[rows, batch] = np.einsum("nk,nkb->nb", values, x[:, batch][indices])
    return finish(out, bias, relu)


def condensed_rmatmul(values, indices, rows, g, out, plan):
    """out = W^T g by segment sums over the transposed index."""
    index = plan.transposed
    return _segment_sums(values, index.positions, index.rows, index.indptr, g, out)


def condensed_sampled_outer(indices, rows, g, x, out, plan):
    """out[i, k] = <g[rows[i]], x[indices[i, k]]>."""
    out[...] = 0
    for batch in _batch_slices(indices.size, x.shape[1]):
        out += np.einsum("nb,nkb->nk", g[rows, batch], x[:, batch][indices])
    return out


def csr_matmul(values, indices, indptr, x, out, plan, bias=None, relu=False):
    """out = W x by segment sums over the stored slots of each row."""
    return finish(_segment_sums(values, slice(None), indices, indptr, x, out), bias, relu)


def csr_rmatmul(values, indices, indptr, g, out, plan):
    """out = W^T g by segment sums over the transposed index."""
    index = plan.transposed
    return _segment_sums(values, index.positions, index.rows, index.indptr, g, out)


def csr_sampled_outer(indices, indptr, g, x, out, plan):
    """out[s] = <g[row of s], x[indices[s]]>."""
    out[...] = 0
    row_of_slot = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    for batch in _batch_slices(indices.size, x.shape[1]):
        out += np.einsum("sb,sb->s", g[row_of_slot, batch], x[indices, batch])
    return out


def _segment_sums(values, order, sources, indptr, operand, out):
    """out[j] = sum over slots s in segment j of values[order][s] * operand[sources[s]]."""
    out[...] = 0
    filled = np.flatnonzero(np.diff(indptr))  # reduceat would give an empty segment its neighbour's value
    if filled.size:
        weights = values.ravel()[order][:, None]
        for batch in _batch_slices(sources.size, operand.shape[1]):
            out[filled, batch] = np.add.reduceat(weights * operand[sources, batch], indptr[filled], axis=0)
    return out


def _batch_slices(n_stored: int, batch: int) -> Iterator[slice]:
    width = max(1, _GATHERED_ELEMENTS // max(1, n_stored))
    return (slice(start, start + width) for start in range(0, batch, width))
