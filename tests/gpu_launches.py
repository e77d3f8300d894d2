"""Small launches of every GPU kernel, for runs under a sanitizer, and mistakes to plant in the kernels.

    python tests/cuda_on_cpu/sanitized.py thread tests/gpu_launches.py float32
    python tests/cuda_on_cpu/sanitized.py address tests/gpu_launches.py float32 float16 bfloat16
    python tests/cuda_on_cpu/sanitized.py address tests/gpu_launches.py "staging goes one row too far"

Exit status and report are those of `sanitized.py`.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from cuda_on_cpu.fake_cupy import use_fake_cupy

from sparsekit.condensed import CondensedMatrix
from sparsekit.gpu_convolution import GpuConvolution
from sparsekit.kernels import gpu
from sparsekit.kernels.gpu_arrays import bfloat16_bits
from sparsekit.kernels.gpu_dispatch import Choice
from sparsekit.kernels.gpu_instances import INSTANCES, KINDS, SOURCE, Shape

SMALL, TILE = "condensed-small", "condensed-tile"


@dataclass(frozen=True)
class Bug:
    """A mistake in `condensed.cu`.

    Attributes
    ----------
    right, wrong : the text as it is, found once, and what it becomes
    path : how products have to be computed to meet it
    sanitizer : the one that has to report it as well; None: results alone tell
    """

    right: str
    wrong: str
    path: str = TILE
    sanitizer: str | None = None


PLANTED_BUGS = {
    "no barrier behind the wait for a chunk": Bug("    __syncthreads();  // ... for every thread\n", "\n"),
    "no barrier before a buffer is used again": Bug(
        "    __syncthreads();  // nobody reads this buffer any more", "    // nobody", sanitizer="thread"
    ),
    "a wait that is satisfied too early": Bug(
        "SK_COPY_WAIT(1);  // this chunk", "SK_COPY_WAIT(2);  // this chunk"
    ),
    "no barrier before the parts are added": Bug(
        "  __syncthreads();\n  if (warp.part == 0)\n    for (int part = 1;",
        "  if (warp.part == 0)\n    for (int part = 1;",
    ),
    "a barrier that not all threads reach": Bug(
        "    __syncthreads();  // ... for every thread",
        "    if (threadIdx.x < 32) __syncthreads();  // ... for every thread",
    ),
    "staging stops one row early": Bug(
        "t < count * SEGMENTS; t += blockDim.x)\n      stage_segment(x, first_input + t / SEGMENTS, ",
        "t < (count - 1) * SEGMENTS; t += blockDim.x)\n      stage_segment(x, first_input + t / SEGMENTS, ",
    ),
    "staging goes one row too far": Bug(
        "t < count * SEGMENTS; t += blockDim.x)\n      stage_segment(x, first_input + t / SEGMENTS, ",
        "t < (count + 1) * SEGMENTS; t += blockDim.x)\n      stage_segment(x, first_input + t / SEGMENTS, ",
        sanitizer="address",
    ),
    "a row of zeros that is none": Bug(
        "  clear_zero_rows(tile, packed.chunk_rows, min(2, packed.n_chunks));\n", ""
    ),
    "the output tile is read with another stride": Bug(
        "tile[t / rows * stride + t % rows]", "tile[t / rows * rows + t % rows]"
    ),
    "lanes exchange what they should keep": Bug(
        "const float sent = upper ? values[i] : values[i + held];",
        "const float sent = upper ? values[i + held] : values[i];",
        path=SMALL,
    ),
    "a row's two lanes mix up their weights": Bug(
        "lane.half ? dots[0] : dots[2], 1)", "lane.half ? dots[2] : dots[0], 1)"
    ),
    "no barrier before a tile of x is used again": Bug(
        "    __syncthreads();  // before the tile after the next one", "    // before"
    ),
    "the partial sums of two slices overlap": Bug("* partial_steps * ROWS * 2;", "* 0 * ROWS * 2;"),
}

_TILED = ("pack", "gather_features<float>", "gather_samples<float>", "outer<float>")
_COMPILED = {TILE: _TILED, SMALL: ("pack", "outer<float>", "gather_few<float, unsigned short, 16>")}


@contextmanager
def plant(monkeypatch, folder: Path, name: str) -> Iterator[None]:
    """Compile the kernels with a mistake, those that will be launched alone, and use small blocks."""
    bug, source = PLANTED_BUGS[name], SOURCE.read_text(encoding="utf-8")
    assert source.count(bug.right) == 1, f"the text of {name!r} is not in condensed.cu once"
    planted = folder / "condensed.cu"
    planted.write_text(source.replace(bug.right, bug.wrong), encoding="utf-8")
    monkeypatch.setattr(gpu, "SOURCE", planted)
    monkeypatch.setattr(gpu, "INSTANCES", [i for i in INSTANCES if i.name in _COMPILED[bug.path]])
    use_small_blocks(monkeypatch)
    forget_kernels()
    yield
    forget_kernels()


def use_small_blocks(monkeypatch) -> None:
    """Chunks of 12 inputs, blocks of 128 threads: all that happens happens in small arrays, too."""
    monkeypatch.setattr("sparsekit.kernels.gpu_order.chunk_rows", lambda n_inputs, shared: min(12, n_inputs))
    monkeypatch.setattr(gpu, "SHAPES", (Shape(slices=2, split=2),))


def forget_kernels() -> None:
    gpu._kernel.cache_clear()
    gpu._module.cache_clear()


def random_matrix(n_out: int, n_in: int, fan_in: int) -> CondensedMatrix:
    rng = np.random.default_rng(0)
    mask = np.zeros((n_out, n_in), dtype=bool)
    for row in mask[1:]:  # the first neuron is ablated
        row[rng.choice(n_in, fan_in, replace=False)] = True
    return CondensedMatrix.from_dense(rng.standard_normal(mask.shape).astype(np.float32) * mask, mask)


def launch_products(cupy, kind: str) -> None:
    """A block and a half of neurons, four chunks, a tile of samples and a rest."""
    batch = 33 if kind == "float32" else 65
    matrix = random_matrix(40, 41, 7).to_gpu()
    x, g = (device_array(cupy, (n, batch), kind) for n in (41, 40))
    matrix.matmul(x, bias=device_array(cupy, (40,), "float32"), relu=True)
    matrix.matmul(device_array(cupy, (batch, 41), kind), samples_first=True)
    matrix.sampled_outer(g, x)


def launch_others(cupy, kind: str) -> None:
    """The transposed index, and a convolution that reads padding."""
    random_matrix(40, 20, 7).to_gpu().rmatmul(device_array(cupy, (40, 7), kind))
    convolution = GpuConvolution(random_matrix(5, 18, 7).to_gpu(), 2, 3, stride=2, padding=1)
    convolution.forward(device_array(cupy, (2, 3, 3, 7), kind))


def launch_small(cupy, kind: str) -> None:
    for n_in in (41, 2**16 + 1):
        matrix = random_matrix(6, n_in, 35).to_gpu()
        for batch in (1, 3, 17):
            matrix.matmul(device_array(cupy, (n_in, batch), kind))
    random_matrix(6, 9, 8).to_gpu().rmatmul(device_array(cupy, (6, 17), kind))


def device_array(cupy, shape: tuple[int, ...], kind: str):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return cupy.asarray(bfloat16_bits(x) if kind == "bfloat16" else x.astype(kind))


def take(monkeypatch, path: str) -> None:
    """Compute every product this way."""
    monkeypatch.setattr("sparsekit.gpu_matrix.choose", lambda *args, **kwargs: Choice(path, {}))


def launch_all(monkeypatch, cupy, kinds: list[str]) -> None:
    """Launch every instance for these kinds of x, and say so."""
    instances = [i for i in INSTANCES if i.kind in {KINDS[kind] for kind in kinds}]
    launched, launch = set(), gpu._launch

    def noted(name, *arguments):
        launched.add(name)
        launch(name, *arguments)

    monkeypatch.setattr(gpu, "_launch", noted)
    for kind in kinds:
        take(monkeypatch, SMALL)
        launch_small(cupy, kind)
        take(monkeypatch, TILE)
        launch_products(cupy, kind)
        launch_others(cupy, kind)
    assert launched == {instance.name for instance in instances}
    print("all instances launched")


def main(*arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        cupy = use_fake_cupy(patch, "75")
        use_small_blocks(patch)
        if arguments[0] not in PLANTED_BUGS:
            launch_all(patch, cupy, list(arguments))
            return
        take(patch, TILE)
        with plant(patch, Path(folder), arguments[0]):
            launch_products(cupy, "float32")


if __name__ == "__main__":
    main(*sys.argv[1:])
