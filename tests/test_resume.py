"""Runs that were stopped: resumed from the last checkpoint they end with the same bits, and nothing is lost."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_training import METHODS

from sparsekit import InputError, load_dataset, load_run
from sparsekit.config import make_config
from sparsekit.errors import DivergedError
from sparsekit.training import Trainer, folder, run
from sparsekit.training.history import History
from sparsekit.training.run import load_data, resume_run, train_run

SMALL = {"hidden": [16], "epochs": 5, "batch_size": 100, "delta_t": 4, "threads": 1, "backend": "vectorized"}
FINISHED = {"config.toml", "history.csv", "history.png", "topology.csv", "topology.png"}
FINISHED |= {"model.safetensors", "result.json"}
TIMES = {"seconds_per_epoch", "compile_seconds", "peak_memory_bytes"}
NETWORKS = ("model.safetensors", "best.safetensors")


@pytest.fixture(autouse=True)
def blank_figures(monkeypatch):
    """Drawing takes longer than these trainings."""
    for name in ("history_figure", "topology_figure"):
        monkeypatch.setattr(f"sparsekit.figures.{name}", lambda *_: Figure(figsize=(1, 1)))


def stop(config, path, epoch, monkeypatch, error=KeyboardInterrupt, **options):
    """Train until the files of that epoch are written."""
    write = run._FolderWriter.on_epoch_end

    def write_and_stop(writer, trainer, row):
        write(writer, trainer, row)
        if row["epoch"] == epoch:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(run._FolderWriter, "on_epoch_end", write_and_stop)
        with pytest.raises(error) as caught:
            train_run(config, path, progress=False, **options)
    return caught.value


def contents(path, names=NETWORKS) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in names if (path / name).exists()}


def timeless(history) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history.rows]


@pytest.mark.parametrize("epoch", [1, 4, 5])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": "adamw", "learning_rate": 0.01, "dtype": "float64"},
        {"validation": 0.2, "batch_norm": True, "dropout": 0.1, "lr_schedule": "step", "step_epochs": 2},
    ],
    ids=["sgd", "adamw", "batch_norm"],
)
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_run_that_was_not_stopped(method, options, epoch, tmp_path, monkeypatch):
    config = make_config(SMALL, {"method": method}, options)
    whole = train_run(config, tmp_path / "whole", progress=False)
    stop(config, tmp_path / "run", epoch, monkeypatch)
    assert not (tmp_path / "run" / "result.json").exists()
    seconds = History.load(tmp_path / "run" / "history.csv").column("seconds")
    resumed = resume_run(tmp_path / "run", progress=False)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert timeless(resumed.history) == timeless(whole.history)
    assert resumed.history.column("seconds")[:epoch] == seconds
    assert resumed.history.rows == load_run(tmp_path / "run").history.rows
    assert {k: v for k, v in resumed.result.items() if k not in TIMES} == {
        k: v for k, v in whole.result.items() if k not in TIMES
    }
    best = {"best.safetensors"} if "validation" in options else set()
    assert {path.name for path in (tmp_path / "run").iterdir()} == FINISHED | best


def test_the_best_network_is_that_of_the_best_epoch(tmp_path):
    config = make_config(SMALL, {"validation": 0.2, "learning_rate": 0.5, "lr_schedule": "constant", "epochs": 8})
    last = train_run(config, tmp_path / "run", progress=False)
    row = last.history.best()
    assert row["validation_accuracy"] == max(last.history.column("validation_accuracy"))
    assert row["epoch"] < 8  # or the two networks would be one
    best, data = load_run(tmp_path / "run", best=True), load_data(config)
    loss, accuracy = best.classifier.evaluate(data.x_validation, data.y_validation)
    assert accuracy == row["validation_accuracy"]
    assert loss == pytest.approx(row["validation_loss"])
    with pytest.raises(InputError, match="model must not be frozen"):
        Trainer(best.model)
    assert best.result == load_run(tmp_path / "run").result == last.result


def test_without_validation_no_network_is_the_best(tmp_path):
    train_run(make_config(SMALL, {"epochs": 1}), tmp_path / "run", progress=False)
    with pytest.raises(InputError, match="best must be False for .*run, a run without validation data, not True"):
        load_run(tmp_path / "run", best=True)


@pytest.mark.parametrize("validation", [0.0, 0.2])
def test_checkpoints_come_when_they_are_due(validation, tmp_path, monkeypatch):
    """Every third epoch, the last one, and the best ones: their networks are on disk, so none may be forgotten."""
    epochs = []
    save = run.save_checkpoint
    monkeypatch.setattr(
        run, "save_checkpoint", lambda path, t, config: (epochs.append(len(t.history)), save(path, t, config))
    )
    options = {"checkpoint_every": 3, "validation": validation, "epochs": 8, "learning_rate": 0.5}
    history = train_run(make_config(SMALL, options), tmp_path / "run", progress=False).history
    best = [i for i in range(1, 9) if History(history.rows[:i]).best() is history.rows[i - 1]]
    assert epochs == sorted({3, 6, 8, *best})
    assert (epochs == [3, 6, 8]) == (validation == 0)


def test_epochs_after_the_last_checkpoint_are_trained_again(tmp_path, monkeypatch):
    config = make_config(SMALL, {"checkpoint_every": 2})
    whole = train_run(config, tmp_path / "whole", progress=False)
    stop(config, tmp_path / "run", 3, monkeypatch)
    assert len(History.load(tmp_path / "run" / "history.csv")) == 3
    trained = []
    train_epoch = Trainer.train_epoch
    monkeypatch.setattr(
        Trainer, "train_epoch", lambda t, loader: (trained.append(t.step), train_epoch(t, loader))[1]
    )
    assert timeless(resume_run(tmp_path / "run", progress=False).history) == timeless(whole.history)
    assert trained == [28, 42, 56]
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_files_that_follow_from_a_checkpoint_are_written_again(tmp_path, monkeypatch):
    """Those of a kill after the checkpoint and before they were written; even if the training is over."""
    config = make_config(SMALL, {"validation": 0.2, "epochs": 3, "checkpoint_every": 2})
    whole = train_run(config, tmp_path / "whole", progress=False)
    assert whole.history.best() is whole.history.rows[-1]
    for epoch in (2, 3):
        path = tmp_path / str(epoch)
        stop(config, path, epoch, monkeypatch)
        (path / "best.safetensors").write_bytes(b"of an earlier epoch")
        (path / "history.csv").unlink()
        resume_run(path, progress=False)
        assert contents(path) == contents(tmp_path / "whole")
        assert timeless(History.load(path / "history.csv")) == timeless(whole.history)


def test_a_run_without_a_checkpoint_begins_anew(tmp_path):
    config = make_config(SMALL)
    train_run(config, tmp_path / "whole", progress=False)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text(config.to_toml())
    (tmp_path / "run" / ".checkpoint-0a1b2c3d.safetensors").write_bytes(b"half a checkp")
    resume_run(tmp_path / "run", progress=False)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert {path.name for path in (tmp_path / "run").iterdir()} == FINISHED


def test_threads_may_be_others(tmp_path, monkeypatch):
    stop(make_config(SMALL), tmp_path / "run", 2, monkeypatch)
    assert resume_run(tmp_path / "run", threads=2, progress=False).result["threads"] == 2
    assert load_run(tmp_path / "run").config == make_config(SMALL, {"threads": 2})


def test_what_cannot_be_resumed_is_refused_and_left_alone(tmp_path, monkeypatch):
    for name in ("empty", "project"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("")
    for name in ("config.toml", "thesis.txt"):
        (tmp_path / "project" / name).write_text("mine")
    train_run(make_config(SMALL, {"epochs": 1}), tmp_path / "done", progress=False)
    (tmp_path / "done" / "checkpoint.safetensors").write_bytes(b"its removal was interrupted")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for name, words in {
        "nowhere": "nowhere does not exist",
        "empty": "empty is empty",
        "file": "file exists and is not a run",
        "project": "project exists and is not a run: it holds 'thesis.txt'",
        "done": "done holds a finished run",
    }.items():
        with pytest.raises(InputError, match=f"out .*{words}; there is nothing to resume"):
            resume_run(tmp_path / name, progress=False)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    stop(make_config(SMALL), tmp_path / "run", 1, monkeypatch)
    with pytest.raises(
        InputError, match="holds a run already, not finished; name a new folder or pass --resume or"
    ):
        train_run(make_config(SMALL), tmp_path / "run", progress=False)


def test_checkpoints_that_are_damaged_or_of_another_run_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "run"
    stop(make_config(SMALL, {"method": "rigl"}), path, 2, monkeypatch)
    good = contents(path, ("config.toml", "checkpoint.safetensors", "history.csv"))

    def refused(words):
        before = contents(path, good)
        with pytest.raises(InputError, match=words) as caught:
            resume_run(path, progress=False)
        assert "\n" not in str(caught.value)
        assert not hasattr(caught.value, "__notes__")
        assert contents(path, good) == before

    for old, new, words in (
        (
            b"alpha = 0.3",
            b"alpha = 0.4",
            "checkpoint.safetensors is of a run with alpha 0.3, not 0.4 as config.toml",
        ),
        (b"    16,", b"    17,", "checkpoint.safetensors does not fit this network: its layer 'fc1' is "),
        (b"seed = 0", b"seed = 0\nsed = 1", "unknown setting 'sed'"),
    ):
        assert old in good["config.toml"]
        (path / "config.toml").write_bytes(good["config.toml"].replace(old, new))
        refused(words)
    (path / "config.toml").write_bytes(good["config.toml"])
    (path / "checkpoint.safetensors").write_bytes(good["checkpoint.safetensors"][:-100])
    refused("checkpoint.safetensors is damaged or no safetensors file")
    (path / "checkpoint.safetensors").write_bytes(good["checkpoint.safetensors"])
    assert resume_run(path, progress=False).config.method == "rigl"


def test_a_data_file_that_was_changed_is_refused(tmp_path, monkeypatch):
    digits = load_dataset("digits")
    x, y = digits.x_train[:400].copy(), digits.y_train[:400]
    np.savez(tmp_path / "own.npz", x=x, y=y)
    config = make_config(SMALL, {"dataset": str(tmp_path / "own.npz")})
    stop(config, tmp_path / "run", 2, monkeypatch)
    np.savez(tmp_path / "own.npz", x=x + 1, y=y)
    with pytest.raises(InputError, match="dataset must be the one that this training began with, of sha256"):
        resume_run(tmp_path / "run", progress=False)


def test_an_interrupted_run_says_how_to_go_on(tmp_path, monkeypatch):
    path = tmp_path / "my run"
    error = stop(make_config(SMALL), path, 1, monkeypatch)
    assert error.__notes__ == [f"go on with: sparsekit train --resume --out '{path}'"]
    monkeypatch.setattr(run, "_save", lambda *arguments: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left") as caught:
        resume_run(path, progress=False)
    assert caught.value.__notes__ == error.__notes__
    assert not hasattr(stop(make_config(SMALL), tmp_path / "b", 1, monkeypatch, DivergedError), "__notes__")
    assert {path.name for path in (tmp_path / "b").iterdir()} == {
        "config.toml", "history.csv", "topology.csv", "checkpoint.safetensors",
    }  # fmt: skip


def test_a_replacement_that_was_killed_is_gone_on_with(tmp_path, monkeypatch):
    """The old run waits until the new one is finished, also while that fails once more."""
    path = tmp_path / "run"
    old = train_run(make_config(SMALL, {"epochs": 1}), path, progress=False)
    before = contents(path, FINISHED)
    config = make_config(SMALL, {"seed": 7})
    train_run(config, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(folder, "_give_back", lambda folder: None)  # as if killed, not interrupted
        error = stop(config, path, 2, monkeypatch, overwrite=True)
    assert not hasattr(error, "__notes__")
    assert contents(path / ".replaced", FINISHED) == before
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_epoch", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            resume_run(path, progress=False)
    assert contents(path / ".replaced", FINISHED) == before
    assert len(History.load(path / "history.csv")) == 2
    resume_run(path, progress=False)
    assert contents(path) == contents(tmp_path / "whole")
    assert {file.name for file in path.iterdir()} == FINISHED
    assert old.config.seed == 0


def test_an_unfinished_run_that_is_given_back_can_be_resumed(tmp_path, monkeypatch):
    path, config = tmp_path / "run", make_config(SMALL, {"seed": 3})
    train_run(config, tmp_path / "whole", progress=False)
    stop(config, path, 2, monkeypatch)
    before = contents(path, ("config.toml", "history.csv", "checkpoint.safetensors"))
    error = stop(make_config(SMALL), path, 1, monkeypatch, overwrite=True)
    assert not hasattr(error, "__notes__")  # it is not the interrupted run that could be resumed here
    assert contents(path, before) == before
    resume_run(path, progress=False)
    assert contents(path) == contents(tmp_path / "whole")


def test_a_replacement_killed_at_any_file_operation_is_gone_on_with_or_undone(tmp_path, monkeypatch):
    """Kill a replacement at its first, second, ... file operation, then its resumption likewise."""
    old = {name: f"old {name}" for name in ("config.toml", "best.safetensors", "result.json")}
    new = {"config.toml": "new", "result.json": "new"}

    class Killed(BaseException):
        pass

    def until(last, action) -> bool:
        """Whether the action came to its end before file operation number `last`."""
        count = iter(range(10**6))

        def counted(operation):
            def operate(*arguments, **options):
                if next(count) >= last:
                    raise Killed
                return operation(*arguments, **options)

            return operate

        with monkeypatch.context() as patch:
            for name in ("mkdir", "rename", "replace", "rmdir", "unlink", "write_text"):
                patch.setattr(Path, name, counted(getattr(Path, name)))
            try:
                action()
            except Killed:
                return False
        return True

    def replace():
        with folder.replacing(path):
            (path / "config.toml").write_text("new")
            (path / "checkpoint.safetensors").write_text("new")
            (path / "result.json").write_text("new")
            (path / "checkpoint.safetensors").unlink()

    def resume():
        try:
            folder.require_unfinished(path)
        except InputError:  # finished
            assert (path / "result.json").exists()
            return
        with folder.resuming(path):
            assert (path / "config.toml").read_text() == "new"
            (path / "result.json").write_text("new")
            (path / "checkpoint.safetensors").unlink(missing_ok=True)

    ends = set()
    for first in range(60):
        for second in range(60):
            path = tmp_path / f"{first}-{second}"
            path.mkdir()
            for name, text in old.items():
                (path / name).write_text(text)
            is_replaced = until(first, replace)
            is_resumed = until(second, resume)
            resume()
            found = {file.name: file.read_text() for file in path.iterdir()}
            found.pop("checkpoint.safetensors", None) if found.get("result.json") == "new" else None
            assert found in (old, new)
            ends.add(found == old)
            if is_resumed:
                break
        assert is_resumed
        if is_replaced:
            break
    assert is_replaced
    assert ends == {True, False}


@pytest.fixture
def digits_file(tmp_path):
    """Read faster than scikit-learn is loaded."""
    digits = load_dataset("digits")
    np.savez(tmp_path / "digits.npz", x=digits.x_train, y=digits.y_train)


KILLED_AT_EVERY_OPERATION = """
import os, random, signal, stat, traceback
from pathlib import Path

