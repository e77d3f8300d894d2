"""The command line as a user runs it: real processes, exit codes, one-line errors."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import sparsekit
from sparsekit import History

QUICK = ["--hidden", "16", "--epochs", "2", "--batch-size", "64", "--delta-t", "5", "--threads", "1"]


def run(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", "sparsekit", *map(str, arguments)],
        capture_output=True, text=True, cwd=cwd, check=False, env=os.environ | environment,
    )  # fmt: skip


def test_train_writes_a_run(tmp_path):
    done = run("train", *QUICK, "--out", "runs/x", "--json", "r.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress bar where stderr is not a terminal
    assert "test accuracy" in done.stdout
    assert "fc1" in done.stdout
    result = json.loads((tmp_path / "r.json").read_text())
    loaded = sparsekit.load_run(tmp_path / "runs" / "x")
    assert loaded.result == result
    digits = sparsekit.load_dataset("digits")
    assert (loaded.predict(digits.x_test) == digits.y_test).mean() == pytest.approx(result["test_accuracy"])


def test_quiet_prints_nothing_and_default_folders_do_not_collide(tmp_path):
    for _ in range(2):
        done = run("train", *QUICK, "--quiet", cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    names = {p.name for p in (tmp_path / "runs").iterdir()}
    assert names == {"digits-srigl-0.9-seed0", "digits-srigl-0.9-seed0-2"}


def test_flags_override_the_toml_file(tmp_path):
    (tmp_path / "c.toml").write_text('method = "rigl"\nepochs = 1\nhidden = [8]\nsparsity = 0.5\nthreads = 1\n')
    done = run("train", "--config", "c.toml", "--sparsity", "0.8", "--out", "x", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = sparsekit.load_run(tmp_path / "x").config
    assert (config.method, config.epochs, config.hidden, config.sparsity) == ("rigl", 1, (8,), 0.8)


def test_a_users_own_data(tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    np.savez(tmp_path / "mine.npz", x=rng.standard_normal((90, 5)) + 3 * y[:, None], y=y)
    done = run("train", "--dataset", "mine.npz", *QUICK, "--batch-size", "16", "--out", "x", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sparsekit.load_run(tmp_path / "x").result["n_classes"] == 3


def test_compare_prints_one_table(tmp_path):
    methods = "dense,srigl:gamma_sal=0"
    done = run(
        "compare", *QUICK, "--methods", methods, "--sparsities", "0.8", "--seeds", "0,1",
        "--out", "c", "--json", "c.json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "c.json").read_text())["rows"]
    labels = [(row["label"], row["sparsity"]) for row in rows]
    assert labels == [
        ("dense", 0.0), ("srigl (gamma_sal=0)", 0.8),
    ]  # fmt: skip
    for row in rows:
        assert row["seeds"] == [0, 1]
        assert row["peak_memory_bytes_mean"] > 50 * 2**20
        for batch in (1, 256):
            assert all(row[f"inference_{batch}_{storage}_us"] > 0 for storage in ("stored", "dense", "csr"))
    for row, (label, sparsity) in zip(rows, labels, strict=True):
        name = f"{label}-{sparsity}".replace(" (", "-").replace(")", "")
        runs = [sparsekit.load_run(tmp_path / "c" / f"{name}-seed{seed}") for seed in (0, 1)]
        accuracies = [loaded.result["test_accuracy"] for loaded in runs]
        assert row["test_accuracy_mean"] == pytest.approx(np.mean(accuracies))
        assert row["test_accuracy_std"] == pytest.approx(np.std(accuracies, ddof=1))
        assert row["stored_weights"] == sum(layer["nnz"] for layer in runs[0].result["layers"])
    with open(tmp_path / "c" / "comparison.csv", newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == [label for label, _ in labels]
    assert (tmp_path / "c" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    for part in ("method", "peak MiB", "batch 256", "srigl (gamma_sal=0)", "±"):
        assert part in done.stdout


def test_compare_hands_on_the_error_of_a_run(tmp_path):
    done = run("compare", *QUICK, "--methods", "dense", "--learning-rate", "1e30", "--out", "c", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("sparsekit: error: run dense-0.0-seed0: training diverged at step")
    assert done.stderr.count("\n") == 1
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"comparison.txt", "dense-0.0-seed0"}
    assert (tmp_path / "c" / "comparison.txt").read_text() == "not finished\n"


def test_compare_takes_what_the_file_says(tmp_path):
    (tmp_path / "c.toml").write_text('method = "static"\nsparsity = 0.5\nseed = 4\nhidden = [8]\nepochs = 1\n')
    done = run("compare", "--config", "c.toml", "--out", "c", "--json", "r.json", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert (row["label"], row["sparsity"], row["seeds"]) == ("static", 0.5, [4])
    table = (tmp_path / "c" / "comparison.csv").read_bytes()
    assert (tmp_path / "c" / "comparison.txt").read_text() == "static-0.5-seed4\n"
    bad = ["--methods", "dense", "--learning-rate", "1e30", "--config", "c.toml", "--out", "c", "--overwrite"]
    assert run("compare", *bad, cwd=tmp_path).returncode == 1
    assert (tmp_path / "c" / "comparison.csv").read_bytes() == table
    assert (tmp_path / "c" / "comparison.txt").read_text() == "static-0.5-seed4\n"


def test_overwrite_replaces_a_run(tmp_path):
    for seed in (0, 1):
        done = run("train", *QUICK, "--seed", seed, "--out", "x", "--overwrite", "--quiet", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert sparsekit.load_run(tmp_path / "x").config.seed == 1


def test_version_and_help(tmp_path):
    assert run("--version", cwd=tmp_path).stdout.strip() == sparsekit.__version__
    done = run("train", "--help", cwd=tmp_path, COLUMNS="120")
    assert done.returncode == 0
    for flag in ("--gamma-sal", "--sparsity", "--json", "--quiet", "--config", "(default: 0.9)"):
        assert flag in done.stdout
    assert "compare" in run(cwd=tmp_path).stdout


@pytest.fixture(scope="module")
def bad_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    x, y = np.ones((20, 3)), np.arange(20) % 2
    x_nan = x.copy()
    x_nan[3, 1] = np.nan
    np.savez(folder / "nan.npz", x=x_nan, y=y)
    np.savez(folder / "negative.npz", x=x, y=y - 1)
    np.savez(folder / "no_y.npz", x=x)
    np.savez(folder / "classes.npz", x=x, y=y, x_test=x[:1], y_test=np.array([5]))
    (folder / "text.npz").write_text("not an archive")
    (folder / "unknown.toml").write_text("spasity = 0.5")
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("")
    for name, files in {"done": ("config.toml", "result.json"), "stopped": ("config.toml",)}.items():
        (folder / name).mkdir()
        for file in files:
            (folder / name / file).write_text("")
    return folder


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--sparsity", "1"], "sparsity must be a number >= 0 and < 1, not '1'"),
        (["train", "--sparsity", "-0.2"], "sparsity must be"),
        (["train", "--sparsity", "nan"], "sparsity must be"),
        (["train", "--gamma-sal", "1.5"], "gamma_sal must be a number >= 0 and < 1, not '1.5'"),
        (["train", "--method", "sett"], "did you mean 'set'?"),
        (["train", "--dataset", "mnits"], "(did you mean 'mnist'?)"),
        (["train", "--dataset", "nowhere.npz"], "nowhere.npz"),
        (["train", "--dense-layers", "conv1"], "dense_layers must be one of fc1, fc2, fc3, not 'conv1'"),
        (["train", "--hidden", "64,0"], "hidden must be integers of at least 1"),
        (["train", "--hidden", "64,-1"], "hidden must be integers of at least 1"),
        (["train", "--epochs", "many"], "epochs must be an integer >= 1, not 'many'"),
        (["train", "--batch-size", "100000"], "batch_size must be at most 1437"),
        (["train", "--threads", "4096"], "threads must be an integer in [1, "),
        (["train", "--dataset", "nan.npz"], "nan.npz"),
        (["train", "--dataset", "negative.npz"], "negative.npz"),
        (["train", "--dataset", "no_y.npz"], "no_y.npz"),
        (["train", "--dataset", "classes.npz"], "classes.npz"),
        (["train", "--dataset", "text.npz"], "text.npz"),
        (["train", "--config", "unknown.toml"], "unknown setting 'spasity' (did you mean 'sparsity'?)"),
        (["train", "--config", "absent.toml"], "absent.toml cannot be read"),
        (["train", "--out", "notes", *QUICK], "out notes exists and is not a run"),
        (["train", "--out", "text.npz", *QUICK], "out text.npz exists and is not a run"),
        (["train", "--out", "text.npz/x", *QUICK], "out text.npz/x cannot be made: Not a directory"),
        (
            ["train", "--out", "stopped"],
            "stopped holds a run already, not finished; name a new folder or pass --res",
        ),
        (["train", "--resume"], "out must name the folder of the unfinished run with --resume"),
        (["train", "--resume", "--out", "runs/x"], "out runs/x does not exist; there is nothing to resume"),
        (["train", "--resume", "--out", "notes"], "out notes exists and is not a run: it holds 'a.txt'; there is"),
        (["train", "--resume", "--out", "done"], "out done holds a finished run; there is nothing to resume"),
        (["train", "--resume", "--out", "stopped", "--overwrite"], "overwrite must not be given with --resume"),
        (
            ["train", "--resume", "--out", "stopped", "--config", "c.toml"],
            "config must not be given with --resume",
        ),
        (["train", "--resume", "--out", "stopped", "--epochs", "9"], "epochs must not be given with --resume"),
        (["train", "--resume", "--out", "stopped", "--no-revive"], "revive must not be given with --resume"),
        (["train", "--resume", "--out", "stopped", "--threads", "0"], "threads must be an integer >= 1, not '0'"),
        (["compare", "--resume"], "No such option: --resume"),
        (["train", "--json", "nowhere/r.json"], "json must name a file in a folder that exists"),
        (["train", "--json", "notes"], "json must name a file"),
        (["train", "--config", "notes"], "config notes cannot be read: Is a directory"),
        (["train", "--threads", "0"], "threads must be an integer >= 1, not '0'"),
        (["train", "--seed", "-1"], "seed must be an integer >= 0, not '-1'"),
        (["train", "--epochs"], "--epochs"),
        (["train", "--epoch", "3"], "No such option: --epoch"),
        (["train", "extra"], "extra"),
        (["tran"], "No such command 'tran'"),
        (["compare", "--methods", "srigl,foo"], "method must be one of"),
        (["compare", "--methods", "srigl:gamma=0.1"], "unknown setting 'gamma'"),
        (["compare", "--methods", "srigl:gamma_sal"], "METHOD:setting=value"),
        (["compare", "--methods", "srigl:sparsity=0.5"], "methods must not set sparsity"),
        (["compare", "--seeds", "0,0"], "must name each run once"),
        (["compare", "--methods", "srigl:gamma_sal=0,srigl:gamma_sal=0.0"], "must name each run once"),
        (["compare", "--methods", "rigl,srigl:batch_size=5000"], "batch_size must be at most 1437"),
        (["compare", "--threads", "4096"], "threads must be an integer in [1, "),
        (["train", "--batch-size", "99999999999999999999"], "batch_size must be at most 1437"),
        (["train", "--json", "/dev/null"], "json must name a file"),
        (["compare", "--dataset", "nowhere.npz"], "nowhere.npz"),
        (["compare", "--dense-layers", "conv1"], "dense_layers must be one of"),
        (["train", "--hidden", "10000000000"], "hidden must be integers"),
        (["compare", "--sparsities", "0.5,1"], "sparsity must be a number >= 0 and < 1"),
        (["compare", "--sparsities", "half"], "sparsities must be numbers"),
        (["compare", "--seeds", "0.5"], "seeds must be numbers"),
        (["compare", "--methods", ""], "method must be one of"),
        (["compare", "--seeds", ""], "seeds must be numbers"),
        (["compare", "--out", "text.npz"], "out text.npz exists and is not a comparison"),
        (["compare", "--out", "notes"], "out notes exists and is not a comparison"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, words, bad_data):
    before = sorted(bad_data.rglob("*"))
    done = run(*arguments, cwd=bad_data)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("sparsekit: error: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert sorted(bad_data.rglob("*")) == before


def test_a_diverged_run_is_one_line_and_keeps_its_history(tmp_path):
    done = run("train", *QUICK, "--learning-rate", "1e20", "--out", "x", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("sparsekit: error: training diverged at step ")
    assert done.stderr.count("\n") == 1


def test_ctrl_c_keeps_what_there_is_and_says_how_to_go_on(tmp_path):
    command = [sys.executable, "-m", "sparsekit", "train", "--epochs", "100000", "--out", "x", "--quiet"]
    history, rows = tmp_path / "x" / "history.csv", 0
    for arguments in (command, [*command[:4], "--resume", "--out", "x", "--quiet"]):
        process = subprocess.Popen(
            arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            deadline = time.monotonic() + 300  # on a busy machine compiling takes more than a minute
            while not (history.exists() and len(History.load(history)) > rows):
                assert process.poll() is None
                assert time.monotonic() < deadline, "no epoch was trained in time"
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 130
        assert errors == "sparsekit: error: interrupted; go on with: sparsekit train --resume --out x\n"
        assert len(History.load(history)) > rows
        rows = len(History.load(history))
        names = {"checkpoint.safetensors", "config.toml", "history.csv", "topology.csv"}
        assert {path.name for path in (tmp_path / "x").iterdir()} == names


def test_resume_ends_a_run_like_train(tmp_path):
    assert run("train", *QUICK, "--out", "x", "--quiet", cwd=tmp_path).returncode == 0
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "config.toml").write_bytes((tmp_path / "x" / "config.toml").read_bytes())
    done = run("train", "--resume", "--out", "y", "--json", "r.json", "--threads", "1", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "test accuracy" in done.stdout
    assert "run in y" in done.stdout
    assert sparsekit.load_run(tmp_path / "y").result == json.loads((tmp_path / "r.json").read_text())
    networks = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("x", "y")]
    assert networks[0] == networks[1]


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path):
    resource = pytest.importorskip("resource")
    command = [sys.executable, "-m", "sparsekit", "train", *QUICK, "--backend", "vectorized", "--out", "x"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)),
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("sparsekit: error: [Errno 27] File too large: ")
    assert "x/checkpoint.safetensors" in done.stderr
    assert done.stderr.count("\n") == 1
    assert {path.name for path in (tmp_path / "x").iterdir()} == {"config.toml"}
