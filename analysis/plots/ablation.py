"""Active neurons, fan-in histograms, accuracy over gamma_sal, and the ITOP rate over training."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.plots.lines import beside, look, sparsity_axis
from analysis.plots.style import new_figure, style
from analysis.series import DENSE, Row, complete, sparsities

Rows = Sequence[dict[str, Any]]

_BINS = 40


def neurons_figure(rows: Rows) -> Figure:
    """Active neurons of every layer over sparsity, RigL beside SRigL; a panel for each layer.

    `rows` are those of :func:`analysis.ablation.active_neurons`.
    """
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    ticks = sorted({row["sparsity"] for row in rows})
    names = [name for name in dict.fromkeys(row["series"] for row in rows) if _is_everywhere(rows, name, ticks)]
    shown = [name for name in names if name.startswith(("RigL", "SRigL"))]
    figure, panels = new_figure(2.6, 1, len(layers), sharey=True)
    with style():
        for axes, layer in zip(panels[0], layers, strict=True):
            for place, name in enumerate(shown):
                points = [row for row in rows if (row["series"], row["layer"]) == (name, layer)]
                places = beside([row["sparsity"] for row in points], place, len(shown))
                active, half_widths = _column(points, "active"), _column(points, "half_width")
                axes.errorbar(places, active, half_widths, label=name, **look(name))
            n_out = next(row["n_out"] for row in rows if row["layer"] == layer)
            axes.set_title(f"{layer}, {n_out} neurons")
            sparsity_axis(axes, ticks)
        panels[0, 0].set(ylabel="active neurons, %")
        panels[0, 0].set_ylim(bottom=min(0, panels[0, 0].get_ylim()[0]), top=105)
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _is_everywhere(rows: Rows, name: str, ticks: Sequence[float]) -> bool:
    return {row["sparsity"] for row in rows if row["series"] == name} == set(ticks)


def fan_in_figure(rows: Sequence[Row]) -> Figure:
    """How many inputs the active neurons have: rows are layers, columns sparsities, RigL beside SRigL.

    The seeds are pooled. Of many sparsities three are shown: the highest, the lowest, and one between.
    """
    ticks = _three_of(sparsities(rows))
    groups = complete(rows)
    sparse = [name for name in groups if name != DENSE]
    names = [name for name in sparse if name.startswith(("RigL", "SRigL, gamma"))] or sparse
    layers = [layer["name"] for layer in groups[names[0]][ticks[0]][0]["layers"]][:-1]
    figure, panels = new_figure(0.7 + 1.6 * len(layers), len(layers), len(ticks))
    with style():
        for i, layer in enumerate(layers):
            for axes, sparsity in zip(panels[i], ticks, strict=True):
                _histograms(axes, {name: _fan_ins(groups[name][sparsity], layer) for name in names})
                axes.set_title(f"{layer}, {100 * sparsity:g} % sparse")
            panels[i, 0].set_ylabel("% of active neurons")
        for axes in panels[-1]:
            axes.set_xlabel("fan-in")
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _three_of(values: Sequence[float]) -> list[float]:
    return sorted({values[0], values[len(values) // 2], values[-1]})


def _fan_ins(runs: Sequence[Row], layer: str) -> Counter[int]:
    counts = Counter[int]()
    for run in runs:
        for found in run["layers"]:
            if found["name"] == layer:
                counts.update(dict(found["fan_ins"]))
    return counts


def _histograms(axes: Axes, counts: dict[str, Counter[int]]) -> None:
    top = max(max(found) for found in counts.values()) + 1
    width = -(-top // _BINS)  # whole numbers of inputs, else some bins would hold more values than others
    edges = np.arange(0, top + width, width) - 0.5
    for name, found in counts.items():
        shares = 100 * np.array(list(found.values())) / found.total()
        heights, _ = np.histogram(list(found), edges, weights=shares)
        colour = look(name)["color"]
        axes.stairs(heights, edges, color=colour, fill=True, alpha=0.35)
        axes.stairs(heights, edges, color=colour, label=name)
    axes.set_ylim(0, 105)


def swept(rows: Rows) -> dict[float, Rows]:
    """The rows of the sparsities that most values of gamma_sal were tried at, three at least."""
    lines = {row["sparsity"]: [r for r in rows if r["sparsity"] == row["sparsity"]] for row in rows}
    most = max((len(line) for line in lines.values()), default=0)
    return {sparsity: line for sparsity, line in lines.items() if len(line) == most and most > 2}


def gamma_figure(rows: Rows) -> Figure:
    """Left, accuracy over gamma_sal; right, active neurons before the output layer; a line for each sparsity.

    `rows` are those of :func:`analysis.ablation.gamma_sweep`; not all of them are :func:`swept`.
    """
    lines = swept(rows)
    figure, panels = new_figure(2.8, 1, 2)
    with style():
        for (sparsity, line), marker in zip(lines.items(), "osD^v<>*" * len(lines), strict=False):
            for axes, name in zip(panels[0], ("accuracy", "active"), strict=True):
                axes.errorbar(
                    _column(line, "gamma_sal"),
                    _column(line, name),
                    _column(line, f"{name}_half_width"),
                    marker=marker,
                    label=f"{100 * sparsity:g} % sparse",
                )
        panels[0, 0].set(title="test accuracy", ylabel="%", xlabel="gamma_sal")
        panels[0, 1].set(title="active hidden neurons", ylabel="%", xlabel="gamma_sal", ylim=(0, 105))
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(lines))
    return figure


def itop_figure(rows: Rows) -> Figure:
    """Positions that have been active so far, over the steps: a panel for each of at most three sparsities.

    `rows` are those of :func:`analysis.ablation.itop_rates`.
    """
    ticks = _three_of(sorted({row["sparsity"] for row in rows}))
    names = list(dict.fromkeys(row["series"] for row in rows))
    shown = [name for name in names if _is_everywhere(rows, name, sorted({row["sparsity"] for row in rows}))]
    figure, panels = new_figure(2.6, 1, len(ticks))
    with style():
        for axes, sparsity in zip(panels[0], ticks, strict=True):
            for name in shown:
                line = [row for row in rows if (row["series"], row["sparsity"]) == (name, sparsity)]
                axes.plot(_column(line, "step"), _column(line, "itop"), label=name, **{**look(name), "marker": ""})
            axes.set(title=f"{100 * sparsity:g} % sparse", xlabel="step")
            axes.set_ylim(0, min(105, 1.08 * axes.dataLim.y1))
        panels[0, 0].set_ylabel("ever active (ITOP), %")
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(shown))
    return figure


def _column(rows: Rows, name: str) -> list[float]:
    """The values of a key; one that is not known is drawn as 0."""
    return [row[name] or 0.0 for row in rows]