from matplotlib.figure import Figure

from sparsekit import figures
from sparsekit.config import make_config
from sparsekit.training.run import resume_run, train_run

figures.history_figure = figures.topology_figure = lambda *_: Figure(figsize=(1, 1))
settings = {"hidden": [16], "epochs": 2, "batch_size": 200, "delta_t": 4, "threads": 1, "backend": "vectorized"}
config = make_config(settings, {"validation": 0.2, "dataset": "digits.npz"})
fsync = os.fsync = lambda handle: None  # there is no power cut here, and it takes longer than the training


def kill_at(last):
    count = iter(range(10**6))

    def counted(function):
        def run(*arguments, **options):
            number = next(count)
            if number == last and function is fsync and stat.S_ISREG(os.fstat(arguments[0]).st_mode):
                os.truncate(arguments[0], os.fstat(arguments[0]).st_size // 2)  # half of it was written
            if number == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return run

    for name in ("fsync", "mkdir", "rename", "replace", "unlink"):
        setattr(os, name, counted(getattr(os, name)))


def go_on(folder, last):
    "Whether a process that starts the run or goes on with it came to its end before file operation `last`."
    pid = os.fork()
    if not pid:
        try:
            kill_at(last)
            if (folder / "config.toml").exists():
                resume_run(folder, progress=False)
            else:
                train_run(config, folder, progress=False)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status == 0


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".safetensors"}


