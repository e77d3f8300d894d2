"""Faults from outside: a full disk, a folder that is read-only, too little memory, Ctrl-C, forks and threads.

Each is made to happen to a real process; nothing that was there before is lost, and one line says what to do.
"""

import errno
import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from data_helpers import refused
from test_resume import TRAINING, contents, start, timeless, wait_for

from sparsekit import CondensedMatrix, load_dataset
from sparsekit.atomic import write_text
from sparsekit.data import sources
from sparsekit.kernels import threads
from sparsekit.training.history import History

resource = pytest.importorskip("resource", reason="no limits of processes on this system")

SHORT = [
    "--dataset", "digits.npz", "--hidden", "32", "--batch-size", "100", "--epochs", "3", "--threads", "1",
    "--backend", "vectorized", "--quiet",
]  # fmt: skip
GO_ON = "go on with: sparsekit train --resume --out run"


def sparsekit(*arguments, cwd, limits=None, prelude=""):
    """Run the command line with the limits {RLIMIT_...: number}, after some Python code."""
    code = "import resource, signal, sys\n" + prelude
    for name, number in (limits or {}).items():
        code += f"\nresource.setrlimit(resource.{name}, ({number}, {number}))"
    code += "\nfrom sparsekit.cli import main\nmain()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def one_line(done, code, *words):
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("sparsekit: error: ")
    assert all(word in lines[0] for word in words), lines[0]


def no_leftovers(folder):
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What the short training leaves when nothing comes between, and its data."""
    folder = tmp_path_factory.mktemp("trained")
    digits = load_dataset("digits")
    np.savez(folder / "digits.npz", x=digits.x_train, y=digits.y_train)  # read faster than scikit-learn is loaded
    done = sparsekit("train", *SHORT, "--out", "whole", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def whole(trained, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path / "whole"


def resumed_like(whole, cwd):
    """The run goes on from what is there, to the same end as the one that nothing came between."""
    done = sparsekit("train", "--resume", "--out", "run", "--quiet", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert contents(cwd / "run") == contents(whole)
    histories = [History.load(folder / "history.csv") for folder in (cwd / "run", whole)]
    assert timeless(histories[0]) == timeless(histories[1])


# Lets a limit fall, or the disk fill up, at the end of the first epoch.
AFTER_AN_EPOCH = """
from sparsekit.training import run
write = run._FolderWriter.on_epoch_end
def write_and_limit(writer, trainer, row):
    write(writer, trainer, row)
    if row["epoch"] == 1:
        {action}
