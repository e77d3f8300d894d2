"""CIFAR-10: all forms of its files give the same arrays, and nothing but its own files is taken for it."""

import hashlib
import io
import os
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from data_helpers import offer, refused

from sparsekit.data import load_dataset, sources
from sparsekit.data.sources import BATCHES_BIN, BATCHES_PY

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
TRAIN, TEST = slice(0, 35), slice(35, 42)  # 7 samples in a batch
IMAGES = np.random.default_rng(0).integers(0, 256, (42, 3, 32, 32), dtype=np.uint8)
LABELS = np.random.default_rng(1).integers(0, 10, 42)


def binary(images, labels):
    """A batch of the binary version."""
    return b"".join(bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True))


def python_2_pickle(images, labels):
    """A batch of the python version, as Python 2 pickled it: its strings are bytes, the array is by rows."""

    def string(text):
        length = bytes([len(text)]) if len(text) < 256 else struct.pack("<I", len(text))
        return (b"U" if len(text) < 256 else b"T") + length + text

    def integer(value):
        return b"M" + struct.pack("<H", value)

    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + b"K\0\x85" + string(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + string(b"u1") + b"K\0K\1\x87R"
    dtype += b"(K\3" + string(b"|") + b"NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\0tb"
    shape = integer(len(images)) + integer(3072) + b"\x86"
    data = empty + b"(K\1" + shape + dtype + b"\x89" + string(images.tobytes()) + b"tb"
    values = {
        b"batch_label": string(b"training batch 1 of 5"),
        b"labels": b"](" + b"".join(integer(label) for label in labels) + b"e",
        b"data": data,
        b"filenames": b"](" + b"".join(string(b"%d.png" % i) for i in range(len(images))) + b"e",
    }
    return b"\x80\2}(" + b"".join(string(key) + value for key, value in values.items()) + b"u."


def tar_gz(files):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name in reversed(files):  # the real ones are not in order either
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))
    return stream.getvalue()


def batches(folder, suffix, form):
    seven = [slice(start, start + 7) for start in range(0, 42, 7)]
    return {f"{folder}/{name}{suffix}": form(IMAGES[i], LABELS[i]) for name, i in zip(BATCHES, seven, strict=True)}


PICKLES, RECORDS = batches(BATCHES_PY, "", python_2_pickle), batches(BATCHES_BIN, ".bin", binary)
ARCHIVES = {
    "cifar-10-python.tar.gz": tar_gz(PICKLES | {f"{BATCHES_PY}/batches.meta": b"not read"}),
    "cifar-10-binary.tar.gz": tar_gz(RECORDS | {f"{BATCHES_BIN}/readme.html": b"not read"}),
}
FILES = PICKLES | RECORDS | ARCHIVES


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Small files in place of CIFAR-10's; gives their local folder, the cache, and the addresses asked for."""
    return offer(monkeypatch, tmp_path, "cifar10", FILES)


