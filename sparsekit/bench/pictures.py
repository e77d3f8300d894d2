"""Figures of the benchmarks, in the style of the timing figure of the SRigL paper."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsekit.bench.report import Row, cases_of
from sparsekit.figures import COLOURS, DPI

_LINES = {"ours": "-", "dense": "--", "csr": ":"}


def linear_figure(rows: Sequence[Row], threads: int, where: str | None = None) -> Figure:
    """Time over batch with hot weights, a panel for each sparsity, the quartiles as bands.

    `where` is what the title names instead of the threads.
    """
    rows = [row for row in rows if row["weights"] == "hot" and row["threads"] == threads]
    sparsities = list(dict.fromkeys(row["sparsity"] for row in rows))
    columns = min(2, len(sparsities))
    n_rows = -(-len(sparsities) // columns)
    figure = Figure(figsize=(6 * columns + 1, 4 * n_rows + 1), dpi=DPI, layout="constrained")
    panels = figure.subplots(n_rows, columns, squeeze=False, sharey=True).ravel()
    for axes, sparsity in zip(panels, sparsities, strict=False):
        _times(axes, [row for row in rows if row["sparsity"] == sparsity])
        axes.set_title(f"{100 * sparsity:g} % sparse")
    for axes in panels[len(sparsities) :]:
        axes.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"Linear layer {rows[0]['work']}, float32, {where or _threads(threads)}")
    return figure


def _times(axes: Axes, rows: Sequence[Row]) -> None:
    names = list(dict.fromkeys(row["implementation"] for row in rows))
    batches = list(dict.fromkeys(row["batch"] for row in rows))
    for i, name in enumerate(names):
        line = [row for row in rows if row["implementation"] == name]
        low, median, high = ([row[f"{key}_us"] for row in line] for key in ("q1", "median", "q3"))
        colour, kind = COLOURS[i % len(COLOURS)], line[0]["kind"]
        width = 2 if kind == "ours" else 1.3
        axes.plot(batches, median, _LINES[kind], color=colour, lw=width, marker=".", label=name)
        axes.fill_between(batches, low, high, color=colour, alpha=0.2, lw=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set(xlabel="batch", ylabel="microseconds")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def speedup_figure(rows: Sequence[Row], title: str) -> Figure:
    """Bars: how many times faster than the best dense implementation, by case and thread count."""
    bars = [next(row for row in case if row["kind"] == "ours") for case in cases_of(rows).values()]
    places = list(dict.fromkeys(_place(row) for row in bars))
    counts = list(dict.fromkeys(row["threads"] for row in bars))
    figure = Figure(figsize=(9, 1.6 + 0.3 * len(bars)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(counts)
    for i, count in enumerate(counts):
        chosen = [row for row in bars if row["threads"] == count]
        y = [places.index(_place(row)) + (i - (len(counts) - 1) / 2) * height for row in chosen]
        ratios = [row["over_best_dense"] for row in chosen]
        drawn = axes.barh(y, ratios, height, color=COLOURS[i % len(COLOURS)], label=_threads(count))
        axes.bar_label(drawn, fmt=" {:.2f}", fontsize=8)
    axes.axvline(1, color="0.3", lw=1)
    axes.set_yticks(range(len(places)), places)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(title=title, xlabel="times faster than the best dense implementation")
    figure.legend(loc="outside lower right", ncols=len(counts), frameon=False)
    return figure


def _place(row: Row) -> str:
    return f"{row['work']}, {100 * row['sparsity']:g} %"


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"
