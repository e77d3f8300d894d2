"""Where operands lie in memory, and how threads wait."""

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_helpers import conv2d, normalization, results

from sparsekit import DenseMatrix
from sparsekit.kernels import memory, pool
from sparsekit.kernels.memory import aligned_empty, transposed
from sparsekit.kernels.pool import Pool
from sparsekit.kernels.threads import one_blas_thread
from sparsekit.nn import BatchNorm2d, ReLU, Sequential

MIB = 1 << 20


@given(shape=st.lists(st.integers(0, 9), max_size=4).map(tuple), dtype=st.sampled_from(["f4", "f8", "u1", "i2"]))
def test_aligned_arrays_start_on_a_cache_line(shape, dtype):
    array = aligned_empty(shape, dtype)
    assert array.shape == shape
    assert array.dtype == dtype
    assert array.ctypes.data % 64 == 0 or array.size == 0
    assert array.flags.carray
    array[...] = 1  # all of it can be written to
    assert (array == 1).all()


def test_address_of_any_array():
    array = np.arange(12.0).reshape(3, 4)
    read_only = array.view()
    read_only.flags.writeable = False
    for one in (array, read_only, array[1:, 2:], array.T, array[3:]):
        assert memory.address(one) == one.__array_interface__["data"][0]


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


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_large_arrays_are_like_small_ones(dtype):
    for shape in ((3, 1021, 1033), (MIB // np.dtype(dtype).itemsize,), (1, 7, MIB)):
        array = aligned_empty(shape, dtype)
        assert array.shape == shape
        assert array.dtype == dtype
        assert array.flags.carray
        assert address(array) % 64 == 0
        array[...] = 1
        assert (array == 1).all()


def test_memory_is_handed_on_when_its_array_is_gone():
    array = aligned_empty((512, 1024), np.float32)
    array[...] = 7
    place = address(array)
    del array
    again = aligned_empty((1024, 256), np.float64)
    assert address(again) == place
    assert again.view(np.float32)[0, 0] == 7  # nobody has spent time on it
    del again
    smaller = aligned_empty((MIB + 1,), np.uint8)
    assert address(smaller) == place  # another size may be in the same place


@pytest.mark.parametrize(
    "part",
    [
        lambda array: array[5:9, ::3],
        lambda array: array.T,
        lambda array: array.reshape(-1)[1:].view(np.int32)[::-1].view(np.float32)[3:],
        lambda array: array[2:][1:].T[::2][:1, :1],
        lambda array: memoryview(array)[3:4],
        lambda array: np.asarray(memoryview(array[1:])),
        lambda array: np.broadcast_to(array[0], (4, 600)),
        lambda array: np.lib.stride_tricks.sliding_window_view(array, (2, 2)),
    ],
)
def test_memory_with_a_view_is_not_handed_out(part):
    array = aligned_empty((700, 600), np.float32)
    array[...] = 7
    low, high = address(array), address(array) + array.nbytes
    view = part(array)
    del array
    others = [aligned_empty((700, 600), np.float32) for _ in range(3)]
    for other in others:
        assert not low <= address(other) < high
        other[...] = -1
    assert (np.asarray(view) == 7).all()
    del view
    assert address(aligned_empty((700, 600), np.float32)) == low


def test_copies_have_memory_of_their_own():
    array = aligned_empty((700, 600), np.float32)
    array[...] = 7
    copies = [copy.deepcopy(array), copy.copy(array), pickle.loads(pickle.dumps(array)), array.copy(), array + 0]
    for twin in copies:
        assert not np.may_share_memory(twin, array)
    place = address(array)
    del array
    other = aligned_empty((700, 600), np.float32)
    assert address(other) == place
    other[...] = -1
    for twin in copies:
        assert (twin == 7).all()
        twin[...] = 5
    assert (other == -1).all()


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), largest=st.sampled_from([1, 100, 20_000, 300_000]))
def test_no_two_arrays_share_memory_and_the_pool_stays_small(seed, largest):
    """Random sizes come and go in random order, in regions of 64 kB; each array keeps what was written to it."""
    rng = np.random.default_rng(seed)
    with patch.object(pool, "_REGION", 1 << 16):
        blocks = Pool()
        live, peak = {}, 0
        for number in range(200):
            if live and rng.random() < (0.3 if number < 100 else 0.6):
                chosen = list(live)[rng.integers(len(live))]
                assert (live.pop(chosen) == chosen % 251).all()
            else:
                size = int(rng.integers(0, largest + 1))
                array = blocks.take(size)
                assert array.shape == (size,)
                assert array.dtype == np.uint8
                assert address(array) % 64 == 0 or size == 0
                array[...] = number % 251
                live[number] = array
                assert all(
                    int(a.max(initial=n % 251)) == int(a.min(initial=n % 251)) == n % 251 for n, a in live.items()
                )
            array = None
            peak = max(peak, sum(-(-max(1, a.size) // 4096) * 4096 for a in live.values()))
            assert blocks.n_bytes <= 3 * peak + (1 << 17)
        live.clear()
        blocks.take(70_000_000)  # no region has room for it: those that are empty go
        assert blocks.n_bytes <= 70_000_000 + 4096


def test_free_neighbours_become_one_place():
    blocks = Pool()
    arrays = [blocks.take(10_000) for _ in range(50)]
    first = address(arrays[0])
    for k in [*range(0, 50, 2), *range(49, 0, -2)]:
        arrays[k] = None
    assert address(blocks.take(50 * 12_288)) == first
    del arrays


@pytest.mark.parametrize("available", [100_000, 50_000])
def test_where_the_system_has_little_memory_left(available):
    """A region of just the array's size is tried then; where that fails too the pool goes on working."""
    pages = pool._pages

    def scarce(n_bytes):
        if n_bytes > available:
            raise MemoryError
        return pages(n_bytes)

    blocks = Pool()
    with patch.object(pool, "_pages", scarce):
        if available < 65_536:
            with pytest.raises(MemoryError):
                blocks.take(60_000)
        else:
            blocks.take(60_000)[...] = 1
            assert blocks.n_bytes == 61_440
    array = blocks.take(60_000)
    array[...] = 1
    assert array.size == 60_000


def test_threads_never_share_memory():
    """Each writes its own number, does something else, and finds it again; arrays are also dropped by others."""
    wrong, left_to_others = [], []
    interval = sys.getswitchinterval()

    def work(number):
        rng = np.random.default_rng(number)
        for k in range(150):
            arrays = [aligned_empty((int(rng.integers(MIB, 2 * MIB)),), np.uint8) for _ in range(2)]
            mark = (number * 50 + k % 50) % 256
            for array in arrays:
                array[::4096] = mark
            if rng.random() < 0.5:
                left_to_others.append((mark, arrays.pop()))
            while len(left_to_others) > 6:
                expected, array = left_to_others.pop(0)
                if not (array[::4096] == expected).all():
                    wrong.append(number)
            wrong.extend(number for array in arrays if not (array[::4096] == mark).all())

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(5)]
    try:
        sys.setswitchinterval(1e-6)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    finally:
        sys.setswitchinterval(interval)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


def test_the_garbage_collector_may_return_memory_at_any_moment():
    """In the middle of taking some, too: arrays in cycles."""
    done = threading.Event()

    def work():
        for _ in range(300):
            cycle = [aligned_empty((MIB,), np.uint8)]
            cycle.append(cycle)
        done.set()

    thresholds = gc.get_threshold()
    try:
        gc.set_threshold(1, 1, 1)
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        assert done.wait(60)
    finally:
        gc.set_threshold(*thresholds)
    gc.collect()
    aligned_empty((MIB,), np.uint8)
    assert memory._pool.n_bytes <= 1 << 30


def test_a_forked_process_has_memory_of_its_own():
    code = """
import os
from sparsekit.kernels.memory import aligned_empty
array = aligned_empty((1 << 20,), "f4")
gone = aligned_empty((1 << 20,), "f4")
array[...] = gone[...] = 1
if os.fork() == 0:
    array[...] = 2
    del gone
    aligned_empty((1 << 20,), "f4")[...] = 2
    os._exit(0)
os.wait()
print(array.min(), array.max(), gone.min(), gone.max())"""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1.0"] * 4


def test_training_with_batches_of_changing_sizes_reuses_memory(rng):
    """After one round of all sizes the pool has what it takes, and results do not depend on what lay there."""
    network = Sequential(
        {
            "conv1": conv2d(DenseMatrix, rng, 8, 3, 3, padding=1, dtype=np.float32),
            "bn": normalization(BatchNorm2d, 8, rng, np.float32),
            "relu": ReLU(),
            "conv2": conv2d(DenseMatrix, rng, 8, 8, 3, padding=1, dtype=np.float32),
        }
    )
    sizes, rounds = (64, 96, 80, 120), []
    batches = [rng.standard_normal((3, 24, 24, n), dtype=np.float32) for n in sizes]
    gradients = [rng.standard_normal((8, 24, 24, n), dtype=np.float32) for n in sizes]
    before = memory._pool.n_bytes
    for _ in range(3):
        found = []
        with one_blas_thread():
            for x, g in zip(batches, gradients, strict=True):
                arrays = results(network, x, g).items()
                found += [array.tobytes() for name, array in arrays if "running" not in name]
        rounds.append((memory._pool.n_bytes, found))
    assert rounds[0][0] <= before + (256 << 20) + 4096
    assert {held for held, _ in rounds} == {rounds[0][0]}
    assert all(found == rounds[0][1] for _, found in rounds)
