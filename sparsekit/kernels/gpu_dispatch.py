"""Which way a product W x is computed on the GPU, and why.

"condensed-small"   a warp a neuron, x through the caches: for few samples or few weights
"condensed-tile"    x staged in shared memory, gathered from there
"dense"             the weights written into a dense matrix, multiplied by cuBLAS; never unless allowed

The one that is predicted to be fastest is taken. **Predicted, not measured yet**: the times come from a model of
an H100 (132 SMs, 1.755 GHz, 29.7 TB/s out of shared memory, 5.5 TB/s out of the L2 cache) and await the first run
on a GPU. For float32 x, 3072 inputs and 768 neurons with 307 weights each it says, in microseconds:

=====  ===============  ==============  ==========  ==========
batch  condensed-small  condensed-tile  dense FP32  dense TF32
=====  ===============  ==============  ==========  ==========
1      2.9              4.7             10.3        5.2
16     5.5              4.7             11.7        5.4
64     13.7             5.8             16.0        6.0
256    46.7             12.8            33.4        8.4
2048   353.9            78.3            196.1       30.6
=====  ===============  ==============  ==========  ==========

So it expects the condensed kernels to win against FP32 at every batch, and to lose against TF32, whose factors
have 10 bits of mantissa, from a batch of about 70 on. With x in 16 bits the gather is half as much.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsekit.kernels.gpu_instances import BLOCK_ROWS, ROW_BYTES

_LAUNCH = 2.5  # microseconds of any kernel
_FIRST_TILE = 1.0  # microseconds until there is something to gather
_SHARED = 29.7e6 / 1.15  # bytes a microsecond out of shared memory, next to weights and indices
_CACHE = 5.5e6  # bytes a microsecond out of the L2 cache
_ENTRY = 6  # bytes of a weight and its index
_FP32, _FP32_HALF = 52e6, 85  # operations a microsecond for a large batch; the batch that reaches half of it
_TF32, _TF32_LAUNCH = 380e6, 5.2


@dataclass(frozen=True)
class Choice:
    """How a product is computed.

    Attributes
    ----------
    name : "condensed-small", "condensed-tile" or "dense"
    predicted : microseconds of each possibility, by the model of this module; predicted, not measured
    """

    name: str
    predicted: dict[str, float]

    def __str__(self) -> str:
        times = ", ".join(f"{name} {time:.1f}" for name, time in self.predicted.items())
        return f"{self.name} (predicted, not measured, in microseconds: {times})"


def choose(
    shape: tuple[int, int],
    nnz: int,
    batch: int,
    itemsize: int = 4,
    *,
    allow_dense: bool = False,
    tf32: bool = False,
) -> Choice:
    """Choose for a product of a matrix (rows, columns) with `nnz` stored weights and a batch of samples.

    Parameters
    ----------
    itemsize : bytes of a value of x, 4 or 2; x of 2 bytes is never multiplied dense
    allow_dense : whether cuBLAS may be used
    tf32 : whether cuBLAS multiplies float32 in TF32
    """
    tiles = -(-batch * itemsize // ROW_BYTES)
    gathered, staged = nnz * tiles * ROW_BYTES, shape[1] * tiles * ROW_BYTES * -(-shape[0] // BLOCK_ROWS)
    predicted = {
        "condensed-small": _LAUNCH + nnz * (batch * itemsize + _ENTRY) / _CACHE,
        "condensed-tile": _LAUNCH + _FIRST_TILE + max(gathered / _SHARED, staged / _CACHE),
    }
    if allow_dense and itemsize == 4:
        predicted["dense"] = _dense_time(2 * shape[0] * shape[1], batch, tf32)
    return Choice(min(predicted, key=predicted.__getitem__), predicted)


def _dense_time(operations: int, batch: int, tf32: bool) -> float:
    """For so many operations a sample."""
    if tf32:
        return _TF32_LAUNCH + operations * batch / _TF32
    return _LAUNCH + operations * (batch + _FP32_HALF) / _FP32
