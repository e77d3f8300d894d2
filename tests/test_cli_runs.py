"""Commands on finished runs: evaluate, inspect and export; what they refuse is tried in this process."""

import json
import sys

import numpy as np
import pytest
from test_cli import run

import sparsekit
from sparsekit.cli import main
from sparsekit.config import make_config
from sparsekit.training.run import train_run

SMALL = {
    "hidden": [16, 12], "epochs": 2, "batch_size": 64, "delta_t": 3, "threads": 1, "sparsity": 0.9,
    "gamma_sal": 0.8, "backend": "vectorized", "validation": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the run x, and y, which has no validation data."""
    path = tmp_path_factory.mktemp("runs")
    train_run(make_config(SMALL), path / "x", progress=False)
    train_run(make_config(SMALL, {"validation": 0, "epochs": 1}), path / "y", progress=False)
    (path / "notes").mkdir()
    np.savez(path / "odd.npz", x=np.zeros((20, 3)), y=np.arange(20) % 2)
    (path / "taken.safetensors").write_text("mine")
    return path


@pytest.fixture
def call(folder, monkeypatch, capfd):
    """Run a command in this process; return exit code, output and errors."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["sparsekit", *arguments])
        with pytest.raises(SystemExit) as exited:
            main()
        return exited.value.code, *capfd.readouterr()

    monkeypatch.chdir(folder)
    return call


def test_evaluate(folder):
    done = run("evaluate", "x", "--threads", "1", "--json", "e.json", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads((folder / "e.json").read_text())
    trained = sparsekit.load_run(folder / "x").result
    assert result["test"]["accuracy"] == pytest.approx(trained["test_accuracy"])
    for part in ("test", "validation", "ms a batch", f"{result['test']['accuracy']:.2%}"):
        assert part in done.stdout
    for row in result["test"]["classes"]:
        assert f"{row['accuracy']:.2%}" in done.stdout


def test_inspect(folder):
    done = run("inspect", "x", "--json", "i.json", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads((folder / "i.json").read_text())
    assert (folder / "x" / "inspection.png").read_bytes().startswith(b"\x89PNG")
    for part in ("fc1", "16 x 64", f"{result['flops']:,}", f"{result['itop']:.1%}", "x/inspection.png"):
        assert part in done.stdout
    done = run("inspect", "y", "--out", "picture.svg", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "picture.svg").exists()
    assert not (folder / "y" / "inspection.png").exists()


def test_export(folder, call):
    done = run("export", "x", "--to", "condensed", "--json", "r.json", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads((folder / "r.json").read_text())
    assert result["file"] == "x/condensed.safetensors"
    assert "x/condensed.safetensors" in done.stdout
    assert sum(row["removed"] for row in result["layers"]) > 0
    x = sparsekit.load_dataset("digits").x_test
    network = sparsekit.load_exported(folder / "x" / "condensed.safetensors")
    np.testing.assert_array_equal(network.predict(x), sparsekit.load_run(folder / "x").predict(x))
    assert call("export", "x", "--to", "condensed", "--overwrite", "--best")[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "y", "--threads", "1"],
        ["inspect", "y"],
        ["export", "y", "--to", "csr", "--out", "a.safetensors"],
    ],
)
def test_quiet_prints_nothing(arguments, call):
    assert call(*arguments, "--quiet") == (0, "", "")


@pytest.mark.parametrize("command", ["evaluate", "inspect", "export"])
def test_help(command, call):
    code, printed, _ = call(command, "--help")
    assert code == 0
    for flag in ("RUN", "--json", "--quiet"):
        assert flag in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate"], "RUN"),
        (["evaluate", "notes"], "notes is not a run: it has no config.toml"),
        (["evaluate", "nowhere"], "nowhere is not a run"),
        (["evaluate", "y", "--best"], "best must be False for y, a run without validation data"),
        (["evaluate", "y", "--dataset", "mnits"], "(did you mean 'mnist'?)"),
        (["evaluate", "y", "--dataset", "odd.npz"], "dataset must have samples of shape (1, 8, 8) in 10 classes"),
        (["evaluate", "y", "--threads", "many"], "--threads"),
        (["evaluate", "y", "--json", "nowhere/r.json"], "json must name a file in a folder that exists"),
        (["inspect", "odd.npz"], "odd.npz is not a run"),
        (["inspect", "y", "--out", "y.txt"], "out must be a file that ends in .png, .svg, .pdf, not y.txt"),
        (["inspect", "y", "--out", "nowhere/y.png"], "y.png cannot be written"),
        (["export", "y"], "--to"),
        (["export", "y", "--to", "cs"], "to must be one of condensed, csr, dense, not 'cs' (did you mean 'csr'?)"),
        (["export", "y", "--to", "csr", "--out", "taken.safetensors"], "taken.safetensors exists already"),
        (
            ["export", "y", "--to", "csr", "--out", "y.npz"],
            "out must be a file that ends in .safetensors, not y.npz",
        ),
        (["export", "y", "--to", "csr", "--best"], "best must be False"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, words, folder, call):
    before = sorted(folder.rglob("*"))
    code, printed, errors = call(*arguments)
    assert (code, printed) == (2, "")
    assert errors.startswith("sparsekit: error: ")
    assert errors.count("\n") == 1
    assert words in errors
    assert sorted(folder.rglob("*")) == before