whole, rng = Path("whole"), random.Random(0)
train_run(config, whole, progress=False)  # here, so that no child has to load and compile anything
names = sorted(path.name for path in whole.iterdir())
for last in range(1000):
    folder = Path(str(last))
    is_done = go_on(folder, last)
    if not (folder / "result.json").exists():
        go_on(folder, rng.randrange(60))
    if not (folder / "result.json").exists():
        assert go_on(folder, -1)
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    assert contents(folder) == contents(whole), last
    assert sorted(path.name for path in folder.iterdir()) == names, last
    if is_done:
        break
print(last)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_run_killed_at_any_file_operation_is_gone_on_with(digits_file, tmp_path):
    """SIGKILL before each rename, flush, ..., and with half of a file written; then once more at a random one."""
    command = [sys.executable, "-c", KILLED_AT_EVERY_OPERATION]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40


TRAINING = [
    "--dataset", "digits.npz", "--validation", "0.2", "--hidden", "32", "--dropout", "0.1", "--method", "srigl",
    "--delta-t", "20", "--batch-size", "64", "--epochs", "150", "--backend", "vectorized", "--threads", "1",
    "--quiet",
]  # fmt: skip


def start(*arguments, cwd):
    command = [sys.executable, "-m", "sparsekit", "train", *arguments]
    return subprocess.Popen(command, cwd=cwd, stderr=subprocess.PIPE, text=True)


