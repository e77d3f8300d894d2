"""Files of data sets: where they come from, and that damaged ones are refused by name."""

import gzip
import hashlib
import os
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from data_helpers import NAN, SEEDS, X, Y, offer, refused
from hypothesis import given
from hypothesis import strategies as st

from sparsekit.data import DATASETS, Standardization, load_dataset, read_idx, read_npz, sources
from sparsekit.errors import InputError


def idx_bytes(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def damaged(content):
    """Strategy: the content with bytes replaced, cut short, or with bytes after it; or any bytes at all."""
    place = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255))
    replaced = st.lists(place, min_size=1, max_size=4).map(dict)
    edits = replaced.map(lambda new: bytes(new.get(i, byte) for i, byte in enumerate(content)))
    ends = st.one_of(st.integers(0, len(content)).map(lambda n: content[:n]), st.binary().map(content.__add__))
    return st.one_of(edits, ends, st.binary(max_size=80).map(content[:6].__add__), st.binary(max_size=80))


def reads_or_refuses(read, path, content):
    path.write_bytes(content)
    try:
        read(path)
    except InputError as error:
        message = str(error)
    else:
        return
    assert path.name in message
    assert "\n" not in message


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), SEEDS, st.booleans())
def test_idx_round_trip(folder, shape, seed, zipped):
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path = folder / ("round.idx.gz" if zipped else "round.idx")
    path.write_bytes(gzip.compress(idx_bytes(array)) if zipped else idx_bytes(array))
    assert np.array_equal(read_idx(path), array)


@pytest.mark.parametrize("name", ["damaged.idx", "damaged.idx.gz"])
@given(st.data())
def test_damaged_idx_is_refused_or_read(folder, name, data):
    plain = idx_bytes(X[:, 0])
    content = data.draw(damaged(gzip.compress(plain, mtime=0) if name.endswith("gz") else plain))
    reads_or_refuses(read_idx, folder / name, content)


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("a.gz", idx_bytes(X), "gzip"),
        ("a.gz", gzip.compress(idx_bytes(X), mtime=0)[:-4], "truncated"),
        ("a", b"\0\0\x0d\2" + bytes(8), "unsigned bytes"),
        ("a", b"\0\0\x08", "unsigned bytes"),
        ("a", b"\0\0\x08\0", "dimensions, not 0"),
        ("a", b"\0\0\x08\xff" + bytes(2000), "dimensions, not 255"),
        ("a", b"\0\0\x08\2" + bytes(7), "truncated"),
        ("a", b"\0\0\x08\2" + bytes(8), "no values"),
        ("a", idx_bytes(X)[:-1], "23 were found"),
        ("a", idx_bytes(X) + b"\0", "too long"),
    ],
)
def test_bad_idx_is_refused_by_name(tmp_path, name, content, word):
    (tmp_path / name).write_bytes(content)
    refused(str(tmp_path / name), word, call=lambda: read_idx(tmp_path / name))
    refused("missing", "No such file", call=lambda: read_idx(tmp_path / "missing"))


def test_idx_header_cannot_claim_memory(tmp_path):
    (tmp_path / "claim").write_bytes(b"\0\0\x08\3" + b"\xff" * 12 + bytes(1000))
    tracemalloc.start()
    refused("truncated", "1000 were found", call=lambda: read_idx(tmp_path / "claim"))
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


FAKE_FILES = {
    sources.TRAIN_IMAGES: X[:, 0],
    sources.TRAIN_LABELS: Y.astype(np.uint8),
    sources.TEST_IMAGES: X[:2, 0],
    sources.TEST_LABELS: Y[:2].astype(np.uint8),
}


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """Small files in place of MNIST's; gives their local folder, the cache, and the addresses asked for."""
    contents = {file: gzip.compress(idx_bytes(array), mtime=0) for file, array in FAKE_FILES.items()}
    return offer(monkeypatch, tmp_path, "mnist", contents)


