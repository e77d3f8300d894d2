"""Figures of runs and comparisons. They are drawn without pyplot, so no display or global state is needed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sparsekit.models import weight_layers
from sparsekit.nn import Conv2d, Module

if TYPE_CHECKING:
    from sparsekit.training.history import History

# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DPI = 150


def history_figure(history: "History") -> Figure:
    """Loss, accuracy and active neurons over the epochs."""
    figure = Figure(figsize=(12, 3.6), dpi=DPI, layout="constrained")
    losses, accuracies, neurons = figure.subplots(1, 3)
    epochs = history.column("epoch")
    keys = history.rows[0]
    for part, colour in (("train", COLOURS[0]), ("validation", COLOURS[1])):
        if f"{part}_loss" in keys:
            losses.plot(epochs, history.column(f"{part}_loss"), color=colour, label=part, marker=".")
            percent = [100 * value for value in history.column(f"{part}_accuracy")]
            accuracies.plot(epochs, percent, color=colour, label=part, marker=".")
    _finish(losses, "Cross-entropy", "epoch", "nats a sample")
    _finish(accuracies, "Accuracy", "epoch", "%")
    active = [key for key in keys if key.endswith(".n_active")]
    for key, colour in zip(active, _by_depth(len(active)), strict=True):
        neurons.plot(epochs, history.column(key), color=colour, label=key.removesuffix(".n_active"), marker=".")
    if not active:
        neurons.text(0.5, 0.5, "no sparse layers", ha="center", transform=neurons.transAxes)
    neurons.set_ylim(bottom=0)
    _finish(neurons, "Active neurons", "epoch", "neurons with weights")
    return figure


def topology_figure(model: Module, sample_shape: tuple[int, ...]) -> Figure:
    """Where the weights are: on the inputs, in the first layer's mask, and among the neurons of each layer."""
    layers = weight_layers(model)
    first_layer = next(iter(layers.values()))
    first = first_layer.matrix
    width = 13 if len(layers) <= len(COLOURS) else 16  # for a legend beside the lines
    figure = Figure(figsize=(width, 4.2), dpi=DPI, layout="constrained")
    inputs, mask, fan_ins = figure.subplots(1, 3, width_ratios=(1, 1.25, 1))
    readers = first.mask().sum(axis=0)
    is_conv = isinstance(first_layer, Conv2d)
    shape = first_layer.weight_shape[1:] if is_conv else sample_shape
    if len(shape) == 3:
        image = inputs.imshow(readers.reshape(shape).sum(axis=0), cmap="viridis", vmin=0)
        figure.colorbar(image, ax=inputs, shrink=0.8)
        place = "kernel tap" if is_conv else "pixel"
        inputs.set(title=f"First layer: weights on each {place}", xticks=[], yticks=[])
    else:
        inputs.step(np.arange(readers.size), readers, where="mid", color=COLOURS[0])
        _finish(inputs, "First layer: weights on each feature", "feature", "weights")
    mask.imshow(first.mask(), cmap="binary", vmin=0, vmax=1, aspect="auto", interpolation="antialiased")
    mask.set(title="First layer: stored weights (black)", xlabel="input", ylabel="neuron")
    for (name, layer), colour in zip(layers.items(), _by_depth(len(layers)), strict=True):
        counts = np.sort(layer.matrix.fan_ins())[::-1]
        fan_ins.step(np.linspace(0, 100, counts.size), counts, where="mid", color=colour, label=name)
    fan_ins.set_ylim(bottom=0)
    _finish(fan_ins, "Fan-in of the neurons, largest first", "% of the layer's neurons", "stored inputs")
    fan_ins.set_xticks(range(0, 101, 25))
    return figure


def inspection_figure(
    layers: Sequence[dict[str, Any]], evolution: Sequence[dict[str, Any]] | None, title: str
) -> Figure:
    """Active neurons of each layer as bars, and how the masks of the sparse layers evolved, in the same colours.

    `layers` and `evolution` are those of :class:`sparsekit.inspection.Inspection`.
    """
    recorded = list(dict.fromkeys(row["layer"] for row in evolution or ()))
    colours = dict(zip(recorded, _by_depth(len(recorded)), strict=True))
    height = 1.4 + 0.3 * len(layers)
    if evolution:
        figure = Figure(figsize=(13, max(7.5, height)), dpi=DPI, layout="constrained")
        panels = figure.subplot_mosaic([["bars", "active"], ["bars", "replaced"], ["bars", "itop"]])
        for name in ("replaced", "itop"):
            panels[name].sharex(panels["active"])
        _active_neurons(panels["bars"], layers, colours)
        sizes = {layer["name"]: layer["shape"][0] for layer in layers}
        for name, colour in colours.items():
            _evolution(panels, [row for row in evolution if row["layer"] == name], sizes[name], colour)
        _finish(panels["active"], "Active neurons", "", "% of the layer's neurons")
        _finish(panels["replaced"], "Weights replaced at an update", "", "% of the layer's weights")
        _finish(
            panels["itop"], "Positions that have been active so far (ITOP)", "step", "% of the layer's positions"
        )
        panels["active"].set_ylim(max(0, panels["active"].dataLim.y0 - 5), 101)
        panels["replaced"].set_ylim(bottom=0)
        panels["itop"].set_ylim(bottom=0)
    else:
        figure = Figure(figsize=(7, max(2.5, height)), dpi=DPI, layout="constrained")
        _active_neurons(figure.subplots(), layers, colours)
    figure.suptitle(title if evolution is not None else f"{title}\nthe evolution of the masks was not recorded")
    return figure


