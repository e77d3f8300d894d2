"""The stand-in for CuPy: what tests of GPU code rely on when they pass on it."""

import gc
import sys
import time

import numpy as np
import pytest
from cuda_on_cpu import KernelError, examples, fake_cupy, missing_tools

# No test but those of kernels needs a compiler.
needs_compiler = pytest.mark.skipif(missing_tools() is not None, reason=missing_tools() or "")


@pytest.fixture
def cupy(monkeypatch):
    return fake_cupy.use_fake_cupy(monkeypatch)


@pytest.fixture
def capture_error(cupy):
    """What CUDA raises for something that no graph can hold."""
    return pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="cudaErrorStreamCaptureUnsupported")


# ----------------------------------------------------------------------------------------------------
# Which CuPy there is
# ----------------------------------------------------------------------------------------------------
def test_it_is_cupy_to_those_who_import_it(monkeypatch):
    with monkeypatch.context() as patch:
        module = fake_cupy.use_fake_cupy(patch, "80")
        import cupy
        import cupy.cuda
        from cupy.cuda.runtime import CUDARuntimeError

        assert cupy is module
        assert cupy.cuda.Device().compute_capability == "80"
        assert cupy.cuda.Device().attributes["MaxSharedMemoryPerBlockOptin"] == 163 * 1024
        assert cupy.cuda.runtime.getDeviceProperties(0)["name"] == b"NVIDIA A100"
        assert cupy.cuda.is_available()
        assert cupy.cuda.runtime.getDeviceCount() == 1
        assert issubclass(CUDARuntimeError, RuntimeError)
    assert sys.modules.get("cupy") is not module


def test_no_cupy(monkeypatch):
    fake_cupy.use_no_cupy(monkeypatch)
    with pytest.raises(ModuleNotFoundError):
        import cupy  # noqa: F401


@pytest.mark.parametrize("error", ["cudaErrorInsufficientDriver", "cudaErrorNoDevice"])
def test_cupy_without_a_device(monkeypatch, error):
    cupy = fake_cupy.use_cupy_without_device(monkeypatch, error)
    assert not cupy.cuda.is_available()
    module = cupy.RawModule(code="", options=("-std=c++17",), name_expressions=["f"])  # CuPy compiles later
    for act in (
        lambda: cupy.zeros(3), lambda: cupy.asarray([1.0]), lambda: module.get_function("f"), module.compile,
        cupy.cuda.runtime.getDeviceCount, lambda: cupy.cuda.Device().attributes, cupy.cuda.Event,
        cupy.cuda.get_current_stream, cupy.cuda.Device().synchronize,
    ):  # fmt: skip
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match=error):
            act()


def test_what_is_not_there_is_an_error(cupy):
    for module, name in (
        (cupy, "fft"),
        (cupy, "ElementwiseKernel"),
        (cupy.cuda, "MemoryPool"),
        (cupy.cuda.runtime, "malloc"),
    ):
        assert not hasattr(module, name)


# ----------------------------------------------------------------------------------------------------
# Arrays
# ----------------------------------------------------------------------------------------------------
def test_arrays_on_the_device_are_told_from_those_on_the_host(cupy):
    host = np.arange(6, dtype=np.float32).reshape(2, 3)
    device = cupy.asarray(host)
    assert isinstance(device, cupy.ndarray)
    assert not isinstance(host, cupy.ndarray)
    assert not np.shares_memory(device.view(np.ndarray), host)
    back = cupy.asnumpy(device)
    assert type(back) is np.ndarray
    assert np.array_equal(back, host)
    assert not np.shares_memory(back, device.view(np.ndarray))
    for mix in (
        lambda: device + host, lambda: host + device, lambda: cupy.add(device, 1, out=host),
        lambda: device.__setitem__(0, host[0]), lambda: cupy.concatenate([device, host]),
        lambda: cupy.take(device, np.zeros(2, np.int64)), lambda: cupy.dot(device, host.T),
        lambda: np.concatenate([device, device]), lambda: np.testing.assert_array_equal(device, host),
    ):  # fmt: skip
        with pytest.raises(TypeError):
            mix()


def test_what_arrays_make_is_on_the_device(cupy):
    x = cupy.arange(6, dtype=cupy.float32).reshape(2, 3)
    made = [
        x + x, 2 * x, x.T, x[0], x[0, 1], x[:, [0, 2]], x.sum(), x.max(axis=0), x.astype(np.float16), x.copy(),
        x @ x.T, cupy.take(x, cupy.asarray([1, 0]), axis=0), cupy.dot(x, x.T), cupy.concatenate([x, x]),
        cupy.maximum(x, 1), cupy.ascontiguousarray(x.T), cupy.empty_like(x), cupy.zeros_like(x, dtype=np.int32),
        x.ravel(), x.reshape(3, 2),
    ]  # fmt: skip
    assert all(isinstance(array, cupy.ndarray) for array in made)
    assert np.array_equal(made[0].get(), 2 * x.get())
    assert float(made[6]) == 15
    assert np.array_equal(made[11].get(), x.get()[[1, 0]])
    assert made[15].flags.c_contiguous
    assert repr(x) == repr(x.get())


