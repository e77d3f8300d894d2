"""How stored weights lie in the memory of a GPU: slices of rows, chunks of inputs, steps of four weights.

A warp multiplies 16 rows side by side. It loads 4 weights of each at once, which therefore lie next to each other:
a step. Rows are sorted by length, the longest first, so that those of a slice need about equally many
steps; what a shorter row lacks is filled up. Inputs are cut in chunks, so that the rows of x which a chunk reads
fit in shared memory. Pure NumPy; built once for a topology.
"""

from dataclasses import dataclass

import numpy as np

from sparsekit.kernels.gpu_instances import ENTRIES, ROW_BYTES, ROWS

_PARTIAL_BYTES = ROWS * 4  # of the weight gradient, for each row of a chunk, if all weights are there


@dataclass(frozen=True)
class PackedRows:
    """The order in which the tiled kernels read the stored weights of one topology.

    Attributes
    ----------
    inputs : uint16 (n_steps, 16, 4), input of each weight counted from the first of its chunk; fill: chunk_rows, a
        row of zeros
    positions : int32 (n_steps, 16, 4), place of each weight in the flat stored values; fill: -1
    steps : int32 (n_slices * n_chunks + 1,), slice s owns in chunk c the steps from steps[s * n_chunks + c] on
    outputs : int32 (n_slices * 16,), row of the matrix; -1 behind the last one
    n_inputs : columns of the matrix
    chunk_rows : inputs of a chunk; the last one may have fewer
    """

    inputs: np.ndarray
    positions: np.ndarray
    steps: np.ndarray
    outputs: np.ndarray
    n_inputs: int
    chunk_rows: int

    @property
    def n_slices(self) -> int:
        """Slices of 16 rows, those that read nothing included."""
        return self.outputs.size // ROWS

    @property
    def n_chunks(self) -> int:
        """Chunks of inputs."""
        return -(-self.n_inputs // self.chunk_rows)

    @property
    def most_steps(self) -> int:
        """Steps of the slice and chunk that have most."""
        return int(np.diff(self.steps).max())

    @property
    def fill(self) -> float:
        """Stored places for each weight: 1 would be none in vain."""
        return self.positions.size / max(1, np.count_nonzero(self.positions >= 0))


def chunk_rows(n_inputs: int, shared_memory: int) -> int:
    """How many inputs to a chunk: as few chunks as fit, of equal size.

    Few chunks, because in each of them a slice waits for its longest row. It must hold two buffers of 128 bytes an
    input, a row of zeros in each, and the partial sums of the weight gradient of one slice.

    Parameters
    ----------
    n_inputs : columns of the matrix
    shared_memory : bytes that a block may have
    """
    fits = (shared_memory - 2 * ROW_BYTES - ENTRIES * _PARTIAL_BYTES) // (2 * ROW_BYTES + _PARTIAL_BYTES)
    if n_inputs <= fits:
        return n_inputs
    n_chunks = -(-n_inputs // (fits // ENTRIES * ENTRIES))
    return -(-n_inputs // (n_chunks * ENTRIES)) * ENTRIES  # chunks that start at multiples of 4: vector loads


def packed_rows(
    indptr: np.ndarray, columns: np.ndarray, positions: np.ndarray, n_inputs: int, rows_of_chunk: int
) -> PackedRows:
    """Lay out rows of any lengths, those of W or of its transpose.

    Parameters
    ----------
    indptr : integers (n_rows + 1,), row r owns the entries indptr[r] to indptr[r + 1]
    columns : integers (nnz,), input of each entry, ascending in each row
    positions : integers (nnz,), place of each entry's weight in the flat stored values
    n_inputs : columns of the matrix
    rows_of_chunk : inputs of a chunk, at most 65535
    """
    lengths = np.diff(indptr)
    n_rows, n_slices, n_chunks = lengths.size, -(-lengths.size // ROWS), -(-n_inputs // rows_of_chunk)
    order = np.argsort(-lengths, kind="stable")
    outputs = np.full(n_slices * ROWS, -1, dtype=np.int32)
    outputs[:n_rows] = order
    place_of_row = np.empty(n_rows, dtype=np.int64)
    place_of_row[order] = np.arange(n_rows)

    chunk = columns.astype(np.int64) // rows_of_chunk
    place = np.repeat(place_of_row, lengths)
    rank, counts = _ranks(place * n_chunks + chunk, n_slices * ROWS * n_chunks)
    longest = counts.reshape(n_slices, ROWS, n_chunks).max(axis=1)
    steps = np.zeros(n_slices * n_chunks + 1, dtype=np.int64)
    np.cumsum(-(-longest.reshape(-1) // ENTRIES), out=steps[1:])

    step = steps[place // ROWS * n_chunks + chunk] + rank // ENTRIES
    where = step, place % ROWS, rank % ENTRIES
    shape = int(steps[-1]), ROWS, ENTRIES
    packed_inputs = np.full(shape, rows_of_chunk, dtype=np.uint16)
    packed_inputs[where] = columns - chunk * rows_of_chunk
    packed_positions = np.full(shape, -1, dtype=np.int32)
    packed_positions[where] = positions
    return PackedRows(packed_inputs, packed_positions, steps.astype(np.int32), outputs, n_inputs, rows_of_chunk)


def _ranks(keys: np.ndarray, n_keys: int) -> tuple[np.ndarray, np.ndarray]:
    """For every entry how many before it have its key, and how often each key occurs.

    Equal keys stand side by side, as those of a row's entries do: their inputs ascend.
    """
    counts = np.bincount(keys, minlength=n_keys)
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    rank = np.arange(keys.size) - np.repeat(starts, np.diff(starts, append=keys.size))
    return rank, counts
