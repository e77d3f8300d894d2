"""Figures of the variance of the output norm: the theory as lines, simulations as points with 95 % intervals.

The rows are those of :mod:`analysis.variance`. Each function takes simulated rows and rows of curves and returns
a Figure; the same rows give the same bytes.
"""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter, StrMethodFormatter

from analysis.plots.style import new_figure, style

Row = dict[str, Any]

NORMAL_95 = 1.96
# Okabe and Ito's palette; a marker and a line style each, for readers without colours.
MASKS: dict[str, dict[str, Any]] = {
    "bernoulli": {"color": "#0072B2", "marker": "o", "linestyle": "-", "label": "Bernoulli"},
    "per_layer": {"color": "#D55E00", "marker": "s", "linestyle": "--", "label": "constant per layer"},
    "constant_fan_in": {"color": "#009E73", "marker": "^", "linestyle": "-.", "label": "constant fan-in"},
}
_SPARSITIES = ("#56B4E9", "#E69F00", "#CC79A7")
_NORM = r"$\mathrm{Var}\,|z|^2$"
_RELATIVE = r"$\mathrm{Var}\,|z|^2 \,/\, (\mathrm{E}\,|z|^2)^2$"


def size_figure(rows: Sequence[Row], curves: Sequence[Row]) -> Figure:
    """Square layers, a column a sparsity: the variance for each number of neurons, and ratio to Bernoulli's."""
    rows, curves = _of("size", rows), _of("size", curves)
    sparsities = list(dict.fromkeys(row["sparsity"] for row in curves))
    bernoulli = {
        (row["sparsity"], row["n_in"]): row["variance_theory"] for row in curves if row["mask_type"] == "bernoulli"
    }

    def ratio(row: Row, value: float) -> float:
        return value / bernoulli[row["sparsity"], row["n_in"]]

    with style():
        figure, axes = new_figure(4.2, 2, len(sparsities), sharex=True, sharey="row")
        for (top, bottom), sparsity in zip(axes.T, sparsities, strict=True):
            points, lines = ([row for row in part if row["sparsity"] == sparsity] for part in (rows, curves))
            _draw(top, points, lines, lambda row: row["n_in"], _variance)
            _draw(bottom, points, lines, lambda row: row["n_in"], ratio, apart=1.0)
            top.set(title=f"{100 * sparsity:g} % sparse")
            bottom.set(xlabel="neurons and inputs $n$")
        axes[0, 0].set_ylim(bottom=0)  # all columns share it, and all are drawn by now
        axes[0, 0].set_ylabel(_NORM)
        axes[1, 0].set_ylabel(f"{_NORM} over Bernoulli's")
        _legend_below(figure, axes[0, 0])
    return figure


def fan_in_figure(rows: Sequence[Row], curves: Sequence[Row]) -> Figure:
    """The variance over the fan-in; and over the gate probability, where the order of two masks turns."""
    with style():
        figure, axes = new_figure(2.7, 1, 2)
        left, right = axes[0]
        _draw(left, _of("fan_in", rows), _of("fan_in", curves), lambda row: row["fan_in"], _variance)
        left.set(xscale="log", yscale="log", xlabel="fan-in $k$", ylabel=_NORM)
        left.set_title("Fan-in: 64 neurons, 64 inputs")
        _plain_ticks(left.xaxis, (1, 2, 4, 8, 16, 32, 64))
        _plain_ticks(left.yaxis, (0.08, 0.1, 0.15, 0.2, 0.3))
        gates = _of("gates", curves)
        baseline = {row["gate_probability"]: row["variance_theory"] for row in [*gates, *_of("gates", rows)]
                    if row["mask_type"] == "bernoulli"}  # fmt: skip
        _draw(
            right,
            _of("gates", rows),
            gates,
            lambda row: row["gate_probability"],
            lambda row, value: value / baseline[row["gate_probability"]],
            apart=0.012,
        )
        turn = 3 / (2 * gates[0]["n_in"] + 1)
        right.axvline(turn, color="black", linewidth=0.7, linestyle=":")
        right.annotate(
            "$p\\,(2n+1)=3$", (turn, 1), xycoords=("data", "axes fraction"), xytext=(3, -2),
            textcoords="offset points", va="top", fontsize=7,
        )  # fmt: skip
        right.set(xlabel="gate probability $p$", ylabel=f"{_NORM} over Bernoulli's")
        right.set_title(f"Gates: {gates[0]['n_out']} neurons, {gates[0]['n_in']} inputs, $k=1$")
        _legend_below(figure, left)
    return figure


