"""Training steps of ResNet-18: sparse and dense, each in a process of its own, so that its memory is its own.

The processes take turns, one step each: a noisy machine is noisy for all of them.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from sparsekit.bench import torch_competitors
from sparsekit.bench.measure import Timing
from sparsekit.bench.report import Row, timed, with_ratios
from sparsekit.errors import RunError

_WORK = "ResNet-18, images 3x32x32"


@dataclass(frozen=True)
class Sizes:
    """What to train, and how many steps of each contender to measure, after a few that are not counted."""

    sparsities: tuple[float, ...] = (0.9, 0.95, 0.99)
    own_dense: bool = True
    batch: int = 128
    warm_up: int = 2
    steps: int = 30


FULL = Sizes()
QUICK = Sizes(sparsities=(0.9,), own_dense=False, steps=5)


@dataclass(frozen=True)
class Contender:
    """One way to train the network; `sparsity` is 0 where it is dense."""

    name: str
    kind: str
    sparsity: float
    settings: dict[str, Any]


def contenders(sizes: Sizes) -> list[Contender]:
    """SRigL at several sparsities, and the dense competitors that are installed."""
    srigl = {"library": "sparsekit", "method": "srigl"}
    chosen = [Contender(f"SRigL {100 * s:g} %", "ours", s, srigl) for s in sizes.sparsities]
    if sizes.own_dense:
        settings = {"library": "sparsekit", "method": "dense"}
        chosen.append(Contender("sparsekit dense", "dense", 0.0, settings))
    if torch_competitors.load():
        for name, channels_last in (("NCHW", False), ("channels last", True)):
            settings = {"library": "PyTorch", "channels_last": channels_last}
            chosen.append(Contender(f"PyTorch dense, {name}", "dense", 0.0, settings))
    return chosen


def turns(threads: Sequence[int], *, quick: bool) -> int:
    """Steps of each contender that :func:`run` measures, with all thread counts."""
    return len(threads) * (QUICK if quick else FULL).steps


def run(
    threads: Sequence[int], seed: int, *, quick: bool, advance: Callable[[], object] = lambda: None
) -> tuple[list[Row], list[str]]:
    """Measure, and return the rows and notes: where the time of our steps goes.

    Parameters
    ----------
    threads : thread counts
    seed : of weights, masks and images
    quick : fewer contenders and steps
    advance : called after each turn, of which there are :func:`turns`

    Raises
    ------
    RunError
        If a process ends with an error.
    """
    sizes = QUICK if quick else FULL
    rows, notes = [], []
    for count in threads:
        found = _measured(contenders(sizes), sizes, count, seed, advance)
        base: Row = {"benchmark": "resnet18", "work": _WORK, "batch": sizes.batch, "threads": count}
        rows += with_ratios([base | _row(*measured) for measured in found])
        notes += [_note(contender, count, end) for contender, _, end in found if "profile" in end]
    return rows, notes


def _row(contender: Contender, seconds: list[float], end: dict[str, Any]) -> Row:
    row = timed(contender.name, contender.kind, Timing.of(seconds))
    return row | {"sparsity": contender.sparsity, "peak_memory_mib": end["peak_memory_bytes"] / 2**20}


def _measured(
    chosen: Sequence[Contender], sizes: Sizes, threads: int, seed: int, advance: Callable[[], object]
) -> list[tuple[Contender, list[float], dict[str, Any]]]:
    shared = {"batch": sizes.batch, "threads": threads, "seed": seed}
    with ExitStack() as stack:
        processes = [stack.enter_context(_Stepper(c.settings | {"sparsity": c.sparsity} | shared)) for c in chosen]
        for process in processes:
            for _ in range(sizes.warm_up):
                process.step()
        seconds: list[list[float]] = [[] for _ in chosen]
        for _ in range(sizes.steps):
            for process, samples in zip(processes, seconds, strict=True):
                samples.append(process.step())
            advance()
        ends = [process.end() for process in processes]
    return list(zip(chosen, seconds, ends, strict=True))


def _note(contender: Contender, threads: int, end: dict[str, Any]) -> str:
    total = sum(end["profile"].values())
    shares = ", ".join(f"{part} {1e3 * s:.0f} ms ({s / total:.0%})" for part, s in end["profile"].items())
    update = (
        f"; a step with a topology update takes {end['update_seconds']:.2f} s" if end["update_seconds"] else ""
    )
    return f"resnet18, {contender.name}, {threads} thread{'s' * (threads > 1)}, one step: {shares}{update}"


class _Stepper:
    """A process that takes a step whenever it is asked to."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.name = json.dumps(settings)
        command = [sys.executable, "-m", "sparsekit.bench.stepper", self.name]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def __enter__(self) -> "_Stepper":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def step(self) -> float:
        """Seconds of one step."""
        return self._ask("step")["seconds"]

    def end(self) -> dict[str, Any]:
        """Peak memory, and for our own networks where the time of a step goes."""
        return self._ask("end")

    def _ask(self, what: str) -> dict[str, Any]:
        questions, answers, errors = self.process.stdin, self.process.stdout, self.process.stderr
        assert questions is not None
        assert answers is not None
        assert errors is not None
        try:
            questions.write(what + "\n")
            questions.flush()
            answer = answers.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            last = (errors.read().strip().splitlines() or ["it ended without a word"])[-1]
            raise RunError(f"the process that trains {self.name} failed: {last}")
        return json.loads(answer)
