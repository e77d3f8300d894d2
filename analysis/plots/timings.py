"""Timings of a linear layer on several machines: times, and speed-ups over the dense layer and over CSR."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from analysis.plots.style import new_figure, style

if TYPE_CHECKING:
    from analysis.timings import Timing

# Of each kind of implementation: its name for the reader, and how its line is drawn.
_SERIES: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("dense", {"color": "#000000", "marker": "s", "ls": "--"}),
    "structured": ("dense product of active neurons only", {"color": "#CC79A7", "marker": "D", "ls": "-."}),
    "csr": ("CSR", {"color": "#D55E00", "marker": "^", "ls": ":"}),
    "condensed": ("condensed", {"color": "#0072B2", "marker": "o", "ls": "-", "lw": 1.8}),
    "condensed_turned": (
        "condensed, transposes included",
        {"color": "#56B4E9", "marker": "o", "ls": "-", "mfc": "white", "lw": 1},
    ),
}
_SPARSITIES = (
    {"color": "#E69F00", "marker": "v"},
    {"color": "#009E73", "marker": "o"},
    {"color": "#0072B2", "marker": "s"},
    {"color": "#000000", "marker": "^"},
)
_OVER = {"dense": "times faster than\nthe dense layer", "csr": "times faster than\nCSR"}
_WIDE, _NARROW = 48, 34  # letters in a title over a half and a third of the page


def times_figure(published: Sequence[Timing], measured: Sequence[Timing]) -> Figure:
    """Time over batch: a row of panels for each published sparsity, the published machine left, ours right."""
    sparsities = _ordered(timing.sparsity for timing in published)
    figure, panels = new_figure(2 * len(sparsities), len(sparsities), 2, sharex=True, sharey=True)
    with style():
        for column, timings in enumerate((published, measured)):
            for axes, sparsity in zip(panels[:, column], sparsities, strict=True):
                _times(axes, [timing for timing in timings if timing.sparsity == sparsity])
                axes.set_title(textwrap.fill(_where(timings), _WIDE))
                axes.set_ylabel(f"{_percent(sparsity)}: microseconds" if column == 0 else "")
        _legend_below(figure, panels.flat)
        figure.suptitle(
            "Linear layer 3072 -> 768, float32. Each column is another machine with other software: compare the\n"
            "lines in a panel, not times across columns. Bands: quartiles (not known of published timings).",
            fontsize=8,
        )
    return figure


def gpu_figure(timings: Sequence[Timing]) -> Figure:
    """Time over batch on a GPU, a panel for each sparsity."""
    sparsities = _ordered(timing.sparsity for timing in timings)
    n_rows = -(-len(sparsities) // 2)
    figure, panels = new_figure(2.2 * n_rows + 0.8, n_rows, 2, sharex=True, sharey=True)
    with style():
        for axes, sparsity in zip(panels.flat, sparsities, strict=False):
            _times(axes, [timing for timing in timings if timing.sparsity == sparsity])
            axes.set_title(textwrap.fill(f"{_percent(sparsity)}, {_where(timings)}", _WIDE))
        for axes in panels[:, 0]:
            axes.set_ylabel("microseconds")
        _legend_below(figure, panels.flat)
        title = "Linear layer 3072 -> 768 on a GPU, float32: published timings, not measured here"
        figure.suptitle(title, fontsize=8)
    return figure


def speedups_figure(machines: Sequence[Sequence[Timing]]) -> Figure:
    """How many times faster than dense, and than CSR, condensed is: a column for each machine."""
    sparsities = _ordered(timing.sparsity for timings in machines for timing in timings)
    looks = {sparsity: _SPARSITIES[i % len(_SPARSITIES)] for i, sparsity in enumerate(sparsities)}
    figure, panels = new_figure(4.9, 2, len(machines), sharex=True, sharey=True)
    with style():
        for row, over in zip(panels, _OVER, strict=True):
            for axes, timings in zip(row, machines, strict=True):
                _speedups(axes, timings, over, looks)
                axes.set_title(_where(timings, "\n", _NARROW))
            row[0].set_ylabel(_OVER[over])
        _shade_below_one(panels.flat)
        _legend_below(figure, panels.flat)
        figure.suptitle(
            "Condensed over its competitor on the same machine: what may be compared across machines.\n"
            "Below 1, shaded, condensed is slower. Transposes are not counted.",
            fontsize=8,
        )
    return figure


def _times(axes: Axes, timings: Sequence[Timing]) -> None:
    for series, (label, look) in _SERIES.items():
        line = sorted((timing for timing in timings if timing.series == series), key=lambda timing: timing.batch)
        if not line:
            continue
        batches = [timing.batch for timing in line]
        axes.plot(batches, [timing.time_us for timing in line], label=label, **look)
        low, high = ([getattr(timing, key) for timing in line] for key in ("q1_us", "q3_us"))
        if None not in low + high:
            axes.fill_between(batches, low, high, color=look["color"], alpha=0.2, lw=0)
    if not timings:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
    _batch_axis(axes)


def _speedups(axes: Axes, timings: Sequence[Timing], over: str, looks: dict[float, dict[str, Any]]) -> None:
    times = {(timing.series, timing.sparsity, timing.batch): timing.time_us for timing in timings}
    for sparsity, look in looks.items():
        batches = sorted(batch for series, s, batch in times if (series, s) == ("condensed", sparsity))
        ratios = [times[over, sparsity, batch] / times["condensed", sparsity, batch] for batch in batches]
        axes.plot(batches, ratios, label=_percent(sparsity), **look)
    axes.axhline(1, color="0.4", lw=0.8)
    _batch_axis(axes)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")


def _shade_below_one(panels: Iterable[Axes]) -> None:
    """Shade where a ratio is a loss, in panels that share their vertical axis."""
    for axes in panels:
        low, high = axes.get_ylim()
        axes.axhspan(low, 1, color="0.93", lw=0, zorder=0)
        axes.set_ylim(low, high)


def _batch_axis(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = [4**power for power in range(6)]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    if axes.get_subplotspec().is_last_row():  # pyright: ignore[reportOptionalMemberAccess]
        axes.set_xlabel("batch")


def _legend_below(figure: Figure, panels: Iterable[Axes]) -> None:
    """One legend for all panels, below them."""
    entries = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=min(len(entries), 5))


def _where(timings: Sequence[Timing], separator: str = " ", width: int = 200) -> str:
    """Whose timings these are and on what machine, in lines of at most `width` letters."""
    first = timings[0]
    threads = f", {first.threads} thread{'s' * (first.threads > 1)}" if first.device == "CPU" else ""
    return f"{first.source}:{separator}{textwrap.fill(first.machine + threads, width)}"


def _percent(sparsity: float) -> str:
    return f"{100 * sparsity:g} % sparse"


def _ordered(values: Iterable[float]) -> list[float]:
    return sorted(set(values))