def wait_for(process, happened):
    while process.poll() is None and not happened():
        time.sleep(0.002)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_run_killed_at_20_random_moments_loses_nothing(digits_file, tmp_path):
    with start(*TRAINING, "--out", "whole", cwd=tmp_path) as process:
        wait_for(process, (tmp_path / "whole" / "config.toml").exists)
        started = time.monotonic()
        wait_for(process, (tmp_path / "whole" / "model.safetensors").exists)
        seconds = time.monotonic() - started
        assert process.wait() == 0, process.stderr.read()
    moments, rng, runs, epochs = [], random.Random(0), 1, 0
    while len(moments) < 20:
        path = tmp_path / str(runs)
        config = path / "config.toml"
        written = config.stat().st_mtime_ns if config.exists() else 0
        flags = ["--resume", "--quiet"] if written else TRAINING
        with start(*flags, "--out", path.name, cwd=tmp_path) as process:
            # config.toml is written when training begins; most of what comes before is loading
            wait_for(process, lambda: config.exists() and config.stat().st_mtime_ns != written)  # noqa: B023
            moment = time.monotonic() + rng.uniform(0, seconds / 10)
            wait_for(process, lambda: time.monotonic() > moment)  # noqa: B023
            process.kill()  # by SIGKILL
            code = process.wait()
            assert code in (0, -signal.SIGKILL), process.stderr.read()
        if code == 0 or (path / "result.json").exists():
            assert contents(path) == contents(tmp_path / "whole")
            runs, epochs = runs + 1, 0
        else:
            history = path / "history.csv"
            now = len(History.load(history)) if history.exists() else 0
            assert now >= epochs  # what was there is there
            epochs = now
            moments.append((runs, epochs))
    with start("--resume", "--out", path.name, "--quiet", cwd=tmp_path) as process:
        assert process.wait() == 0, process.stderr.read()
    assert contents(path) == contents(tmp_path / "whole")
    assert {file.name for file in path.iterdir()} == FINISHED | {"best.safetensors"}
    assert len(set(moments)) > 5  # not one moment again and again; how many depends on the machine's other work
