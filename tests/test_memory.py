"""Where operands lie in memory, and how threads wait."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsekit.kernels.memory import aligned_empty, transposed


@given(shape=st.lists(st.integers(0, 9), max_size=4).map(tuple), dtype=st.sampled_from(["f4", "f8", "u1", "i2"]))
def test_aligned_arrays_start_on_a_cache_line(shape, dtype):
    array = aligned_empty(shape, dtype)
    assert array.shape == shape
    assert array.dtype == dtype
    assert array.ctypes.data % 64 == 0 or array.size == 0
    assert array.flags.carray
    array[...] = 1  # all of it can be written to
    assert (array == 1).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (1, 40), (15, 17), (16, 16), (33, 64), (100, 7), (800, 900)])
def test_transposed(shape, dtype):
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    np.testing.assert_array_equal(transposed(x), x.T)
    np.testing.assert_array_equal(transposed(x.T), x)  # of a strided array too
    assert transposed(x).flags.c_contiguous
    assert transposed(x).ctypes.data % 64 == 0 or x.size == 0


@pytest.mark.parametrize("chosen", [{}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}])
def test_how_threads_wait_is_set_for_a_moment_only(chosen):
    """The bound is in the environment while Numba loads its threading layer, not before and not after."""
    code = """
import os, numba
from sparsekit.kernels.threads import start_threads
seen = []
numba.get_num_threads = lambda: seen.append(os.environ.get("GOMP_SPINCOUNT"))
before = dict(os.environ)
start_threads(), start_threads()
assert dict(os.environ) == before
print(*seen)"""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in names} | chosen
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    expected = chosen.get("GOMP_SPINCOUNT", "None") if chosen else "16000"
    assert done.stdout.split() == [expected]


def test_threads_start_before_the_first_kernel_is_compiled():
    code = """
import numpy as np
from sparsekit import CondensedMatrix
from sparsekit.kernels import threads
matrix = CondensedMatrix.from_mask(np.ones((3, 3), dtype=bool))
matrix.sampled_outer(np.ones((3, 16), np.float32), np.ones((3, 16), np.float32))
print(threads.start_threads.cache_info().currsize)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]
