"""What all storage formats share: the three products with checked arguments."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, Self

import numpy as np

from sparsekit.checks import require_integer
from sparsekit.errors import InputError
from sparsekit.kernels.memory import aligned_empty
from sparsekit.kernels.plan import Plan

FLOAT_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
_NO_BIAS = {dtype: np.empty(0, dtype=dtype) for dtype in FLOAT_DTYPES}


class StoredMatrix(ABC):
    """A weight matrix (n_out, n_in) in some storage format.

    Subclasses hold `values`, the stored weights, as a C-contiguous float32 or float64 array. An optimizer may
    change the values in place; where they are is fixed once the object is built.

    The products take feature-major operands. Where a copy makes an operand right it is copied: other real
    dtypes are converted to the dtype of the weights, strided and read-only arrays become contiguous ones.
    Anything else raises an :class:`InputError` that names the argument.
    """

    values: np.ndarray
    shape: tuple[int, int]

    @classmethod
    @abstractmethod
    def from_mask(cls, mask: np.ndarray, dtype: np.dtype | type = np.float32) -> Self:
        """A matrix of zeros stored at the True positions of `mask` (n_out, n_in)."""

    @abstractmethod
    def mask(self) -> np.ndarray:
        """Bool (n_out, n_in), True where a weight is stored."""

    @abstractmethod
    def to_dense(self) -> np.ndarray:
        """Float (n_out, n_in), zero where no weight is stored."""

    @abstractmethod
    def fan_ins(self) -> np.ndarray:
        """Int64 (n_out,), stored inputs of each neuron."""

    @abstractmethod
    def flat_positions(self) -> np.ndarray:
        """Int64 (nnz,), row * n_in + column of each stored weight, ascending and in the order of `values`."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of the stored weights and their indices."""

    @property
    def held_nbytes(self) -> int:
        """`nbytes` and whatever was built for the products, such as the transposed index."""
        return self.nbytes

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the weights, float32 or float64."""
        return self.values.dtype

    @property
    def nnz(self) -> int:
        """Number of stored weights."""
        return self.values.size

    def frozen(self) -> Self:
        """The matrix for prediction: itself, where the storage gains nothing from values that cannot change."""
        return self

    def matmul(
        self,
        x: np.ndarray,
        backend: str = "cpu",
        out: np.ndarray | None = None,
        *,
        bias: np.ndarray | None = None,
        relu: bool = False,
    ) -> np.ndarray:
        """W x, or max(W x + bias, 0) with a bias and ReLU.

        Parameters
        ----------
        x : (n_in, batch) or (n_in,)
        backend : "reference", "vectorized", "csr" or "cpu"; or "gpu", for condensed storage in float32: all other
            arrays are then CuPy arrays, results too, and the values are copied to the device at each call, which
            :meth:`CondensedMatrix.to_gpu` does once
        out : C-contiguous (n_out, batch) of the matrix's dtype, overwritten; a new array if None
        bias : (n_out,) or (n_out, 1), added to each column; None for none
        relu : whether negative results become zero

        Returns
        -------
        (n_out, batch) or (n_out,); rows of ablated neurons are zero before the bias is added.
        """
        if backend == "gpu":
            return self._on_gpu().matmul(x, out=out, bias=bias, relu=relu)
        n_out, n_in = self.shape
        operand = self._operand("x", x, n_in)
        shape = (n_out, operand.shape[1])
        if bias is not None:
            bias = self._operand("bias", bias, n_out)
            if bias.shape[1] != 1:
                raise InputError(f"bias must have shape ({n_out},) or ({n_out}, 1), not {bias.shape}")
            bias = bias[:, 0]
        if out is None:
            out = self._new(shape)
        else:
            read = {} if bias is None else {"bias": bias}
            require_output(out, shape, self.dtype, x=operand, values=self.values, **read)
        result = self._matmul(operand, backend, out, bias, relu)
        return result if operand is x or np.ndim(x) == 2 else result[:, 0]

    def rmatmul(self, g: np.ndarray, backend: str = "cpu", out: np.ndarray | None = None) -> np.ndarray:
        """W^T g.

        Parameters
        ----------
        g : (n_out, batch) or (n_out,)
        backend : as in :meth:`matmul`
        out : C-contiguous (n_in, batch) of the matrix's dtype, overwritten; a new array if None

        Returns
        -------
        (n_in, batch) or (n_in,).
        """
        if backend == "gpu":
            return self._on_gpu().rmatmul(g, out=out)
        n_out, n_in = self.shape
        operand = self._operand("g", g, n_out)
        shape = (n_in, operand.shape[1])
        if out is None:
            out = self._new(shape)
        else:
            require_output(out, shape, self.dtype, g=operand, values=self.values)
        result = self._rmatmul(operand, backend, out)
        return result[:, 0] if np.ndim(g) == 1 else result

    def sampled_outer(
        self, g: np.ndarray, x: np.ndarray, backend: str = "cpu", out: np.ndarray | None = None
    ) -> np.ndarray:
        """g x^T at the stored positions: the gradient of the loss with respect to the stored weights.

        Parameters
        ----------
        g : (n_out, batch)
        x : (n_in, batch)
        out : like `values`, overwritten; a new array if None

        Returns
        -------
        array shaped like `values`.
        """
        if backend == "gpu":
            return self._on_gpu().sampled_outer(g, x, out=out)
        g, x = self._operand("g", g, self.shape[0]), self._operand("x", x, self.shape[1])
        if g.shape[1] != x.shape[1]:
            raise InputError(f"g and x must have the same batch, not {g.shape[1]} and {x.shape[1]}")
        if out is None:
            out = self._new(self.values.shape)
        else:
            require_output(out, self.values.shape, self.dtype, g=g, x=x, values=self.values)
        return self._sampled_outer(g, x, backend, out)

    def __matmul__(self, x: np.ndarray) -> np.ndarray:
        return self.matmul(x)

    def __repr__(self) -> str:
        n_out, n_in = self.shape
        return f"{type(self).__name__}({n_out} x {n_in}, nnz={self.nnz}, {self.dtype}, {self.nbytes} bytes)"

    @abstractmethod
    def _matmul(
        self, x: np.ndarray, backend: str, out: np.ndarray, bias: np.ndarray | None, relu: bool
    ) -> np.ndarray: ...

    @abstractmethod
    def _rmatmul(self, g: np.ndarray, backend: str, out: np.ndarray) -> np.ndarray: ...

    @abstractmethod
    def _sampled_outer(self, g: np.ndarray, x: np.ndarray, backend: str, out: np.ndarray) -> np.ndarray: ...

    def _on_gpu(self) -> Any:
        """The matrix on the GPU with the present values."""
        raise InputError(f"backend 'gpu' has kernels for CondensedMatrix, not for {type(self).__name__}")

    def _operand(self, name: str, array: np.ndarray, n_rows: int) -> np.ndarray:
        array = real_array(name, array, self.values.dtype)
        if array.ndim not in (1, 2) or array.shape[0] != n_rows:
            raise InputError(f"{name} must have shape ({n_rows}, batch) or ({n_rows},), not {array.shape}")
        return array.reshape(n_rows, -1) if array.ndim == 1 else array

    def _new(self, shape: tuple[int, ...]) -> np.ndarray:
        # one column gains nothing from alignment, and finding an aligned place takes longer than a small product
        return np.empty(shape, self.values.dtype) if shape[-1] == 1 else aligned_empty(shape, self.values.dtype)


class SparseMatrix(StoredMatrix):
    """A stored matrix with an index, and the plan by which its products read it."""

    indices: np.ndarray
    _frozen_values: np.ndarray | None = None
    _products: dict[int, Callable[..., bool] | None]  # of the plan, by batch; None if they suit no longer

    def matmul(
        self,
        x: np.ndarray,
        backend: str = "cpu",
        out: np.ndarray | None = None,
        *,
        bias: np.ndarray | None = None,
        relu: bool = False,
    ) -> np.ndarray:
        """As :meth:`StoredMatrix.matmul`; few samples go to compiled code unseen, which checks them itself."""
        if self._frozen_values is None or backend != "cpu":
            return super().matmul(x, backend, out, bias=bias, relu=relu)
        result = self._at_once(x, out, bias, relu)
        if result is None:
            result = super().matmul(x, backend, out, bias=bias, relu=relu)
            batch = 1 if result.ndim == 1 else result.shape[1]
            if batch in self.plan.at_once:
                self._products.setdefault(batch, self.plan.at_once[batch])
        return result

    def _at_once(self, x: Any, out: Any, bias: Any, relu: bool) -> np.ndarray | None:
        """The product if compiled code takes the arguments as they are, else None."""
        column = x[:, None] if getattr(x, "ndim", 0) == 1 else x
        batch = column.shape[1] if getattr(column, "ndim", 0) == 2 else 0
        product = self._products.get(batch)
        if product is None:
            return None
        target = self._new((self.shape[0], batch)) if out is None else out
        if bias is None:
            bias = _NO_BIAS[self.values.dtype]
        elif getattr(bias, "size", 0) == 0:  # no bias to kernels, a wrong one to users
            return None
        try:
            if product(column, bias, relu, target):
                return target if column is x else target[:, 0]
        except TypeError:  # arrays of another kind; finding that out takes longer than the product
            self._products[batch] = None
        return None

    def frozen(self) -> Self:
        """The same matrix for prediction: a read-only copy of the values, and products keep what they make.

        It is faster, most of all for one sample, and holds several times the bytes of the weights. Sums may be
        taken in another order, so results can differ in the last bits.
        """
        matrix = copy.deepcopy(self)
        if matrix._frozen_values is not None:
            return matrix
        matrix._frozen_values, matrix._products = matrix.kernel_values, {}
        matrix.values = matrix._frozen_values.view()
        matrix.values.flags.writeable = False
        return matrix

    @property
    def kernel_values(self) -> np.ndarray:
        """The values as kernels take them: compiled code has one version for them, read-only or not."""
        if self._frozen_values is not None:
            return self._frozen_values
        return self.values if self.values.flags.writeable else self.values.copy()

    @abstractmethod
    def _parts(self) -> tuple[Any, ...]:
        """The arguments that build this matrix."""

    def __reduce__(self):
        # copies and pickles are built, and so checked, like any other matrix
        return _rebuild, (type(self), self._parts(), self._frozen_values is not None)

    @abstractmethod
    def row_pointers(self) -> np.ndarray:
        """Int64 (n_out + 1,), neuron n owns the stored weights from row_pointers()[n] to row_pointers()[n + 1]."""

    @cached_property
    def plan(self) -> Plan:
        """What the products need beside values and indices; its parts are built on first use."""
        frozen = self._frozen_values is not None
        return Plan(self.row_pointers(), self.indices.reshape(-1), self.shape, frozen)

    @property
    def held_nbytes(self) -> int:
        """`nbytes` and the parts of the plan that products have needed."""
        if "plan" not in self.__dict__:
            return self.nbytes
        shared = self.plan.indptr.nbytes if self.row_pointers() is self.plan.indptr else 0
        return self.nbytes + self.plan.nbytes - shared


def _rebuild(kind: type[SparseMatrix], parts: tuple[Any, ...], frozen: bool) -> SparseMatrix:
    matrix = kind(*parts)
    return matrix.frozen() if frozen else matrix


def require_values(values: np.ndarray, ndim: int) -> np.ndarray:
    """Return the weights as kernels take them, copied only if need be."""
    array = np.asarray(values)
    if array.dtype not in FLOAT_DTYPES:
        raise InputError(f"values must be float32 or float64, not {array.dtype}")
    if array.ndim != ndim:
        raise InputError(f"values must have {ndim} dimension{'s' * (ndim > 1)}, not shape {array.shape}")
    if not np.isfinite(array).all():
        raise InputError("values must be finite, but they hold NaN or infinity")
    return np.require(array, requirements=["C", "A", "W"])


def real_array(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return `array` as kernels take it: C-contiguous, of `dtype`, aligned to it, writable; copied if need be."""
    array = np.asarray(array)
    if array.dtype == dtype and array.flags.carray:
        return array
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name} must hold real numbers, not {array.dtype}")
    return np.require(array, dtype=dtype, requirements=["C", "A", "W"])