def put(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def is_all_of_it(loaded):
    assert (loaded.name, loaded.class_names, loaded.x_train.dtype) == ("cifar10", NAMES, np.uint8)
    for x, y, part in [(loaded.x_train, loaded.y_train, TRAIN), (loaded.x_test, loaded.y_test, TEST)]:
        assert np.array_equal(x, IMAGES[part])
        assert np.array_equal(y, LABELS[part])
        assert x.flags.writeable
        assert x.flags.c_contiguous


def test_the_pickles_of_these_tests_are_what_numpy_reads():
    content = pickle.loads(PICKLES[f"{BATCHES_PY}/data_batch_1"], encoding="bytes")
    assert np.array_equal(content[b"data"], IMAGES[:7].reshape(7, 3072))
    assert content[b"labels"] == LABELS[:7].tolist()


@pytest.mark.parametrize("files", [PICKLES, RECORDS, *({name: ARCHIVES[name]} for name in ARCHIVES)])
def test_all_forms_give_the_same_arrays(cifar, files):
    local, cache, asked = cifar
    put(local, files)
    is_all_of_it(load_dataset("cifar10"))
    assert (asked, cache.exists()) == ([], False)
    assert {str(path.relative_to(local)) for path in local.rglob("*") if path.is_file()} == set(files)


def test_an_array_by_columns_is_read_too(cifar, monkeypatch):
    local = cifar[0]
    file = f"{BATCHES_PY}/data_batch_1"
    flat = np.asfortranarray(IMAGES[:7].reshape(7, 3072))
    content = pickle.dumps({b"labels": LABELS[:7].tolist(), b"data": flat}, protocol=3)
    content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    put(local, PICKLES | {file: content})
    monkeypatch.setitem(sources.SOURCES["cifar10"].sha256, file, hashlib.sha256(content).hexdigest())
    is_all_of_it(load_dataset("cifar10"))


def test_folders_come_before_archives_and_the_cache_before_the_download(cifar, monkeypatch):
    local, cache, asked = cifar
    is_all_of_it(load_dataset("cifar10"))
    is_all_of_it(load_dataset("cifar10"))
    assert asked == ["https://example.org/cifar-10-python.tar.gz"]  # once
    (cache / "cifar-10-python.tar.gz").write_bytes(b"damaged")
    refused(str(cache / "cifar-10-python.tar.gz"), "delete the file", call=lambda: load_dataset("cifar10"))
    put(
        local, {"cifar-10-python.tar.gz": ARCHIVES["cifar-10-python.tar.gz"], "cifar-10-binary.tar.gz": b"damaged"}
    )
    is_all_of_it(load_dataset("cifar10"))
    put(local, RECORDS | {"cifar-10-python.tar.gz": b"damaged"})
    is_all_of_it(load_dataset("cifar10"))
    put(local, PICKLES | dict.fromkeys(RECORDS, b"damaged"))
    is_all_of_it(load_dataset("cifar10"))
    monkeypatch.delenv("SPARSEKIT_DATA")
    refused(str(cache), "delete the file", call=lambda: load_dataset("cifar10"))


def test_a_failed_download_tells_what_to_do(cifar, monkeypatch):
    monkeypatch.setenv("offline", "1")
    words = ("cifar10: cifar-10-python.tar.gz", "SPARSEKIT_DATA", "cifar10/cifar-10-python.tar.gz", "no route")
    refused(*words, call=lambda: load_dataset("cifar10"))


@pytest.mark.parametrize(("files", "suffix"), [(PICKLES, ""), (RECORDS, ".bin")])
def test_all_missing_batches_are_named(cifar, files, suffix):
    folder = (cifar[0] / next(iter(files))).parent
    put(cifar[0], files)
    for name in ("data_batch_2", "test_batch"):
        (folder / f"{name}{suffix}").unlink()
    words = (f"{folder} must have", f"lacks data_batch_2{suffix}, test_batch{suffix}")
    refused(*words, call=lambda: load_dataset("cifar10"))
    for path in folder.iterdir():
        path.unlink()
    refused(str(folder), ", ".join(name + suffix for name in BATCHES), call=lambda: load_dataset("cifar10"))


@pytest.mark.parametrize("damaged", [lambda c: c[:-1], lambda c: c[:99] + b"?" + c[100:], lambda c: b""])
@pytest.mark.parametrize("name", [f"{BATCHES_PY}/test_batch", f"{BATCHES_BIN}/data_batch_3.bin", *ARCHIVES])
def test_another_content_is_refused_by_name(cifar, name, damaged):
    put(cifar[0], next(files for files in (PICKLES, RECORDS, {name: FILES[name]}) if name in files))
    put(cifar[0], {name: damaged(FILES[name])})
    words = (str(cifar[0] / name), "SHA-256", sources.SOURCES["cifar10"].sha256[name])
    refused(*words, call=lambda: load_dataset("cifar10"))


def test_a_folder_in_the_place_of_an_archive_is_refused(cifar):
    (cifar[0] / "cifar-10-binary.tar.gz").mkdir(parents=True)
    refused(str(cifar[0] / "cifar-10-binary.tar.gz"), "cannot be read", call=lambda: load_dataset("cifar10"))


class Call:
    """What pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def pickled(content):
    return pickle.dumps(content, protocol=3)  # the first that has bytes, and names the functions of Python 3


FOREIGN = {  # a part of the message: the file
    "it names posix.mkdir" if os.name == "posix" else "it names nt.mkdir": pickled(Call(os.mkdir, "executed")),
    "it names builtins.eval": pickled({b"data": Call(eval, "open('executed', 'w')")}),
    "it names numpy.save": pickled({b"data": Call(np.save, "executed", 1)}),
    "no attribute 'state'": pickled({b"data": Call(np.dtype, "u1")}),
    "b'data'": pickled({b"labels": [1]}),
    "list indices": pickled([1]),
    "not enough data": python_2_pickle(IMAGES[:7], LABELS[:7])[:-9],
    "cannot reshape": python_2_pickle(IMAGES[:7, :, :31], LABELS[:7]),
    "pickle exhausted": b"",
    "no newline": b"\x89PNG",
}


@pytest.mark.parametrize("word", FOREIGN)
def test_a_pickle_executes_nothing_even_if_its_checksum_is_right(cifar, monkeypatch, tmp_path, word):
    file, content = f"{BATCHES_PY}/data_batch_1", FOREIGN[word]
    put(cifar[0], PICKLES | {file: content})
    monkeypatch.setitem(sources.SOURCES["cifar10"].sha256, file, hashlib.sha256(content).hexdigest())
    monkeypatch.chdir(tmp_path)
    words = (f"{cifar[0] / file} is not a batch of CIFAR-10", word)
    refused(*words, call=lambda: load_dataset("cifar10"))
    assert not list(tmp_path.glob("executed*"))


def test_a_foreign_batch_is_named_with_its_archive(cifar, monkeypatch):
    name = "cifar-10-binary.tar.gz"
    content = tar_gz(RECORDS | {f"{BATCHES_BIN}/data_batch_4.bin": bytes(3072)})
    put(cifar[0], {name: content})
    monkeypatch.setitem(sources.SOURCES["cifar10"].sha256, name, hashlib.sha256(content).hexdigest())
    words = ("data_batch_4.bin", str(cifar[0] / name), "is not a batch of CIFAR-10")
    refused(*words, call=lambda: load_dataset("cifar10"))


def subset_bytes():
    stream = io.BytesIO()
    x = np.moveaxis(IMAGES, 1, -1)
    y = LABELS.astype(np.uint8)
    arrays = {"x_train": x[TRAIN], "y_train": y[TRAIN], "x_test": x[TEST], "y_test": y[TEST]}
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in (arrays | {"class_names": np.array(NAMES)}).items():
            with archive.open(f"{name}.npy", "w") as member:
                np.save(member, array)
    return stream.getvalue()


def test_the_subset_is_turned_to_channels_first(monkeypatch, tmp_path):
    content = subset_bytes()
    local, _, asked = offer(monkeypatch, tmp_path, "cifar10-subset", {"cifar10_subset.npz": content})
    put(local, {"cifar10_subset.npz": content})
    loaded = load_dataset("cifar10-subset", validation=0.2)
    assert (loaded.name, loaded.class_names, asked) == ("cifar10-subset", NAMES, [])
    assert (loaded.x_train.shape, loaded.x_validation.shape) == ((28, 3, 32, 32), (7, 3, 32, 32))
    assert np.array_equal(load_dataset("cifar10-subset").x_train, IMAGES[TRAIN])
    assert np.array_equal(loaded.x_test, IMAGES[TEST])
    assert np.array_equal(loaded.y_test, LABELS[TEST])
    assert loaded.x_test.flags.c_contiguous


@pytest.mark.parametrize("is_set", [True, False])
def test_the_subset_is_never_downloaded(monkeypatch, tmp_path, is_set):
    asked = offer(monkeypatch, tmp_path, "cifar10", FILES)[2]  # no entry of this test's own for the subset
    if not is_set:
        monkeypatch.delenv("SPARSEKIT_DATA")
    words = ("20000 of the 50000", "set SPARSEKIT_DATA", "cifar10-subset/cifar10_subset.npz")
    refused(*words, call=lambda: load_dataset("cifar10-subset"))
    put(tmp_path / "local" / "cifar10-subset", {"cifar10_subset.npz": subset_bytes()})
    if is_set:
        refused("SHA-256", "06d8a134d93e", call=lambda: load_dataset("cifar10-subset"))
    assert asked == []


def test_real_subset_and_the_real_batches_made_from_it(monkeypatch, tmp_path):
    folder = os.environ.get("SPARSEKIT_DATA", "")
    if not os.path.isfile(os.path.join(folder, "cifar10-subset", "cifar10_subset.npz")):
        pytest.skip("set SPARSEKIT_DATA to a folder that has cifar10-subset/cifar10_subset.npz")
    real = load_dataset("cifar10-subset")
    assert (real.x_train.shape, real.x_test.shape) == ((20000, 3, 32, 32), (10000, 3, 32, 32))
    assert (np.bincount(real.y_test) == 1000).all()
    means = real.x_train.mean(axis=(0, 2, 3)) / 255  # red, green, blue
    np.testing.assert_allclose(means, [0.4928, 0.4830, 0.4470], atol=5e-5)

    halves = [binary(real.x_train[part], real.y_train[part]) for part in (slice(10000), slice(10000, None))]
    sums = [hashlib.md5(half).hexdigest() for half in halves]  # as their publishers list them
    assert sums == ["5dd7e06a14cb22eb9f671a540d1b7c25", "5ea93a67294ea407fff1d09f752e9692"]
    official = sources.SOURCES["cifar10"].sha256
    names = [f"{BATCHES_BIN}/data_batch_{i}.bin" for i in (1, 2)]
    local = offer(monkeypatch, tmp_path, "cifar10", RECORDS)[0]
    for name in names:
        monkeypatch.setitem(sources.SOURCES["cifar10"].sha256, name, official[name])
    put(local, RECORDS | dict(zip(names, halves, strict=True)))
    loaded = load_dataset("cifar10")
    assert np.array_equal(loaded.x_train[:20000], real.x_train)
    assert np.array_equal(loaded.y_train[:20000], real.y_train)
    assert np.array_equal(loaded.x_train[20000:], IMAGES[14:35])
