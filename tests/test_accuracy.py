"""Accuracy over sparsity and what SRigL does to neurons: numbers and figures are those of the runs."""

import csv
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from scipy import stats

from analysis.ablation import active_neurons, gamma_sweep, itop_rates
from analysis.accuracy import accuracies, comparisons
from analysis.plots import save_figure
from analysis.plots.ablation import fan_in_figure, gamma_figure, itop_figure, neurons_figure
from analysis.plots.accuracy import accuracy_figure
from analysis.series import complete, grouped, paired, require_same_training, series, sparsities
from analysis.sweep import JoblibScheduler, grid, run_sweep
from sparsekit.errors import InputError

ROOT = Path(__file__).parent.parent
SPARSITIES, SEEDS = (0.8, 0.9, 0.98), (0, 1, 2, 3)
METHODS = (("dense", 0.3), ("static", 0.3), ("rigl", 0.3), ("srigl", 0.0), ("srigl", 0.3), ("srigl", 0.95))


def layer(name, n_out, n_active, fan_in):
    return {"name": name, "shape": [n_out, 50], "n_active": n_active, "nnz": 7, "fan_ins": [[fan_in, n_active]]}


def made_row(method, gamma_sal, sparsity, seed):
    """A row as a sweep has it, with numbers that tell where it comes from."""
    rng = np.random.default_rng([seed, int(100 * sparsity), int(100 * gamma_sal), len(method)])
    row = {
        "key": f"{method}{gamma_sal}{sparsity}{seed}", "label": method, "status": "done", "method": method,
        "gamma_sal": gamma_sal, "sparsity": 0.0 if method == "dense" else sparsity, "seed": seed,
        "dataset": "digits", "model": "mlp", "hidden": "[40]", "channels": "[32]", "epochs": 3,
        "test_accuracy": 0.9 - sparsity / 10 + 0.01 * rng.standard_normal() + 0.02 * (seed % 2),
        "stored_weights": 1000 * (1 - sparsity) + seed,
        "layers": [layer("fc1", 40, 40 - int(20 * gamma_sal) - seed, 10 + seed), layer("fc2", 10, 10, 4)],
    }  # fmt: skip
    if method != "dense":
        row["itop"] = 1 - sparsity + seed / 100
        row["updates"] = [{"step": step, "n_active": 5, "itop": step / 100 + seed / 1000} for step in (0, 10, 20)]
    return row


@pytest.fixture
def rows():
    made = [
        made_row(method, gamma_sal, sparsity, seed)
        for (method, gamma_sal), sparsity, seed in itertools.product(METHODS, SPARSITIES, SEEDS)
        if method != "dense" or sparsity == SPARSITIES[0]
    ]
    np.random.default_rng(0).shuffle(made)
    return made


# Series


def test_a_series_is_the_method_and_for_srigl_its_gamma():
    names = [series({"method": method, "gamma_sal": gamma}) for method, gamma in METHODS]
    assert names == [
        "dense", "static", "RigL", "SRigL without ablation", "SRigL, gamma 0.3", "SRigL, gamma 0.95",
    ]  # fmt: skip


def test_groups_are_in_a_fixed_order(rows):
    groups = grouped(rows)
    assert list(groups) == [series({"method": method, "gamma_sal": gamma}) for method, gamma in METHODS]
    assert list(groups["RigL"]) == list(SPARSITIES)
    assert [row["seed"] for row in groups["RigL"][0.9]] == list(SEEDS)
    assert list(groups["dense"]) == [0.0]
    assert sum(len(runs) for by_sparsity in groups.values() for runs in by_sparsity.values()) == len(rows)


def test_two_runs_in_one_place_are_refused(rows):
    rows.append({**rows[0], "learning_rate": 7})
    with pytest.raises(InputError, match="must hold one run of .* with seed ., not two"):
        grouped(rows)


def test_complete_series_were_trained_at_every_sparsity(rows):
    rows = [row for row in rows if (row["gamma_sal"], row["sparsity"]) != (0.95, 0.9)]
    assert sparsities(rows) == list(SPARSITIES)
    assert set(grouped(rows)) - set(complete(rows)) == {"SRigL, gamma 0.95"}


def test_pairs_have_the_same_seed():
    first = [{"seed": 3, "test_accuracy": 0.5}, {"seed": 1, "test_accuracy": 0.25}]
    second = [{"seed": 1, "test_accuracy": 0.75}, {"seed": 2, "test_accuracy": 1.0}]
    assert paired(first, second) == [(25.0, 75.0)]


def test_runs_of_different_networks_are_refused(rows):
    require_same_training(rows)
    with pytest.raises(InputError, match="results must be of one model, not of cnn and mlp"):
        require_same_training([*rows, {**rows[0], "model": "cnn"}])