def _active_neurons(axes: Axes, layers: Sequence[dict[str, Any]], colours: dict[str, str]) -> None:
    """One bar a layer, grey where its masks have no record; a frame where they have, for the neurons before."""
    thickness = min(0.8, 0.3 + 0.05 * len(layers))
    for i, layer in enumerate(layers):
        n_out, n_active, initial = layer["shape"][0], layer["n_active"], layer["initial_n_active"]
        axes.barh(i, 100 * n_active / n_out, thickness, color=colours.get(layer["name"], "0.65"))
        if layer["name"] in colours:
            axes.barh(i, 100 * initial / n_out, thickness, facecolor="none", edgecolor="0.2", linewidth=0.8)
        axes.text(102, i, f"{n_active} of {n_out}", va="center", fontsize=8)
    axes.set_yticks(range(len(layers)), [layer["name"] for layer in layers])
    axes.set_xticks(range(0, 101, 25))
    axes.set(xlim=(0, 122), ylim=(len(layers) - 0.4, -0.6), xlabel="% of the layer's neurons")
    axes.set_title("Active neurons after the training" + ("; frames: before it" if colours else ""))
    axes.spines[["top", "right"]].set_visible(False)


def _evolution(panels: dict[str, Axes], rows: Sequence[dict[str, Any]], n_out: int, colour: str) -> None:
    """The lines of one layer; the first row is that of the masks before the training."""
    steps = [row["step"] for row in rows]
    style: dict[str, Any] = {"color": colour, "marker": "." if len(rows) <= 50 else "", "linewidth": 1.2}
    panels["active"].plot(steps, [100 * row["n_active"] / n_out for row in rows], **style)
    replaced = [100 * row["n_grown"] / max(row["nnz"], 1) for row in rows[1:]]
    panels["replaced"].plot(steps[1:], replaced, **style)
    panels["itop"].plot(steps, [100 * row["itop"] for row in rows], **style)


def comparison_figure(rows: Sequence[dict[str, Any]], title: str) -> Figure:
    """Bars of a comparison: accuracy, bytes for weights, time an epoch, and time of a prediction.

    `rows` are those of :func:`sparsekit.comparison.compare`. Standard deviations over the seeds are drawn as
    thin lines; marks in the panels of inference show the same weights stored dense and in SciPy CSR.
    """
    figure = Figure(figsize=(17, 1.4 + 0.34 * len(rows)), dpi=DPI, layout="constrained")
    accuracy, memory, training, batch_1, batch_256 = figure.subplots(1, 5, sharey=True)
    accuracies = _bars(accuracy, rows, "test_accuracy", 100)
    accuracy.set(title="Test accuracy", xlabel="%")
    low = max(0.0, min(accuracies) - 0.25 * (max(accuracies) - min(accuracies)) - 0.5)
    high = max(accuracies) + 0.3 * (max(accuracies) - low) + 0.1  # room for the number, and never empty
    accuracy.set_xticks([t for t in MaxNLocator(4).tick_values(low, high) if low <= t <= min(high, 100)])
    accuracy.set_xlim(low, high)
    _bars(memory, rows, "weight_bytes", 1 / 1024)
    memory.set(title="Memory for weights in training", xlabel="KiB")
    _bars(training, rows, "seconds_per_epoch", 1000)
    training.set(title="Training", xlabel="milliseconds an epoch")
    for axes, batch in ((batch_1, 1), (batch_256, 256)):
        _bars(axes, rows, f"inference_{batch}_stored_us", 1, numbers=False)
        for storage, mark, colour in (("dense", "D", "black"), ("csr", "o", "0.5")):
            label = {"dense": "same weights, dense (BLAS)", "csr": "same weights, SciPy CSR"}[storage]
            places = [i for i, row in enumerate(rows) if row["sparsity"]]
            times = [rows[i][f"inference_{batch}_{storage}_us"] for i in places]
            if places:
                axes.plot(times, places, mark, color=colour, markersize=4, label=label)
        axes.set(title=f"Inference, batch {batch}", xlabel="microseconds a sample")
    accuracy.invert_yaxis()
    if batch_1.get_legend_handles_labels()[0]:
        figure.legend(*batch_1.get_legend_handles_labels(), loc="outside lower right", ncols=2, frameon=False)
    figure.suptitle(title)
    return figure


def _bars(
    axes: Axes, rows: Sequence[dict[str, Any]], key: str, scale: float, *, numbers: bool = True
) -> list[float]:
    """One bar a row, its colour that of the method and paler at lower sparsity; return the values drawn."""
    labels = list(dict.fromkeys(row["label"] for row in rows))
    highest = max(row["sparsity"] for row in rows)
    values = [scale * (row[f"{key}_mean"] if f"{key}_mean" in row else row[key]) for row in rows]
    errors = [scale * row.get(f"{key}_std", 0.0) for row in rows]
    for i, (row, value, error) in enumerate(zip(rows, values, errors, strict=True)):
        colour = COLOURS[labels.index(row["label"]) % len(COLOURS)]
        alpha = 1.0 if row["sparsity"] in (0, highest) else 0.55
        axes.barh(i, value, xerr=error or None, color=colour, alpha=alpha, ecolor="0.3")
        if numbers:
            axes.text(value + error, i, f"  {value:.4g}", va="center", fontsize=8)
    names = [f"{row['label']}, {100 * row['sparsity']:g} %" if row["sparsity"] else row["label"] for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.25)
    return values


def _finish(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    n_labels = len(axes.get_legend_handles_labels()[0])
    if n_labels > len(COLOURS):  # too many to stand within
        axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), labelspacing=0.3)
    elif n_labels:
        axes.legend(frameon=False)


def _by_depth(count: int) -> list[str]:
    """A colour for each of some layers: told apart where they are few, from dark to light where they are many."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    return [to_hex(colour) for colour in colormaps["viridis"](np.linspace(0, 0.9, count))]
