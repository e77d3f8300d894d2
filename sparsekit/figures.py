"""Figures of runs and comparisons. They are drawn without pyplot, so no display or global state is needed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sparsekit.models import weight_layers
from sparsekit.nn import Module

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
    for key, colour in zip(active, _cycle(len(active)), strict=True):
        neurons.plot(epochs, history.column(key), color=colour, label=key.removesuffix(".n_active"), marker=".")
    if not active:
        neurons.text(0.5, 0.5, "no sparse layers", ha="center", transform=neurons.transAxes)
    neurons.set_ylim(bottom=0)
    _finish(neurons, "Active neurons", "epoch", "neurons with weights")
    return figure


def topology_figure(model: Module, sample_shape: tuple[int, ...]) -> Figure:
    """Where the weights are: on the inputs, in the first layer's mask, and among the neurons of each layer."""
    layers = weight_layers(model)
    first = next(iter(layers.values())).matrix
    figure = Figure(figsize=(13, 4.2), dpi=DPI, layout="constrained")
    inputs, mask, fan_ins = figure.subplots(1, 3, width_ratios=(1, 1.25, 1))
    readers = first.mask().sum(axis=0)
    if len(sample_shape) == 3:
        image = inputs.imshow(readers.reshape(sample_shape).sum(axis=0), cmap="viridis", vmin=0)
        figure.colorbar(image, ax=inputs, shrink=0.8)
        inputs.set(title="First layer: weights on each pixel", xticks=[], yticks=[])
    else:
        inputs.step(np.arange(readers.size), readers, where="mid", color=COLOURS[0])
        _finish(inputs, "First layer: weights on each feature", "feature", "weights")
    mask.imshow(first.mask(), cmap="binary", aspect="auto", interpolation="antialiased")
    mask.set(title="First layer: stored weights (black)", xlabel="input", ylabel="neuron")
    for (name, layer), colour in zip(layers.items(), _cycle(len(layers)), strict=True):
        counts = np.sort(layer.matrix.fan_ins())[::-1]
        fan_ins.step(np.linspace(0, 100, counts.size), counts, where="mid", color=colour, label=name)
    fan_ins.set_ylim(bottom=0)
    _finish(fan_ins, "Fan-in of the neurons, largest first", "% of the layer's neurons", "stored inputs")
    fan_ins.set_xticks(range(0, 101, 25))
    return figure


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
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