run._FolderWriter.on_epoch_end = write_and_limit
"""
# By default the signal kills a process that writes more than it may; ignored, the write fails as on a full disk.
FULL_AFTER_AN_EPOCH = AFTER_AN_EPOCH.format(
    action="signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (999, 999))"
)


def test_a_full_disk_in_training_keeps_the_last_checkpoint(whole, tmp_path):
    done = sparsekit("train", *SHORT, "--out", "run", cwd=tmp_path, prelude=FULL_AFTER_AN_EPOCH)
    one_line(done, 1, "File too large", "checkpoint.safetensors", GO_ON)
    assert len(History.load(tmp_path / "run" / "history.csv")) == 1
    no_leftovers(tmp_path / "run")
    resumed_like(whole, tmp_path)


def test_a_full_disk_in_an_export_keeps_the_last_export(whole, tmp_path):
    arguments = ["export", "whole", "--to", "csr", "--overwrite", "--quiet"]
    assert sparsekit(*arguments, cwd=tmp_path).returncode == 0
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    done = sparsekit(*arguments, cwd=tmp_path, limits={"RLIMIT_FSIZE": 999})
    one_line(done, 1, "File too large", "csr.safetensors")
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == before


@contextmanager
def mounted(path, *options):
    """Another file system at a path, where this may be done: a container may, an account of its own may not."""
    path.mkdir(exist_ok=True)
    tools = [shutil.which(name) for name in ("mount", "umount")]
    if not all(tools):
        pytest.skip("no mount on this system")
    done = subprocess.run([tools[0], *options, str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run([tools[1], str(path)], check=True)


FILLED_AFTER_AN_EPOCH = AFTER_AN_EPOCH.format(
    action="""
        with open("run/../filler", "wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)): pass
            except OSError: pass"""
)


def test_a_full_file_system_keeps_the_last_checkpoint(whole, tmp_path):
    disk = tmp_path / "disk"
    with mounted(disk, "-t", "tmpfs", "-o", "size=4m", "tmpfs"):
        shutil.copy(tmp_path / "digits.npz", disk)
        done = sparsekit("train", *SHORT, "--out", "run", cwd=disk, prelude=FILLED_AFTER_AN_EPOCH)
        one_line(done, 1, "No space left on device", "checkpoint.safetensors", GO_ON)
        no_leftovers(disk / "run")
        (disk / "filler").unlink()
        resumed_like(whole, disk)


def test_a_read_only_folder_is_named_before_training_and_left_alone(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "disk")
    before = {path.name: path.stat().st_mtime_ns for path in whole.iterdir()}
    with mounted(tmp_path / "disk", "--bind", "-o", "ro", str(whole)):
        for arguments in (
            ["train", *SHORT, "--out", "disk/run"],
            ["train", *SHORT, "--out", "disk", "--overwrite"],
            ["export", "disk", "--to", "csr", "--quiet"],
        ):
            done = sparsekit(*arguments, cwd=tmp_path)
            one_line(done, done.returncode, "Read-only file system", "disk")
            assert done.returncode in (1, 2)
        assert sparsekit("evaluate", "disk", "--quiet", cwd=tmp_path).returncode == 0  # reading needs no writing
    assert {path.name: path.stat().st_mtime_ns for path in whole.iterdir()} == before


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("call", ["replace", "fsync", "chmod"])
def test_any_call_of_the_system_may_fail(call, number, tmp_path, monkeypatch):
    path = tmp_path / "history.csv"
    path.write_text("old")
    refuse = OSError(number, os.strerror(number))
    monkeypatch.setattr(os, call, lambda *_: (_ for _ in ()).throw(refuse))
    with pytest.raises(OSError, match="history.csv") as caught:
        write_text(path, "new")
    assert caught.value.errno == number
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("history.csv", "old")]


HUNGRY_AFTER_AN_EPOCH = AFTER_AN_EPOCH.format(
    action="""
        import numpy as np
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**24, used + 2**24))
        trainer.batch_rng.permutation(2**28)"""
)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc on this system")
def test_too_little_memory_is_said_in_one_line_and_keeps_the_last_checkpoint(whole, tmp_path):
    done = sparsekit("train", *SHORT, "--out", "run", cwd=tmp_path, prelude=HUNGRY_AFTER_AN_EPOCH)
    one_line(done, 1, "not enough memory", GO_ON)
    assert len(History.load(tmp_path / "run" / "history.csv")) == 1
    no_leftovers(tmp_path / "run")
    resumed_like(whole, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is that of Linux")
def test_a_network_that_is_too_large_for_the_memory_leaves_no_folder(whole, tmp_path):
    arguments = ["train", *SHORT, "--hidden", "60000,60000", "--out", "run"]
    done = sparsekit(*arguments, cwd=tmp_path, limits={"RLIMIT_AS": 3 << 30})
    one_line(done, 1, "not enough memory")
    assert not (tmp_path / "run").exists()


def interrupt(process):
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=90)[1], process.returncode


INTERRUPTED_IN_A_CALLBACK = """
import ctypes, os, signal, time
from sparsekit import console

def callback():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)  # raises, and C code does not know of it

def work():
    ctypes.CFUNCTYPE(None)(callback)()
    while True:
        time.sleep(0.01)

console.run_app(lambda standalone_mode: work())
"""
INTERRUPTED_WHILE_LOADING = """
import os, runpy, signal, sys

class Interrupt:
    def find_spec(name, *_):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt)
