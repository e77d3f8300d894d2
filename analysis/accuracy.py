"""Test accuracy over sparsity, and which differences between the methods are more than luck.

``python -m analysis.accuracy SWEEP`` reads what ``python -m analysis.sweep`` wrote. Runs with the same seed start
from the same random stream and see the same batches, so methods are compared in pairs: the difference is taken
seed by seed, and its interval is Student's t of those differences. A claim, such as that RigL is better than a
static mask, is tested at every sparsity; these tests are one family, for which Holm's adjustment keeps the chance
of a single false rejection below the level.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from analysis.intervals import holm, mean_with_spread, paired_difference, permutation_p_value
from analysis.plots import save_figure
from analysis.plots.accuracy import accuracy_figure
from analysis.series import DENSE, Row, grouped, paired, percents, require_same_training
from analysis.sweep import load_rows
from analysis.tables import write_csv
from sparsekit.console import Json, Out, Quiet, check_json, console, new_folder, run_app, write_json
from sparsekit.errors import InputError
from sparsekit.training.folder import make_folder

# Of each claim in the SRigL paper the two series whose difference speaks for it or against it.
_PAIRS = (
    ("RigL", "static"),
    ("RigL", "SET"),
    ("SRigL, gamma 0.3", "static"),
    ("SRigL, gamma 0.3", "SET"),
    ("SRigL without ablation", "RigL"),
    ("SRigL, gamma 0.3", "RigL"),
    ("SRigL, gamma 0.95", "RigL"),
    ("SRigL, gamma 0.3", "SRigL without ablation"),
    ("SRigL, gamma 0.95", "SRigL without ablation"),
    ("RigL", DENSE),
    ("SRigL, gamma 0.3", DENSE),
    ("SRigL, gamma 0.95", DENSE),
)


def accuracies(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Mean test accuracy of every series at every sparsity.

    Keys
    ----
    series, sparsity, n : the group, and how many seeds it has
    accuracy, half_width : mean in percent, and half of its 95 % interval by Student's t; None for one seed
    stored_weights, itop : means; itop is None for dense training
    """
    return [
        {
            "series": name,
            "sparsity": sparsity,
            "n": len(runs),
            **dict(zip(("accuracy", "half_width"), mean_with_spread(percents(runs)), strict=True)),
            "stored_weights": float(np.mean([run["stored_weights"] for run in runs])),
            "itop": float(np.mean([run["itop"] for run in runs])) if "itop" in runs[0] else None,
        }
        for name, by_sparsity in grouped(rows).items()
        for sparsity, runs in by_sparsity.items()
    ]


def comparisons(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Paired differences of test accuracy between those methods that the paper makes claims about.

    Keys
    ----
    sparsity, a, b, n : two series, and how many seeds both were trained with
    difference, half_width : mean of a - b in percentage points, and half of its 95 % interval
    p_value : of the paired t-test; holm: the same, adjusted for the sparsities at which a and b are compared
    permutation_p_value : by exact sign flips, at least 2 / 2^n
    """
    groups = grouped(rows)
    found = []
    for a, b in (pair for pair in _PAIRS if groups.keys() >= set(pair)):
        for sparsity, runs in groups[a].items():
            pairs = paired(runs, groups[b].get(0.0 if b == DENSE else sparsity, []))
            if len(pairs) > 1:
                found.append({"sparsity": sparsity, "a": a, "b": b, **_difference(pairs)})
    for pair in _PAIRS:
        family = [row for row in found if (row["a"], row["b"]) == pair]
        for row, p in zip(family, holm([row["p_value"] for row in family]) if family else [], strict=True):
            row["holm"] = float(p)
    return found


def _difference(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    a, b = zip(*pairs, strict=True)
    test = paired_difference(a, b)
    return {
        "n": test.n,
        "difference": test.mean,
        "half_width": test.half_width,
        "p_value": test.p_value,
        "permutation_p_value": permutation_p_value(a, b),
    }


def accuracy_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Series down, sparsities across."""
    columns = sorted({row["sparsity"] for row in rows if row["series"] != DENSE})
    table = Table(title="test accuracy %, mean and 95 % interval")
    table.add_column("method")
    for sparsity in columns:
        table.add_column(f"{100 * sparsity:g} %", justify="right")
    for name in dict.fromkeys(row["series"] for row in rows):
        cells = {row["sparsity"]: _plus_minus(row) for row in rows if row["series"] == name}
        table.add_row(name, *([cells[0.0]] if name == DENSE else [cells.get(s, "") for s in columns]))
    return table


def comparison_table(rows: Sequence[dict[str, Any]]) -> Table:
    """One row a comparison, what is significant after Holm's adjustment marked."""
    table = Table(title="paired differences of test accuracy, percentage points")
    table.add_column("difference")
    for heading in ("sparsity", "mean, 95 % interval", "p", "p by Holm", "seeds"):
        table.add_column(heading, justify="right")
    table.caption = "*: below 0.05 after Holm's adjustment for the sparsities at which two methods are compared"
    for row in rows:
        mark = " *" if row["holm"] < 0.05 else "  "
        table.add_row(
            f"{row['a']} - {row['b']}",
            f"{100 * row['sparsity']:g} %",
            f"{row['difference']:+.2f} ± {row['half_width']:.2f}",
            f"{row['p_value']:.2g}",
            f"{row['holm']:.2g}{mark}",
            str(row["n"]),
        )
    return table


def _plus_minus(row: dict[str, Any]) -> str:
    mean, half_width = row["accuracy"], row["half_width"]
    return f"{mean:.2f}" if half_width is None else f"{mean:.2f} ± {half_width:.2f}"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Results = Annotated[
    Path, typer.Argument(metavar="SWEEP", help="Folder of a sweep, or its results.csv or results.parquet.")
]


@app.command()
def main(
    results: Results,
    out: Out = None,
    json_file: Json = None,
    quiet: Quiet = False,
) -> None:
    """Test accuracy over sparsity with 95 % intervals, and paired comparisons of the methods."""
    check_json(json_file)
    rows = load_rows(results)
    require_same_training(rows)
    if all(row["method"] == DENSE for row in rows):
        raise InputError(f"results {results} hold no sparse run")
    means, differences = accuracies(rows), comparisons(rows)
    folder = out or new_folder("accuracy")
    make_folder(folder)
    write_csv(folder / "accuracy.csv", means)
    if differences:
        write_csv(folder / "comparisons.csv", differences)
    save_figure(accuracy_figure(rows), folder, "accuracy")
    write_json(json_file, {"accuracies": means, "comparisons": differences})
    if not quiet:
        console().print(accuracy_table(means))
        console().print(comparison_table(differences))
        print(f"tables and figure in {folder}")


if __name__ == "__main__":
    run_app(app)
