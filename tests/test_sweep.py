"""Sweeps: a grid becomes one right row a run, whatever is killed on the way and wherever it is trained."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pandas
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.sweep import (
    DaskScheduler,
    JoblibScheduler,
    SweepFolder,
    Task,
    grid,
    load_rows,
    read_grids,
    run_sweep,
    schedulers,
)
from analysis.sweep.row import failed, start_row, train_row
from sparsekit.config import RunConfig, make_config
from sparsekit.errors import InputError, RunError
from sparsekit.inspection import inspect_run
from sparsekit.training.run import train_run

ROOT = Path(__file__).parent.parent
TINY = {
    "dataset": "digits", "hidden": (16,), "epochs": 1, "batch_size": 64, "delta_t": 5, "threads": 1,
    "backend": "vectorized",  # nothing to compile in every new process
}  # fmt: skip
FORTY = {
    "method": ["static", "set", "rigl", "srigl:gamma_sal=0", "srigl"],
    "sparsity": [0.5, 0.8],
    "seed": [0, 1, 2, 3],
}
TIMES = ("seconds", "seconds_per_epoch")


def without_times(rows):
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def tiny_task(**settings):
    return Task(settings.get("method", "srigl"), make_config(TINY, settings))


class InThisProcess:
    """The plainest scheduler there is: the oracle of the others."""

    def rows(self, tasks):
        return map(train_row, tasks)


@pytest.fixture(scope="module")
def forty():
    tasks = grid(TINY, FORTY)
    return tasks, [train_row(task) for task in tasks]


# Grids


def test_a_grid_is_every_combination_the_last_axis_fastest():
    tasks = grid(TINY, {"method": ["set", "srigl:gamma_sal=0.5"], "seed": [3, 4]})
    assert [(task.label, task.config.method, task.config.seed) for task in tasks] == [
        ("set", "set", 3),
        ("set", "set", 4),
        ("srigl:gamma_sal=0.5", "srigl", 3),
        ("srigl:gamma_sal=0.5", "srigl", 4),
    ]
    assert [task.config.gamma_sal for task in tasks] == [0.3, 0.3, 0.5, 0.5]
    assert all(task.config.hidden == (16,) for task in tasks)


def test_dense_training_has_no_sparsity():
    tasks = grid(TINY, {"method": ["dense", "rigl"], "sparsity": [0.5, 0.9], "seed": [0, 1]})
    found = [(task.label, task.config.sparsity, task.config.seed) for task in tasks]
    assert found == [("dense", 0.0, 0), ("dense", 0.0, 1)] + [
        ("rigl", sparsity, seed) for sparsity in (0.5, 0.9) for seed in (0, 1)
    ]


@given(
    settings=st.fixed_dictionaries(
        {},
        optional={
            "method": st.sampled_from(["static", "set", "rigl"]),
            "sparsity": st.sampled_from([0.5, 0.9]),
            "seed": st.integers(0, 3),
            "threads": st.sampled_from([None, 1, 2]),
            "hidden": st.sampled_from([(8,), (8, 8)]),
        },
    ),
    label=st.sampled_from("ab"),
)
def test_two_keys_are_equal_if_the_runs_are(settings, label):
    ours, other = Task(label, make_config(settings)), Task("other", RunConfig())
    same = make_config(settings, {"threads": None}) == RunConfig()
    assert (ours.key == other.key) is same
    assert len(ours.key) == 16


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"sparsty": [0.5]}, "grid has no setting 'sparsty' (did you mean 'sparsity'?)"),
        ({"seed": []}, "grid must give seed a list of at least one value, not []"),
        ({"seed": 3}, "grid must give seed a list of at least one value, not 3"),
        ({"sparsity": [0.5, 1.5]}, "sparsity must be a number >= 0 and < 1, not 1.5"),
        ({"method": ["srigl:gamma_sal"]}, "methods must be METHOD or METHOD:setting=value, not 'srigl:gamma_sal'"),
        ({"method": ["rigle"]}, "method must be one of"),
    ],
)
def test_a_wrong_grid_is_refused(axes, message):
    with pytest.raises(InputError) as error:
        grid(TINY, axes)
    assert message in str(error.value)


def test_grids_are_read_from_toml(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(
        'epochs = 2\n[[grid]]\nmethod = ["set"]\nseed = [0, 1]\n[[grid]]\nmethod = ["rigl", "set"]\nseed = [1]\n'
    )
    found = [(task.label, task.config.seed, task.config.epochs) for task in read_grids(path)]
    assert found == [("set", 0, 2), ("set", 1, 2), ("rigl", 1, 2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = 2", "must hold at least one table [[grid]]"),
        ("[grid]\nseed = [1]", "has a table [grid], but settings stand at the top level"),
        ("[[grid]]\nseed = [" + "1" * 5000 + "]", "is not TOML"),
        ("epochs =", "is not TOML"),
        ("sparsty = 2\n[[grid]]\nseed = [1]", "unknown setting 'sparsty' (did you mean 'sparsity'?)"),
    ],
)
def test_a_wrong_file_of_grids_is_refused(tmp_path, text, message):
    path = tmp_path / "grid.toml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_grids(path)
    assert message in str(error.value)


def test_a_missing_file_of_grids_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_grids(tmp_path / "grid.toml")


@pytest.mark.parametrize("path", sorted((ROOT / "analysis" / "grids").glob("*.toml")), ids=lambda path: path.stem)
def test_the_grids_of_the_project_are_allowed(path):
    assert len(read_grids(path)) > 20


# Rows


def test_a_row_says_what_the_run_says(tmp_path):
    task = tiny_task(method="srigl", sparsity=0.9, gamma_sal=0.9, epochs=3)
    row = train_row(task)
    run = train_run(task.config, tmp_path / "run", progress=False)
    inspection = inspect_run(tmp_path / "run").result
    assert row["status"] == "done"
    assert row["error"] == ""
    assert row["test_accuracy"] == run.result["test_accuracy"]
    assert row["test_loss"] == run.result["test_loss"]
    assert row["train_loss"] == run.history.rows[-1]["train_loss"]
    assert row["stored_weights"] == run.result["stored_weights"]
    assert row["reached_sparsity"] == run.result["sparsity"]
    assert row["itop"] == pytest.approx(inspection["itop"])
    for layer, expected in zip(row["layers"], inspection["layers"], strict=True):
        assert layer["name"] == expected["name"]
        assert layer["n_active"] == expected["n_active"] == sum(count for _, count in layer["fan_ins"])
        assert layer["nnz"] == expected["nnz"] == sum(fan_in * count for fan_in, count in layer["fan_ins"])
        assert layer["itop"] == expected["itop"]
    assert [layer["n_active"] for layer in row["layers"]] != [16, 10]  # some were ablated
    assert row["updates"][-1]["n_active"] == sum(layer["n_active"] for layer in row["layers"])
    assert [update["step"] for update in row["updates"]] == [0, *range(5, int(0.75 * 3 * 22), 5)]
    assert json.loads(json.dumps(row)) == row


def test_a_dense_row_has_no_topology():
    row = train_row(tiny_task(method="dense", sparsity=0.0))
    assert row["status"] == "done"
    assert "itop" not in row
    assert "updates" not in row
    assert [layer["itop"] for layer in row["layers"]] == [None, None]


def test_a_run_that_fails_says_why():
    task = tiny_task(learning_rate=1e30)
    row = train_row(task)
    assert row["status"] == "failed"
    assert row["error"].startswith("DivergedError: ")
    assert "\n" not in row["error"]
    assert row["key"] == task.key
    assert row["learning_rate"] == 1e30
    assert "test_accuracy" not in row


# The folder


def test_rows_come_back_in_the_order_of_the_grid(tmp_path):
    tasks = grid(TINY, {"method": ["set", "rigl"], "seed": [0, 1]})
    folder = SweepFolder(tmp_path / "sweep", tasks)
    for task in reversed(tasks[1:]):
        folder.add(start_row(task) | {"layers": [{"name": "fc1"}], "test_accuracy": 0.1 + 0.2})
    folder.add(start_row(tasks[3]) | failed("of\nit"))
    again = SweepFolder(tmp_path / "sweep", tasks)
    assert again.rows == folder.rows
    assert [row["key"] for row in again.rows] == [task.key for task in tasks[1:]]
    assert [task in again for task in tasks] == [False, True, True, False]
    again.save()
    table = pandas.read_csv(tmp_path / "sweep" / "results.csv")
    assert table["test_accuracy"].tolist()[:2] == pytest.approx([0.1 + 0.2] * 2, rel=1e-15)
    assert table["error"].tolist()[2] == "of it"
    pandas.testing.assert_series_equal(
        table["layers"], pandas.read_parquet(tmp_path / "sweep" / "results.parquet")["layers"], check_dtype=False
    )
    for path in (tmp_path / "sweep", tmp_path / "sweep" / "results.csv", tmp_path / "sweep" / "results.parquet"):
        rows = load_rows(path)
        assert [row["key"] for row in rows] == [task.key for task in tasks[1:3]]
        assert [row["layers"] for row in rows] == [[{"name": "fc1"}]] * 2
        assert [row["test_accuracy"] for row in rows] == pytest.approx([0.1 + 0.2] * 2, rel=1e-15)
    assert not list((tmp_path / "sweep").rglob(".*"))


def test_a_sweep_may_grow_but_not_change(tmp_path):
    small = grid(TINY, {"method": ["set"], "seed": [0]})
    SweepFolder(tmp_path, small).add(start_row(small[0]))
    large = grid(TINY, {"method": ["set", "rigl"], "seed": [0, 1]})
    assert [task in SweepFolder(tmp_path, large) for task in large] == [True, False, False, False]
    other = grid(TINY, {"method": ["rigl"], "seed": [0]})
    with pytest.raises(InputError, match="holds another sweep: set at sparsity 0.9 with seed 0, key .* is no run"):
        SweepFolder(tmp_path, other)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(InputError, match="is not a sweep: it has no rows/"):
        SweepFolder(tmp_path, [])
    with pytest.raises(InputError, match="is a file; name a folder"):
        SweepFolder(tmp_path / "thesis.txt", [])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": "other", "status": "done"}', '{"status": "done"}'])
def test_a_damaged_row_is_named(tmp_path, text):
    task = tiny_task()
    SweepFolder(tmp_path, [task]).add(start_row(task))
    (tmp_path / "rows" / f"{task.key}.json").write_text(text)
    with pytest.raises(InputError, match=rf"{task.key}.json is damaged: .*; remove it to train its run again"):
        SweepFolder(tmp_path, [task])


def test_results_of_something_else_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"results .*results.csv cannot be read: "):
        load_rows(tmp_path)
    (tmp_path / "results.csv").write_text("key,seed,sparsity,status\na,1,0.5,done\n")
    with pytest.raises(InputError, match="is not the table of a sweep: it has no column 'label'"):
        load_rows(tmp_path)
    (tmp_path / "results.csv").write_text("key,label,seed,sparsity,status\na,b,1,0.5,failed\n")
    with pytest.raises(InputError, match="holds no run that is done"):
        load_rows(tmp_path)
    (tmp_path / "results.parquet").write_text("no parquet")
    with pytest.raises(InputError, match=r"results .*results.parquet cannot be read: "):
        load_rows(tmp_path / "results.parquet")


def test_a_row_half_written_is_none(tmp_path):
    task = tiny_task()
    SweepFolder(tmp_path, [task]).add(start_row(task))
    (tmp_path / "rows" / f".{task.key}-abcdefgh.json").write_text("{")
    assert len(SweepFolder(tmp_path, [task]).rows) == 1


# Running


def test_a_sweep_goes_on_with_what_is_not_done(tmp_path):
    tasks = grid(TINY, {"method": ["set", "rigl"], "seed": [0, 1]})
    trained = []

    class Recording:
        def rows(self, tasks):
            for task in tasks:
                trained.append(task.key)
                yield start_row(task) | (failed("once") if len(trained) == 2 else {})
                if len(trained) == 3:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(tasks, tmp_path, Recording(), progress=False)
    assert len(load_rows(tmp_path)) == 2  # the table was written all the same
    assert [row["status"] for row in run_sweep(tasks, tmp_path, Recording(), progress=False)] == ["done"] * 4
    assert trained[3:] == [tasks[1].key, tasks[3].key]
    assert len(load_rows(tmp_path)) == 4


@contextmanager
def killing_one(find_processes, is_time):
    """Kill the first process found, once it is time."""
    killed, over = [], threading.Event()

    def watch():
        while not over.is_set() and not killed:
            if is_time():
                for process in find_processes():
                    process.kill()
                    killed.append(process.pid)
                    break
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def loky_processes():
    children = psutil.Process().children()
    return [child for child in children if "loky" in " ".join(child.cmdline()) and "tracker" not in child.name()
            and not any("resource_tracker" in part for part in child.cmdline())]  # fmt: skip


def n_rows(folder):
    return len(list((folder / "rows").glob("[!.]*.json")))


def test_joblib_trains_forty_runs_although_a_worker_is_killed(tmp_path, forty):
    tasks, expected = forty
    with killing_one(loky_processes, lambda: n_rows(tmp_path) >= 5) as killed:
        rows = run_sweep(tasks, tmp_path, JoblibScheduler(workers=2, threads=1), progress=False)
    assert len(killed) == 1
    assert without_times(rows) == without_times(expected)
    assert len(load_rows(tmp_path)) == n_rows(tmp_path) == 40


@pytest.fixture(scope="module")
def cluster():
    from distributed import LocalCluster

    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": 50}
    with LocalCluster(**options) as cluster:
        yield cluster


def test_dask_trains_forty_runs_although_a_worker_is_killed(tmp_path, forty, cluster):
    tasks, expected = forty
    workers = lambda: [psutil.Process(worker.pid) for worker in cluster.workers.values() if worker.pid]  # noqa: E731
    with killing_one(workers, lambda: n_rows(tmp_path) >= 5) as killed:
        rows = run_sweep(tasks, tmp_path, DaskScheduler(cluster.scheduler_address), progress=False)
    assert len(killed) == 1
    assert without_times(rows) == without_times(expected)
    assert len(load_rows(tmp_path)) == n_rows(tmp_path) == 40


def with_a_poisoned_run(label):
    """`train_row`, but one label kills its process; a closure, so that it is sent to the processes by value."""

    def poisoned(task):
        if task.label == label:
            os.kill(os.getpid(), signal.SIGKILL)
        return train_row(task)

    return poisoned


def test_joblib_gives_up_a_run_that_kills_its_processes(tmp_path, monkeypatch):
    tasks = grid(TINY, {"method": ["static", "set", "rigl"], "seed": [0, 1]})
    monkeypatch.setattr(schedulers, "train_row", with_a_poisoned_run("set"))
    rows = run_sweep(tasks, tmp_path, JoblibScheduler(workers=2), progress=False)
    assert [row["status"] for row in rows] == ["done", "done", "failed", "failed", "done", "done"]
    assert rows[2]["error"] == "its process was killed, 3 times in all"
    monkeypatch.undo()
    again = run_sweep(tasks, tmp_path, JoblibScheduler(workers=2), progress=False)
    assert [row["status"] for row in again] == ["done"] * 6


def test_dask_gives_up_a_run_that_kills_its_workers(tmp_path, monkeypatch, cluster):
    tasks = grid(TINY, {"method": ["static", "set"], "seed": [7]})
    monkeypatch.setattr(schedulers, "train_row", with_a_poisoned_run("set"))
    rows = run_sweep(tasks, tmp_path, DaskScheduler(cluster.scheduler_address), progress=False)
    assert [row["status"] for row in rows] == ["done", "failed"]
    assert rows[1]["error"] == "its worker was killed, as often as the cluster allows"


def test_a_run_that_fails_does_not_stop_the_others(tmp_path):
    tasks = grid(TINY, {"learning_rate": [0.1, 1e30, 0.2]})
    rows = run_sweep(tasks, tmp_path, JoblibScheduler(workers=1), progress=False)
    assert [row["status"] for row in rows] == ["done", "failed", "done"]


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(schedulers, "_SECONDS_TO_CONNECT", 1)
    for address in ("tcp://127.0.0.1:1", "carrier-pigeon://home"):
        with pytest.raises(InputError, match=f"dask must name a scheduler that answers, not '{address}'"):
            list(DaskScheduler(address).rows([tiny_task()]))


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (JoblibScheduler(workers=-1), "workers must be an integer of at least 1, not -1"),
        (JoblibScheduler(workers=0), "workers must be an integer of at least 1, not 0"),
        (JoblibScheduler(threads=10_000), "threads must be an integer in"),
        (DaskScheduler("tcp://127.0.0.1:1", workers=2), "workers must be left out with a running cluster, not 2"),
    ],
)
def test_wrong_numbers_of_workers_are_refused(scheduler, message):
    with pytest.raises(InputError, match=message):
        list(scheduler.rows([tiny_task()]))


A_CLUSTER = """
from distributed import LocalCluster