runpy.run_module("sparsekit", run_name="__main__")
"""


@pytest.mark.parametrize("code", [INTERRUPTED_IN_A_CALLBACK, INTERRUPTED_WHILE_LOADING])
def test_ctrl_c_is_never_dropped_and_never_a_traceback(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=90)
    assert done.returncode in (130, -signal.SIGINT)
    assert done.stderr == "sparsekit: error: interrupted\n"


def test_ctrl_c_at_a_dozen_moments_loses_nothing(trained, tmp_path):
    """Whatever it is doing: the code is 130, one line is said, what was there is there and can be gone on with."""
    shutil.copy(trained / "digits.npz", tmp_path)
    with start(*TRAINING, "--out", "whole", cwd=tmp_path) as process:
        wait_for(process, (tmp_path / "whole" / "config.toml").exists)
        started = time.monotonic()
        assert process.wait() == 0, process.stderr.read()
        seconds = time.monotonic() - started
    path, rng, interrupted, epochs = tmp_path / "run", random.Random(0), 0, 0
    config, checkpoint = path / "config.toml", path / "checkpoint.safetensors"
    while interrupted < 12:
        written = config.stat().st_mtime_ns if config.exists() else 0
        flags = ["--resume", "--quiet"] if written else TRAINING
        with start(*flags, "--out", "run", cwd=tmp_path) as process:
            wait_for(process, lambda: config.exists() and config.stat().st_mtime_ns != written)  # noqa: B023
            moment = time.monotonic() + rng.uniform(0, seconds / 10)
            wait_for(process, lambda: time.monotonic() > moment)  # noqa: B023
            said, code = interrupt(process)
        if code == 0 or (path / "result.json").exists():  # too late
            assert contents(path) == contents(tmp_path / "whole")
            shutil.rmtree(path)
            epochs = 0
            continue
        assert code in (130, -signal.SIGINT), (
            said
        )  # shells call both 130; Python ends itself by the signal at times
        assert len(said.splitlines()) == 1, said
        assert said.startswith("sparsekit: error: interrupted")
        assert (GO_ON in said) == checkpoint.exists()
        no_leftovers(path)
        now = len(History.load(path / "history.csv")) if (path / "history.csv").exists() else 0
        assert now >= epochs
        interrupted, epochs = interrupted + 1, now
    with start("--resume", "--out", "run", "--quiet", cwd=tmp_path) as process:
        assert process.wait() == 0, process.stderr.read()
    assert contents(path) == contents(tmp_path / "whole")


@pytest.mark.parametrize("damage", [lambda c: c[:-1], lambda c: b"", lambda c: c[:50] + b"?" + c[51:]])
def test_a_damaged_file_in_the_cache_is_refused_with_advice_that_helps(damage, tmp_path, monkeypatch):
    """Nothing is downloaded behind the user's back; once the file is deleted, it is, by the real pooch."""
    pooch = pytest.importorskip("pooch")
    content = b"content of a file" * 9
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.gz").write_bytes(content)
    source = sources.Source("https://example.org/", {"a.gz": hashlib.sha256(content).hexdigest()})
    monkeypatch.setitem(sources.SOURCES, "mnist", source)
    monkeypatch.delenv("SPARSEKIT_DATA", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache")

    def copy(url, output_file, pooch):
        Path(output_file).write_bytes((tmp_path / "served" / url.rpartition("/")[2]).read_bytes())

    monkeypatch.setattr(pooch.core, "choose_downloader", lambda url, progressbar: copy)
    path = sources.locate("mnist", "a.gz")
    path.write_bytes(damage(content))
    refused("a.gz is damaged", "delete the file to have it downloaded again", call=lambda: locate_again())
    assert path.read_bytes() == damage(content)
    path.unlink()
    assert locate_again().read_bytes() == content
    (tmp_path / "served" / "a.gz").write_bytes(damage(content))  # what is damaged on its way never gets there
    path.unlink()
    refused("a.gz cannot be downloaded", call=lambda: locate_again())
    assert not path.exists()


def locate_again():
    return sources.locate("mnist", "a.gz")


def product():
    """One that is large enough for several threads."""
    matrix = CondensedMatrix.from_mask(np.ones((64, 64), dtype=bool))
    matrix.values[...] = np.random.default_rng(0).random(matrix.values.shape)
    return matrix.matmul(np.random.default_rng(1).random((64, 256), dtype=np.float32))


def send_product(pipe):
    pipe.send((threads.has_threads(), product()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # of Python 3.12, and right
def test_a_process_forked_after_a_kernel_ran_computes_on_one_thread():
    """GNU OpenMP would end it if it asked for threads."""
    here = product()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_product, args=(sender,))
    process.start()
    sender.close()
    try:
        assert receiver.poll(120), "the process hangs"
        has_threads, there = receiver.recv()
        process.join(60)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join()
    assert (has_threads, threads.has_threads()) == (False, True)
    np.testing.assert_allclose(there, here, rtol=1e-6)
    np.testing.assert_array_equal(product(), here)


def products_of_python_threads():
    """Whether several Python threads that call kernels at once get what one gets, from a shared matrix too."""
    matrix = CondensedMatrix.from_mask(np.ones((64, 64), dtype=bool))
    matrix.values[...] = np.random.default_rng(0).random(matrix.values.shape)
    frozen = matrix.frozen()
    xs = [np.random.default_rng(i).random((64, 256), dtype=np.float32) for i in range(4)]
    expected, wrong = [matrix.matmul(x) for x in xs], []
    begin = threading.Barrier(len(xs))

    def work(x, y):
        begin.wait()
        products = [m.matmul(x) for _ in range(30) for m in (matrix, frozen)]
        wrong.extend(product for product in products if not np.allclose(product, y, rtol=1e-5))

    workers = [threading.Thread(target=work, args=pair) for pair in zip(xs, expected, strict=True)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return not wrong


def test_python_threads_can_compute_at_once():
    assert products_of_python_threads()


FORKED_FIRST = """
import os, sys
if pid := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
sys.path.insert(0, {tests!r})
import numba, test_faults
assert test_faults.products_of_python_threads()
assert test_faults.threads.has_threads()
assert numba.threading_layer() == "workqueue"
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_python_threads_wait_for_each_other_at_a_work_queue():
    """Numba's own, which it has where there is nothing better, ends a process in which two of them compute.

    This process is one that was forked before the first kernel, which has threads like any other.
    """
    command = [sys.executable, "-c", FORKED_FIRST.format(tests=os.path.dirname(__file__))]
    environment = os.environ | {"NUMBA_THREADING_LAYER": "workqueue"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
