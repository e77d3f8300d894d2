"""Products that compiled code does at once: what it takes, and that it refuses all the rest."""

import copy

import numpy as np
import pytest
from kernel_helpers import assert_frame_is, framed, mask_of, misaligned

from sparsekit.csr import CSRMatrix
from sparsekit.errors import InputError
from sparsekit.kernels import at_once, compiled, cpu, threads
from sparsekit.kernels.memory import aligned_empty
from sparsekit.kernels.processor import SIMD

# many weights, which are looked up; few, or float64 ones, each of which is read
KINDS = pytest.mark.parametrize(("fan_in", "dtype"), [(20, np.float32), (1, np.float32), (20, np.float64)])


def frozen_and_ready(fan_in=20, dtype=np.float32, batch=1):
    """A matrix 60 -> 40 that has computed a product of a batch, so that compiled code takes the next; and x."""
    rng = np.random.default_rng(2)
    mask = mask_of(CSRMatrix, (40, 60), fan_in, rng) if fan_in > 1 else np.eye(40, 60, dtype=bool)
    mask[30:] = False
    matrix = CSRMatrix.from_dense((rng.standard_normal(mask.shape) * mask).astype(dtype), mask).frozen()
    x = aligned_empty((60, batch), dtype)
    x[...] = rng.standard_normal(x.shape)
    matrix.matmul(x)
    return matrix, x


@pytest.fixture
def alone(monkeypatch):
    """Whether compiled code did all there was to do: Python's own path must not be reached."""
    if not SIMD:
        pytest.skip("there are no kernels in vectors here, and so nothing is compiled that checks arguments")

    def reached(*_):
        pytest.fail("Python looked at the arguments")

    return lambda: monkeypatch.setattr(CSRMatrix, "_operand", reached)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("with_out", [False, True])
@pytest.mark.parametrize("vector", [False, True])
@KINDS
def test_compiled_code_takes_a_sample_unseen(relu, with_bias, with_out, vector, fan_in, dtype, alone):
    matrix, x = frozen_and_ready(fan_in, dtype)
    x = x[:, 0] if vector else x
    bias = np.arange(40, dtype=dtype) - 20 if with_bias else None
    expected = matrix.matmul(x, backend="reference", bias=bias, relu=relu)
    out = np.full((40, 1), np.nan, dtype=dtype) if with_out else None
    alone()
    for _ in range(2):
        result = matrix.matmul(x, out=out, bias=bias, relu=relu)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
        assert result.dtype == dtype
        assert result.shape == expected.shape
        assert result is out or not with_out or (vector and np.shares_memory(result, out))


@pytest.mark.parametrize("offset", [0, 4], ids=["aligned", "misaligned"])
@pytest.mark.parametrize("on_threads", [False, True])
@pytest.mark.parametrize("in_strips", [False, True])
@pytest.mark.parametrize("batch", [2, 3, 8, 13, 32, 33, 70])
def test_compiled_code_takes_samples_unseen(batch, in_strips, on_threads, offset, alone, monkeypatch):
    monkeypatch.setattr(cpu, "_wants_strips", lambda *_: in_strips)
    if on_threads:
        monkeypatch.setattr(compiled, "_PARALLEL_FROM", 0)
    matrix, x = frozen_and_ready(batch=batch)
    x = misaligned(x, offset)
    bias = np.arange(40, dtype=np.float32) - 20
    expected = matrix.matmul(x, backend="reference", bias=bias, relu=True)
    out = framed(np.full((40, batch), np.nan, dtype=np.float32), -99)
    alone()
    assert matrix.matmul(x, out=out, bias=bias, relu=True) is out
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    assert_frame_is(out, -99)
    np.testing.assert_array_equal(matrix.matmul(x, bias=bias, relu=True), out)


@KINDS
@pytest.mark.parametrize("batch", [1, 5])
def test_weights_that_are_read_only_can_be_frozen_and_frozen_ones_again(batch, fan_in, dtype, alone):
    matrix, x = frozen_and_ready(fan_in, dtype, batch)
    expected = matrix.matmul(x, backend="reference")
    plain = CSRMatrix(matrix.values.copy(), matrix.indices, matrix.indptr, matrix.shape)
    plain.values.flags.writeable = False
    again = matrix.frozen(), plain.frozen()
    for one in again:
        one.matmul(x)
    alone()
    for one in again:
        np.testing.assert_allclose(one.matmul(x), expected, rtol=1e-5, atol=1e-5)


def test_a_process_without_threads_takes_the_loops_for_one(monkeypatch):
    """Those for several, which a parent process has kept, would end it."""
    monkeypatch.setattr(compiled, "_PARALLEL_FROM", 0)
    matrix, x = frozen_and_ready(batch=8)
    expected = matrix.matmul(x, backend="reference")

    def launched():
        pytest.fail("a product was started on several threads")

    monkeypatch.setattr(threads, "_lost_threads", True)
    for module in (compiled, at_once):
        monkeypatch.setattr(module, "launching", launched)
    np.testing.assert_allclose(matrix.matmul(x), expected, rtol=1e-5, atol=1e-5)


