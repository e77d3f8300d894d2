"""Run folders and model files: what is written is read back, what is damaged is refused by name."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekit import InputError, Trainer, load_dataset, load_run, models
from sparsekit.config import make_config, read_toml
from sparsekit.errors import DivergedError
from sparsekit.training import folder
from sparsekit.training.model_file import load_model, save_model
from sparsekit.training.run import resume_run, train_run

SMALL = {"dataset": "digits", "hidden": [16], "epochs": 2, "batch_size": 64, "delta_t": 5, "threads": 1}
METHODS = ["dense", "static", "static-unstructured", "set", "rigl", "srigl"]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_loaded_as_it_was(method, tmp_path):
    config = make_config(SMALL, {"method": method, "sparsity": 0.7, "batch_norm": True, "dropout": 0.1})
    run = train_run(config, tmp_path / "run", progress=False)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "config.toml", "history.csv", "history.png", "model.safetensors", "result.json", "topology.csv",
        "topology.png",
    }  # fmt: skip
    loaded = load_run(tmp_path / "run")
    x = load_dataset("digits").x_test
    np.testing.assert_array_equal(loaded.classifier.logits(x), run.classifier.logits(x))
    np.testing.assert_array_equal(loaded.predict(x), run.predict(x))
    assert loaded.config == config
    sparse = models.sparse_layers(loaded.model).values()
    assert not any(layer.matrix.values.flags.writeable for layer in sparse)  # frozen: it only predicts
    assert loaded.result == run.result
    assert loaded.history.rows == run.history.rows
    accuracy = (loaded.predict(x) == load_dataset("digits").y_test).mean()
    assert accuracy == pytest.approx(run.result["test_accuracy"])


def test_a_loaded_network_is_not_trained(tmp_path):
    train_run(make_config(SMALL), tmp_path / "run", progress=False)
    with pytest.raises(InputError, match="model must not be frozen, but layer 'fc1' only predicts"):
        Trainer(load_run(tmp_path / "run").model)


def test_equal_configurations_give_equal_runs(tmp_path):
    config = make_config(SMALL, {"validation": 0.2})
    runs = [train_run(config, tmp_path / name, progress=False) for name in ("a", "b")]
    rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in run.history.rows] for run in runs]
    assert rows[0] == rows[1]
    bytes_of = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert bytes_of[0] == bytes_of[1]


def test_result_has_the_promised_keys(tmp_path):
    result = train_run(make_config(SMALL), tmp_path / "run", progress=False).result
    assert result == json.loads((tmp_path / "run" / "result.json").read_text())
    assert {"test_accuracy", "seconds_per_epoch", "peak_memory_bytes", "layers", "weight_bytes"} <= set(result)
    for layer in result["layers"]:
        assert {"name", "shape", "fan_in", "n_active", "nnz"} <= set(layer)
    assert result["peak_memory_bytes"] > 50 * 2**20  # an interpreter with NumPy and Numba


def test_folders_that_would_lose_something_are_refused(tmp_path):
    config = make_config(SMALL, {"epochs": 1})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="notes exists and is not a run"):
            train_run(config, tmp_path / "notes", overwrite=overwrite, progress=False)
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file exists and is not a run"):
        train_run(config, tmp_path / "file", overwrite=True, progress=False)
    (tmp_path / "empty").mkdir()
    train_run(config, tmp_path / "empty", progress=False)
    with pytest.raises(InputError, match="empty holds a run already; name a new folder or pass --overwrite"):
        train_run(config, tmp_path / "empty", progress=False)
    train_run(make_config(SMALL, {"epochs": 1, "seed": 7}), tmp_path / "empty", overwrite=True, progress=False)
    assert load_run(tmp_path / "empty").config.seed == 7


def test_a_bad_configuration_leaves_an_old_run_alone(tmp_path):
    train_run(make_config(SMALL, {"epochs": 1}), tmp_path / "run", progress=False)
    bad = make_config(SMALL, {"dense_layers": ["fc9"]})
    with pytest.raises(InputError, match="dense_layers"):
        train_run(bad, tmp_path / "run", overwrite=True, progress=False)
    assert load_run(tmp_path / "run").config.epochs == 1


def test_load_run_refuses_what_is_no_finished_run(tmp_path):
    with pytest.raises(InputError, match="is not a run: it has no config.toml"):
        load_run(tmp_path)
    train_run(make_config(SMALL, {"epochs": 1}), tmp_path / "run", progress=False)
    result = (tmp_path / "run" / "result.json").read_text()
    (tmp_path / "run" / "result.json").write_text("{}")
    with pytest.raises(InputError, match="damaged result.json"):
        load_run(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(InputError, match="a run that did not finish"):
        load_run(tmp_path / "run")
    (tmp_path / "run" / "result.json").write_text(result)
    (tmp_path / "run" / "config.toml").write_text("hidden = [17]")
    with pytest.raises(InputError, match="model.safetensors does not fit this network"):
        load_run(tmp_path / "run")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    model = models.mlp((6, 8, 3), sparsity=0.6, batch_norm=True, rng=1)
    save_model(path, model, {"mean": np.zeros(6)})
    return path, path.read_bytes()


@settings(max_examples=150)
@given(data=st.data())
def test_any_damaged_byte_is_noticed(saved, data, tmp_path_factory):
    path, good = saved
    damaged = bytearray(good)
    if data.draw(st.booleans()):
        damaged[data.draw(st.integers(0, len(good) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del damaged[data.draw(st.integers(0, len(good) - 1)) :]
    other = path.with_name("damaged.safetensors")
    other.write_bytes(damaged)
    with pytest.raises(InputError, match=r"damaged.safetensors"):
        load_model(other, models.mlp((6, 8, 3), sparsity=0.6, batch_norm=True))


def test_model_files_of_other_networks_are_refused(saved, tmp_path):
    path, _ = saved
    for other in (
        models.mlp((6, 9, 3), sparsity=0.6, batch_norm=True),
        models.mlp((6, 8, 3), sparsity=0.6),
        models.mlp((6, 8, 3), sparsity=0.6, batch_norm=True, storage="csr"),
        models.mlp((6, 8, 3), storage="dense", batch_norm=True),
        models.mlp((6, 8, 8, 3), sparsity=0.6, batch_norm=True),
        models.mlp((6, 8, 3), sparsity=0.6, batch_norm=True, dtype=np.float64),
    ):
        with pytest.raises(InputError, match="does not fit this network"):
            load_model(path, other)
    with pytest.raises(InputError, match="nowhere.safetensors is missing"):
        load_model(tmp_path / "nowhere.safetensors", other)


def test_configuration_round_trip(tmp_path):
    config = make_config(SMALL, {"method": "rigl", "dense_layers": "fc1", "compat": "official"})
    (tmp_path / "c.toml").write_text(config.to_toml())
    assert make_config(read_toml(tmp_path / "c.toml")) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.0}, "sparsity must be a number >= 0 and < 1, not 1.0"),
        ({"sparsity": "-0.1"}, "sparsity must be a number >= 0 and < 1, not '-0.1'"),
        ({"sparsity": float("nan")}, "sparsity must be a number >= 0 and < 1, not nan"),
        ({"gamma_sal": 1}, "gamma_sal must be a number >= 0 and < 1, not 1"),
        ({"epochs": 1.5}, "epochs must be an integer >= 1, not 1.5"),
        ({"hidden": [8, 0]}, "hidden must be integers of at least 1 separated by commas, not 0"),
        ({"method": "srgl"}, r"method must be one of dense, .*, not 'srgl' \(did you mean 'srigl'\?\)"),
        ({"learning_rate": "inf"}, "learning_rate must be a number > 0, not 'inf'"),
        ({"spasity": 0.9}, r"unknown setting 'spasity' \(did you mean 'sparsity'\?\)"),
        ({"zzz": 1}, "unknown setting 'zzz'$"),
        ({"nesterov": "perhaps"}, "nesterov must be a boolean, not 'perhaps'"),
        ({"epochs": True}, "epochs must be an integer >= 1, not True"),
        ({"sparsity": False}, "sparsity must be a number >= 0 and < 1, not False"),
        ({"hidden": [10**20]}, "hidden must be integers"),
        ({"compat": "authors"}, "compat must be one of official, not 'authors'"),
    ],
)
def test_configurations_refuse_in_one_line(settings, message):
    with pytest.raises(InputError, match=message) as caught:
        make_config(settings)
    assert "\n" not in str(caught.value)


def test_toml_files_are_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"missing.toml cannot be read: No such file"):
        read_toml(tmp_path / "missing.toml")
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(InputError, match="bad.toml is not TOML"):
        read_toml(tmp_path / "bad.toml")
    (tmp_path / "table.toml").write_text("[training]\nepochs = 3")
    with pytest.raises(InputError, match=r"has a table \[training\]"):
        read_toml(tmp_path / "table.toml")


def test_a_folder_with_something_else_beside_a_run_is_left_alone(tmp_path):
    """A config.toml does not make somebody's project a run."""
    (tmp_path / "project").mkdir()
    for name in ("config.toml", "thesis.txt"):
        (tmp_path / "project" / name).write_text("mine")
    with pytest.raises(InputError, match="project exists and is not a run: it holds 'thesis.txt'"):
        train_run(make_config(SMALL), tmp_path / "project", overwrite=True, progress=False)
    assert {path.name for path in (tmp_path / "project").iterdir()} == {"config.toml", "thesis.txt"}


