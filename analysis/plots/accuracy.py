"""Test accuracy over sparsity, and the differences between methods."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.intervals import mean_with_spread, paired_difference
from analysis.plots.lines import beside, look, sparsity_axis
from analysis.plots.style import new_figure, style
from analysis.series import DENSE, Row, complete, paired, percents, sparsities

_REFERENCE = "RigL"

Groups = dict[str, dict[float, list[Row]]]


def accuracy_figure(rows: Sequence[Row]) -> Figure:
    """Left, accuracy of every series that was trained at every sparsity; right, its distance from RigL.

    Intervals are 95 %, by Student's t over the seeds; on the right of the paired differences.
    """
    groups, ticks = complete(rows), sparsities(rows)
    figure, panels = new_figure(3.2, 1, 2)
    with style():
        left, right = panels[0]
        _accuracies(left, groups, ticks)
        _differences(right, groups)
        for axes in (left, right):
            sparsity_axis(axes, ticks)
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
        figure.suptitle(_what(rows))
    return figure


def _what(rows: Sequence[Row]) -> str:
    n_seeds = len({row["seed"] for row in rows})
    network = f"{rows[0]['model']}, {rows[0]['epochs']:g} epochs"
    return f"{rows[0]['dataset']}, {network}: mean of {n_seeds} seed{'s' * (n_seeds > 1)}, 95 % intervals"


def _accuracies(axes: Axes, groups: Groups, ticks: Sequence[float]) -> None:
    sparse = [name for name in groups if name != DENSE]
    if DENSE in groups:
        mean, half_width = _interval(groups[DENSE][0.0])
        axes.axhline(mean, color="black", lw=1, ls="--", label=DENSE)
        axes.axhspan(mean - half_width, mean + half_width, color="black", alpha=0.1, lw=0)
    for place, name in enumerate(sparse):
        points = [_interval(runs) for runs in groups[name].values()]
        means, half_widths = zip(*points, strict=True)
        places = beside(ticks, place, len(sparse))
        axes.errorbar(places, means, half_widths, label=name, elinewidth=0.8, **look(name))
    axes.set(title="test accuracy", ylabel="%")


def _differences(axes: Axes, groups: Groups) -> None:
    others = [name for name in groups if name not in (DENSE, _REFERENCE)] if _REFERENCE in groups else []
    axes.axhline(0, lw=1, **{**look(_REFERENCE), "marker": ""})
    for place, name in enumerate(others):
        found = {}
        for sparsity, runs in groups[name].items():
            pairs = paired(runs, groups[_REFERENCE][sparsity])
            if len(pairs) > 1:
                found[sparsity] = paired_difference([a for a, _ in pairs], [b for _, b in pairs])
        axes.errorbar(
            beside(list(found), place, len(others)),
            [test.mean for test in found.values()],
            [test.half_width for test in found.values()],
            label=name,
            elinewidth=0.8,
            **look(name),
        )
    axes.set(title=f"difference from {_REFERENCE}, paired by seed", ylabel="percentage points")


def _interval(runs: Sequence[Row]) -> tuple[float, float]:
    mean, half_width = mean_with_spread(percents(runs))
    return mean, half_width or 0.0
