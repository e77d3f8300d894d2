"""The GPU benchmark: what it times is checked first; without a device it says what it needs."""

import csv
import json

import numpy as np
import pytest
from cuda_on_cpu import fake_cupy, missing_tools
from cuda_on_cpu.fake_cuda import CUDARuntimeError

from sparsekit.bench import gpu, run
from sparsekit.bench.measure import Implementation, Problem
from sparsekit.cli import main
from sparsekit.errors import GpuUnavailableError, RunError

needs_gpp = pytest.mark.skipif(missing_tools() is not None, reason=str(missing_tools()))


@pytest.fixture
def cupy(monkeypatch):
    monkeypatch.setattr(gpu, "PRODUCTS", 2)
    monkeypatch.setattr(gpu, "QUICK", gpu.Sizes(shapes=((8, 32), (32, 8)), sparsities=(0.5,), batches=(1, 3)))
    return fake_cupy.use_fake_cupy(monkeypatch)


@needs_gpp
def test_it_writes_a_row_for_everything_it_timed(cupy, tmp_path):
    results = run.run("gpu", tmp_path, quick=True, progress=False)
    rows = results.rows["gpu"]
    assert {(row["work"], row["sparsity"], row["batch"]) for row in rows} == {
        (work, 0.5, batch) for work in ("32 -> 8", "8 -> 32") for batch in (1, 3)
    }
    assert {(row["implementation"], row["kind"]) for row in rows} == {
        ("condensed", "ours"),
        ("condensed, samples first", "ours"),
        ("condensed, float16 inputs", "ours"),
        ("condensed, transposes included", "ours"),
        ("cuBLAS FP32", "dense"),
        ("cuBLAS FP32, samples first", "dense"),
    }
    assert all(row["median_us"] > 0 and row["samples"] >= 9 for row in rows)
    written = list(csv.DictReader((tmp_path / "gpu.csv").read_text().splitlines()))
    assert [float(row["median_us"]) for row in written] == [row["median_us"] for row in rows]
    assert json.loads((tmp_path / "gpu.json").read_text())["environment"]["gpu"] == "NVIDIA H100"
    assert {path.name for path in tmp_path.glob("*.png")} == {"gpu-32-8.png", "gpu-8-32.png"}


@needs_gpp
def test_wrong_results_are_not_timed(cupy, tmp_path, monkeypatch):
    def wrong(weight, x):
        yield Implementation("cuBLAS FP32", "dense", lambda: cupy.matmul(weight, x) + np.float32(1))

    monkeypatch.setattr(gpu, "_cublas", wrong)
    with pytest.raises(RunError, match="cuBLAS FP32 gives wrong results in gpu 32 -> 8, 50%, batch 1"):
        run.run("gpu", tmp_path, quick=True, progress=False)
    assert not (tmp_path / "gpu.csv").exists()


def test_what_a_graph_cannot_hold_is_launched_instead(cupy):
    calls = []

    def allocating():
        calls.append(1)
        return cupy.zeros(3)  # refused while a stream captures

    def plain():
        return out.__imul__(np.float32(1))

    out = cupy.ones(3, np.float32)
    assert gpu.captured(allocating) is None
    problem = Problem([Implementation("a", "ours", allocating), Implementation("b", "ours", plain)], [], 1, 1)
    calls.clear()
    timings = gpu.measure(problem, gpu.TURNS + 1)
    assert [timing.samples for timing in timings] == [2 * gpu.TURNS] * 2
    assert len(calls) > gpu.PRODUCTS * 2 * gpu.TURNS
    with pytest.raises(CUDARuntimeError):  # and the stream is not left capturing
        cupy.cuda.Stream(non_blocking=True).end_capture()


@pytest.mark.parametrize(
    ("play", "message"),
    [
        (fake_cupy.use_no_cupy, "the GPU needs CuPy, which is not installed: pip install 'sparsekit[gpu]'"),
        (
            fake_cupy.use_cupy_without_device,
            "the GPU needs a CUDA device and its driver, and CuPy finds none here",
        ),
    ],
)
def test_without_a_device_it_says_what_it_needs(play, message, monkeypatch, tmp_path, capsys):
    play(monkeypatch)
    with pytest.raises(GpuUnavailableError) as error:
        run.run("gpu", tmp_path / "out", progress=False)
    assert str(error.value) == message
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("sys.argv", ["sparsekit", "bench", "gpu", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"sparsekit: error: {message}\n"