def test_an_overwrite_that_fails_gives_the_old_run_back(tmp_path):
    run_folder = tmp_path / "run"
    train_run(make_config(SMALL, {"epochs": 1}), run_folder, progress=False)
    before = {path.name: path.read_bytes() for path in run_folder.iterdir()}
    bad = make_config(SMALL, {"learning_rate": 1e30})
    with pytest.raises(DivergedError):
        train_run(bad, run_folder, overwrite=True, progress=False)
    assert {path.name: path.read_bytes() for path in run_folder.iterdir()} == before
    with pytest.raises(InputError, match="batch_size must be at most"):
        train_run(make_config(SMALL, {"batch_size": 10**6}), run_folder, overwrite=True, progress=False)
    assert {path.name: path.read_bytes() for path in run_folder.iterdir()} == before


def test_an_overwrite_that_is_killed_loses_nothing(tmp_path):
    run_folder = tmp_path / "run"
    train_run(make_config(SMALL, {"epochs": 1}), run_folder, progress=False)
    before = {path.name: path.read_bytes() for path in run_folder.iterdir()}
    code = (
        "import os, signal, sparsekit\n"
        "from sparsekit.config import make_config\n"
        "from sparsekit.training import run\n"
        "run._save = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"run.train_run(make_config({SMALL!r}), {str(run_folder)!r}, overwrite=True, progress=False)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert {path.name: path.read_bytes() for path in (run_folder / ".replaced").iterdir()} == before
    with pytest.raises(InputError, match="holds a run already"):
        train_run(make_config(SMALL), run_folder, progress=False)
    with pytest.raises(DivergedError):
        train_run(make_config(SMALL, {"learning_rate": 1e30}), run_folder, overwrite=True, progress=False)
    assert {path.name: path.read_bytes() for path in run_folder.iterdir()} == before
    train_run(make_config(SMALL, {"seed": 5}), run_folder, overwrite=True, progress=False)
    assert load_run(run_folder).config.seed == 5
    assert not (run_folder / ".replaced").exists()


def test_a_run_can_be_written_to_the_current_folder_or_a_link(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for _ in range(2):
        train_run(make_config(SMALL, {"epochs": 1}), tmp_path / "link", overwrite=True, progress=False)
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for _ in range(2):
        train_run(make_config(SMALL, {"epochs": 1}), ".", overwrite=True, progress=False)
    assert load_run(".").config.epochs == 1


def test_static_runs_hold_no_index_they_do_not_need(tmp_path):
    run = train_run(make_config(SMALL, {"method": "static", "hidden": [16, 16]}), tmp_path / "run", progress=False)
    layers = models.weight_layers(run.model)
    assert "transposed" not in vars(layers["fc1"].matrix.plan)
    assert "transposed" in vars(layers["fc2"].matrix.plan)


def test_an_overwrite_that_is_killed_at_any_file_operation_loses_nothing(tmp_path, monkeypatch):
    """Stop a replacement at its first, second, ... file operation; the next one must find a whole run."""
    old = {name: f"old {name}" for name in ("config.toml", "history.csv", "result.json")}

    class Killed(BaseException):
        pass

    for fails in (False, True):  # whether the new run ends well
        for last in range(40):
            path = tmp_path / f"{fails}-{last}"
            path.mkdir()
            for name, text in old.items():
                (path / name).write_text(text)
            done = _replace_until(path, last, fails, Killed, monkeypatch)
            # what a later, failing replacement leaves is the last finished run
            with pytest.raises(RuntimeError), folder.replacing(path):
                raise RuntimeError
            found = {file.name: file.read_text() for file in path.iterdir()}
            assert found in ([old] if fails else [old, {"config.toml": "new", "result.json": "new"}])
            if done:
                break
        assert done


def _replace_until(path, last, fails, killed, monkeypatch) -> bool:
    """Replace the run, dying before file operation number `last`; return whether it came to its end."""
    count = iter(range(10**6))

    def counted(operation):
        def run(*arguments, **options):
            if next(count) >= last:
                raise killed
            return operation(*arguments, **options)

        return run

    with monkeypatch.context() as patch:
        for name in ("mkdir", "rename", "replace", "rmdir", "unlink"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        try:
            with folder.replacing(path):
                (path / "config.toml").write_text("new")
                if fails:
                    raise RuntimeError
                (path / "result.json").write_text("new")
        except killed:
            return False
        except RuntimeError:
            pass
    return True


def test_a_file_half_written_by_a_killed_process_does_not_make_a_run_somebody_elses(tmp_path):
    train_run(make_config(SMALL, {"epochs": 1}), tmp_path / "run", progress=False)
    (tmp_path / "run" / ".history-a1b2c3d4.csv").write_text("half a li")
    train_run(make_config(SMALL, {"epochs": 1}), tmp_path / "run", overwrite=True, progress=False)
    assert not (tmp_path / "run" / ".history-a1b2c3d4.csv").exists()


def test_a_folder_with_nothing_but_a_file_half_written_is_free(tmp_path):
    """What is left of a process that was killed while it wrote the first file of its run."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config-a1b2c3d4.toml").write_text("data")
    with pytest.raises(InputError, match="run is empty; there is nothing to resume"):
        resume_run(tmp_path / "run", progress=False)
    train_run(make_config(SMALL, {"epochs": 1}), tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / ".config-a1b2c3d4.toml").exists()
