"""Hostile files: every reader takes them or refuses them in one line of our own, in bounded memory and time.

SPARSEKIT_TESTS=thorough pytest tests/test_fuzz.py takes 10,000 files per reader.
"""

import contextlib
import gzip
import io
import json
import os
import pickle
import signal
import tarfile
import tracemalloc
import zipfile

import fuzz_inputs as inputs
import numpy as np
import pytest
from data_helpers import X, Y
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from test_checkpoint import build, data, everything
from test_cifar import ARCHIVES, BATCHES_BIN, BATCHES_PY, PICKLES, RECORDS

from sparsekit import load_run
from sparsekit.config import RunConfig, make_config, read_toml
from sparsekit.data import cifar, read_idx, read_npz, unpacking
from sparsekit.data.cifar import read_cifar10
from sparsekit.errors import DivergedError, InputError, RunError
from sparsekit.export import export_run, load_exported
from sparsekit.training import History, MaskEvolution, load_checkpoint, save_checkpoint
from sparsekit.training.arrays import read_arrays, write_arrays
from sparsekit.training.evolution import read_evolution
from sparsekit.training.model_file import load_model, save_model
from sparsekit.training.run import train_run

FAMILY = (InputError, RunError, DivergedError)
IS_THOROUGH = settings().max_examples > 100
MOST_BYTES = 64 << 20  # of Python and NumPy, for files of some kilobytes
MOST_SECONDS = 120  # for one of them: what takes longer hangs