# Numbers


def test_accuracies_are_means_with_student_intervals(rows):
    found = {(row["series"], row["sparsity"]): row for row in accuracies(rows)}
    assert len(found) == 1 + 5 * len(SPARSITIES)
    values = [100 * row["test_accuracy"] for row in rows if row["method"] == "rigl" and row["sparsity"] == 0.9]
    row = found["RigL", 0.9]
    assert row["accuracy"] == pytest.approx(np.mean(values))
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert row["half_width"] == pytest.approx((high - low) / 2)
    assert row["n"] == 4
    assert row["stored_weights"] == pytest.approx(100 + 1.5)
    assert row["itop"] == pytest.approx(0.1 + 0.015)
    assert found["dense", 0.0]["itop"] is None


def test_one_seed_has_no_interval(rows):
    (row,) = accuracies([row for row in rows if (row["method"], row["sparsity"], row["seed"]) == ("rigl", 0.9, 0)])
    assert row["half_width"] is None
    assert comparisons([row for row in rows if row["seed"] == 0]) == []


def test_comparisons_are_paired_tests(rows):
    found = {(row["a"], row["b"], row["sparsity"]): row for row in comparisons(rows)}

    def values(method, gamma, sparsity):
        chosen = [r for r in rows if (r["method"], r["gamma_sal"], r["sparsity"]) == (method, gamma, sparsity)]
        return [100 * row["test_accuracy"] for row in sorted(chosen, key=lambda row: row["seed"])]

    for (a, b, sparsity), first, second in (
        (("RigL", "static", 0.9), values("rigl", 0.3, 0.9), values("static", 0.3, 0.9)),
        (("SRigL, gamma 0.3", "dense", 0.98), values("srigl", 0.3, 0.98), values("dense", 0.3, 0.0)),
    ):
        row, expected = found[a, b, sparsity], stats.ttest_rel(first, second)
        assert row["p_value"] == pytest.approx(expected.pvalue)
        assert row["difference"] == pytest.approx(np.mean(first) - np.mean(second))
        interval = expected.confidence_interval(0.95)
        assert row["half_width"] == pytest.approx((interval.high - interval.low) / 2)
        assert row["n"] == 4
        assert row["permutation_p_value"] >= 2 / 2**4
    assert all(row["holm"] >= row["p_value"] for row in found.values())
    family = [row for row in found.values() if (row["a"], row["b"]) == ("RigL", "static")]
    smallest = min(family, key=lambda row: row["p_value"])
    assert len(family) == len(SPARSITIES)
    assert smallest["holm"] == pytest.approx(min(1, len(family) * smallest["p_value"]))


def test_active_neurons_by_layer(rows):
    found = {(row["series"], row["sparsity"], row["layer"]): row for row in active_neurons(rows)}
    row = found["SRigL, gamma 0.95", 0.98, "fc1"]
    assert row["active"] == pytest.approx(100 * np.mean([21, 20, 19, 18]) / 40)
    assert (row["fan_in_min"], row["fan_in_max"], row["n_out"], row["n"]) == (10, 13, 40, 4)
    assert found["RigL", 0.8, "fc2"]["active"] == 100
    assert not [key for key in found if key[0] == "dense"]


def test_gamma_sweep_is_of_srigl_alone(rows):
    found = gamma_sweep(rows)
    assert [(row["sparsity"], row["gamma_sal"]) for row in found] == list(
        itertools.product(SPARSITIES, (0.0, 0.3, 0.95))
    )
    assert found[2]["active"] == pytest.approx(100 * np.mean([21, 20, 19, 18]) / 40)  # without the output layer


def test_itop_rates_are_means_over_seeds(rows):
    found = [row for row in itop_rates(rows) if (row["series"], row["sparsity"]) == ("static", 0.9)]
    assert [row["step"] for row in found] == [0, 10, 20]
    assert [row["itop"] for row in found] == pytest.approx([0.15, 10.15, 20.15])


# Figures


def points(axes):
    """Values of every line with intervals, by its label."""
    bars = [container for container in axes.containers if isinstance(container, ErrorbarContainer)]
    return {bar.get_label(): list(bar.lines[0].get_ydata()) for bar in bars}


