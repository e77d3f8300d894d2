"""`python -m analysis.variance`: what it writes and prints, when it fails, and that its figures show the rows."""

import csv
import json
import math
import sys

import numpy as np
import pytest
from matplotlib.collections import LineCollection

from analysis import variance, variance_points
from analysis.chance import LEVEL, judge
from analysis.plots.style import save_figure
from analysis.plots.variance import FIGURES, MASKS, NORMAL_95
from analysis.theory import (
    MASK_TYPES,
    bernoulli_minus_constant_fan_in,
    output_norm_variance,
    per_layer_minus_constant_fan_in,
)
from analysis.theory_fixed_mask import fixed_mask_variance
from analysis.variance_points import FIELDS, curve_points, random_points, simulated_points, trained_points
from sparsekit import load_run
from sparsekit.config import RunConfig
from sparsekit.console import run_app
from sparsekit.errors import InputError
from sparsekit.models import weight_layers
from sparsekit.training.run import train_run

# Chance


def chance_of_more(allowed, count, probability=0.05):
    return sum(
        math.comb(count, k) * probability**k * (1 - probability) ** (count - k)
        for k in range(allowed + 1, count + 1)
    )


@pytest.mark.parametrize("count", [1, 20, 120, 400])
def test_so_many_points_may_lie_outside_as_chance_puts_there_once_in_ten_thousand(count):
    allowed = judge([0.0] * count).outside_allowed
    assert chance_of_more(allowed, count) <= LEVEL < chance_of_more(allowed - 1, count)


def test_the_worst_point_is_judged_by_how_many_there_are():
    assert judge([0.0]).worst_allowed == pytest.approx(3.8906, abs=1e-4)  # normal quantile of 1 - 1e-4 / 2
    assert math.erfc(judge([0.0] * 50).worst_allowed / 2**0.5) == pytest.approx(LEVEL / 50)


def test_right_theories_agree_and_wrong_ones_do_not():
    z = np.random.default_rng(0).standard_normal(120)
    assert judge(list(z)).agrees
    assert not judge([*z, 5.5]).agrees
    assert not judge([*z, -5.5]).agrees
    many_small = judge(list(z + 1.5))
    assert many_small.worst <= many_small.worst_allowed
    assert not many_small.agrees
    assert str(judge([0.5, 2.0])) == "1 of 2 outside 95 % (chance allows 2), worst |z| 2.00 (chance allows 4.06)"
    with pytest.raises(InputError, match="z_scores must hold at least one number"):
        judge([])


# The points


def test_every_point_can_be_simulated_and_lies_on_a_curve():
    """The curves are drawn through the simulated points: rows are equal where both exist."""
    curves = {key_of(point.row): point.row["variance_theory"] for point in curve_points()}
    for point in [*simulated_points(full=False), *simulated_points(full=True)]:
        assert set(point.row) <= set(FIELDS)
        on_curve = curves.get(key_of(point.row))
        assert on_curve is None or on_curve == pytest.approx(point.row["variance_theory"])
    assert {point.row["experiment"] for point in simulated_points(full=False)} == {
        "size", "fan_in", "gates", "rectangular", "ablation", "depth", "convolution",
    }  # fmt: skip


def key_of(row):
    names = ("experiment", "mask_type", "n_in", "n_out", "n_ablated", "depth")
    return (*(row.get(name) for name in names), round(row["fan_in"], 9), round(row["gate_probability"], 9))


def test_papers_points_are_among_them():
    rows = [point.row for point in simulated_points(full=False)]
    papers = {
        (row["mask_type"], row["sparsity"]): row["variance_theory"]
        for row in rows
        if row["experiment"] == "size" and row["n_in"] == 40
    }
    assert papers["constant_fan_in", 0.95] == pytest.approx(0.29464, abs=5e-6)
    assert papers["per_layer", 0.9] == pytest.approx(0.21516, abs=5e-6)


# The command


