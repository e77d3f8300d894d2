"""Running benchmarks: every case is checked, then timed with each thread count; the results go to files."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from sparsekit.atomic import atomic_path, write_text
from sparsekit.bench import conv, epoch, gpu, linear, resnet, torch_competitors, train_step
from sparsekit.bench.environment import environment
from sparsekit.bench.measure import Case, check, measure
from sparsekit.bench.report import Row, case_rows, csv_text
from sparsekit.checks import require_choice, require_integer
from sparsekit.errors import InputError
from sparsekit.kernels.threads import resolve_threads, thread_limit
from sparsekit.training.folder import make_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CASES: dict[str, Callable[..., Iterator[Case]]] = {
    "linear": linear.cases,
    "train-step": train_step.cases,
    "conv": conv.cases,
}
_TRAININGS = ("epoch", "resnet18")
BENCHMARKS = (*_CASES, *_TRAININGS, "gpu")
REPEATS, QUICK_REPEATS = 30, 10


@dataclass(frozen=True)
class Results:
    """What was measured, on what, and what a reader must know.

    Attributes
    ----------
    rows : by benchmark; the columns are :data:`sparsekit.bench.report.FIELDS`
    """

    environment: dict[str, Any]
    notes: list[str]
    rows: dict[str, list[Row]]

    def to_json(self) -> dict[str, Any]:
        """As one JSON object."""
        return {"environment": self.environment, "notes": self.notes, "rows": self.rows}


def run(
    benchmark: str,
    folder: Path,
    *,
    threads: Sequence[int] | None = None,
    quick: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> Results:
    """Measure; write NAME.csv, NAME.json (the same with the environment) and figures for each benchmark.

    Parameters
    ----------
    benchmark : one of `BENCHMARKS`, or "all", which is those of the CPU; a quick "all" leaves out whole trainings
    folder : made if it is not there; files of an earlier run are replaced
    threads : thread counts; by default 1 and all processors, if quick only 1
    quick : fewer cases and samples, about a minute for all
    seed : of masks, weights and inputs

    Raises
    ------
    InputError
        For a value that is not allowed.
    GpuUnavailableError
        If "gpu" finds no CuPy, driver or device.
    RunError
        If an implementation gives wrong results.
    """
    require_choice("benchmark", benchmark, (*BENCHMARKS, "all"))
    names = (*_CASES, *(() if quick else _TRAININGS)) if benchmark == "all" else (benchmark,)
    counts = _thread_counts(threads, quick=quick) if benchmark != "gpu" else [1]  # host threads make no difference
    require_integer("seed", seed, 0)
    on_gpu = {"gpu": gpu.device()} if benchmark == "gpu" else {}
    make_folder(folder)
    results = Results({}, _notes(names), {})
    for name in names:
        if name in _TRAININGS:
            rows, notes = _trained(name, counts, seed, quick=quick, progress=progress)
            results.notes.extend(notes)
        else:
            rows = _measured(name, counts, seed, quick=quick, progress=progress)
        results.rows[name] = rows
        results.environment.update(environment() | on_gpu)
        _save(name, rows, results, folder)
    return results


def _thread_counts(threads: Sequence[int] | None, *, quick: bool) -> list[int]:
    if threads is None:
        threads = [1] if quick else [1, resolve_threads(None)]
    if not threads:
        raise InputError("threads must name at least one count, not none")
    return list(dict.fromkeys(resolve_threads(count) for count in threads))


def _notes(names: Sequence[str]) -> list[str]:
    notes = []
    if torch_competitors.load() is None:
        notes.append("PyTorch is not installed: install PyTorch's CPU build to add its rows")
    if kernels := os.environ.get("OPENBLAS_CORETYPE"):
        notes.append(
            f"OPENBLAS_CORETYPE={kernels} is set: NumPy's BLAS does not choose its kernels by the processor "
            "and may be slower than it could be; unset it for a fair comparison"
        )
    if "linear" in names:
        notes.append("SciPy's CSR product uses one thread, whatever the thread count")
    return notes


def _measured(name: str, counts: Sequence[int], seed: int, *, quick: bool, progress: bool) -> list[Row]:
    on_gpu = name == "gpu"
    cases = list((gpu.cases if on_gpu else _CASES[name])(quick=quick))
    repeats = QUICK_REPEATS if quick else REPEATS
    rows = []
    with tqdm(total=len(cases) * len(counts), unit="case", disable=not progress) as bar:
        for number, case in enumerate(cases):
            bar.set_description(str(case))
            problem = case.build(np.random.default_rng([seed, number]))
            for count in counts:
                with thread_limit(count), torch_competitors.inference(count):
                    check(problem, f"{case}, {count} thread{'s' * (count > 1)}")
                    timings = gpu.measure(problem, repeats) if on_gpu else measure(problem, repeats, count)
                rows += case_rows(case, count, problem, timings)
                bar.update()
    return rows


def _trained(
    name: str, counts: Sequence[int], seed: int, *, quick: bool, progress: bool
) -> tuple[list[Row], list[str]]:
    module = epoch if name == "epoch" else resnet
    with tqdm(total=module.turns(counts, quick=quick), unit="turn", desc=name, disable=not progress) as bar:
        return module.run(counts, seed, quick=quick, advance=bar.update)


def _save(name: str, rows: list[Row], results: Results, folder: Path) -> None:
    write_text(folder / f"{name}.csv", csv_text(rows))
    only = Results(results.environment, results.notes, {name: rows})
    write_text(folder / f"{name}.json", json.dumps(only.to_json(), indent=2, allow_nan=False) + "\n")
    for file, figure in _figures(name, rows, results.environment).items():
        with atomic_path(folder / file) as temporary:
            figure.savefig(temporary)


def _figures(name: str, rows: list[Row], environment: dict[str, Any]) -> dict[str, "Figure"]:
    """The figures of a benchmark by file name."""
    from sparsekit.bench.pictures import linear_figure, speedup_figure

    if name == "linear":
        counts = dict.fromkeys(row["threads"] for row in rows)
        return {f"linear-threads-{count}.png": linear_figure(rows, count) for count in counts}
    if name == "gpu":
        works = {
            work: [row for row in rows if row["work"] == work] for work in dict.fromkeys(r["work"] for r in rows)
        }
        return {
            f"gpu-{work.replace(' -> ', '-')}.png": linear_figure(part, 1, environment["gpu"])
            for work, part in works.items()
        }
    if name in _TRAININGS:
        return {}
    return {f"{name}.png": speedup_figure(rows, f"{name}, batch {rows[0]['batch']}, float32")}