def test_the_accuracy_figure_shows_the_numbers(rows):
    left, right = accuracy_figure(rows).axes
    means = {(row["series"], row["sparsity"]): row["accuracy"] for row in accuracies(rows)}
    drawn = points(left)
    assert set(drawn) == set(grouped(rows)) - {"dense"}
    for name, values in drawn.items():
        assert values == pytest.approx([means[name, sparsity] for sparsity in SPARSITIES])
    static = [row["difference"] for row in comparisons(rows) if (row["a"], row["b"]) == ("RigL", "static")]
    assert [-value for value in points(right)["static"]] == pytest.approx(static)
    assert set(points(right)) == set(drawn) - {"RigL"}
    assert [text.get_text() for text in left.get_xticklabels()] == ["80", "90", "98"]


def test_the_figures_of_ablation_show_the_numbers(rows):
    first, _ = neurons_figure(active_neurons(rows)).axes
    assert points(first)["SRigL, gamma 0.3"] == pytest.approx([100 * (40 - 6 - 1.5) / 40] * 3)
    assert "static" not in points(first)
    accuracy, active = gamma_figure(gamma_sweep(rows)).axes
    assert points(active)["90 % sparse"] == pytest.approx([100 * (40 - n - 1.5) / 40 for n in (0, 6, 19)])
    assert len(points(accuracy)) == 3
    assert [axes.get_title() for axes in itop_figure(itop_rates(rows)).axes] == [
        "80 % sparse", "90 % sparse", "98 % sparse",
    ]  # fmt: skip
    for axes in fan_in_figure(rows).axes:
        for patch in axes.patches:  # each histogram holds all neurons
            assert patch.get_data().values.sum() == pytest.approx(100)


def test_sweeps_without_rigl_and_srigl_are_drawn_too(rows):
    rows = [row for row in rows if row["method"] in ("dense", "static")]
    assert [text.get_text() for text in fan_in_figure(rows).legends[0].get_texts()] == ["static"]
    assert len(itop_figure(itop_rates(rows)).axes) == 3
    assert len(accuracy_figure(rows).axes) == 2
    assert points(neurons_figure(active_neurons(rows)).axes[0]) == {}


def test_figures_are_the_same_bytes_every_time(rows, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save_figure(accuracy_figure(rows), tmp_path / folder, "accuracy")
    for suffix in ("svg", "png"):
        first, second = ((tmp_path / folder / f"accuracy.{suffix}").read_bytes() for folder in ("a", "b"))
        assert first == second


# The commands


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    settings = {"hidden": (16,), "epochs": 1, "batch_size": 64, "delta_t": 5, "backend": "vectorized"}
    methods = ["dense", "static", "rigl", "srigl:gamma_sal=0", "srigl"]
    tasks = grid(settings, {"method": methods, "sparsity": [0.5, 0.8], "seed": [0, 1]})
    folder = tmp_path_factory.mktemp("sweep")
    run_sweep(tasks, folder, JoblibScheduler(workers=1), progress=False)
    return folder


def run_module(name, *arguments):
    command = [sys.executable, "-m", f"analysis.{name}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_commands_write_what_they_say(sweep, tmp_path):
    done = run_module("accuracy", sweep, "--out", tmp_path / "a", "--json", tmp_path / "a.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "RigL - static" in done.stdout
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        "accuracy.csv", "comparisons.csv", "accuracy.svg", "accuracy.png",
    }  # fmt: skip
    written = list(csv.DictReader((tmp_path / "a" / "accuracy.csv").read_text().splitlines()))
    stated = json.loads((tmp_path / "a.json").read_text())["accuracies"]
    assert [float(row["accuracy"]) for row in written] == [row["accuracy"] for row in stated]
    done = run_module("ablation", sweep / "results.csv", "--out", tmp_path / "b")
    assert (done.returncode, done.stderr) == (0, "")
    names = {"active-neurons", "itop", "gamma-sal"}
    assert {path.name for path in (tmp_path / "b").iterdir()} == (
        {f"{name}.{suffix}" for name in (*names, "fan-in") for suffix in ("svg", "png")}
        - {"gamma-sal.svg", "gamma-sal.png"}  # two values of gamma_sal are no line
        | {f"{name}.csv" for name in names}
    )


def test_half_a_sweep_is_refused_in_one_line(sweep, tmp_path):
    header, *lines = (sweep / "results.csv").read_text().splitlines()
    half = [line for line in lines if ",static," in line and ",0.5," in line]
    half += [line for line in lines if ",rigl," in line and ",0.8," in line]
    (tmp_path / "half.csv").write_text("\n".join([header, *half]))
    done = run_module("ablation", tmp_path / "half.csv", "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("half.csv hold no method at every sparsity; finish the sweep first\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["accuracy", "ablation"])
def test_the_commands_refuse_in_one_line(name, tmp_path):
    done = run_module(name, tmp_path / "none.csv")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"sparsekit: error: results {tmp_path / 'none.csv'} cannot be read: ")
    assert done.stderr.count("\n") == 1
