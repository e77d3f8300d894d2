"""Epochs of training: an MLP on Fashion-MNIST, sparse and dense, each in a fresh process."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsekit.bench import torch_competitors
from sparsekit.bench.measure import Timing
from sparsekit.bench.report import Row, timed, with_ratios
from sparsekit.data import load_dataset
from sparsekit.errors import InputError, RunError

DATASET = "fashion-mnist"
_SRIGL, _DENSE, _TORCH = "SRigL", "dense", "PyTorch dense"


@dataclass(frozen=True)
class Sizes:
    """What to train; every implementation is trained once a turn, and the first epoch of each is not counted."""

    hidden: tuple[int, ...] = (512, 512)
    sparsity: float = 0.9
    batch: int = 128
    turns: int = 3
    epochs: int = 4
    train_samples: int = 60_000  # of the made-up data
    test_samples: int = 10_000


FULL = Sizes()
QUICK = Sizes(turns=1, epochs=3)


def run(
    threads: Sequence[int], seed: int, *, quick: bool, advance: Callable[[], object] = lambda: None
) -> tuple[list[Row], list[str]]:
    """Train, and return the rows and notes on them.

    Parameters
    ----------
    threads : thread counts
    seed : of weights, masks and batches
    quick : fewer epochs
    advance : called after each training, of which there are :func:`turns`

    Raises
    ------
    RunError
        If a training ends with an error.
    """
    sizes = QUICK if quick else FULL
    rows = []
    with _dataset(sizes, seed) as (dataset, name, notes):
        for count in threads:
            settings = {
                "dataset": dataset,
                "hidden": sizes.hidden,
                "sparsity": sizes.sparsity,
                "batch_size": sizes.batch,
                "epochs": sizes.epochs,
                "threads": count,
            }
            trained: dict[str, list[dict[str, Any]]] = {method: [] for method in _implementations()}
            for turn in range(sizes.turns):
                for method, results in trained.items():
                    results.append(_train(settings | {"method": method, "seed": seed + turn}))
                    advance()
            work = f"MLP {'-'.join(map(str, sizes.hidden))} on {name}"
            base: Row = {"benchmark": "epoch", "work": work, "sparsity": sizes.sparsity, "batch": sizes.batch}
            base |= {"threads": count}
            rows += with_ratios([base | _row(method, results) for method, results in trained.items()])
    return rows, notes


def turns(threads: Sequence[int], *, quick: bool) -> int:
    """How many networks :func:`run` trains."""
    return (QUICK if quick else FULL).turns * len(threads) * len(_implementations())


def _implementations() -> list[str]:
    return [_SRIGL, _DENSE, *([_TORCH] if torch_competitors.load() else [])]


def _row(method: str, results: list[dict[str, Any]]) -> Row:
    """One row; the first epoch of every process is dropped, because compilers and caches start cold in it."""
    timing = Timing.of([seconds for result in results for seconds in result["seconds"][1:]])
    return timed(method, "ours" if method == _SRIGL else "dense", timing) | {
        "peak_memory_mib": float(np.median([result["peak_memory_bytes"] for result in results])) / 2**20,
        "test_accuracy": float(np.median([result["test_accuracy"] for result in results])),
    }


def _train(settings: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "sparsekit.bench.worker", json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RunError(f"training {settings['method']} on {settings['dataset']} failed: {last}")
    return json.loads(done.stdout)


@contextmanager
def _dataset(sizes: Sizes, seed: int) -> Iterator[tuple[str, str, list[str]]]:
    """What to load, what to call it, and notes; made-up data of the same shape where the real are not there."""
    try:
        load_dataset(DATASET)
    except InputError as error:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "made-up.npz"
            np.savez(path, **_made_up(sizes, np.random.default_rng(seed)))
            note = f"epoch: trained on made-up data of the shape of {DATASET} ({error})"
            yield str(path), f"made-up {DATASET}", [note]
    else:
        yield DATASET, DATASET, []


def _made_up(sizes: Sizes, rng: np.random.Generator) -> dict[str, Any]:
    """Ten noisy patterns of 28x28 pixels."""
    patterns = rng.integers(0, 128, (10, 28, 28), dtype=np.uint8)
    arrays: dict[str, Any] = {}
    for suffix, n in (("", sizes.train_samples), ("_test", sizes.test_samples)):
        y = np.arange(n) % 10
        arrays |= {f"x{suffix}": patterns[y] + rng.integers(0, 128, (n, 28, 28), dtype=np.uint8), f"y{suffix}": y}
    return arrays
