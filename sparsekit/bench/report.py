"""Rows of the results, the CSV they are written to, and the tables that are printed."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table

from sparsekit.bench.measure import Case, Problem, Timing

Row = dict[str, Any]

FIELDS: tuple[str, ...] = (
    "benchmark",
    "work",
    "sparsity",
    "batch",
    "weights",  # hot, or cold
    "threads",
    "implementation",
    "kind",  # ours, dense or csr
    "median_us",
    "q1_us",
    "q3_us",
    "samples",
    "gmacs",  # 1e9 multiply-adds a second; of a sparse implementation only those of stored weights
    "fraction_of_dense",  # gmacs over those of the best dense implementation
    "over_best_dense",  # how many times faster than the best dense implementation
    "over_best_csr",
    "peak_memory_mib",
    "test_accuracy",
)


def timed(name: str, kind: str, timing: Timing) -> Row:
    """The part of a row that says what was measured."""
    times = {f"{key}_us": 1e6 * getattr(timing, key) for key in ("median", "q1", "q3")}
    return {"implementation": name, "kind": kind, **times, "samples": timing.samples}


def case_rows(case: Case, threads: int, problem: Problem, timings: Sequence[Timing]) -> list[Row]:
    """One row for each implementation of a case."""
    base = {key: getattr(case, key) for key in ("benchmark", "work", "sparsity", "batch", "weights")}
    rows = []
    for implementation, timing in zip(problem.implementations, timings, strict=True):
        macs = problem.dense_macs if implementation.kind == "dense" else problem.stored_macs
        row = base | {"threads": threads} | timed(implementation.name, implementation.kind, timing)
        rows.append(row | {"gmacs": 1e-9 * macs / timing.median})
    best = max((row["gmacs"] for row in rows if row["kind"] == "dense"), default=None)
    return with_ratios([row | {"fraction_of_dense": row["gmacs"] / best if best else None} for row in rows])


def with_ratios(rows: list[Row]) -> list[Row]:
    """The rows of one case with what each is over the best of each kind of competitor."""
    for kind in ("dense", "csr"):
        best = min((row["median_us"] for row in rows if row["kind"] == kind), default=None)
        rows = [row | {f"over_best_{kind}": best / row["median_us"] if best else None} for row in rows]
    return rows


def csv_text(rows: Iterable[Row]) -> str:
    """All rows with all columns; what a benchmark does not measure is left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(FIELDS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def cases_of(rows: Iterable[Row]) -> dict[tuple[Any, ...], list[Row]]:
    """The rows of each case."""
    cases: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = tuple(row.get(name) for name in ("work", "sparsity", "batch", "weights", "threads"))
        cases.setdefault(key, []).append(row)
    return cases


def tables(name: str, rows: Sequence[Row]) -> list[Table]:
    """A table for each thread count of one benchmark: ours against the best of the others."""
    build = {"epoch": _epoch_table, "resnet18": _step_table}.get(name, _table)
    counts = dict.fromkeys(row["threads"] for row in rows)
    return [
        build(f"{name}, {count} thread{'s' * (count > 1)}", [row for row in rows if row["threads"] == count])
        for count in counts
    ]


def _table(title: str, rows: Sequence[Row]) -> Table:
    ours = list(dict.fromkeys(row["implementation"] for row in rows if row["kind"] == "ours"))
    kinds = {"dense": "dense", "csr": "CSR"}
    kinds = {kind: label for kind, label in kinds.items() if any(row["kind"] == kind for row in rows)}
    table = Table(
        title=title,
        caption="Medians (and quartiles) in microseconds; x: how many times faster than the best of the others."
        "\nRate: multiply-adds a second, only stored ones counted, over those of the best dense implementation.",
    )
    for heading in ("work", "sparsity", "batch", "weights"):
        table.add_column(heading, justify="left" if heading in ("work", "weights") else "right")
    table.add_column(f"{ours[0]}, us", justify="right", no_wrap=True)
    for label in kinds.values():
        table.add_column(f"best {label}, us", no_wrap=True)
    for name in ours:
        table.add_column(f"{name}: x {' / x '.join(kinds.values())}", justify="right")
    table.add_column("rate", justify="right")
    for case in cases_of(rows).values():
        named = {row["implementation"]: row for row in case}
        main = named[ours[0]]
        best = [min((r for r in case if r["kind"] == kind), key=lambda r: r["median_us"]) for kind in kinds]
        table.add_row(
            main["work"],
            f"{100 * main['sparsity']:g} %",
            str(main["batch"]),
            main["weights"],
            _spread(main),
            *(f"{row['median_us']:.4g} {row['implementation']}" for row in best),
            *(" / ".join(f"{named[name][f'over_best_{kind}']:.2f}" for kind in kinds) for name in ours),
            f"{main['fraction_of_dense']:.0%}",
        )
    return table


def _epoch_table(title: str, rows: Sequence[Row]) -> Table:
    first = rows[0]
    table = Table(
        title=f"{title}: {first['work']}, sparsity {100 * first['sparsity']:g} %, batch {first['batch']}",
        caption="Seconds an epoch: median (and quartiles); the first epoch of each process is not counted.",
    )
    for heading in ("training", "s an epoch", "x dense", "peak MiB", "test accuracy %"):
        table.add_column(heading, justify="left" if heading == "training" else "right")
    for row in rows:
        table.add_row(
            row["implementation"],
            _spread(row, 1e-6),
            f"{row['over_best_dense']:.2f}",
            f"{row['peak_memory_mib']:.0f}",
            f"{100 * row['test_accuracy']:.1f}",
        )
    return table


def _step_table(title: str, rows: Sequence[Row]) -> Table:
    table = Table(
        title=f"{title}: {rows[0]['work']}, batch {rows[0]['batch']}",
        caption="Seconds of a training step: median (and quartiles), and how many times the best dense one.",
    )
    for heading in ("training", "s a step", "x dense", "peak MiB"):
        table.add_column(heading, justify="left" if heading == "training" else "right")
    for row in rows:
        ratio, memory = f"{row['over_best_dense']:.2f}", f"{row['peak_memory_mib']:.0f}"
        table.add_row(row["implementation"], _spread(row, 1e-6), ratio, memory)
    return table


def _spread(row: Row, scale: float = 1.0) -> str:
    q1, median, q3 = (scale * row[f"{key}_us"] for key in ("q1", "median", "q3"))
    return f"{median:.4g} ({q1:.4g}-{q3:.4g})"
