"""One contender of the ResNet-18 benchmark, in a process of its own: `python -m sparsekit.bench.stepper SETTINGS`.

SETTINGS are JSON. For each line "step" on its input it takes a training step and prints its seconds, for "end"
its peak memory and, for our own networks, a profile, all as JSON. Each library is loaded only where it is
measured, because memory is.
"""

import cProfile
import json
import pstats
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

_PARTS = {  # (file, function): what of a step is spent in it, functions that it calls included
    ("sparsekit/convolution.py", "forward"): "convolution, forward",
    ("sparsekit/convolution.py", "input_gradient"): "input gradient",
    ("sparsekit/convolution.py", "weight_gradient"): "weight gradient",
    ("kernels/normalization.py", "statistics"): "batch norm, ReLU and sums",
    ("kernels/normalization.py", "affine"): "batch norm, ReLU and sums",
    ("kernels/normalization.py", "gradient"): "batch norm, ReLU and sums",
    ("nn/activation.py", "rectified_gradient"): "batch norm, ReLU and sums",
    ("sparsekit/optim.py", "step"): "optimizer",
}


def main(settings: dict[str, Any]) -> None:
    """Answer lines of standard input until "end"."""
    rng = np.random.default_rng(settings["seed"])
    x = rng.standard_normal((settings["batch"], 3, 32, 32), dtype=np.float32)
    y = rng.integers(0, 10, settings["batch"])
    build = _pytorch if settings["library"] == "PyTorch" else _sparsekit
    with ExitStack() as stack:
        step, finish = build(x, y, settings, stack)
        for line in sys.stdin:
            if line.strip() == "end":
                print(json.dumps(finish()), flush=True)
                break
            started = time.perf_counter()
            step()
            print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)


def _sparsekit(
    x: np.ndarray, y: np.ndarray, settings: dict[str, Any], stack: ExitStack
) -> tuple[Callable[[], Any], Callable]:
    from sparsekit.config import make_config
    from sparsekit.counting import peak_memory_bytes
    from sparsekit.data import Dataset
    from sparsekit.kernels.threads import one_blas_thread, thread_limit
    from sparsekit.training.run import build_model, build_trainer, compile_kernels

    names = tuple(map(str, range(10)))
    dataset = Dataset("noise", x, y, x[:1], y[:1], names)
    chosen = {key: settings[key] for key in ("method", "sparsity", "seed")}
    config = make_config(chosen, {"model": "resnet18", "batch_size": len(x), "epochs": 1000, "scaling": "unit"})
    model = build_model(config, dataset)
    stack.enter_context(thread_limit(settings["threads"]))
    if settings["method"] != "dense":
        stack.enter_context(one_blas_thread())
    compile_kernels(model, dataset.sample_shape, len(x))
    trainer = build_trainer(config, model, progress=False)
    inputs, labels = next(iter(trainer.prepare(dataset)))

    def step() -> None:
        trainer.train_step(inputs, labels)

    def finish() -> dict[str, Any]:
        peak = peak_memory_bytes()
        return {"peak_memory_bytes": peak, "profile": _profile(step), "update_seconds": _update(trainer, step)}

    return step, finish


def _profile(step: Callable[[], None]) -> dict[str, float]:
    """Seconds of one step by part."""
    profiler = cProfile.Profile()
    profiler.runcall(step)
    stats = pstats.Stats(profiler)
    seconds = dict.fromkeys(_PARTS.values(), 0.0)
    for (file, _, function), (_, _, _, cumulative, _) in stats.stats.items():  # pyright: ignore[reportAttributeAccessIssue]
        part = _PARTS.get(("/".join(Path(file).parts[-2:]), function))
        if part:
            seconds[part] += cumulative
    total = stats.total_tt  # pyright: ignore[reportAttributeAccessIssue]
    return seconds | {"the rest": total - sum(seconds.values())}


def _update(trainer: Any, step: Callable[[], None]) -> float | None:
    """Seconds of a step that the topology is updated after."""
    if trainer.topology is None:
        return None
    trainer.schedule = type(trainer.schedule)(1, trainer.schedule.alpha, trainer.schedule.t_end)
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def _pytorch(
    x: np.ndarray, y: np.ndarray, settings: dict[str, Any], stack: ExitStack
) -> tuple[Callable[[], Any], Callable]:
    from sparsekit.bench.torch_competitors import resnet18_step
    from sparsekit.counting import peak_memory_bytes

    step = resnet18_step(
        x, y, threads=settings["threads"], seed=settings["seed"], channels_last=settings["channels_last"]
    )
    return step, lambda: {"peak_memory_bytes": peak_memory_bytes()}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
