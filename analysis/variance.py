"""Variance of the output norm: theory against simulation, as tables and figures.

`python -m analysis.variance` simulates sparse layers, convolutions and networks, compares mean and variance of
|z|^2 with :mod:`analysis.theory` and its neighbours, and writes to the output folder:

simulated.csv
    one row a simulated point: theory, estimate, standard error and z-score
curves.csv
    the theory's curves
differences.csv
    the three differences between masks over n, theory and simulation
*.svg, *.png
    the figures, see :mod:`analysis.plots.variance`

The command fails if more points disagree than chance allows, see :mod:`analysis.chance`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from tqdm.auto import tqdm

from analysis.chance import Verdict, judge
from analysis.plots import save_figure
from analysis.plots.variance import FIGURES
from analysis.tables import write_csv
from analysis.theory import (
    bernoulli_minus_constant_fan_in,
    bernoulli_minus_per_layer,
    per_layer_minus_constant_fan_in,
)
from analysis.variance_points import (
    FIELDS,
    Point,
    Row,
    curve_points,
    random_points,
    simulated_points,
    trained_points,
)
from sparsekit.checks import require_integer
from sparsekit.console import (
    Json,
    Out,
    Quiet,
    check_json,
    console,
    fail,
    new_folder,
    run_app,
    show_progress,
    write_json,
)
from sparsekit.errors import InputError
from sparsekit.kernels.threads import thread_limit
from sparsekit.training.folder import make_folder

_ESTIMATED = (
    "samples", "mean", "mean_error", "mean_z", "variance", "variance_error", "variance_z",
)  # fmt: skip
_DIFFERENCE_FIELDS = ("difference", "sparsity", "n", "theory", "estimate", "error", "z")
_TABLES = ("simulated", "curves", "differences")
_FILES = {f"{name}.csv" for name in _TABLES} | {f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png")}
_SAMPLES, _FULL_SAMPLES = 25_000, 500_000
_DIFFERENCES = {
    "bernoulli - constant_fan_in": bernoulli_minus_constant_fan_in,
    "bernoulli - per_layer": bernoulli_minus_per_layer,
    "per_layer - constant_fan_in": per_layer_minus_constant_fan_in,
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def variance(
    out: Out = None,
    full: Annotated[
        bool, typer.Option("--full", help=f"More points, {_FULL_SAMPLES:,} samples each: for publication.")
    ] = False,
    samples: Annotated[
        int | None, typer.Option(help=f"Samples a point (default: {_SAMPLES:,}).", show_default=False)
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Folder of a finished sparsekit run, whose masks are simulated too."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of masks, weights, gates and inputs.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Threads (default: all). Results do not change.")] = None,
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Compare the theory of the output norm's variance with simulation, and draw both.

    Writes tables and figures and prints every z-score. Exit code 1: more points disagree than chance allows.
    """
    check_json(json_file)
    samples = require_integer("samples", _default_samples(full) if samples is None else samples, 3)
    require_integer("seed", seed, 0)
    trained = trained_points(run) if run else []
    with thread_limit(threads):
        folder = _require_folder(out or new_folder("variance"))
        rows = simulate([*simulated_points(full=full), *trained], samples, seed, progress=show_progress(quiet))
    curves = [point.row for point in [*curve_points(), *random_points(trained)]]
    verdicts = {name: judge([row[f"{name}_z"] for row in rows]) for name in ("mean", "variance")}
    _save(folder, rows, curves)
    agree = all(verdict.agrees for verdict in verdicts.values())
    write_json(json_file, {"rows": rows, "agrees": agree, **{k: asdict(v) for k, v in verdicts.items()}})
    if not quiet:
        console().print(_table(rows, verdicts))
        print(f"tables and figures in {folder}")
    if not agree:
        fail("; ".join(f"theory and simulation disagree in the {k}: {v}" for k, v in _failed(verdicts)), 1)


def simulate(points: Sequence[Point], samples: int, seed: int, *, progress: bool) -> list[Row]:
    """One row a point: its description and theory, the estimate, and the z-scores of mean and variance.

    Every point has streams of its own, so that the z-scores are independent.
    """
    rows = []
    with tqdm(points, unit="point", disable=not progress) as bar:
        for number, point in enumerate(bar):
            bar.set_description(point.row["experiment"])
            estimate = point.simulate(max(3, round(samples * point.share)), [seed, number])
            row = point.row | asdict(estimate)
            for name in ("mean", "variance"):
                row[f"{name}_z"] = (row[name] - row[f"{name}_theory"]) / row[f"{name}_error"]
            rows.append(row)
    return rows