def strided(array):
    return np.repeat(array, 2, axis=0)[::2]


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def out_and_bias_in_one(_, x):
    both = x[:40].flatten()
    return {"x": x, "bias": both[:40], "out": both.reshape(40, -1)}


MORE_ARGUMENTS = {
    "a list": lambda m, x: {"x": x.tolist()},
    "float64": lambda m, x: {"x": x.astype(np.float64)},
    "float32": lambda m, x: {"x": x.astype(np.float32)},
    "integers": lambda m, x: {"x": np.arange(x.size).reshape(x.shape)},
    "a vector": lambda m, x: {"x": x[:, 0]},
    "strided": lambda m, x: {"x": strided(x)},
    "read-only": lambda m, x: {"x": read_only(x)},
    "infinity": lambda m, x: {"x": np.where(np.arange(60)[:, None] == 3, x.dtype.type(np.inf), x)},
    "NaN": lambda m, x: {"x": np.full_like(x, np.nan)},
    "a bias (n, 1)": lambda m, x: {"x": x, "bias": np.ones((40, 1))},
    "a bias that is a number": lambda m, x: {"x": x, "bias": 1.0},
    "a bias of lists": lambda m, x: {"x": x, "bias": [1.0] * 40},
    "a read-only bias": lambda m, x: {"x": x, "bias": read_only(np.ones(40, dtype=np.float32))},
    "too few inputs": lambda m, x: {"x": x[:59].copy()},
    "too many inputs": lambda m, x: {"x": np.vstack([x, x])},
    "no inputs": lambda m, x: {"x": x[:0]},
    "three dimensions": lambda m, x: {"x": x[:, :, None]},
    "strings": lambda m, x: {"x": np.full((60, 1), "a")},
    "a short bias": lambda m, x: {"x": x, "bias": np.ones(39, dtype=np.float32)},
    "an empty bias": lambda m, x: {"x": x, "bias": np.ones(0, dtype=np.float32)},
    "a wide bias": lambda m, x: {"x": x, "bias": np.ones((40, 2), dtype=np.float32)},
    "a short out": lambda m, x: {"x": x, "out": np.empty((39, x.shape[1]), dtype=np.float32)},
    "a wide out": lambda m, x: {"x": x, "out": np.empty((40, x.shape[1] + 1), dtype=np.float32)},
    "a vector out": lambda m, x: {"x": x, "out": np.empty(40, dtype=np.float32)},
    "a float16 out": lambda m, x: {"x": x, "out": np.empty((40, x.shape[1]), dtype=np.float16)},
    "a read-only out": lambda m, x: {"x": x, "out": read_only(np.empty((40, x.shape[1]), dtype=np.float32))},
    "out is x": lambda m, x: {"x": x, "out": x[:40]},
    "out overlaps x": lambda m, x: {"x": x, "out": x[20:]},
    "out is the bias": out_and_bias_in_one,
    "out is the weights": lambda m, x: {"x": x, "out": m.values.base[: 40 * x.shape[1]].reshape(-1, x.shape[1])},
    "out is a list": lambda m, x: {"x": x, "out": [0.0] * 40},
    "an unknown backend": lambda m, x: {"x": x, "backend": "cpuu"},
}


@KINDS
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("arguments", MORE_ARGUMENTS.values(), ids=MORE_ARGUMENTS.keys())
def test_what_compiled_code_refuses_is_computed_or_refused_as_before(arguments, batch, fan_in, dtype):
    """A matrix that has computed a product treats any arguments like one that has not."""
    outcomes = []
    for ready in (True, False):
        matrix, x = frozen_and_ready(fan_in, dtype, batch)
        matrix = matrix if ready else copy.copy(matrix)
        weights = matrix.values.copy()
        try:
            outcomes.append(matrix.matmul(**arguments(matrix, x)))
        except InputError as error:
            outcomes.append(str(error))
        np.testing.assert_array_equal(matrix.values, weights)
        assert np.isfinite(matrix.matmul(x)).all()  # and it still computes
    np.testing.assert_array_equal(*outcomes)


def test_a_sample_that_is_refused_does_not_change_what_is_kept(monkeypatch):
    """Steps are filled up: their product runs on several threads earlier than one that reads each weight."""
    matrix, x = frozen_and_ready()
    if not matrix.plan.looks_up:
        pytest.skip("this processor looks no inputs up")
    monkeypatch.setattr(compiled, "_PARALLEL_FROM", matrix.nnz + 1)
    matrix = copy.copy(matrix)
    matrix.matmul(np.full_like(x, np.inf))
    assert matrix.plan.looks_up
    assert not matrix.plan.at_once
