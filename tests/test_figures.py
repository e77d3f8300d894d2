"""Figures: what is drawn are the numbers, legends name what is drawn, and any run can be drawn."""

import io
import time

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from sparsekit import models
from sparsekit.condensed import CondensedMatrix
from sparsekit.figures import comparison_figure, history_figure, inspection_figure, topology_figure
from sparsekit.nn import Linear, Sequential
from sparsekit.training import History


def drawn(figure):
    """Draw the figure as savefig does, with warnings as errors, and return it."""
    figure.savefig(io.BytesIO(), format="png")
    return figure


def legend_of(thing) -> list[str]:
    """Texts of a legend of axes, or of all legends of a figure."""
    legends = thing.legends if hasattr(thing, "legends") else [thing.get_legend()]
    return [text.get_text() for legend in legends if legend for text in legend.get_texts()]


def lines_of(axes) -> dict[str, list[float]]:
    return {line.get_label(): list(line.get_ydata()) for line in axes.lines}


# History


def history(epochs=3, validation=True, layers=("fc1", "fc2")) -> History:
    def row(epoch):
        parts = {"train": 1.0, "validation": 2.0} if validation else {"train": 1.0}
        measured = {f"{part}_loss": scale / epoch for part, scale in parts.items()}
        measured |= {f"{part}_accuracy": 0.3 * scale / (4 - epoch) for part, scale in parts.items()}
        active = {f"{name}.n_active": 10 * i - epoch for i, name in enumerate(layers, start=1)}
        fan_ins = {f"{name}.fan_in": 5 for name in layers}
        return {"epoch": epoch, "step": 7 * epoch, "learning_rate": 0.1} | measured | active | fan_ins

    return History([row(epoch) for epoch in range(1, epochs + 1)])


def test_history_shows_every_column():
    losses, accuracies, neurons = drawn(history_figure(history())).axes
    assert lines_of(losses) == {"train": [1, 1 / 2, 1 / 3], "validation": [2, 1, 2 / 3]}
    assert lines_of(accuracies)["train"] == pytest.approx([10, 15, 30])
    assert lines_of(accuracies)["validation"] == pytest.approx([20, 30, 60])
    assert lines_of(neurons) == {"fc1": [9, 8, 7], "fc2": [19, 18, 17]}
    assert [list(axes.lines[0].get_xdata()) for axes in (losses, accuracies, neurons)] == [[1, 2, 3]] * 3
    assert legend_of(losses) == legend_of(accuracies) == ["train", "validation"]
    assert legend_of(neurons) == ["fc1", "fc2"]


def test_history_without_validation():
    losses, accuracies, _ = drawn(history_figure(history(validation=False))).axes
    assert list(lines_of(losses)) == list(lines_of(accuracies)) == ["train"]
    assert legend_of(losses) == legend_of(accuracies) == ["train"]


def test_history_without_sparse_layers():
    neurons = drawn(history_figure(history(layers=()))).axes[2]
    assert not neurons.lines
    assert legend_of(neurons) == []
    assert [text.get_text() for text in neurons.texts] == ["no sparse layers"]


def test_history_of_one_epoch_and_of_many_layers():
    names = tuple(f"fc{i}" for i in range(1, 10))  # more than there are colours
    neurons = drawn(history_figure(history(epochs=1, layers=names))).axes[2]
    assert legend_of(neurons) == list(names)
    assert len({line.get_color() for line in neurons.lines}) == len(names)
    inside = neurons.get_window_extent()
    assert neurons.get_legend().get_window_extent().x0 >= inside.x1  # beside the lines, not on them


# Topology


@pytest.mark.parametrize("shape", [(1, 4, 5), (3, 4, 5)])
def test_topology_of_images(shape):
    model = models.mlp((int(np.prod(shape)), 12, 3), sparsity=0.7)
    mask = models.weight_layers(model)["fc1"].matrix.mask()
    inputs, masks, fan_ins = drawn(topology_figure(model, shape)).axes[:3]
    image = inputs.images[0].get_array()
    assert image.shape == (4, 5)
    expected = sum(row.reshape(shape).sum(axis=0) for row in mask.astype(int))
    np.testing.assert_array_equal(image, expected)
    np.testing.assert_array_equal(masks.images[0].get_array(), mask)
    assert legend_of(fan_ins) == ["fc1", "fc2"]