def shape_figure(rows: Sequence[Row], curves: Sequence[Row]) -> Figure:
    """The relative variance of rectangular layers, and of layers after ablation with as many weights as before."""
    with style():
        figure, axes = new_figure(2.7, 1, 2)
        left, right = axes[0]
        _draw(left, _of("rectangular", rows), _of("rectangular", curves), lambda row: row["n_in"], _relative)
        left.set(xscale="log", yscale="log", xlabel="inputs $n$ (with $4096/n$ neurons)", ylabel=_RELATIVE)
        left.set_title("Rectangular: 4096 positions, 512 weights")
        _plain_ticks(left.xaxis, (16, 32, 64, 128, 256))
        _plain_ticks(left.yaxis, (0.1, 0.12, 0.15, 0.2))
        ablated, lines = _of("ablation", rows), _of("ablation", curves)
        _draw(right, ablated, lines, lambda row: row["n_ablated"] / row["n_out"], _relative)
        right.set(xlabel="neurons ablated", title="Ablation: 384 weights on the neurons left")
        right.xaxis.set_major_formatter(PercentFormatter(1))
        right.set_ylim(bottom=0)
        _legend_below(figure, left)
    return figure


def depth_figure(rows: Sequence[Row], curves: Sequence[Row]) -> Figure:
    """The relative variance along a ReLU network, and of a convolution over its fan-in."""
    with style():
        figure, axes = new_figure(2.7, 1, 2)
        left, right = axes[0]
        _draw(left, _of("depth", rows), _of("depth", curves), lambda row: row["depth"], _relative, apart=0.08)
        left.set(yscale="log", xlabel="layers", ylabel=_RELATIVE, title="Depth: 64 neurons a layer, fan-in 8")
        _plain_ticks(left.yaxis, (0.1, 0.2, 0.5, 1, 2, 3))
        _draw(right, _of("convolution", rows), _of("convolution", curves), lambda row: row["fan_in"], _relative)
        right.set(xscale="log", yscale="log", xlabel="fan-in $k$ of a filter")
        right.set_title("Convolution: 8 filters, 3 x 3 x 8, 6 x 6 positions")
        _plain_ticks(right.xaxis, (4, 9, 18, 36, 72))
        _plain_ticks(right.yaxis, (0.03, 0.05, 0.1))
        _legend_below(figure, left)
    return figure


def difference_figure(rows: Sequence[Row], curves: Sequence[Row]) -> Figure:
    """The three differences between masks over the number of neurons; rows of differences.csv."""
    names = list(dict.fromkeys(row["difference"] for row in curves))
    sparsities = list(dict.fromkeys(row["sparsity"] for row in curves))
    with style():
        figure, axes = new_figure(2.5, 1, len(names))
        for panel, name in zip(axes[0], names, strict=True):
            for place, (sparsity, color) in enumerate(zip(sparsities, _SPARSITIES, strict=True)):
                chosen = {"difference": name, "sparsity": sparsity}
                line, points = ([row for row in part if chosen.items() <= row.items()] for part in (curves, rows))
                n = [row["n"] for row in line]
                panel.plot(n, [row["theory"] for row in line], color=color, label=f"{100 * sparsity:g} % sparse")
                panel.errorbar(
                    [row["n"] + place - 1 for row in points],  # apart, so that intervals do not hide each other
                    [row["estimate"] for row in points],
                    [NORMAL_95 * row["error"] for row in points],
                    color=color, marker="o", linestyle="none", elinewidth=0.8,
                )  # fmt: skip
            first, second = (MASKS[part]["label"] for part in name.split(" - "))
            panel.axhline(0, color="black", linewidth=0.6)
            panel.set(title=f"{first}\nminus {second}", xlabel="neurons and inputs $n$")
        axes[0, 0].set_ylabel(f"difference of {_NORM}")
        _legend_below(figure, axes[0, 0])
    return figure


