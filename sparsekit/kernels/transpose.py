"""The transposed index: for every input, who reads it and with which stored weight.

With it, W^T g is a gather like W x: row j of the result is a sum over the weights stored in column j. Nothing
is scattered, so rows can be computed in parallel and in a fixed order. It changes only with the topology.
"""

from typing import NamedTuple

import numpy as np


class TransposedIndex(NamedTuple):
    """Stored weights ordered by input.

    Attributes
    ----------
    indptr : int64 (n_in + 1,), column j owns the slots indptr[j] to indptr[j + 1]
    rows : uint16 or int32 (nnz,), output neuron of each slot
    positions : int32 or int64 (nnz,), place of each slot's weight in the flat stored values
    """

    indptr: np.ndarray
    rows: np.ndarray
    positions: np.ndarray


def transposed_index(indices: np.ndarray, rows: np.ndarray, n_out: int, n_in: int) -> TransposedIndex:
    """Build the transposed index.

    Parameters
    ----------
    indices : (nnz,), the input of each stored weight, in the order of the stored values
    rows : (nnz,), the output neuron of each stored weight
    """
    positions = np.argsort(indices, kind="stable")
    indptr = np.zeros(n_in + 1, dtype=np.int64)
    np.cumsum(np.bincount(indices, minlength=n_in), out=indptr[1:])
    return TransposedIndex(
        indptr=read_only(indptr),
        rows=read_only(rows[positions].astype(index_dtype(n_out))),
        positions=read_only(positions.astype(np.int32 if positions.size < 2**31 else np.int64)),
    )


def index_dtype(size: int) -> type[np.unsignedinteger] | type[np.signedinteger]:
    """The smallest dtype that the kernels use for indices below `size`: uint16, else int32."""
    return np.uint16 if size <= 2**16 else np.int32


def read_only(array: np.ndarray) -> np.ndarray:
    """The array, read-only from now on, as all index arrays are: Numba compiles one version for them."""
    array.flags.writeable = False
    return array
