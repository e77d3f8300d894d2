"""A condensed weight on the GPU, with the three products."""

from __future__ import annotations

import copy
import os
from functools import cached_property
from typing import Any, Self

import numpy as np

from sparsekit.checks import require_choice
from sparsekit.errors import InputError
from sparsekit.kernels import gpu
from sparsekit.kernels.gpu_arrays import (
    require_cupy,
    require_device_array,
    require_float32,
    require_gpu_output,
    require_index_dtype,
    require_kind,
)
from sparsekit.kernels.gpu_dispatch import Choice, choose
from sparsekit.kernels.gpu_order import DeviceOrder
from sparsekit.stored import SparseMatrix


class GpuCondensedMatrix:
    """A weight matrix (n_out, n_in) with constant fan-in whose arrays are CuPy arrays.

    It is made by :meth:`CondensedMatrix.to_gpu`. The values may change in place, and the next product sees it:
    where a product wants them in another order a kernel copies them each time, unless the matrix is frozen. The
    topology is fixed.

    The products take and return CuPy arrays; nothing is converted or copied in silence. x and g are float32,
    float16 or bfloat16. CuPy has no bfloat16 of its own: an array of uint16 is taken for the bits of one, see
    :func:`sparsekit.kernels.gpu_arrays.bfloat16_bits`. Sums and results are float32 for all of them. The same
    input gives the same bits on the same kind of GPU; how sums are shared out depends on its size.

    Parameters
    ----------
    matrix : the matrix on the host, a float32 CondensedMatrix; it is copied

    Raises
    ------
    GpuUnavailableError
        If there is no CuPy, driver or device.
    InputError
        If the matrix is no such matrix, or the dtype of its indices cannot count the inputs.

    Attributes
    ----------
    values : float32 (n_active, fan_in)
    indices : uint16 or int32 (n_active, fan_in)
    rows : int32 (n_active,), the neuron of each row
    shape : (n_out, n_in)
    topology : the matrix on the host from which this one was made; its values may be others by now
    choice : how the last product with x or g was computed, a :class:`Choice`; None before the first
    """

    def __init__(self, matrix: SparseMatrix) -> None:
        cupy = require_cupy()
        if not isinstance(matrix, SparseMatrix) or matrix.values.ndim != 2:
            raise InputError(f"matrix must be a CondensedMatrix, not {type(matrix).__name__}")
        require_float32("values", matrix.dtype)
        require_index_dtype("indices", matrix.indices.dtype, matrix.shape[1])
        if matrix.nnz >= 2**31:
            raise InputError(f"values must be fewer than 2**31 on the GPU, not {matrix.nnz}")
        self.topology = matrix
        self.shape = matrix.shape
        self.values = cupy.array(matrix.values)
        self.indices = cupy.array(matrix.indices)
        self.rows = cupy.array(np.flatnonzero(matrix.fan_ins()).astype(np.int32))
        self.choice: Choice | None = None
        self._is_frozen = False

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the weights."""
        return self.values.dtype

    @property
    def fan_in(self) -> int:
        """Stored inputs of every active neuron."""
        return self.values.shape[1]

    @property
    def nnz(self) -> int:
        """Number of stored weights."""
        return self.values.size

    @property
    def nbytes(self) -> int:
        """Bytes of values, indices and rows on the device."""
        return self.values.nbytes + self.indices.nbytes + self.rows.nbytes

    @property
    def held_nbytes(self) -> int:
        """`nbytes` and whatever was built on the device for the products."""
        made = (self.__dict__.get(name) for name in ("_forward", "_transposed"))
        return self.nbytes + sum(order.held_nbytes for order in made if order is not None)

    def to_cpu(self) -> SparseMatrix:
        """A copy on the host: a CondensedMatrix."""
        matrix = type(self.topology).from_mask(self.topology.mask(), self.dtype)
        matrix.values[...] = require_cupy().asnumpy(self.values)
        return matrix

    def frozen(self) -> Self:
        """The same matrix for prediction, with a copy of the values that must not change: they are packed once."""
        matrix = copy.copy(self)
        matrix.values = self.values.copy()
        for name in ("_forward", "_transposed", "_dense_weight"):
            matrix.__dict__.pop(name, None)
        matrix._is_frozen = True
        return matrix

    def explain(
        self, batch: int, dtype: Any = np.float32, *, allow_dense: bool = False, transposed: bool = False
    ) -> Choice:
        """How :meth:`matmul`, or :meth:`rmatmul` if `transposed`, would compute a batch of this dtype, and why."""
        n_out, n_in = self.shape
        shape = (n_in, n_out) if transposed else (n_out, n_in)
        tf32 = os.environ.get("CUPY_TF32") == "1"  # CuPy's own switch
        return choose(shape, self.nnz, batch, np.dtype(dtype).itemsize, allow_dense=allow_dense, tf32=tf32)

    def matmul(
        self,
        x: Any,
        backend: str = "gpu",
        out: Any = None,
        *,
        bias: Any = None,
        relu: bool = False,
        samples_first: bool = False,
        allow_dense: bool = False,
    ) -> Any:
        """W x, or max(W x + bias, 0) with a bias and ReLU.

        Parameters
        ----------
        x : (n_in, batch) or (n_in,); (batch, n_in) with `samples_first`
        backend : "gpu"
        out : C-contiguous float32 (n_out, batch), or (batch, n_out) with `samples_first`; a new array if None
        bias : float32 (n_out,) or (n_out, 1), added to each sample; None for none
        relu : whether negative results become zero; NaN stays NaN
        samples_first : whether samples come first in memory, in x and in the result
        allow_dense : whether cuBLAS may be used where it is expected to be faster, see :meth:`explain`; `choice`
            says whether it was. It multiplies in TF32 if the environment variable CUPY_TF32 is 1

        Returns
        -------
        float32 like `out`, or (n_out,); ablated neurons are zero before the bias is added.
        """
        n_out, n_in = self.shape
        operand = self._operand("x", x, n_in, backend, samples_first)
        bias = self.checked_bias(bias)
        batch = operand.shape[0 if samples_first else 1]
        out = self._output(out, (batch, n_out) if samples_first else (n_out, batch), x=operand, bias=bias)
        self.choice = self.explain(batch, operand.dtype, allow_dense=allow_dense)
        if self.choice.name == "dense":
            self._dense_product(operand, bias, relu, samples_first, out)
        else:
            self._product(self._forward, operand, bias, relu, samples_first, out)
        return out.reshape(n_out) if x.ndim == 1 else out

    def rmatmul(self, g: Any, backend: str = "gpu", out: Any = None, *, samples_first: bool = False) -> Any:
        """W^T g.

        Parameters
        ----------
        g : (n_out, batch) or (n_out,); (batch, n_out) with `samples_first`
        backend, out, samples_first : as in :meth:`matmul`, with n_in rows for n_out

        Returns
        -------
        float32 (n_in, batch), (batch, n_in) or (n_in,)
        """
        n_out, n_in = self.shape
        operand = self._operand("g", g, n_out, backend, samples_first)
        batch = operand.shape[0 if samples_first else 1]
        out = self._output(out, (batch, n_in) if samples_first else (n_in, batch), g=operand)
        self.choice = self.explain(batch, operand.dtype, transposed=True)
        self._product(self._transposed, operand, None, False, samples_first, out)
        return out.reshape(n_in) if g.ndim == 1 else out

    def sampled_outer(self, g: Any, x: Any, backend: str = "gpu", out: Any = None) -> Any:
        """g x^T at the stored positions: the gradient of the loss with respect to the stored weights.

        Parameters
        ----------
        g : (n_out, batch)
        x : (n_in, batch), of the dtype of g
        out : C-contiguous float32, shaped like `values`; a new array if None

        Returns
        -------
        float32, shaped like `values`
        """
        g = self._operand("g", g, self.shape[0], backend, False)
        x = self._operand("x", x, self.shape[1], backend, False)
        if g.shape[1] != x.shape[1] or g.dtype != x.dtype:
            described = f"{g.dtype} {g.shape[1]} and {x.dtype} {x.shape[1]}"
            raise InputError(f"g and x must have the same dtype and batch, not {described}")
        out = self._output(out, self.values.shape, g=g, x=x)
        if self.nnz:
            gpu.outer(g, x, self._forward.packed, out)
        return out

    def __matmul__(self, x: Any) -> Any:
        return self.matmul(x)

    def __repr__(self) -> str:
        n_out, n_in = self.shape
        active = f"fan_in={self.fan_in}, {len(self.rows)} of {n_out} neurons active"
        return f"GpuCondensedMatrix({n_out} x {n_in}, {active}, {self.dtype}, {self.nbytes} bytes)"

    def packed_weights(self) -> tuple[gpu.DeviceRows, Any]:
        """The rows as the tiled kernels read them, and the values in their order."""
        return self._forward.packed, self._forward.weights(self.values)

    def _product(self, order: DeviceOrder, x: Any, bias: Any, relu: bool, samples_first: bool, out: Any) -> None:
        if self.choice is not None and self.choice.name == "condensed-small":
            positions, inputs, starts = order.entries
            gpu.gather_few(x, self.values, positions, inputs, starts, bias, out, relu, samples_first=samples_first)
        else:
            weights = order.weights(self.values)
            gpu.gather(x, weights, order.packed, bias, out, relu, samples_first=samples_first)

    def _dense_product(self, x: Any, bias: Any, relu: bool, samples_first: bool, out: Any) -> None:
        cupy = require_cupy()
        weight, places = self._dense_weight
        weight.reshape(-1)[places] = self.values.reshape(-1)
        if samples_first:
            cupy.matmul(x, weight.T, out=out)
        else:
            cupy.matmul(weight, x, out=out)
        if bias is not None:
            cupy.add(out, bias if samples_first else bias[:, None], out=out)
        if relu:
            cupy.maximum(out, 0, out=out)

    @cached_property
    def _dense_weight(self) -> tuple[Any, Any]:
        """Memory for the dense matrix, zero where nothing is stored, and where in it the values belong."""
        cupy = require_cupy()
        return cupy.zeros(self.shape, dtype=np.float32), cupy.asarray(self.topology.flat_positions())

    @cached_property
    def _forward(self) -> DeviceOrder:
        """How W x reads the weights."""
        matrix = self.topology
        return DeviceOrder(matrix.row_pointers(), matrix.indices.reshape(-1), None, self.shape[1], self._is_frozen)

    @cached_property
    def _transposed(self) -> DeviceOrder:
        """How W^T g reads them."""
        index = self.topology.plan.transposed
        return DeviceOrder(index.indptr, index.rows, index.positions, self.shape[0], self._is_frozen)

    def _operand(self, name: str, array: Any, n_rows: int, backend: str, samples_first: bool) -> Any:
        require_choice("backend", backend, ("gpu",))
        require_kind(name, require_device_array(name, array, self.values))
        features = array.ndim - 1 if samples_first else 0
        if array.ndim not in (1, 2) or array.shape[features] != n_rows:
            allowed = f"(batch, {n_rows})" if samples_first else f"({n_rows}, batch)"
            raise InputError(f"{name} must have shape {allowed} or ({n_rows},), not {array.shape}")
        if array.ndim == 2:
            return array
        return array.reshape((1, n_rows) if samples_first else (n_rows, 1))

    def checked_bias(self, bias: Any) -> Any:
        """The bias as (n_out,), or None."""
        if bias is None:
            return None
        n_out = self.shape[0]
        require_float32("bias", require_device_array("bias", bias, self.values).dtype)
        if bias.shape not in ((n_out,), (n_out, 1)):
            raise InputError(f"bias must have shape ({n_out},) or ({n_out}, 1), not {bias.shape}")
        return bias.reshape(n_out)

    def _output(self, out: Any, shape: tuple[int, ...], **read: Any) -> Any:
        if out is None:
            return require_cupy().empty(shape, dtype=np.float32)
        return require_gpu_output(out, shape, self.values, values=self.values, **read)