@pytest.mark.parametrize("storage", ["condensed", "dense"])
def test_topology_of_convolutions(storage):
    """What has inputs in common are the taps of the kernel, not pixels."""
    model = models.cnn((2, 8, 8), 3, channels=(4, 5), storage=storage, sparsity=0.6)
    mask = models.weight_layers(model)["conv1"].matrix.mask()
    inputs, masks, fan_ins = drawn(topology_figure(model, (2, 8, 8))).axes[:3]
    np.testing.assert_array_equal(inputs.images[0].get_array(), mask.reshape(4, 2, 3, 3).sum(axis=(0, 1)))
    np.testing.assert_array_equal(masks.images[0].get_array(), mask)
    assert masks.images[0].get_clim() == (0, 1)  # a full mask is black, not white
    assert legend_of(fan_ins) == ["conv1", "conv2", "fc"]


@pytest.mark.parametrize("storage", ["condensed", "csr", "dense"])
def test_topology_of_tables(storage):
    model = models.mlp((15, 12, 3), storage=storage, sparsity=0.6)
    inputs, masks, fan_ins = drawn(topology_figure(model, (15,))).axes
    layers = models.weight_layers(model)
    mask = layers["fc1"].matrix.mask()
    (line,) = inputs.lines
    np.testing.assert_array_equal(line.get_xdata(), np.arange(15))
    np.testing.assert_array_equal(line.get_ydata(), mask.sum(axis=0))
    np.testing.assert_array_equal(masks.images[0].get_array(), mask)
    for name, counts in lines_of(fan_ins).items():
        assert counts == sorted(layers[name].matrix.mask().sum(axis=1), reverse=True)


def test_topology_of_wide_tables():
    """A bar for each of 20,000 features would take half a minute and more."""
    model = models.mlp((20_000, 8, 3), sparsity=0.99)
    figure = topology_figure(model, (20_000,))
    assert len(figure.findobj()) < 2_000
    started = time.perf_counter()
    drawn(figure)
    assert time.perf_counter() - started < 20
    counts = models.weight_layers(model)["fc1"].matrix.mask().sum(axis=0)
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), counts)


def test_topology_with_ablated_neurons():
    mask = np.zeros((4, 6), dtype=bool)
    mask[[0, 0, 2, 2], [0, 5, 1, 2]] = True
    first = Linear(CondensedMatrix.from_mask(mask), budget=4)
    empty = Linear(CondensedMatrix.from_mask(np.zeros((1, 4), dtype=bool)), budget=1)
    inputs, _, fan_ins = drawn(topology_figure(Sequential({"fc1": first, "fc2": empty}), (6,))).axes
    assert list(inputs.lines[0].get_ydata()) == [1, 1, 1, 0, 0, 1]
    assert lines_of(fan_ins) == {"fc1": [2, 2, 0, 0], "fc2": [0]}


# Inspection


def inspected(n_layers, n_updates, dense=()):
    """Layers l1, l2, ... and their evolution, as :func:`sparsekit.inspection.inspect_run` gives them."""
    layers, evolution = [], []
    for i in range(n_layers):
        name, n_out = f"l{i + 1}", 10 * (i + 1)
        layer = {"name": name, "shape": [n_out, 7], "n_active": n_out - i, "initial_n_active": n_out}
        layers.append(layer)
        for k in range(0 if name in dense else n_updates + 1):
            row = {"step": 5 * k, "layer": name, "nnz": 40, "n_grown": (i + k) % 7, "itop": (k + 1) / 50}
            evolution.append(row | {"n_active": n_out - min(i, k)})
    return layers, evolution