def trained_figure(rows: Sequence[Row], curves: Sequence[Row]) -> Figure | None:
    """The masks of a trained network beside random masks of the same size; None without such rows."""
    rows, curves = _of("trained", rows), _of("trained", curves)
    if not rows:
        return None
    places = {row["name"]: place for place, row in enumerate(rows)}
    random = {row["name"]: row["variance_theory"] for row in curves if row["mask_type"] == "constant_fan_in"}
    with style():
        figure, axes = new_figure(2.8)
        panel = axes[0, 0]
        for offset, (mask_type, look) in zip((-0.25, -0.15, -0.05), MASKS.items(), strict=True):
            shown = [row for row in curves if row["mask_type"] == mask_type]
            panel.plot(
                [places[row["name"]] + offset for row in shown],
                [row["variance_theory"] / random[row["name"]] for row in shown],
                **look | {"linestyle": "none", "label": f"random, {look['label']}"},
            )
        x = [place + 0.1 for place in places.values()]
        theory = [row["variance_theory"] / random[row["name"]] for row in rows]
        panel.plot(x, theory, "k_", markersize=9, label="trained mask, theory")
        panel.errorbar(
            x,
            [row["variance"] / random[row["name"]] for row in rows],
            [NORMAL_95 * row["variance_error"] / random[row["name"]] for row in rows],
            color="black", marker=".", linestyle="none", elinewidth=0.8, label="trained mask, simulated",
        )  # fmt: skip
        panel.set_xticks(list(places.values()), list(places), rotation=45 if len(places) > 8 else 0)
        panel.set_xlim(-0.6, len(places) - 0.4)
        panel.set(
            ylabel=f"{_NORM} over that of\nrandom masks, constant fan-in", title="Masks of a trained network"
        )
        _legend_below(figure, panel)
    return figure


FIGURES: dict[str, Callable[[Sequence[Row], Sequence[Row]], Figure | None]] = {
    "size": size_figure,
    "fan-in": fan_in_figure,
    "differences": difference_figure,
    "shapes": shape_figure,
    "depth": depth_figure,
    "trained": trained_figure,
}


def _draw(
    axes: Axes,
    rows: Sequence[Row],
    curves: Sequence[Row],
    x: Callable[[Row], float],
    y: Callable[[Row, float], float],
    apart: float = 0.0,
) -> None:
    """A line and its points for each mask; `y` gives what is drawn for a variance, or its error, of a row.

    Points of different masks are moved apart, by so much along x, where their intervals would hide each other.
    """
    for place, (mask_type, look) in enumerate(MASKS.items()):
        line, points = ([row for row in part if row["mask_type"] == mask_type] for part in (curves, rows))
        axes.plot(
            [x(row) for row in line],
            [y(row, row["variance_theory"]) for row in line],
            color=look["color"], linestyle=look["linestyle"],
        )  # fmt: skip
        axes.errorbar(
            [x(row) + (place - 1) * apart for row in points],
            [y(row, row["variance"]) for row in points],
            [NORMAL_95 * y(row, row["variance_error"]) for row in points],
            color=look["color"], marker=look["marker"], markersize=2.5, linestyle="none", elinewidth=0.8,
        )  # fmt: skip


def _variance(row: Row, value: float) -> float:
    return value


def _relative(row: Row, value: float) -> float:
    return value / row["mean_theory"] ** 2


def _of(experiment: str, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["experiment"] == experiment]


def _plain_ticks(axis: Any, ticks: Sequence[float]) -> None:
    """Labels as numbers, not as powers of ten, at these places of a logarithmic axis."""
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if not handles:  # masks: line and marker in one entry
        handles = [axes.plot([], [], **look)[0] for look in MASKS.values()]
        labels = [look["label"] for look in MASKS.values()]
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles) if len(handles) < 4 else 3)
