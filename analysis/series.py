"""What the runs of a sweep are grouped by: the method as a reader knows it, and the sparsity."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sparsekit.errors import InputError

Row = Mapping[str, Any]

DENSE = "dense"
_NAMES = {
    "dense": DENSE,
    "static": "static",
    "static-unstructured": "static, unstructured",
    "set": "SET",
    "rigl": "RigL",
}


def series(row: Row) -> str:
    """The method of a run, with SRigL's gamma_sal: it decides whether and how many neurons are ablated."""
    if row["method"] != "srigl":
        return _NAMES[row["method"]]
    gamma_sal = float(row["gamma_sal"])
    return f"SRigL, gamma {gamma_sal:g}" if gamma_sal else "SRigL without ablation"


def grouped(rows: Iterable[Row]) -> dict[str, dict[float, list[Row]]]:
    """The runs of each series at each sparsity, ordered by seed; series and sparsities in a fixed order.

    Raises
    ------
    InputError
        If a series has two runs with the same sparsity and seed: the sweep varies something else too.
    """
    groups: dict[str, dict[float, list[Row]]] = {}
    for row in sorted(rows, key=_place):
        runs = groups.setdefault(series(row), {}).setdefault(float(row["sparsity"]), [])
        if runs and runs[-1]["seed"] == row["seed"]:
            raise InputError(
                f"results must hold one run of {series(row)} at sparsity {row['sparsity']:g} with seed "
                f"{row['seed']}, not two: a sweep over other settings cannot be drawn here"
            )
        runs.append(row)
    return groups


def _place(row: Row) -> tuple[int, float, float, int]:
    method = row["method"]
    order = list(_NAMES).index(method) if method in _NAMES else len(_NAMES)
    return order, float(row["gamma_sal"]) if method == "srigl" else 0.0, float(row["sparsity"]), int(row["seed"])


def sparsities(rows: Iterable[Row]) -> list[float]:
    """The sparsities of the sparse runs, ascending."""
    return sorted({float(row["sparsity"]) for row in rows if row["method"] != DENSE})


def complete(rows: Sequence[Row]) -> dict[str, dict[float, list[Row]]]:
    """The series that were trained at every sparsity, and dense training, as :func:`grouped` gives them."""
    wanted = sparsities(rows)
    return {name: runs for name, runs in grouped(rows).items() if name == DENSE or list(runs) == wanted}


def percents(runs: Iterable[Row]) -> list[float]:
    """Test accuracies in percent."""
    return [100 * run["test_accuracy"] for run in runs]


def paired(first: Iterable[Row], second: Iterable[Row]) -> list[tuple[float, float]]:
    """Test accuracies, in percent, of the runs of two series that have the same seed."""
    accuracies = {run["seed"]: 100 * run["test_accuracy"] for run in second}
    return [(100 * run["test_accuracy"], accuracies[run["seed"]]) for run in first if run["seed"] in accuracies]


def require_same_training(rows: Sequence[Row]) -> None:
    """Refuse runs that differ in more than method, sparsity, gamma_sal and seed."""
    for name in ("dataset", "model", "hidden", "channels", "epochs"):
        values = {str(row[name]) for row in rows}
        if len(values) > 1:
            raise InputError(f"results must be of one {name}, not of {' and '.join(sorted(values)[:2])}")