@pytest.mark.parametrize(("n_layers", "n_updates"), [(1, 1), (3, 4), (21, 60)])
def test_inspection_shows_every_layer(n_layers, n_updates):
    layers, evolution = inspected(n_layers, n_updates, dense=["l2"])
    figure = drawn(inspection_figure(layers, evolution, "a title"))
    bars, active, replaced, itop = figure.axes
    assert figure.get_suptitle() == "a title"
    assert [label.get_text() for label in bars.get_yticklabels()] == [layer["name"] for layer in layers]
    texts = [text.get_text() for text in bars.texts]
    assert texts == [f"{layer['n_active']} of {layer['shape'][0]}" for layer in layers]
    filled = [bar for bar in bars.patches if bar.get_facecolor()[3]]
    shares = [100 * layer["n_active"] / layer["shape"][0] for layer in layers]
    assert [bar.get_width() for bar in filled] == pytest.approx(shares)
    sparse = [layer["name"] for layer in layers if layer["name"] != "l2"]
    assert len(bars.patches) - len(filled) == len(sparse)  # frames: what there was at the start
    colours = [to_hex(bar.get_facecolor()) for bar, layer in zip(filled, layers, strict=True)]
    assert len(set(colours)) == len(layers)
    for axes in (active, replaced, itop):
        drawn_colours = [to_hex(line.get_color()) for line in axes.lines]
        assert drawn_colours == [c for c, layer in zip(colours, layers, strict=True) if layer["name"] in sparse]
    for name, n_active, moved, rate in zip(sparse, active.lines, replaced.lines, itop.lines, strict=True):
        rows = [row for row in evolution if row["layer"] == name]
        n_out = 10 * int(name[1:])
        assert list(n_active.get_xdata()) == list(itop.lines[0].get_xdata()) == [row["step"] for row in rows]
        assert list(n_active.get_ydata()) == pytest.approx([100 * row["n_active"] / n_out for row in rows])
        assert list(moved.get_xdata()) == [row["step"] for row in rows[1:]]
        assert list(moved.get_ydata()) == pytest.approx([100 * row["n_grown"] / 40 for row in rows[1:]])
        assert list(rate.get_ydata()) == pytest.approx([100 * row["itop"] for row in rows])
    bottom, top = active.get_ylim()
    assert bottom <= min(line.get_ydata().min() for line in active.lines) <= 100 < top


@pytest.mark.parametrize("evolution", [None, []])
def test_inspection_without_an_evolution(evolution):
    layers = [layer | {"initial_n_active": None} for layer in inspected(3, 0)[0]]
    figure = drawn(inspection_figure(layers, evolution, "a title"))
    (bars,) = figure.axes
    assert len(bars.patches) == 3
    assert ("not recorded" in figure.get_suptitle()) == (evolution is None)


# Comparison

DENSE, CSR = "same weights, dense (BLAS)", "same weights, SciPy CSR"


def row(label, sparsity, i, std=0.0):
    """Numbers that are all different, so that none can stand for another."""
    times = {
        f"inference_{batch}_{storage}_us": 10.0 * batch + 3 * i + k
        for batch in (1, 256)
        for k, storage in enumerate(("stored", "dense", "csr"))
    }
    return times | {
        "label": label,
        "sparsity": sparsity,
        "seeds": [0],
        "test_accuracy_mean": 0.9 + i / 100,
        "test_accuracy_std": std / 100,
        "seconds_per_epoch_mean": 0.5 + i / 10,
        "seconds_per_epoch_std": std / 10,
        "peak_memory_bytes_mean": 1e8 + i,
        "peak_memory_bytes_std": std,
        "weight_bytes_mean": 2048.0 * (i + 1),
        "weight_bytes_std": 1024 * std,
        "stored_weights": 100 - i,
        "layers": [],
    }


ROWS = {
    "one sparsity": [row("dense", 0.0, 0), row("srigl", 0.9, 1), row("rigl", 0.9, 2)],
    "several sparsities": [
        row("dense", 0.0, 0, std=0.2),
        row("srigl", 0.8, 1, std=0.3),
        row("static", 0.8, 2, std=0.1),
        row("srigl", 0.95, 3, std=0.4),
        row("static", 0.95, 4, std=0.2),
        row("srigl", 0.995, 5, std=0.2),
        row("static", 0.995, 6, std=0.2),
    ],
    "one row": [row("srigl (gamma_sal=0)", 0.9, 3)],
    "dense only": [row("dense", 0.0, 0)],
    "dense twice": [row("dense", 0.0, 0), row("dense (hidden=64)", 0.0, 1)],
}


@pytest.fixture(params=ROWS.values(), ids=ROWS)
def rows(request):
    return request.param


def bars_of(axes) -> list[Rectangle]:
    """The bars from the first row to the last."""
    return sorted(axes.patches, key=lambda bar: bar.get_y())


def widths(axes) -> list[float]:
    bars = bars_of(axes)
    assert [bar.get_x() for bar in bars] == [0] * len(bars)
    assert [bar.get_y() + bar.get_height() / 2 for bar in bars] == pytest.approx(range(len(bars)))
    return [bar.get_width() for bar in bars]


def names_of(figure) -> list[str]:
    return [label.get_text().replace(" %", "%") for label in figure.axes[0].get_yticklabels()]