def require_output(out: np.ndarray, shape: tuple[int, ...], dtype: np.dtype, **read: np.ndarray) -> np.ndarray:
    """Return `out` if a product of this shape and dtype, of the named arrays, can be written to it."""
    if not (isinstance(out, np.ndarray) and out.shape == shape and out.dtype == dtype and out.flags.carray):
        kind = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise InputError(f"out must be a writeable, aligned, C-contiguous {dtype} array {shape}, not {kind}")
    for name, array in read.items():
        if np.may_share_memory(out, array):
            raise InputError(f"out must not share memory with {name}")
    return out


def require_shape(shape: tuple[int, int]) -> tuple[int, int]:
    """Return `shape` if it is (n_out, n_in), two integers of at least 1 that an int32 index can count."""
    if not isinstance(shape, tuple | list) or len(shape) != 2:
        raise InputError(f"shape must be (n_out, n_in), not {shape}")
    high = 2**31 - 1
    return require_integer("n_out", shape[0], 1, high), require_integer("n_in", shape[1], 1, high)


def frozen(name: str, array: np.ndarray, dtype: np.dtype | type, low: int, high: int) -> np.ndarray:
    """A read-only C-contiguous copy of integer indices in [low, high), as `dtype`."""
    array = np.asarray(array)
    if array.dtype.kind not in "iu":
        raise InputError(f"{name} must be integers, not {array.dtype}")
    if array.size and (array.min() < low or array.max() >= high):
        wrong = array[(array < low) | (array >= high)].flat[0]
        raise InputError(f"{name} must lie in [{low}, {high}), but hold {wrong}")
    copy = np.array(array, dtype=dtype, order="C")
    copy.flags.writeable = False
    return copy


def require_dense_weight(weight: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return `weight` if it is a float array of the mask's shape."""
    weight = np.asarray(weight)
    if weight.dtype not in FLOAT_DTYPES or weight.shape != mask.shape:
        raise InputError(
            f"weight must be a float32 or float64 array of the mask's shape {mask.shape}, "
            f"not {weight.dtype} {weight.shape}"
        )
    return weight
