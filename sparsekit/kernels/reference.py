"""The definition of the three products: plain Python loops. Slow; the oracle of all other backends.

Arrays
------
values : float, the stored weights; condensed (n_active, fan_in), CSR (nnz,)
indices : the input that each stored weight reads, shaped like values
rows : (n_active,), condensed only: the output neuron of each row of values
indptr : (n_out + 1,), CSR only: row n owns the slots indptr[n] to indptr[n + 1]
x : (n_in, batch), inputs
g : (n_out, batch), gradient of the loss with respect to the output
out : the result, overwritten and returned
plan : :class:`sparsekit.kernels.plan.Plan` of the topology, not needed here
bias : (n_out,) or None, added to W x; ablated neurons have one too
relu : whether negative values of W x + bias become zero
"""

from sparsekit.kernels.epilogue import finish


def condensed_matmul(values, indices, rows, x, out, plan, bias=None, relu=False):
    """out[rows[i], :] = sum over k of values[i, k] * x[indices[i, k], :]; ablated rows are zero."""
    out[...] = 0
    n_active, fan_in = values.shape
    for i in range(n_active):
        for k in range(fan_in):
            for b in range(x.shape[1]):
                out[rows[i], b] += values[i, k] * x[indices[i, k], b]
    return finish(out, bias, relu)


def condensed_rmatmul(values, indices, rows, g, out, plan):
    """out[j, :] = sum of values[i, k] * g[rows[i], :] over all (i, k) with indices[i, k] = j."""
    out[...] = 0
    n_active, fan_in = values.shape
    for i in range(n_active):
        for k in range(fan_in):
            for b in range(g.shape[1]):
                out[indices[i, k], b] += values[i, k] * g[rows[i], b]
    return out


def condensed_sampled_outer(indices, rows, g, x, out, plan):
    """out[i, k] = sum over b of g[rows[i], b] * x[indices[i, k], b]."""
    out[...] = 0
    n_active, fan_in = indices.shape
    for i in range(n_active):
        for k in range(fan_in):
            for b in range(x.shape[1]):
                out[i, k] += g[rows[i], b] * x[indices[i, k], b]
    return out


def csr_matmul(values, indices, indptr, x, out, plan, bias=None, relu=False):
    """out[n, :] = sum over slots s of row n of values[s] * x[indices[s], :]."""
    out[...] = 0
    for n in range(len(indptr) - 1):
        for s in range(indptr[n], indptr[n + 1]):
            for b in range(x.shape[1]):
                out[n, b] += values[s] * x[indices[s], b]
    return finish(out, bias, relu)


def csr_rmatmul(values, indices, indptr, g, out, plan):
    """out[j, :] = sum of values[s] * g[n, :] over all slots s of all rows n with indices[s] = j."""
    out[...] = 0
    for n in range(len(indptr) - 1):
        for s in range(indptr[n], indptr[n + 1]):
            for b in range(g.shape[1]):
                out[indices[s], b] += values[s] * g[n, b]
    return out


def csr_sampled_outer(indices, indptr, g, x, out, plan):
    """out[s] = sum over b of g[n, b] * x[indices[s], b] for all slots s of all rows n."""
    out[...] = 0
    for n in range(len(indptr) - 1):
        for s in range(indptr[n], indptr[n + 1]):
            for b in range(x.shape[1]):
                out[s] += g[n, b] * x[indices[s], b]
    return out
