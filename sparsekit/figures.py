"""Figures of runs and comparisons. They are drawn without pyplot, so no display or global state is needed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sparsekit.models import linear_layers
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
    layers = linear_layers(model)
    first = next(iter(layers.values())).matrix
    figure = Figure(figsize=(13, 4.2), dpi=DPI, layout="constrained")
    inputs, mask, fan_ins = figure.subplots(1, 3, width_ratios=(1, 1.25, 1))
    readers = first.mask().sum(axis=0)
    if len(sample_shape) == 3:
        image = inputs.imshow(readers.reshape(sample_shape).sum(axis=0), cmap="viridis", vmin=0)
        figure.colorbar(image, ax=inputs, shrink=0.8)
        inputs.set(title="First layer: weights on each pixel", xticks=[], yticks=[])
    else:
        inputs.bar(np.arange(readers.size), readers, color=COLOURS[0])
        _finish(inputs, "First layer: weights on each feature", "feature", "weights")
    mask.imshow(first.mask(), cmap="binary", aspect="auto", interpolation="antialiased")
    mask.set(title="First layer: stored weights (black)", xlabel="input", ylabel="neuron")
    for (name, layer), colour in zip(layers.items(), _cycle(len(layers)), strict=True):
        counts = np.sort(layer.matrix.fan_ins())[::-1]
        fan_ins.step(np.linspace(0, 100, counts.size), counts, where="mid", color=colour, label=name)
    fan_ins.set_ylim(bottom=0)
    _finish(fan_ins, "Fan-in of the neurons, largest first", "% of the layer's neurons", "stored inputs")
    return figure


def comparison_figure(rows: Sequence[dict[str, Any]], title: str) -> Figure:
    """Bars of a comparison: accuracy, bytes for weights, time an epoch, and time of a prediction.

    `rows` are those of :func:`sparsekit.comparison.summarize`.
    """
    sparsities = sorted({row["sparsity"] for row in rows})
    labels = list(dict.fromkeys(row["label"] for row in rows))
    figure = Figure(figsize=(14, 0.9 + 0.42 * len(rows)), dpi=DPI, layout="constrained")
    panels = (
        ("Test accuracy", "%", "test_accuracy_mean", 100),
        ("Memory for the weights", "KiB in training", "weight_bytes_mean", 1 / 1024),
        ("Training", "milliseconds an epoch", "seconds_per_epoch_mean", 1000),
        ("Inference, batch 1", "microseconds a sample", "inference_1_stored_us", 1),
    )
    names = [f"{row['label']}, {row['sparsity']:.0%}" if row["sparsity"] else row["label"] for row in rows]
    colours = [COLOURS[labels.index(row["label"]) % len(COLOURS)] for row in rows]
    fade = {sparsity: 0.55 + 0.45 * i / max(1, len(sparsities) - 1) for i, sparsity in enumerate(sparsities)}
    for axes, (heading, unit, key, scale) in zip(figure.subplots(1, 4, sharey=True), panels, strict=True):
        values = [scale * row[key] for row in rows]
        errors = [scale * row.get(key.replace("_mean", "_std"), 0.0) for row in rows]
        bars = axes.barh(names, values, xerr=errors, color=colours)
        for bar, row, value, error in zip(bars, rows, values, errors, strict=True):
            bar.set_alpha(fade[row["sparsity"]])
            axes.text(value + error, bar.get_y() + bar.get_height() / 2, f" {value:.4g}", va="center", fontsize=8)
        axes.set(title=heading, xlabel=unit)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.2)
        if key == "test_accuracy_mean":
            axes.set_xlim(left=max(0.0, min(values) - max(1.0, 0.5 * (max(values) - min(values)))))
        axes.invert_yaxis() if axes.get_subplotspec().is_first_col() else None
    figure.suptitle(title)
    return figure


def _finish(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