def test_files_come_from_download_then_cache_then_folder(mnist, monkeypatch):
    local, cache, asked = mnist
    loaded = load_dataset("mnist", validation=0.5)
    assert asked == [f"https://example.org/{file}" for file in FAKE_FILES]
    assert loaded.x_train.shape == loaded.x_validation.shape == (3, 1, 2, 2)
    assert sources.locate("mnist", sources.TRAIN_LABELS).parent == cache
    local.mkdir(parents=True)
    (cache / sources.TRAIN_LABELS).rename(local / sources.TRAIN_LABELS)
    assert sources.locate("mnist", sources.TRAIN_LABELS).parent == local
    assert len(asked) == 4  # nothing twice
    monkeypatch.delenv("SPARSEKIT_DATA")
    assert sources.locate("mnist", sources.TRAIN_LABELS).parent == cache
    assert len(asked) == 5


def test_a_failed_download_tells_what_to_do(mnist, monkeypatch):
    monkeypatch.setenv("offline", "1")
    words = ("mnist", sources.TRAIN_IMAGES, "SPARSEKIT_DATA", "no route to host")
    refused(*words, call=lambda: load_dataset("mnist"))


@pytest.mark.parametrize(("where", "advice"), [(0, "unset SPARSEKIT_DATA"), (1, "delete the file")])
def test_a_wrong_checksum_is_refused(mnist, where, advice):
    mnist[where].mkdir(parents=True)
    path = mnist[where] / sources.TEST_LABELS
    path.write_bytes(b"damaged")
    expected, found = sources.SOURCES["mnist"].sha256[path.name], hashlib.sha256(b"damaged").hexdigest()
    refused(str(path), expected, found, advice, call=lambda: sources.locate("mnist", path.name))
    assert mnist[2] == []