fuzzed = settings(
    max_examples=10_000 if IS_THOROUGH else 200,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module", autouse=True)
def small_bounds():
    """What may be unpacked in any case is a GiB; here it is a MiB, so that bombs can be small too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unpacking, "ALWAYS_ALLOWED", 1 << 20)
        patch.setattr(cifar, "_MOST_UNPACKED", 1 << 20)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@contextlib.contextmanager
def no_hang():
    """A reader that does not come back fails its test, where the system has alarms."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, _hangs)
    signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _hangs(number, frame):
    raise AssertionError(f"a reader takes more than {MOST_SECONDS} seconds")


def takes_or_refuses(read, name, most_bytes=MOST_BYTES):
    """Whether it is read; if not, the error is one of ours, in one line that names the file."""
    tracemalloc.start()  # here only: it makes everything several times as slow
    try:
        with no_hang(), np.errstate(all="ignore"):
            read()
    except FAMILY as error:
        message = str(error)
        assert name in message
        assert "\n" not in message
        is_read = False
    else:
        is_read = True
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < most_bytes
    return is_read


def write(path, content):
    path.write_bytes(content)
    return path


@fuzzed
@given(st.one_of(inputs.damaged(inputs.idx(X[:, 0])), inputs.idx_headers()), st.sampled_from(["", "gz", "damage"]))
def test_idx(folder, content, wrapping):
    if wrapping:
        content = gzip.compress(content, mtime=0)
    if wrapping == "damage":
        content = content[:-9] + bytes(4) + content[-5:]
    path = write(folder / ("a.idx.gz" if wrapping else "a.idx"), content)
    takes_or_refuses(lambda: read_idx(path), path.name)


def sound_npz(save):
    stream = io.BytesIO()
    save(
        stream, x=X.reshape(6, 4) / 7, y=Y, x_test=X.reshape(6, 4) / 7, y_test=Y, class_names=np.array(list("abc"))
    )
    return stream.getvalue()


@fuzzed
@given(
    st.one_of(inputs.npz(), *(inputs.damaged(sound_npz(save)) for save in (np.savez, np.savez_compressed))),
)
def test_npz(folder, content):
    path = write(folder / "a.npz", content)
    takes_or_refuses(lambda: read_npz(path), "a.npz")


@pytest.fixture
def cifar_file(folder, monkeypatch):
    """Reads a file as if it were the archive, with the right checksum."""

    def read(name, content):
        path = write(folder / name, content)
        monkeypatch.setattr(cifar, "locate", lambda _, file: path)
        monkeypatch.setattr(cifar, "find_local", lambda _, file: path if file == name else None)
        return takes_or_refuses(read_cifar10, name)

    return read


@fuzzed
@given(
    form=st.sampled_from([(name, files) for name, files in zip(ARCHIVES, (PICKLES, RECORDS), strict=True)]),
    choices=st.data(),
)
def test_cifar_archives(cifar_file, folder, form, choices, monkeypatch):
    name, files = form
    monkeypatch.chdir(folder)
    before = set(os.listdir(folder)) | {name}
    if choices.draw(st.integers(0, 3)) == 0:
        content = choices.draw(inputs.damaged(ARCHIVES[name]))
    else:
        content = inputs.packed(choices.draw(inputs.tar_members(files)))
    cifar_file(name, content)
    assert set(os.listdir(folder)) <= before  # nothing is ever unpacked to disk
    assert not os.path.exists("/etc/evil")


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_are_read_by_that_test(cifar_file, name):
    assert cifar_file(name, ARCHIVES[name])


FIRST = f"{BATCHES_PY}/data_batch_1"


@fuzzed
@given(content=inputs.pickles(PICKLES[FIRST]))
def test_cifar_pickles(folder, content, monkeypatch):
    monkeypatch.chdir(folder)
    takes_or_refuses(lambda: cifar._parse(cifar._PYTHON, content, FIRST), FIRST)
    assert not list(folder.glob("*executed*"))


def test_settings_files_are_read_by_that_test(folder):
    path = write(folder / "config.toml", RunConfig().to_toml().encode())
    assert takes_or_refuses(lambda: make_config(read_toml(path)), "")


@fuzzed
@given(content=inputs.toml_files(list(RunConfig.model_fields), RunConfig().to_toml().encode()))
def test_settings(folder, content):
    path = write(folder / "config.toml", content)
    # a value that is refused is named by its setting, not its file: it may come from a flag
    takes_or_refuses(lambda: make_config(read_toml(path)).to_toml(), "")


@pytest.fixture(scope="module")
def trained():
    trainer = build(sizes=(12, 8, 4), epochs=1)
    trainer.fit(data())
    return trainer


@pytest.fixture(scope="module")
def model_file(folder, trained):
    save_model(folder / "model.safetensors", trained.model, {"mean": np.zeros(12), "std": np.ones(12)})
    return (folder / "model.safetensors").read_bytes()


@fuzzed
@given(choices=st.data())
def test_models(folder, model_file, trained, choices):
    path = folder / "b.safetensors"
    if choices.draw(st.booleans()):
        write(path, choices.draw(inputs.damaged(model_file)))
    else:
        arrays = read_arrays(write(path, model_file), "model-1")
        write_arrays(path, "model-1", choices.draw(inputs.changed_arrays(arrays, "", None)))
    model = build(sizes=(12, 8, 4)).model
    takes_or_refuses(lambda: load_model(path, model), path.name)
    with np.errstate(all="ignore"):  # whatever it is filled with, a negative variance say
        model.forward(np.zeros((12, 3), np.float32))


@pytest.fixture(scope="module", params=["srigl", "rigl"])
def checkpoint_file(folder, request):
    trainer = build(request.param, "adamw", sizes=(12, 8, 4), epochs=1)
    trainer.fit(data())
    save_checkpoint(folder / "checkpoint.safetensors", trainer, RunConfig().to_toml())
    return request.param, (folder / "checkpoint.safetensors").read_bytes()


@fuzzed
@given(choices=st.data())
def test_checkpoints(folder, checkpoint_file, choices):
    method, content = checkpoint_file
    path = folder / "c.safetensors"
    if choices.draw(st.integers(0, 3)) == 0:
        write(path, choices.draw(inputs.damaged(content)))
    else:
        arrays = read_arrays(write(path, content), "checkpoint-1")
        about = json.loads(arrays["extra.state"].tobytes())
        write_arrays(path, "checkpoint-1", choices.draw(inputs.changed_arrays(arrays, "extra.state", about)))
    trainer = build(method, "adamw", sizes=(12, 8, 4), epochs=2)
    if takes_or_refuses(lambda: load_checkpoint(path, trainer), path.name):
        takes_or_refuses(lambda: trainer.fit(data()), "")


SMALL = {"hidden": [4], "epochs": 2, "batch_size": 200, "delta_t": 4, "threads": 1, "backend": "vectorized"}


@pytest.fixture(scope="module")
def run_folder(folder):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("history_figure", "topology_figure"):
            patch.setattr(f"sparsekit.figures.{name}", lambda *_: Figure(figsize=(1, 1)))
        train_run(make_config(SMALL, {"validation": 0.2}), folder / "run", progress=False)
    export_run(folder / "run", "condensed")
    return folder / "run"


@fuzzed
@given(choices=st.data())
def test_exported_networks(folder, run_folder, choices):
    content = (run_folder / "condensed.safetensors").read_bytes()
    path = folder / "e.safetensors"
    if choices.draw(st.integers(0, 3)) == 0:
        write(path, choices.draw(inputs.damaged(content)))
    else:
        arrays = read_arrays(write(path, content), "network-1")
        about = json.loads(arrays["extra.about"].tobytes())
        write_arrays(path, "network-1", choices.draw(inputs.changed_arrays(arrays, "extra.about", about)))

    def predict():
        network = load_exported(path)
        if np.prod(network.sample_shape, dtype=float) < 2**16:
            network.predict(np.zeros((2, *network.sample_shape), np.uint8))

    takes_or_refuses(predict, "", most_bytes=1 << 30)


TABLES = {"history.csv": History.load, "topology.csv": read_evolution}


@pytest.mark.parametrize("name", TABLES)
@fuzzed
@given(choices=st.data())
def test_tables(folder, run_folder, name, choices):
    content = choices.draw(inputs.csv_files((run_folder / name).read_bytes()))
    path = write(folder / name, content)
    takes_or_refuses(lambda: TABLES[name](path), name)


@fuzzed
@given(choices=st.data())
def test_results(run_folder, choices):
    path = run_folder / "result.json"
    sound = path.read_bytes()
    try:
        write(path, choices.draw(inputs.json_bytes(json.loads(sound))))
        takes_or_refuses(lambda: load_run(run_folder), "", most_bytes=1 << 30)
    finally:
        write(path, sound)


@fuzzed
@given(choices=st.data())
def test_histories_of_runs(run_folder, choices):
    path = run_folder / "history.csv"
    sound = path.read_bytes()
    try:
        write(path, choices.draw(inputs.csv_files(sound)))
        takes_or_refuses(lambda: load_run(run_folder, best=True), "")
    finally:
        write(path, sound)


# What once was a crash, a hang or a bomb: file by file.


def bomb(n_bytes, **options):
    """A .npz archive whose x is that many zeros."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **options) as archive:
        header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': (1, {n_bytes})}}\n".encode()
        with archive.open("x.npy", "w") as member:
            member.write(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header)
            for _ in range(n_bytes >> 20):
                member.write(bytes(1 << 20))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (bomb(256 << 20, compression=zipfile.ZIP_DEFLATED), "its arrays unpack to more than"),
        (bomb(8 << 20, compression=zipfile.ZIP_BZIP2), "x.npy is not compressed as NumPy does it"),
        (bomb(8 << 20, compression=zipfile.ZIP_STORED).replace(b"(1, 8388608)", b"(1, 9388608)"), "must hold"),
    ],
    ids=["deflate", "bzip2", "header"],
)
def test_npz_bombs_are_refused(folder, content, words, monkeypatch):
    monkeypatch.setattr(unpacking, "ALWAYS_ALLOWED", 16 << 20)
    path = write(folder / "bomb.npz", content)
    most_bytes = len(content) + (8 << 20)
    assert not takes_or_refuses(lambda: read_npz(path), "bomb.npz", most_bytes)
    with pytest.raises(InputError, match=words):
        read_npz(path)


def test_a_gzip_bomb_is_refused(folder):
    header = inputs.idx(np.zeros((1, 1), np.uint8))[:4] + (1 << 14).to_bytes(4, "big") * 2
    path = write(folder / "bomb.gz", gzip.compress(header + bytes(1 << 28), mtime=0))
    assert not takes_or_refuses(lambda: read_idx(path), "bomb.gz", 8 << 20)
    with pytest.raises(InputError, match="bomb.gz must unpack to at most"):
        read_idx(path)


def header(name, size, kind=tarfile.REGTYPE, linkname=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, linkname
    return info.tobuf(tarfile.GNU_FORMAT)


BATCH = f"{BATCHES_BIN}/data_batch_1.bin"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "lacks cifar-10-batches-bin/data_batch_1.bin"),
        (header(BATCH, 0, tarfile.SYMTYPE, "/etc/passwd"), "lacks cifar-10-batches-bin/data_batch_1.bin"),
        (header(BATCH, 0, tarfile.DIRTYPE), "lacks cifar-10-batches-bin/data_batch_1.bin"),
        (header(f"../{BATCH}", 0) + header(f"/{BATCH}", 0), "lacks cifar-10-batches-bin/data_batch_1.bin"),
        (header(BATCH, 2**40), "does not end within 1048576 bytes"),
        (header(BATCH, -512), "does not end within"),  # once read again and again
        (header("pax", 4 << 20, tarfile.XHDTYPE) + b"9" * (4 << 20), "does not end within"),
        (header(BATCH, 3000) + bytes(100), "it ends within member"),
        (b"x" * 512, "is not a sound .tar.gz archive"),
        (header("zeros", 0) * 5000, "does not end within"),
    ],
    ids=["empty", "link", "folder", "names", "huge", "negative", "pax", "short", "none", "many"],
)
def test_archives_are_refused(cifar_file, folder, content, words):
    assert not cifar_file("cifar-10-binary.tar.gz", gzip.compress(content, mtime=0))
    with pytest.raises(InputError, match=words):
        read_cifar10()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (b"Nr\xff\xff\xff\x3f.", "it remembers something as number 1073741823"),  # room for all numbers below
        (b"(Nq\0" + b"h\0h\0\x86q\0" * 60 + b"Nd.", "no place for its operation BINGET"),  # a key of 2^60 parts
        (b"N" + b"2\x86" * 60 + b"}02s.", "no place for its operation DUP"),
        (b"\x96" + (1 << 40).to_bytes(8, "little") + b".", "not a batch"),
        (pickle.dumps({b"data": bytearray(9)}, protocol=5), "no place for its operation FRAME"),
        (b"}.", "b'data'"),
    ],
    ids=["memo", "recall", "double", "claim", "protocol 5", "empty"],
)
def test_pickle_bombs_are_refused(program, words):
    read = lambda: cifar._parse(cifar._PYTHON, b"\x80\2" * (program[:1] != b"\x80") + program, "batch")  # noqa: E731
    assert not takes_or_refuses(read, "batch", 1 << 20)
    with pytest.raises(InputError, match=words):
        read()


def test_labels_that_are_no_row_of_numbers_are_refused():
    content = PICKLES[FIRST].replace(b"M\4\0", b"N", 1)
    with pytest.raises(InputError, match="its labels are no list of integers"):
        cifar._parse(cifar._PYTHON, content, "batch")


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F16", "C64"])
def test_dtypes_that_only_the_format_has_are_refused(folder, dtype):
    size = {"BF16": 2, "F16": 2, "C64": 8}.get(dtype, 1)
    about = {"a": {"dtype": dtype, "shape": [8], "data_offsets": [0, 8 * size]}}
    text = json.dumps(about).encode()
    path = write(folder / "d.safetensors", len(text).to_bytes(8, "little") + text + bytes(8 * size))
    with pytest.raises(InputError, match=f"d.safetensors is damaged or no .*: 'a' is of dtype {dtype}"):
        read_arrays(path, "model-1")


NESTED = b"[" * 100_000


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("result.json", NESTED, "damaged result.json"),
        ("result.json", b'{"sample_shape": [64], "n_classes": Infinity}', "n_classes must be an integer"),
        ("result.json", b'{"sample_shape": [4000000, 4000000], "n_classes": 2}', "the product of sample_shape"),
        ("result.json", b"[]", "damaged"),
        ("history.csv", b"step," + b"a" * 140_000 + b"\n1,1\n", "field larger than field limit"),
        ("history.csv", b"epoch,step\n", "damaged"),
        ("history.csv", b"epoch,step\n1\n", "history.csv is damaged"),
        ("config.toml", b"seed = " + NESTED, "is not TOML"),
        ("config.toml", b"seed = " + b"9" * 5000, "is not TOML"),
        ("config.toml", b"hidden = [0x" + b"f" * 5000 + b"]", "an integer in 'hidden' has more than 64 bits"),
    ],
)
def test_runs_with_a_made_up_file_are_refused(run_folder, name, content, words):
    sound = (run_folder / name).read_bytes()
    try:
        write(run_folder / name, content)
        with pytest.raises(InputError, match=words) as caught:
            load_run(run_folder)
    finally:
        write(run_folder / name, sound)
    assert len(str(caught.value)) < 1000


def test_integers_beyond_all_floats_are_refused_in_python_too():
    with pytest.raises(InputError, match="epochs must be an integer >= 1, not 10"):
        make_config({"epochs": 10**400})


def fingerprint(**changes):
    return {"sample_shape": [12], "n_classes": 4, "n_train": 120, "sha256": "0" * 64} | changes


def with_about(path, form, name, **changes):
    arrays = read_arrays(path, form)
    about = json.loads(arrays[name].tobytes()) | changes
    return arrays | {name: np.frombuffer(json.dumps(about).encode(), np.uint8)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": []}, "object has no attribute"),
        ({"dtype": "O"}, "dtype must be one of float32, float64"),
        ({"sample_shape": [2, 8, 8]}, "mean has shape"),
        ({"sample_shape": [1, 8, 9]}, "x must have shape"),
        *(
            ({"network": {"a": {"type": "Linear", "shape": [2**31 - 1, size], "storage": storage}}}, "far larger")
            for storage in ("dense", "csr", "condensed")
            for size in (1, 2**31 - 1)
        ),
        (
            {"network": {"a": {"type": "BatchNorm", "n_features": 2**40, "momentum": 0.1, "eps": 1e-5}}},
            "far larger",
        ),
    ],
)
def test_made_up_networks_are_refused(folder, run_folder, changes, words):
    arrays = with_about(run_folder / "condensed.safetensors", "network-1", "extra.about", **changes)
    write_arrays(folder / "n.safetensors", "network-1", arrays)
    read = lambda: load_exported(folder / "n.safetensors")  # noqa: E731
    assert not takes_or_refuses(read, "n.safetensors", 4 << 20)
    with pytest.raises(InputError, match=words):
        read()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": 1}, "no training leaves such config"),
        ({"fingerprint": fingerprint(n_classes="\n")}, "no training leaves such fingerprint"),
        ({"fingerprint": fingerprint(sample_shape=["x"])}, "no training leaves such fingerprint"),
        ({"fingerprint": fingerprint(sha256="\n")}, "no training leaves such fingerprint"),
        ({"fingerprint": {}}, "no training leaves such fingerprint"),
        ({"fingerprint": None}, "is damaged: AttributeError"),
        ({"history": [1]}, "is damaged: AttributeError"),
        ({"history": []}, "no training leaves such step"),
        ({"step": 1.0}, "no training leaves such step"),
        ({"step": -3}, "no training leaves such step"),
        ({"random": {}}, "random sources must be"),
        ({"optimizer_attributes": {"step": 1}}, "no training leaves such optimizer"),
        ({"layers": None}, "is damaged: TypeError"),
        ({"layers": {"fc1": "two\nlines"}}, "its layer 'fc1' is two lines, not"),
    ],
)
def test_made_up_checkpoints_are_refused_and_change_nothing(folder, checkpoint_file, changes, words):
    method, content = checkpoint_file
    path = write(folder / "p.safetensors", content)
    write_arrays(path, "checkpoint-1", with_about(path, "checkpoint-1", "extra.state", **changes))
    trainer = build(method, "adamw", sizes=(12, 8, 4), epochs=2)
    before = everything(trainer)
    with pytest.raises(InputError, match=f"p.safetensors .*{words}"):
        load_checkpoint(path, trainer)
    assert everything(trainer) == before


@pytest.mark.parametrize(
    ("name", "value"), [("step_count", -1), ("step_count", 10**400), ("beta2", 2), ("eps", None)]
)
def test_optimizers_that_no_training_leaves_are_refused(folder, checkpoint_file, name, value):
    method, content = checkpoint_file
    path = write(folder / "o.safetensors", content)
    state = json.loads(read_arrays(path, "checkpoint-1")["extra.state"].tobytes())
    attributes = state["optimizer_attributes"] | {name: value}
    arrays = with_about(path, "checkpoint-1", "extra.state", optimizer_attributes=attributes)
    write_arrays(path, "checkpoint-1", arrays)
    with pytest.raises(InputError, match="no training leaves such optimizer"):
        load_checkpoint(path, build(method, "adamw", sizes=(12, 8, 4), epochs=2))


def test_optimizer_state_of_another_shape_is_refused(folder, checkpoint_file):
    method, content = checkpoint_file
    path = write(folder / "o.safetensors", content)
    arrays = read_arrays(path, "checkpoint-1")
    name = next(name for name in arrays if name.startswith("extra.optimizer."))
    write_arrays(path, "checkpoint-1", arrays | {name: arrays[name][:-1]})
    with pytest.raises(InputError, match="no training leaves such optimizer"):
        load_checkpoint(path, build(method, "adamw", sizes=(12, 8, 4), epochs=2))


@pytest.mark.parametrize(("kind", "place"), [("MT19937", "pos"), ("Philox", "buffer_pos")])
def test_random_sources_stand_within_their_numbers(folder, kind, place):
    """NumPy does not look where it reads on."""
    trainers = [build(sizes=(12, 8, 4), epochs=1) for _ in range(2)]
    for trainer in trainers:
        trainer.model.layers["dropout1"].rng = np.random.Generator(getattr(np.random, kind)(1))
    trainers[0].fit(data())
    path = folder / "r.safetensors"
    save_checkpoint(path, trainers[0])
    state = json.loads(read_arrays(path, "checkpoint-1")["extra.state"].tobytes())
    random = state["random"]["module dropout1"]
    (random["state"] if place == "pos" else random)[place] = 10**6
    write_arrays(path, "checkpoint-1", with_about(path, "checkpoint-1", "extra.state", **state))
    with pytest.raises(InputError, match="no training leaves such random sources"):
        load_checkpoint(path, trainers[1])


def test_made_up_evolutions_are_refused():
    evolution = MaskEvolution()
    rows = np.frombuffer(b"step,layer\n1," + b"a" * 140_000, np.uint8)
    for arrays, words in (
        ({"rows": rows}, "evolution of the masks is damaged"),
        ({"seen.fc1": rows}, "evolution of the masks is damaged: 'rows'"),
        ({"rows": rows[:0], "seen.fc1": np.zeros(3)}, "evolution of layer 'fc1' must be a row of bits"),
    ):
        with pytest.raises(InputError, match=words):
            evolution.restore(arrays)
    evolution.restore({"rows": rows[:0], "seen.fc1": np.zeros(3, np.uint8)})
    with pytest.raises(InputError, match="evolution of layer 'fc1' is not that of a mask"):
        build(sizes=(12, 8, 4), callbacks=[evolution]).fit(data())