cluster = LocalCluster(
    n_workers=1, threads_per_worker=1, processes=False, protocol="tcp://", dashboard_address=":0", silence_logs=50
)
print(cluster.scheduler_address, flush=True)
input()
"""


def test_a_lost_connection_keeps_the_rows(monkeypatch):
    monkeypatch.setattr(schedulers, "_SECONDS_TO_CONNECT", 2)
    tasks = grid(TINY, {"method": ["static"], "seed": list(range(60))})
    with subprocess.Popen(
        [sys.executable, "-c", A_CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        try:
            rows = DaskScheduler(process.stdout.readline().strip()).rows(tasks)
            first = next(rows)
        finally:
            process.kill()
        assert first["status"] == "done"
        with pytest.raises(RunError, match="connection to Dask's scheduler was lost; the same command goes on"):
            list(rows)


class Forgotten:
    """A future that ends no more: its client has lost the scheduler that knew it."""

    key = "train_row-1"

    def result(self, timeout):
        time.sleep(timeout)
        raise TimeoutError


@pytest.mark.parametrize(("status", "known"), [("running", {}), ("closed", {Forgotten.key: "pending"})])
def test_a_future_that_a_lost_connection_forgot_is_not_waited_for(status, known, monkeypatch):
    monkeypatch.setattr(schedulers, "_SECONDS_TO_CONNECT", 0.01)
    client = SimpleNamespace(status=status, futures=known)
    with pytest.raises(RunError, match="connection to Dask's scheduler was lost"):
        schedulers._row_of(Forgotten(), tiny_task(), client)


# The command line


def write_grid(path, axes):
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in TINY.items()}
    del settings["threads"]
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    lines += ["[[grid]]", *(f"{name} = {json.dumps(values)}" for name, values in axes.items())]
    path.write_text("\n".join(lines))
    return path


def command(*arguments, **options):
    line = [sys.executable, "-m", "analysis.sweep", *map(str, arguments)]
    return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def run_command(*arguments, **options):
    with command(*arguments, **options) as process:
        out, err = process.communicate()
    return process.returncode, out, err


def test_a_killed_sweep_goes_on_where_it_stopped(tmp_path, forty):
    _, expected = forty
    path, folder = write_grid(tmp_path / "forty.toml", FORTY), tmp_path / "sweep"
    with command(path, "--out", folder, "--workers", 2, "--quiet", start_new_session=True) as process:
        while process.poll() is None and n_rows(folder) < 4:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    kept = {file: file.stat().st_mtime_ns for file in (folder / "rows").glob("[!.]*.json")}
    assert 4 <= len(kept) < 40
    code, out, err = run_command(path, "--out", folder, "--workers", 2, "--json", tmp_path / "rows.json")
    assert (code, err) == (0, "")
    assert "40 runs, all done" in out
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert without_times(rows) == without_times(expected)


def test_the_command_says_which_runs_failed(tmp_path):
    path = write_grid(tmp_path / "grid.toml", {"learning_rate": [0.1, 1e30]})
    code, out, err = run_command(path, "--out", tmp_path / "sweep", "--workers", 1)
    assert (code, out) == (1, "")
    assert err.startswith("sparsekit: error: 1 of 2 runs failed, the first with: DivergedError: ")
    assert err.count("\n") == 1


def test_a_missing_library_is_named_before_anything_is_trained(tmp_path):
    path = write_grid(tmp_path / "grid.toml", {"seed": [0]})
    (tmp_path / "pyarrow.py").write_text("raise ModuleNotFoundError(name='pyarrow')")
    code, out, err = run_command(
        path, "--out", tmp_path / "sweep", env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    assert (code, out) == (2, "")
    assert err == "sparsekit: error: pyarrow is not installed; get it by: pip install 'sparsekit[analysis]'\n"
    assert not (tmp_path / "sweep").exists()


def test_the_command_refuses_in_one_line(tmp_path):
    code, out, err = run_command(tmp_path / "none.toml")
    assert (code, out) == (2, "")
    assert err == f"sparsekit: error: grid {tmp_path / 'none.toml'} cannot be read: No such file or directory\n"
