"""What SRigL does to neurons: how many stay active, how many inputs they have, and what gamma_sal decides.

``python -m analysis.ablation SWEEP`` reads what ``python -m analysis.sweep`` wrote.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import typer
from rich.table import Table

from analysis.accuracy import Results
from analysis.intervals import mean_with_spread
from analysis.plots import save_figure
from analysis.plots.ablation import fan_in_figure, gamma_figure, itop_figure, neurons_figure, swept
from analysis.series import DENSE, Row, complete, grouped, percents, require_same_training, sparsities
from analysis.sweep import load_rows
from analysis.tables import write_csv
from sparsekit.console import Json, Out, Quiet, check_json, console, new_folder, run_app, write_json
from sparsekit.errors import InputError
from sparsekit.training.folder import make_folder


def active_neurons(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Share of active neurons in every layer, by series and sparsity.

    Keys
    ----
    series, sparsity, layer, n_out, n : the group, the neurons of the layer, and how many seeds there are
    active, half_width : mean share in percent, and half of its 95 % interval; None for one seed
    fan_in_min, fan_in_max : over the active neurons of all seeds
    """
    return [
        {
            "series": name,
            "sparsity": sparsity,
            "layer": layers[0]["name"],
            "n_out": layers[0]["shape"][0],
            "n": len(layers),
            **_mean("active", [100 * layer["n_active"] / layer["shape"][0] for layer in layers]),
            "fan_in_min": min(layer["fan_ins"][0][0] for layer in layers),
            "fan_in_max": max(layer["fan_ins"][-1][0] for layer in layers),
        }
        for name, sparsity, runs in _groups(rows)
        for layers in zip(*(run["layers"] for run in runs), strict=True)
    ]


def gamma_sweep(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """SRigL over gamma_sal: accuracy, and the share of hidden neurons that are active.

    Keys
    ----
    sparsity, gamma_sal, n : the group, and how many seeds it has
    accuracy, active : means in percent; accuracy_half_width, active_half_width are halves of their 95 % intervals,
        None for one seed
    """
    found = [
        {
            "sparsity": sparsity,
            "gamma_sal": float(runs[0]["gamma_sal"]),
            "n": len(runs),
            **_mean("accuracy", percents(runs), "accuracy_half_width"),
            **_mean("active", [100 * hidden_active(run) for run in runs], "active_half_width"),
        }
        for _, sparsity, runs in _groups(rows)
        if runs[0]["method"] == "srigl"
    ]
    return sorted(found, key=lambda row: (row["sparsity"], row["gamma_sal"]))


def hidden_active(run: Row) -> float:
    """Share of the neurons before the output layer that are active."""
    hidden = run["layers"][:-1]
    return sum(layer["n_active"] for layer in hidden) / sum(layer["shape"][0] for layer in hidden)


def itop_rates(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """In-Time Over-Parameterization rate over training, mean over the seeds.

    Keys
    ----
    series, sparsity, step, n : the group, optimizer steps taken, and how many seeds there are
    itop : share of the positions in sparse layers that were active at any time so far, in percent
    """
    return [
        {
            "series": name,
            "sparsity": sparsity,
            "step": updates[0]["step"],
            "n": len(updates),
            "itop": 100 * float(np.mean([update["itop"] for update in updates])),
        }
        for name, sparsity, runs in _groups(rows)
        for updates in zip(*(run["updates"] for run in runs), strict=True)
    ]


def _groups(rows: Sequence[Row]) -> Iterator[tuple[str, float, list[Row]]]:
    """The sparse runs by series and sparsity."""
    for name, by_sparsity in grouped(rows).items():
        if name != DENSE:
            for sparsity, runs in by_sparsity.items():
                yield name, sparsity, runs


def _mean(name: str, values: Sequence[float], half_width: str = "half_width") -> dict[str, float | None]:
    mean, half = mean_with_spread(values)
    return {name: mean, half_width: half}


def neurons_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Active neurons of each layer, sparsities across."""
    columns = sorted({row["sparsity"] for row in rows})
    table = Table(title="active neurons, % of the layer's")
    table.add_column("method")
    table.add_column("layer")
    for sparsity in columns:
        table.add_column(f"{100 * sparsity:g} %", justify="right")
    for name, layer in dict.fromkeys((row["series"], row["layer"]) for row in rows):
        cells = {row["sparsity"]: row["active"] for row in rows if (row["series"], row["layer"]) == (name, layer)}
        table.add_row(name, layer, *(f"{cells[s]:.1f}" if s in cells else "" for s in columns))
    return table


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(results: Results, out: Out = None, json_file: Json = None, quiet: Quiet = False) -> None:
    """Active neurons over sparsity, fan-ins, accuracy over gamma_sal, and the ITOP rate over training."""
    check_json(json_file)
    rows = load_rows(results)
    require_same_training(rows)
    if not sparsities(rows):
        raise InputError(f"results {results} hold no sparse run")
    if complete(rows).keys() <= {DENSE}:
        raise InputError(f"results {results} hold no method at every sparsity; finish the sweep first")
    tables = {
        "active-neurons": active_neurons(rows),
        "gamma-sal": gamma_sweep(rows),
        "itop": itop_rates(rows),
    }
    folder = out or new_folder("ablation")
    make_folder(folder)
    for name, table in tables.items():
        if table:
            write_csv(folder / f"{name}.csv", table)
    save_figure(neurons_figure(tables["active-neurons"]), folder, "active-neurons")
    save_figure(fan_in_figure(rows), folder, "fan-in")
    save_figure(itop_figure(tables["itop"]), folder, "itop")
    if swept(tables["gamma-sal"]):
        save_figure(gamma_figure(tables["gamma-sal"]), folder, "gamma-sal")
    write_json(json_file, tables)
    if not quiet:
        console().print(neurons_table(tables["active-neurons"]))
        print(f"tables and figures in {folder}")


if __name__ == "__main__":
    run_app(app)