def difference_rows(rows: Sequence[Row]) -> list[Row]:
    """The differences between the masks' variances in square layers; their errors add up in squares."""
    sizes = {(row["sparsity"], row["n_in"], row["mask_type"]): row for row in rows if row["experiment"] == "size"}
    differences = []
    for name, theory in _DIFFERENCES.items():
        first, second = name.split(" - ")
        for sparsity, n in dict.fromkeys(key[:2] for key in sizes):
            minuend, subtrahend = sizes[sparsity, n, first], sizes[sparsity, n, second]
            expected = theory(n, n, minuend["fan_in"])
            row = {"difference": name, "sparsity": sparsity, "n": n, "theory": expected}
            if "variance" in minuend:
                estimate = minuend["variance"] - subtrahend["variance"]
                error = (minuend["variance_error"] ** 2 + subtrahend["variance_error"] ** 2) ** 0.5
                row |= {"estimate": estimate, "error": error, "z": (estimate - expected) / error}
            differences.append(row)
    return differences


def _default_samples(full: bool) -> int:
    return _FULL_SAMPLES if full else _SAMPLES


def _failed(verdicts: dict[str, Verdict]) -> Iterable[tuple[str, Verdict]]:
    return ((name, verdict) for name, verdict in verdicts.items() if not verdict.agrees)


def _require_folder(folder: Path) -> Path:
    """Make the folder; one that holds anything but an earlier comparison is refused."""
    make_folder(folder)
    others = sorted(path.name for path in folder.iterdir() if path.name not in _FILES)
    if others:
        raise InputError(f"out {folder} exists and is not ours: it holds {others[0]!r}; name a new folder")
    return folder


def _save(folder: Path, rows: list[Row], curves: list[Row]) -> None:
    differences, difference_curves = difference_rows(rows), difference_rows(curves)
    write_csv(folder / "simulated.csv", rows, (*FIELDS, *_ESTIMATED))
    write_csv(folder / "curves.csv", curves, FIELDS)
    write_csv(folder / "differences.csv", differences, _DIFFERENCE_FIELDS)
    for name, draw in FIGURES.items():
        shown = (differences, difference_curves) if name == "differences" else (rows, curves)
        figure = draw(*shown)
        if figure is not None:
            save_figure(figure, folder, name)


def _table(rows: Iterable[Row], verdicts: dict[str, Verdict]) -> Table:
    table = Table(title="Variance of the output norm, theory and simulation")
    table.caption = "\n".join(f"{name}: {verdict}" for name, verdict in verdicts.items())
    for column in ("experiment", "mask"):
        table.add_column(column)
    numbers = "n_in|n_out|fan-in|p|depth|samples|theory|simulated|± 1 s.e.|z|z of the mean"
    for column in numbers.split("|"):
        table.add_column(column, justify="right")
    experiment = None
    for row in rows:
        if experiment not in (None, row["experiment"]):
            table.add_section()
        experiment = row["experiment"]
        table.add_row(*_cells(row))
    return table


def _cells(row: Row) -> list[str]:
    neurons = f"{row['n_out']}" + (f" - {row['n_ablated']}" if row.get("n_ablated") else "")
    style = "bold red" if abs(row["variance_z"]) > 1.96 else ""
    z = f"[{style}]{row['variance_z']:+.2f}[/]" if style else f"{row['variance_z']:+.2f}"
    return [
        row["experiment"],
        row.get("name", row["mask_type"]),
        str(row["n_in"]),
        neurons,
        f"{row['fan_in']:g}",
        f"{row['gate_probability']:g}",
        str(row.get("depth", "")),
        f"{row['samples']:,}",
        f"{row['variance_theory']:.5f}",
        f"{row['variance']:.5f}",
        f"{row['variance_error']:.5f}",
        z,
        f"{row['mean_z']:+.2f}",
    ]


if __name__ == "__main__":
    run_app(app)