def command(monkeypatch, *arguments):
    """Run it in this process, where its kernels are compiled once; the exit code."""
    monkeypatch.setattr(sys, "argv", ["analysis.variance", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        run_app(variance.app)
    return stopped.value.code


def test_tables_figures_and_z_scores(tmp_path, monkeypatch, capsys):
    out = tmp_path / "deep" / "out"
    assert command(monkeypatch, "--samples", 500, "--out", out, "--json", tmp_path / "r.json") == 0
    printed = capsys.readouterr()
    result = json.loads((tmp_path / "r.json").read_text())
    assert printed.err == ""
    assert "of 120 outside 95 %" in printed.out
    assert printed.out.count("convolution") == 12
    assert result["agrees"] is True
    assert result["variance"]["points"] == len(result["rows"]) == 120
    with open(out / "simulated.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["variance"]) for row in rows] == [row["variance"] for row in result["rows"]]
    for row in rows:
        z = (float(row["variance"]) - float(row["variance_theory"])) / float(row["variance_error"])
        assert float(row["variance_z"]) == pytest.approx(z)
    pictures = {f"{name}.{kind}" for name in FIGURES if name != "trained" for kind in ("svg", "png")}
    assert {path.name for path in out.iterdir()} == pictures | {"simulated.csv", "curves.csv", "differences.csv"}

    before = (out / "simulated.csv").read_bytes()
    assert command(monkeypatch, "--samples", 500, "--out", out, "--quiet", "--threads", 1) == 0
    assert capsys.readouterr() == ("", "")
    assert (out / "simulated.csv").read_bytes() == before


def test_a_wrong_formula_fails(tmp_path, monkeypatch, capsys):
    """A variance 20 % too large: most points are off by less than their neighbours scatter, together they tell."""
    monkeypatch.setattr(variance_points, "output_norm_variance", lambda *layer: 1.2 * output_norm_variance(*layer))
    assert command(monkeypatch, "--samples", 1500, "--out", tmp_path / "out", "--quiet") == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("sparsekit: error: theory and simulation disagree in the variance: ")
    assert printed.err.count("\n") == 1
    assert (tmp_path / "out" / "simulated.csv").is_file()  # to see where


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "0"], "samples must be an integer of at least 3, not 0"),
        (["--seed", "-1"], "seed must be an integer of at least 0, not -1"),
        (["--threads", "0"], "threads must be an integer in"),
        (["--run", "missing"], "missing"),
        (["--json", "missing/r.json"], "json must name a file in a folder that exists"),
        (["--nonsense"], "No such option"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, *arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("sparsekit: error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_somebody_else_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert command(monkeypatch, "--out", tmp_path) == 2
    assert "is not ours: it holds 'thesis.txt'" in capsys.readouterr().err
    assert command(monkeypatch, "--out", tmp_path / "thesis.txt") == 2
    assert "thesis.txt cannot be made: " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_new_folders_do_not_collide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(variance, "simulated_points", lambda *, full: simulated_points(full=full)[:9])
    monkeypatch.setattr(variance, "FIGURES", {})
    for _ in range(2):
        assert command(monkeypatch, "--samples", 300, "--quiet") == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"variance", "variance-2"}


# Trained masks


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "rigl"
    config = RunConfig(dataset="digits", method="rigl", hidden=(12,), epochs=1, delta_t=5, sparsity=0.8, threads=1)
    train_run(config, folder, progress=False)
    return folder


def test_masks_of_a_run(trained_run, tmp_path, monkeypatch):
    points = trained_points(trained_run)
    layers = weight_layers(load_run(trained_run).model)
    sparse = {name: layer.matrix.mask() for name, layer in layers.items() if not layer.matrix.mask().all()}
    assert [point.row["name"] for point in points] == list(sparse)
    for point, mask in zip(points, sparse.values(), strict=True):
        row = point.row
        assert row["variance_theory"] == fixed_mask_variance(mask)
        assert row["fan_in"] * (row["n_out"] - row["n_ablated"]) == pytest.approx(mask.sum())
    random = [point.row for point in random_points(points)]
    assert [row["mask_type"] for row in random] == [*MASK_TYPES] * len(points)
    assert {row["mean_theory"] for row in random} == {point.row["mean_theory"] for point in points}

    monkeypatch.setattr(variance, "simulated_points", lambda *, full: [])
    monkeypatch.setattr(variance, "FIGURES", {"trained": FIGURES["trained"]})
    out = tmp_path / "out"
    assert command(monkeypatch, "--run", trained_run, "--samples", 2000, "--out", out, "--quiet") == 0
    assert (out / "trained.png").is_file()


def test_a_dense_run_has_no_masks(tmp_path):
    config = RunConfig(dataset="digits", method="dense", hidden=(4,), epochs=1, threads=1)
    train_run(config, tmp_path / "dense", progress=False)
    with pytest.raises(InputError, match="must be of a sparse network, but all its layers are dense"):
        trained_points(tmp_path / "dense")


# Figures


def simulated_rows(points):
    """Rows as after a simulation that met the theory exactly but for a known deviation."""
    rows = []
    for number, point in enumerate(points):
        error = 0.02 * point.row["variance_theory"]
        estimate = {"variance": point.row["variance_theory"] + (number % 3 - 1) * error, "variance_error": error}
        rows.append(point.row | estimate)
    return rows


@pytest.fixture(scope="module")
def shown(trained_run):
    trained = trained_points(trained_run)
    rows = simulated_rows([*simulated_points(full=False), *trained])
    return rows, [point.row for point in [*curve_points(), *random_points(trained)]]


def drawn(name, shown):
    rows, curves = shown
    if name == "differences":
        rows, curves = variance.difference_rows(rows), variance.difference_rows(curves)
    return FIGURES[name](rows, curves)


def intervals_of(axes, colour):
    """Lower and upper ends of the error bars of one colour."""
    ends = []
    for bars in axes.collections:
        if isinstance(bars, LineCollection) and colour == to_hex(bars):
            ends += [(segment[0][1], segment[1][1]) for segment in bars.get_segments()]
    return ends


def to_hex(bars):
    from matplotlib.colors import to_hex

    return to_hex(bars.get_color()[0]).upper()


@pytest.mark.parametrize("mask_type", MASK_TYPES)
def test_points_and_intervals_are_those_of_the_rows(shown, mask_type):
    panel = drawn("fan-in", shown).axes[0]
    rows = [row for row in shown[0] if row["experiment"] == "fan_in" and row["mask_type"] == mask_type]
    expected = [
        (row["variance"] - NORMAL_95 * row["variance_error"], row["variance"] + NORMAL_95 * row["variance_error"])
        for row in rows
    ]
    np.testing.assert_allclose(intervals_of(panel, MASKS[mask_type]["color"]), expected)
    lines = [line for line in panel.lines if line.get_color() == MASKS[mask_type]["color"]]
    curve = next(line for line in lines if line.get_linestyle() == MASKS[mask_type]["linestyle"])
    expected = [output_norm_variance(mask_type, 64, 64, k) for k in curve.get_xdata()]
    np.testing.assert_allclose(curve.get_ydata(), expected)


def test_differences_are_between_masks_of_one_size(shown):
    rows = variance.difference_rows(shown[0])
    assert len(rows) == 3 * 3 * 4
    sizes = {
        (row["mask_type"], row["sparsity"], row["n_in"]): row for row in shown[0] if row["experiment"] == "size"
    }
    for row in rows:
        first, second = (sizes[kind, row["sparsity"], row["n"]] for kind in row["difference"].split(" - "))
        assert row["estimate"] == pytest.approx(first["variance"] - second["variance"])
        assert row["error"] == pytest.approx(np.hypot(first["variance_error"], second["variance_error"]))
        assert row["theory"] == pytest.approx(first["variance_theory"] - second["variance_theory"], rel=1e-6)
        assert row["z"] == pytest.approx((row["estimate"] - row["theory"]) / row["error"])
    by_name = {(row["difference"], row["sparsity"], row["n"]): row["theory"] for row in rows}
    expected = bernoulli_minus_constant_fan_in(40, 40, 2)
    assert by_name["bernoulli - constant_fan_in", 0.95, 40] == pytest.approx(expected)
    expected = per_layer_minus_constant_fan_in(40, 40, 2)
    assert by_name["per_layer - constant_fan_in", 0.95, 40] == pytest.approx(expected)


@pytest.mark.parametrize("name", FIGURES)
def test_equal_rows_give_equal_bytes(shown, tmp_path, name):
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        save_figure(drawn(name, shown), folder, name)
    for kind in ("svg", "png"):
        first, second = ((tmp_path / folder / f"{name}.{kind}").read_bytes() for folder in ("a", "b"))
        assert len(first) > 5000
        assert first == second


def test_no_trained_layers_no_figure(shown):
    assert FIGURES["trained"]([], shown[1]) is None
