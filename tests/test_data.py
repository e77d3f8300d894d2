"""Data sets: what is refused and how, where files come from, and the batches that training sees."""

import gzip
import hashlib
import os
import struct
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pooch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsekit.data import (
    DATASETS,
    BatchLoader,
    Dataset,
    Standardization,
    as_samples,
    batches,
    load_dataset,
    read_idx,
    read_npz,
    sources,
    stratified_split,
)
from sparsekit.errors import InputError

X, Y = np.arange(24, dtype=np.uint8).reshape(6, 1, 2, 2), np.array([0, 1, 2, 0, 1, 2])
NAN = np.where(np.arange(12).reshape(6, 2) == 7, np.nan, 1.0)  # in sample 3
LABELS = st.lists(st.integers(0, 4), min_size=2, max_size=60).map(np.array)
SEEDS = st.integers(0, 2**32 - 1)
pytestmark = pytest.mark.filterwarnings("error")


def refused(*words, call):
    """The call raises InputError, in one line that has all the words."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def dataset(**changes):
    parts = {"x_train": X, "y_train": Y, "x_test": X[:2], "y_test": Y[:2], "class_names": "abc"}
    return Dataset("fake", **{**parts, **changes})


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


def test_import_stays_light():
    heavy = "{'numba', 'cupy', 'sklearn', 'matplotlib', 'typer', 'pooch', 'scipy', 'pandas'}"
    code = f"import sys, sparsekit.data; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_dataset_converts_once_and_describes_itself():
    made = dataset(x_train=X.astype(np.float64), y_train=Y.astype(np.uint8), x_test=list(X[:2]))
    assert (made.x_train.dtype, made.x_test.dtype, made.y_train.dtype) == (np.float32, np.uint8, np.int64)
    assert (made.n_classes, made.sample_shape, made.n_features) == (3, (1, 2, 2), 4)
    assert made.class_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x_train": NAN, "x_test": NAN[:1]}, ("x_train", "sample 3")),
        ({"x_test": np.full((2, 1, 2, 2), 1e300)}, ("x_test", "sample 0", "float32")),
        ({"x_test": X[:2, 0]}, ("x_test", "(2, 2, 2)", "(1, 2, 2)")),
        ({"x_test": X[:0], "y_test": Y[:0]}, ("x_test", "empty")),
        ({"x_train": X[:, 0]}, ("x_train", "(6, 2, 2)", "(n, features)")),
        ({"x_train": [[1], [2, 3]]}, ("x_train",)),
        ({"x_train": X.astype(str)}, ("x_train", "dtype <U", "real numbers")),
        ({"y_train": Y[1:]}, ("y_train", "(5,)", "(6,)")),
        ({"y_train": Y + 0.0}, ("y_train", "float64", "integers")),
        ({"y_test": [0, 3]}, ("y_test[1]", "is 3", "[0, 3)")),
        ({"y_test": [-1, 0]}, ("y_test[0]", "is -1", "[0, 3)")),
        ({"class_names": ["one"]}, ("class_names", "2")),
        ({"x_validation": X}, ("x_validation", "y_validation")),
        ({"x_validation": X, "y_validation": Y + 1}, ("y_validation[2]", "is 3")),
    ],
)
def test_dataset_refuses(changes, words):
    refused(*words, call=lambda: dataset(**changes))


@given(LABELS, st.data(), SEEDS)
def test_stratified_split_takes_each_class_by_its_share(y, data, seed):
    n_picked = data.draw(st.integers(0, len(y) - 1))
    left, picked = stratified_split(y, n_picked, np.random.default_rng(seed))
    assert sorted([*left, *picked]) == list(range(len(y)))
    assert np.array_equal(left, np.sort(left))
    assert set(y[left]) == set(y)  # no class gives its last sample
    all_counts, counts = np.bincount(y), np.bincount(y[picked], minlength=y.max() + 1)
    assert (np.abs(counts - all_counts * n_picked / len(y)) < 1).all()
    assert len(picked) <= n_picked
    if (all_counts[all_counts > 0] * (len(y) - n_picked) >= 2 * len(y)).all():
        assert len(picked) == n_picked
    again = stratified_split(y, n_picked, np.random.default_rng(seed))[1]
    assert np.array_equal(picked, again)


def test_stratified_split_is_random_and_checks():
    y, draw = np.repeat([0, 1], 50), np.random.default_rng
    assert not np.array_equal(stratified_split(y, 20, draw(0))[1], stratified_split(y, 20, draw(1))[1])
    refused("n_picked", "100", call=lambda: stratified_split(y, 100, draw(0)))
    refused("rng", "int", call=lambda: stratified_split(y, 20, 0))


def test_with_validation_moves_samples():
    whole, rng = dataset(), np.random.default_rng(0)
    assert whole.with_validation(0, rng) is whole
    split = whole.with_validation(0.5, rng)
    assert sorted(split.y_validation) == sorted(split.y_train) == [0, 1, 2]
    moved = [*split.x_train[:, 0, 0, 0], *split.x_validation[:, 0, 0, 0]]
    labels = [*split.y_train, *split.y_validation]
    assert dict(zip(moved, labels, strict=True)) == dict(zip(X[:, 0, 0, 0], Y, strict=True))
    assert len(whole.with_validation(0.999, rng).x_train) == 3
    refused("already", call=lambda: split.with_validation(0.5, rng))
    refused("0.01", "6", call=lambda: whole.with_validation(0.01, rng))
    for bad in (1, -0.1, float("nan"), "0.1"):
        refused(repr(bad), "[0, 1)", call=lambda bad=bad: whole.with_validation(bad, rng))


@pytest.mark.parametrize("x", [X, X[:, 0], X.reshape(6, 4), X.tolist(), X.astype(np.int16), X[:1, 0]])
def test_as_samples_accepts(x):
    samples = as_samples(x, (1, 2, 2))
    assert np.array_equal(samples, X[: len(x)])
    assert samples.dtype == (np.uint8 if getattr(x, "dtype", None) == np.uint8 else np.float32)


@pytest.mark.parametrize(
    ("x", "shape", "words"),
    [
        (X[0, 0], (1, 2, 2), ("pixels", "(2, 2)", "(n, 1, 2, 2) or (n, 2, 2) or (n, 4)", "batch axis")),
        (np.zeros((3, 2, 2)), (3, 2, 2), ("(3, 2, 2)", "(n, 3, 2, 2) or (n, 12)", "batch axis")),
        (np.zeros(5), (5,), ("(5,)", "(n, 5)", "batch axis")),
        (np.zeros((5, 3)), (4,), ("(5, 3)", "(n, 4)")),
        (7.0, (4,), ("()", "(n, 4)")),
        (np.zeros((0, 4)), (4,), ("empty",)),
        (NAN, (2,), ("pixels", "sample 3")),
        (np.zeros((2, 4), complex), (4,), ("complex128", "real")),
        (np.zeros((2, 4), object), (4,), ("object",)),
    ],
)
def test_as_samples_refuses(x, shape, words):
    refused(*words, call=lambda: as_samples(x, shape, "pixels"))


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
        ("a", b"\0\0\x08\0", "0 dimensions"),
        ("a", b"\0\0\x08\xff" + bytes(2000), "255 dimensions"),
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
    sums = {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
    monkeypatch.setitem(sources.SOURCES, "mnist", sources.Source("https://example.org/", sums))
    monkeypatch.setenv("SPARSEKIT_DATA", str(tmp_path / "local"))
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache")
    asked = []

    def retrieve(url, known_hash, fname, path, progressbar):
        asked.append(url)
        assert known_hash == f"sha256:{sums[fname]}"
        if "offline" in os.environ:
            raise OSError("no route\nto host")
        path.mkdir(parents=True, exist_ok=True)
        (path / fname).write_bytes(contents[fname])

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    return tmp_path / "local" / "mnist", tmp_path / "cache" / "mnist", asked


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
    assert DATASETS == ("digits", "mnist", "fashion-mnist")
    words = ("'fashion_mnsit'", *DATASETS, ".npz", "did you mean fashion-mnist?")
    refused(*words, call=lambda: load_dataset("fashion_mnsit"))
    refused("[0, 1)", call=lambda: load_dataset("digits", validation=1))
    one, two = (load_dataset("digits", validation=0.1, rng=np.random.default_rng(s)) for s in (1, 2))
    assert len(one.x_validation) == 144
    assert not np.array_equal(one.y_validation, two.y_validation)


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
        ({"x": X[..., None], "y": Y}, ("x has shape (6, 1, 2, 2, 1)",)),
        ({"x": X.ravel(), "y": np.zeros(24, int)}, ("x has shape (24,)",)),
        ({"x": np.array(1.0), "y": np.array(1)}, ("x has shape ()",)),
        ({"x": X[:0], "y": Y[:0]}, ("x is empty",)),
        ({"x": X, "y": Y[:, None]}, ("y has shape (6, 1)",)),
        ({"x": X, "y": Y + 0.5}, ("y has 0.5", "whole")),
        ({"x": X, "y": np.array([0, 1, 2, np.nan, np.inf, 1], np.float16)}, ("y has nan", "whole")),
        ({"x": X, "y": np.full(6, np.longdouble("1e4000"))}, ("y has inf", "whole")),
        ({"x": X, "y": Y.astype(str)}, ("y has dtype", "whole")),
        ({"x": X, "y": Y - 1}, ("y[0] is -1",)),
        ({"x": X, "y": Y * 2}, ("no sample of class 1", "5 classes")),
        ({"x": X, "y": np.where(Y == 2, 2**62, Y)}, ("no sample of class 2",)),
        ({"x": X, "y": Y, "class_names": np.array(list("abcd"))}, ("no sample of class 3", "4 classes")),
        ({"x": X, "y": Y, "class_names": np.array(list("ab"))}, ("y[2] is 2", "[0, 2)")),
        ({"x": X, "y": Y, "class_names": Y}, ("class_names",)),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y + 1}, ("y_test[2] is 3",)),
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


SAMPLES = np.random.default_rng(5).integers(0, 256, (50, 3, 4, 2), dtype=np.uint8)
TABLE = (SAMPLES.reshape(50, 24) * 1e3 + 1e5).astype(np.float32)


@pytest.mark.parametrize(("x", "axes"), [(SAMPLES, (0, 2, 3)), (TABLE, 0)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_standardization_is_that_of_the_whole_array(monkeypatch, x, axes, dtype):
    monkeypatch.setattr(batches, "_CHUNK_VALUES", 100)  # 4 samples at a time
    fitted = Standardization.fit(x)
    exact = x.astype(np.float64)
    mean, std = exact.mean(axis=axes, keepdims=True), exact.std(axis=axes, keepdims=True)
    np.testing.assert_allclose(fitted.mean, mean[0], rtol=1e-13)
    np.testing.assert_allclose(fitted.std, std[0], rtol=1e-12)
    batch = fitted.transform(x[:7], dtype)
    assert (batch.dtype, batch.flags.c_contiguous, batch.shape) == (dtype, True, (*x.shape[1:], 7))
    expected = np.moveaxis((exact[:7] - mean) / std, 0, -1)
    np.testing.assert_allclose(batch, expected, rtol=1e-5, atol=1e-6 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("given_as", [np.float32, np.float64])
def test_constant_features_become_zero(given_as):
    x = np.stack([np.full(30, 0.1), np.linspace(0, 1e-44, 30), np.arange(30)], axis=1).astype(given_as)
    fitted = Standardization.fit(x)
    assert list(fitted.std[:2]) == [1, 1]
    for dtype in (np.float32, np.float64):
        assert np.abs(fitted.transform(x, dtype)[:2]).max() < 1e-15


def test_standardization_needs_no_float_copy_of_the_data():
    x = np.zeros((60000, 200), dtype=np.uint8)
    tracemalloc.start()
    Standardization.fit(x)
    assert tracemalloc.get_traced_memory()[1] < 3 * x.nbytes  # as float64 it would take 8 times
    tracemalloc.stop()


def test_standardization_refuses():
    fitted = Standardization.fit(SAMPLES)
    refused("(50, 4, 4, 2)", "3", call=lambda: fitted.transform(np.zeros((50, 4, 4, 2))))
    refused("(50, 24)", "channels", call=lambda: fitted.transform(TABLE))
    refused("float16", call=lambda: fitted.transform(SAMPLES, np.float16))
    refused("(0, 3)", call=lambda: Standardization.fit(np.zeros((0, 3))))
    refused("(3,)", "(2,)", call=lambda: Standardization(np.zeros(3), np.ones(2)))
    refused("positive", call=lambda: Standardization(np.zeros(3), np.zeros(3)))


AS_IT_IS = Standardization(np.zeros(2), np.ones(2))


@given(st.integers(1, 40), st.integers(1, 45), st.booleans(), st.none() | SEEDS)
def test_each_pass_has_every_sample_once(n, batch_size, drop_last, seed):
    x, y = np.stack([np.arange(n), -np.arange(n)], axis=1).astype(np.float32), np.arange(n)
    rng = None if seed is None else np.random.default_rng(seed)
    if drop_last and batch_size > n:
        refused("batch_size", str(n), call=lambda: BatchLoader(x, y, batch_size, AS_IT_IS, drop_last=True))
        return
    loader = BatchLoader(x, y, batch_size, AS_IT_IS, rng=rng, drop_last=drop_last)
    passes = [list(loader), list(loader)]
    for one in passes:
        assert len(one) == len(loader)
        assert all(x_batch.shape == (2, batch_size) for x_batch, _ in one[:-1])
        assert all(np.array_equal(x_batch, [labels, -labels]) for x_batch, labels in one)
        order = [label for _, labels in one for label in labels]
        assert len(order) == (n - n % batch_size if drop_last else n)
        assert len(set(order)) == len(order)
        assert seed is not None or order == list(range(len(order)))


def test_passes_differ_and_repeat_with_the_seed():
    def orders():
        loader = BatchLoader(np.zeros((50, 2)), np.arange(50), 10, AS_IT_IS, rng=np.random.default_rng(3))
        return [np.concatenate([labels for _, labels in loader]).tolist() for _ in range(3)]

    assert orders() == orders()
    assert len(set(map(tuple, orders()))) == 3


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 2.0}, "batch_size is 2.0"),
        ({"y": Y[1:]}, "(5,)"),
        ({"x": X[:0], "y": Y[:0]}, "(0, 1, 2, 2)"),
        ({"rng": 3}, "rng"),
        ({"dtype": np.int32}, "int32"),
    ],
)
def test_batch_loader_refuses(changes, word):
    arguments = {"x": X, "y": Y, "batch_size": 2, "standardization": AS_IT_IS}
    refused(word, call=lambda: BatchLoader(**{**arguments, **changes}))