def test_new_arrays(cupy):
    assert np.all(np.isnan(cupy.empty((3, 4), dtype=np.float32).get()))
    assert np.all(cupy.empty(5, dtype=np.int32).get() == -1)
    assert np.array_equal(cupy.full((2, 2), 7, dtype=np.uint16).get(), np.full((2, 2), 7, np.uint16))
    assert cupy.full(2, 1.5).dtype == np.float64
    assert not cupy.zeros(3, dtype=np.float32).get().any()
    assert cupy.ones(3).get().all()
    assert cupy.zeros((2, 3), order="F").flags.f_contiguous
    assert all(cupy.empty(n, dtype=np.uint8).data.ptr % 512 == 0 for n in range(20))


def test_asarray_copies_only_what_it_must(cupy):
    x = cupy.zeros((2, 3), dtype=np.float32)
    assert cupy.asarray(x) is x
    assert cupy.asarray(x, dtype=np.float32) is x
    assert cupy.asarray(x, dtype=np.float64) is not x
    assert cupy.ascontiguousarray(x) is x
    assert cupy.array(x) is not x
    fortran = cupy.asarray(np.ones((2, 3), order="F"))
    assert fortran.flags.f_contiguous
    assert cupy.ascontiguousarray(fortran).flags.c_contiguous


def test_set_and_item_assignment(cupy):
    x = cupy.zeros(3, dtype=np.float32)
    x.set(np.arange(3, dtype=np.float32))
    x[1] = 5
    x[2:] = cupy.full(1, 9, dtype=np.float32)
    assert x.get().tolist() == [0, 5, 9]
    with pytest.raises(ValueError, match="same shape"):
        x.set(np.zeros(4, np.float32))
    with pytest.raises(IndexError, match="wrap"):
        cupy.take(x, cupy.asarray([3]))


# ----------------------------------------------------------------------------------------------------
# Kernels, streams and graphs
# ----------------------------------------------------------------------------------------------------
@pytest.fixture
def total(cupy):
    module = cupy.RawModule(code=examples.SOURCE, options=("-std=c++17",), name_expressions=["total"])
    return module.get_function("total")


@needs_compiler
def test_kernels_take_arrays_on_the_device_only(cupy, total):
    values, result = np.arange(50, dtype=np.float32), cupy.zeros(1, dtype=np.float32)
    total((2,), (32,), (cupy.asarray(values), result, np.int32(50)))
    assert float(result[0]) == values.sum()
    with pytest.raises(KernelError, match="argument 0 is an array in host memory"):
        total((2,), (32,), (values, result, np.int32(50)))


@needs_compiler
def test_a_graph_replays_what_was_captured(cupy, total):
    values, result = cupy.ones(50, dtype=np.float32), cupy.zeros(1, dtype=np.float32)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        assert stream.is_capturing()
        result[...] = 1
        total((2,), (32,), (values, result, np.int32(50)))
        cupy.multiply(result, 2, out=result)
        graph = stream.end_capture()
    assert not stream.is_capturing()
    assert float(result[0]) == 0  # nothing has run
    graph.launch()
    assert float(result[0]) == 2 * (50 + 1)
    values[...] = 2  # the graph reads what is there when it is launched
    graph.launch(stream)
    assert float(result[0]) == 2 * (100 + 1)


@needs_compiler
def test_a_graph_does_not_keep_arrays(cupy, total):
    values, result = cupy.ones(50, dtype=np.float32), cupy.zeros(1, dtype=np.float32)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        total((2,), (32,), (values[:32], result, np.int32(32)))  # a view: its owner counts
        graph = stream.end_capture()
    graph.launch()
    assert float(result[0]) == 32
    del values
    gc.collect()
    with pytest.raises(KernelError, match="has been freed"):
        graph.launch()


def test_what_a_graph_cannot_hold(cupy, capture_error):
    x = cupy.zeros((2, 3), dtype=np.float32)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        for act in (
            lambda: cupy.empty(3), lambda: cupy.asarray([1.0]), lambda: x + 1, lambda: x.get(), lambda: x.sum(),
            lambda: cupy.asnumpy(x), lambda: x.set(np.zeros((2, 3), np.float32)), lambda: x.astype(np.float64),
            lambda: x[:, [0, 1]], stream.synchronize, stream.begin_capture, cupy.cuda.Device().synchronize,
            cupy.cuda.runtime.deviceSynchronize, cupy.cuda.Event().synchronize,
        ):  # fmt: skip
            with capture_error:
                act()
        assert x[1:].T.shape == (3, 1)  # views are no work for the device
        stream.end_capture()
    assert not x.get().any()


def test_captures_begin_and_end_on_streams_of_their_own(cupy, capture_error):
    with capture_error:
        cupy.cuda.get_current_stream().begin_capture()
    stream = cupy.cuda.Stream(non_blocking=True)
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="without begin_capture"):
        stream.end_capture()


def test_work_on_another_stream_is_not_captured(cupy):
    x = cupy.zeros(1)
    free, blocking = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream()
    free.begin_capture()
    x[...] = 1
    free.end_capture().launch()
    assert float(x[0]) == 1
    blocking.begin_capture()
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="cudaErrorStreamCaptureImplicit"):
        x[...] = 2
    blocking.end_capture()


def test_streams_nest(cupy):
    outside = cupy.cuda.get_current_stream()
    first, second = cupy.cuda.Stream(), cupy.cuda.Stream(non_blocking=True)
    with first:
        with second:
            assert cupy.cuda.get_current_stream() is second
        assert cupy.cuda.get_current_stream() is first
    assert cupy.cuda.get_current_stream() is outside


def test_events_measure_time(cupy):
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    time.sleep(0.01)
    cupy.cuda.get_current_stream().record(end)
    end.synchronize()
    assert end.done
    assert cupy.cuda.get_elapsed_time(start, end) >= 10
