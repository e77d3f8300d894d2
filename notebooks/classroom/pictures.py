"""Pictures of masks, weights and networks. All are drawn into axes that the caller made."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch, Rectangle

from sparsekit import figures

_NAMES = ("blue", "vermilion", "green", "pink", "orange", "sky", "black")
COLOURS = dict(zip(_NAMES, figures.COLOURS, strict=True)) | {"grey": "#BBBBBB", "pale": "#F2F2F2"}
_METHODS = {
    "dense": "black",
    "static": "grey",
    "set": "orange",
    "rigl": "vermilion",
    "srigl": "blue",
}
# What happened to a position in an update, in the order in which a legend lists it.
STEPS = {"inactive": "pale", "kept": "blue", "dropped": "vermilion", "regrown": "orange", "grown": "green"}


def method_colour(name: str) -> str:
    """The colour that a training method has in every notebook, by its name in the command line."""
    return COLOURS[_METHODS[name.partition(":")[0].partition("-")[0]]]


def mask_heat_map(axes: Axes, mask: np.ndarray, title: str = "", *, colour: str = "blue") -> None:
    """Stored weights as filled squares: neurons are rows, inputs are columns.

    Parameters
    ----------
    axes : to draw into
    mask : bool (n_out, n_in)
    title : of the axes
    colour : of the stored weights, a key of `COLOURS`
    """
    axes.imshow(mask, cmap=ListedColormap([COLOURS["pale"], COLOURS[colour]]), vmin=0, vmax=1, aspect="auto")
    _grid(axes, mask.shape)
    axes.set(title=title, xlabel="input", ylabel="neuron")


def mask_steps(axes: Axes, steps: Mapping[str, np.ndarray], title: str = "", *, legend: bool = True) -> None:
    """What happened to every position of a mask.

    Parameters
    ----------
    axes : to draw into
    steps : bool (n_out, n_in) each, under the keys of `STEPS`: "kept", "dropped", "regrown", "grown"; later
        ones are drawn over earlier ones
    title : of the axes
    legend : whether to list the colours below
    """
    shape = next(iter(steps.values())).shape
    codes = np.zeros(shape, dtype=int)
    for code, name in enumerate(STEPS):
        if name in steps:
            codes[steps[name]] = code
    palette = ListedColormap([COLOURS[colour] for colour in STEPS.values()])
    axes.imshow(codes, cmap=palette, vmin=0, vmax=len(STEPS) - 1, aspect="auto")
    _grid(axes, shape)
    axes.set(title=title, xlabel="input", ylabel="neuron")
    if legend:
        handles = [Patch(color=COLOURS[STEPS[name]], label=name) for name in STEPS if name in steps]
        axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=len(handles))


def matrix(
    axes: Axes,
    values: np.ndarray,
    title: str = "",
    *,
    mask: np.ndarray | None = None,
    frame: np.ndarray | None = None,
    decimals: int = 1,
) -> None:
    """A small matrix with its numbers written into the cells, blue below zero and red above.

    Parameters
    ----------
    axes : to draw into
    values : (n_out, n_in)
    title : of the axes
    mask : bool of that shape; positions outside are grey and empty
    frame : bool of that shape; these cells get a black frame
    decimals : of the numbers
    """
    shown = np.ones(values.shape, dtype=bool) if mask is None else mask
    top = np.abs(values[shown]).max() if shown.any() else 1.0
    top = float(top) or 1.0
    axes.set_facecolor(COLOURS["pale"])
    axes.imshow(np.ma.masked_array(values, ~shown), cmap="RdBu_r", vmin=-1.4 * top, vmax=1.4 * top, aspect="auto")
    _grid(axes, values.shape)
    size = 8.5 if values.shape[1] <= 10 else 7
    for row, column in np.argwhere(shown):
        axes.text(column, row, f"{values[row, column]:z.{decimals}f}", ha="center", va="center", fontsize=size)
    if frame is not None:
        for row, column in np.argwhere(frame):
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=2))
    axes.set(title=title, xlabel="input", ylabel="neuron")


def bipartite_graph(
    axes: Axes,
    mask: np.ndarray,
    title: str = "",
    *,
    highlight: Sequence[int] = (),
    weight: np.ndarray | None = None,
) -> None:
    """Inputs above, neurons below, a line for every stored weight; neurons without inputs are hollow.

    Parameters
    ----------
    axes : to draw into
    mask : bool (n_out, n_in)
    title : of the axes
    highlight : neurons whose lines are drawn in colour
    weight : float (n_out, n_in); lines are thicker where its magnitude is larger
    """
    n_out, n_in = mask.shape
    inputs, neurons = np.linspace(0, 1, n_in), np.linspace(0, 1, n_out) if n_out > 1 else np.array([0.5])
    places = np.argwhere(mask)
    lines = np.stack(
        [inputs[places[:, 1]], np.ones(len(places)), neurons[places[:, 0]], np.zeros(len(places))], axis=1
    )
    largest = np.abs(weight[mask]).max() if weight is not None and mask.any() else 1.0
    widths = [0.4 + 2.6 * abs(weight[i, j]) / largest if weight is not None else 1.0 for i, j in places]
    chosen = set(highlight)
    axes.add_collection(
        LineCollection(
            list(lines.reshape(-1, 2, 2)),
            colors=[COLOURS["vermilion"] if i in chosen else "0.6" for i, _ in places],
            linewidths=[w + 0.6 * (i in chosen) for (i, _), w in zip(places, widths, strict=True)],
            zorder=1,
        )
    )
    alive = mask.any(axis=1)
    axes.scatter(inputs, np.ones(n_in), s=42, color=COLOURS["green"], zorder=2)
    axes.scatter(neurons[alive], np.zeros(alive.sum()), s=42, color=COLOURS["blue"], zorder=2)
    axes.scatter(neurons[~alive], np.zeros((~alive).sum()), s=42, facecolor="white", edgecolor="0.5", zorder=2)
    axes.set(title=title, xlim=(-0.06, 1.06), ylim=(-0.18, 1.18))
    axes.text(-0.05, 1.13, "inputs", fontsize=8, va="center")
    axes.text(-0.05, -0.13, "neurons", fontsize=8, va="center")
    axes.axis("off")


def _grid(axes: Axes, shape: tuple[int, ...]) -> None:
    """White lines between cells where there are few, and whole numbers on the axes."""
    n_rows, n_columns = shape
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if n_rows * n_columns <= 1200:
        axes.set_xticks(np.arange(n_columns + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(n_rows + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1, alpha=1)
        axes.tick_params(which="minor", length=0)
    for n, axis in ((n_columns, axes.xaxis), (n_rows, axes.yaxis)):
        if n <= 16:
            axis.set_ticks(np.arange(n), [str(i) for i in range(n)])