def test_bars_are_as_long_as_the_numbers(rows):
    accuracy, memory, training, batch_1, batch_256 = drawn(comparison_figure(rows, "a title")).axes
    assert widths(accuracy) == pytest.approx([100 * row["test_accuracy_mean"] for row in rows])
    assert widths(memory) == pytest.approx([row["weight_bytes_mean"] / 1024 for row in rows])
    assert widths(training) == pytest.approx([1000 * row["seconds_per_epoch_mean"] for row in rows])
    assert widths(batch_1) == pytest.approx([row["inference_1_stored_us"] for row in rows])
    assert widths(batch_256) == pytest.approx([row["inference_256_stored_us"] for row in rows])
    for axes, unit in ((accuracy, "%"), (memory, "KiB"), (training, "milliseconds"), (batch_1, "microseconds")):
        assert unit in axes.get_xlabel()
        assert axes.get_xlim()[0] <= min(widths(axes)) <= max(widths(axes)) < axes.get_xlim()[1]


def test_numbers_beside_the_bars(rows):
    for axes in comparison_figure(rows, "").axes[:3]:
        texts = [float(text.get_text()) for text in sorted(axes.texts, key=lambda text: text.get_position()[1])]
        assert texts == pytest.approx(widths(axes), rel=1e-3)


def test_rows_are_named_from_top_to_bottom(rows):
    figure = drawn(comparison_figure(rows, "a title"))
    names = names_of(figure)
    assert len(set(names)) == len(names) == len(rows)
    assert all(name.startswith(row["label"]) for name, row in zip(names, rows, strict=True))
    assert list(figure.axes[0].get_yticks()) == list(range(len(rows)))
    bottom, top = figure.axes[0].get_ylim()
    assert bottom > top  # the first row is the uppermost
    assert figure.get_suptitle() == "a title"


def test_sparsities_are_told_apart():
    rows = [row("srigl", sparsity, i) for i, sparsity in enumerate((0.5, 0.9, 0.95, 0.995, 0.999))]
    assert names_of(comparison_figure(rows, "")) == [
        "srigl, 50%", "srigl, 90%", "srigl, 95%", "srigl, 99.5%", "srigl, 99.9%",
    ]  # fmt: skip


def test_deviations_are_drawn():
    rows = ROWS["several sparsities"]
    accuracy = comparison_figure(rows, "").axes[0]
    ends = [collection.get_segments()[0][:, 0] for collection in accuracy.collections]
    means, deviations = (np.array([r[f"test_accuracy_{key}"] for r in rows]) for key in ("mean", "std"))
    np.testing.assert_allclose(ends, 100 * np.transpose([means - deviations, means + deviations]))
    assert not comparison_figure(ROWS["one sparsity"], "").axes[0].collections  # one seed has no deviation


def test_competitors_are_marked_beside_sparse_rows(rows):
    figure = drawn(comparison_figure(rows, ""))
    sparse = [i for i, row in enumerate(rows) if row["sparsity"]]
    for axes, batch in zip(figure.axes[3:], (1, 256), strict=True):
        marks = {line.get_label(): line for line in axes.lines if len(line.get_xdata())}
        assert set(marks) == ({DENSE, CSR} if sparse else set())
        for label, storage in ((DENSE, "dense"), (CSR, "csr")):
            if sparse:
                assert list(marks[label].get_ydata()) == sparse
                expected = [rows[i][f"inference_{batch}_{storage}_us"] for i in sparse]
                assert list(marks[label].get_xdata()) == expected


def test_the_legend_names_what_is_drawn(rows):
    figure = drawn(comparison_figure(rows, ""))
    assert legend_of(figure) == ([DENSE, CSR] if any(row["sparsity"] for row in rows) else [])


def test_a_method_has_one_colour_and_pales_at_lower_sparsity():
    rows = ROWS["several sparsities"]
    bars = bars_of(comparison_figure(rows, "").axes[1])
    colours = {row["label"]: to_hex(bar.get_facecolor()) for row, bar in zip(rows, bars, strict=True)}
    assert len(set(colours.values())) == 3
    for row_, bar in zip(rows, bars, strict=True):
        assert to_hex(bar.get_facecolor()) == colours[row_["label"]]
        assert (bar.get_alpha() == 1) == (row_["sparsity"] in (0, 0.995))


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_equal_accuracies_at_the_ends_can_be_drawn(accuracy):
    rows = [r | {"test_accuracy_mean": accuracy} for r in ROWS["one sparsity"]]
    axes = drawn(comparison_figure(rows, "")).axes[0]
    assert widths(axes) == [100 * accuracy] * 3
    assert axes.get_xlim()[0] <= 100 * accuracy < axes.get_xlim()[1]
    assert all(0 <= tick <= 100 for tick in axes.get_xticks())