@pytest.mark.parametrize(("name", "mean", "std"), [("mnist", 0.1307, 0.3081), ("fashion-mnist", 0.286, 0.353)])
def test_real_files(name, mean, std):
    folder = os.environ.get("SPARSEKIT_DATA", "")
    if not os.path.isdir(os.path.join(folder, name)):
        pytest.skip(f"set SPARSEKIT_DATA to a folder that has the four files of {name} in {name}/")
    real = load_dataset(name)
    assert (real.x_train.shape, real.x_test.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    assert (np.bincount(real.y_train).min() > 5000, real.n_classes) == (True, 10)
    fitted = Standardization.fit(real.x_train)
    assert fitted.mean.item() / 255 == pytest.approx(mean, abs=5e-5)
    assert fitted.std.item() / 255 == pytest.approx(std, abs=5e-5)


def test_digits_are_split_in_one_fixed_way():
    digits = load_dataset("digits")
    assert (digits.x_train.shape, digits.x_test.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    assert (digits.x_train.dtype, digits.x_train.max()) == (np.uint8, 16)
    assert np.abs(np.bincount(digits.y_test) - 36).max() <= 1
    split = hashlib.sha256(digits.x_test.tobytes() + digits.y_test.tobytes()).hexdigest()
    assert split.startswith("7a172dcf76ac37d8")  # a change would make accuracies incomparable with earlier ones
    assert DATASETS == ("digits", "mnist", "fashion-mnist", "cifar10", "cifar10-subset")
    refused("validation", "[0, 1)", "not 1", call=lambda: load_dataset("digits", validation=1))
    one, two = (load_dataset("digits", validation=0.1, rng=np.random.default_rng(s)) for s in (1, 2))
    assert len(one.x_validation) == 144
    assert not np.array_equal(one.y_validation, two.y_validation)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("fashion_mnsit", " (did you mean 'fashion-mnist'?)"),
        ("Digits", " (did you mean 'digits'?)"),
        ("MNIST", " (did you mean 'mnist'?)"),
        ("CIFAR-10", " (did you mean 'cifar10'?)"),
        ("imagenet", ""),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, hint):
    allowed = "one of digits, mnist, fashion-mnist, cifar10, cifar10-subset or a path ending in .npz"
    with pytest.raises(InputError) as caught:
        load_dataset(name)
    assert str(caught.value) == f"dataset must be {allowed}, not {name!r}{hint}"


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_npz_with_test_arrays(tmp_path):
    names = np.array(["one", "two", "three"])
    path = saved(tmp_path / "mine.npz", x=X[:, 0], y=Y + 0.0, x_test=X[:2, 0], y_test=Y[:2], class_names=names)
    read = load_dataset(path)
    assert (read.name, read.class_names, read.x_train.dtype) == ("mine", ("one", "two", "three"), np.uint8)
    assert np.array_equal(read.x_train, X)
    assert np.array_equal(read.y_train, Y)
    assert np.array_equal(read.x_test, X[:2])
    assert np.array_equal(read.y_test, Y[:2])


def test_npz_without_test_arrays_is_split_the_same_way_each_time(tmp_path):
    y = np.repeat([0, 1], [70, 30])
    path = saved(tmp_path / "table.npz", x=np.arange(200.0).reshape(100, 2), y=y)
    one, two = read_npz(path), read_npz(path)
    assert (one.x_train.shape, one.x_train.dtype, one.class_names) == ((80, 2), np.float32, ("0", "1"))
    assert list(np.bincount(one.y_test)) == [14, 6]
    assert np.array_equal(one.x_test, two.x_test)
    assert sorted([*one.x_train[:, 0], *one.x_test[:, 0]]) == list(range(0, 200, 2))
    assert np.array_equal(one.y_test, one.x_test[:, 0] >= 140)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": X}, ("array y is missing",)),
        ({"x_train": X, "y": Y}, ("array x is missing",)),
        ({"x": X, "y": Y, "x_test": X}, ("x_test and y_test",)),
        ({"x": np.array([{}] * 6), "y": Y}, ("pickle",)),
        ({"x": NAN, "y": Y}, ("x must be finite", "sample 3")),
        ({"x": X[..., None], "y": Y}, ("x must have shape (n, features)", "not (6, 1, 2, 2, 1)")),
        ({"x": X.ravel(), "y": np.zeros(24, int)}, ("x must have shape (n, features)", "not (24,)")),
        ({"x": np.array(1.0), "y": np.array(1)}, ("x must have shape (n, features)", "not ()")),
        ({"x": X[:0], "y": Y[:0]}, ("x must have at least 1 sample",)),
        ({"x": X, "y": Y[:, None]}, ("y must have shape (6,)", "not (6, 1)")),
        ({"x": X, "y": Y + 0.5}, ("y must be whole numbers, not 0.5",)),
        ({"x": X, "y": np.array([0, 1, 2, np.nan, np.inf, 1], np.float16)}, ("y must be whole numbers, not nan",)),
        ({"x": X, "y": np.full(6, np.longdouble("1e4000"))}, ("y must be whole numbers, not inf",)),
        ({"x": X, "y": Y.astype(str)}, ("y must be whole numbers, not <U",)),
        ({"x": X, "y": Y - 1}, ("y[0] must lie in [0, 2), not -1",)),
        ({"x": X, "y": Y * 2}, ("all its 5 classes, but has none of class 1",)),
        ({"x": X, "y": np.where(Y == 2, 2**62, Y)}, ("has none of class 2",)),
        ({"x": X, "y": Y, "class_names": np.array(list("abcd"))}, ("all its 4 classes, but has none of class 3",)),
        ({"x": X, "y": Y, "class_names": np.array(list("ab"))}, ("y[2] must lie in [0, 2), not 2",)),
        ({"x": X, "y": Y, "class_names": Y}, ("class_names must be a row of strings, not int64",)),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y + 1}, ("y_test[2] must lie in [0, 3), not 3",)),
        ({"x": X[:2], "y": Y[:2]}, ("too few",)),
        ({"x": X, "y": Y * 0}, ("2 classes",)),
    ],
)
def test_npz_refuses(tmp_path, arrays, words):
    path = saved(tmp_path / "bad.npz", **arrays)
    refused(str(path), *words, call=lambda: read_npz(path))


def test_what_is_no_npz_is_refused(tmp_path):
    path = tmp_path / "bad.npz"
    refused(str(path), "No such file", call=lambda: read_npz(path))
    with path.open("wb") as stream:
        np.save(stream, X)
    refused(str(path), "not an .npz file", call=lambda: read_npz(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", b"text")
    refused(str(path), "x is not stored as an array", call=lambda: read_npz(path))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@given(st.data())
def test_damaged_npz_is_refused_or_read(folder, save, data):
    save(folder / "sound.npz", x=X.reshape(6, 4) / 7, y=np.arange(6.0) % 2)
    content = data.draw(damaged((folder / "sound.npz").read_bytes()))
    reads_or_refuses(read_npz, folder / "damaged.npz", content)
