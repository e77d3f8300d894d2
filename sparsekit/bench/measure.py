"""Checking and timing: every way to do the same work, first its results, then its time, all taking turns."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sparsekit.errors import RunError

TURNS = 5  # many, since a neighbour on the same core may be there for seconds
PAUSE = 0.08  # seconds, after which the threads of the implementation before have stopped waiting for work
WARM_UP = 0.03  # seconds of runs that are not timed: they wake threads up and fill the caches

_SHORT = 2e-4  # seconds; a shorter run is repeated within a sample
_SAMPLE = 5e-4  # seconds that such a sample takes


@dataclass(frozen=True)
class Implementation:
    """One way to do the work of a case.

    Attributes
    ----------
    name : as tables and figures show it
    kind : "ours", or what it competes as
    run : does the work once; returns an array or several
    convert : turns what `run` returns into the arrays of `expected`, which lie feature-major
    expected : what the results are compared with, where it is not the same as for the others
    tolerance : by how much a result may be off, relative to the largest one; float32 sums in any order stay far
        below the usual tolerance, one wrong weight far above
    """

    name: str
    kind: Literal["ours", "dense", "csr"]
    run: Callable[[], Any]
    convert: Callable[[Any], Sequence[Any]] | None = None
    expected: Sequence[np.ndarray] | None = None
    tolerance: float = 1e-4


@dataclass(frozen=True)
class Problem:
    """Work that several implementations do.

    Attributes
    ----------
    expected : the results, float64
    stored_macs, dense_macs : multiply-adds of one layer, those of stored weights and those of all weights
    layers : layers that one run goes through; times are for one layer
    """

    implementations: Sequence[Implementation]
    expected: Sequence[np.ndarray]
    stored_macs: int
    dense_macs: int
    layers: int = 1


@dataclass(frozen=True)
class Case:
    """A line of a benchmark's table: what is measured, and how to build it."""

    benchmark: str
    work: str
    sparsity: float
    batch: int
    build: Callable[[np.random.Generator], Problem]
    weights: str = "hot"

    def __str__(self) -> str:
        return f"{self.benchmark} {self.work}, {self.sparsity:.0%}, batch {self.batch}, {self.weights} weights"


@dataclass(frozen=True)
class Timing:
    """Quartiles in seconds, and the number of samples."""

    q1: float
    median: float
    q3: float
    samples: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Timing":
        """Summarize samples."""
        q1, median, q3 = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
        return cls(q1, median, q3, len(seconds))


def check(problem: Problem, where: object) -> None:
    """Run every implementation once and compare its results with the float64 reference.

    Raises
    ------
    RunError
        If a result is wrong; it names the implementation and `where`.
    """
    for implementation in problem.implementations:
        results = (implementation.convert or as_list)(implementation.run())
        wanted = problem.expected if implementation.expected is None else implementation.expected
        if len(results) != len(wanted):
            raise RunError(f"{implementation.name} gives {len(results)} results, not {len(wanted)}, in {where}")
        for result, expected in zip(results, wanted, strict=True):
            _compare(implementation, np.asarray(result), expected, where)


def _compare(implementation: Implementation, result: np.ndarray, expected: np.ndarray, where: object) -> None:
    name = implementation.name
    if result.shape != expected.shape:
        raise RunError(f"{name} gives shape {result.shape}, not {expected.shape}, in {where}")
    error, scale = np.abs(result - expected).max(), np.abs(expected).max()
    if not error <= implementation.tolerance * scale:  # NaN is refused too
        raise RunError(
            f"{name} gives wrong results in {where}, shape {expected.shape}: off by {error:.3g}, "
            f"where the largest is {scale:.3g}"
        )


def as_list(results: Any) -> Sequence[Any]:
    """The results of a run as a sequence, where it returns a single one too."""
    return results if isinstance(results, list | tuple) else [results]


def transposes(results: Any) -> list[np.ndarray]:
    """Results that lie samples first as the reference has them."""
    return [np.asarray(result).T for result in as_list(results)]


def columns(results: Any) -> list[np.ndarray]:
    """Results that may be vectors as matrices."""
    return [np.asarray(result).reshape(len(result), -1) for result in as_list(results)]


def in_turn(calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    """One function that makes all the calls; the call itself where there is only one, which costs nothing."""
    return calls[0] if len(calls) == 1 else lambda: [call() for call in calls]


def busy_wait(seconds: float) -> None:
    """Let time pass without giving the processor away.

    On a shared machine a processor that slept may wake up on a core where somebody else works, and be slow for as
    long as a turn takes. A program that computes all the time is soon alone on its core.
    """
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def measure(
    problem: Problem,
    repeats: int,
    threads: int = 1,
    *,
    clock: Callable[[], float] = time.perf_counter,
    wait: Callable[[float], None] = busy_wait,
) -> list[Timing]:
    """Time a layer of every implementation; they take turns, so that a noisy machine is noisy for all of them.

    Before each turn are runs that are not timed, equally long for all: they wake the threads up and fill the
    caches. Before them, if there are several threads, is a pause, in which the processor is kept busy.

    Parameters
    ----------
    problem : what to time
    repeats : samples of each implementation, at least; a multiple of the turns is taken
    threads : of the implementations
    clock, wait : in seconds
    """
    samples: list[list[float]] = [[] for _ in problem.implementations]
    for _ in range(TURNS):
        for implementation, seconds in zip(problem.implementations, samples, strict=True):
            if threads > 1:
                wait(PAUSE)
            calls = _calls_a_sample(implementation.run, clock)
            for _ in range(math.ceil(repeats / TURNS)):
                seconds.append(_time(implementation.run, calls, clock) / problem.layers)
    return [Timing.of(seconds) for seconds in samples]


def _calls_a_sample(run: Callable[[], Any], clock: Callable[[], float]) -> int:
    """Warm up; how many calls take long enough to be timed."""
    run()
    warm = clock() + WARM_UP
    seconds = _time(run, 1, clock)
    while clock() < warm:
        seconds = _time(run, 1, clock)
    if seconds >= _SHORT:
        return 1
    calls = math.ceil(_SAMPLE / max(seconds, 1e-7))
    _time(run, calls, clock)
    return calls


def _time(run: Callable[[], Any], calls: int, clock: Callable[[], float]) -> float:
    """Seconds a call."""
    started = clock()
    for _ in range(calls):
        run()
    return (clock() - started) / calls
