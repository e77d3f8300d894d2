"""Standardised batches: the statistics, the layout, and that each pass has every sample once."""

import tracemalloc

import numpy as np
import pytest
from data_helpers import SEEDS, X, Y, refused
from hypothesis import given
from hypothesis import strategies as st

from sparsekit.data import BatchLoader, CropAndFlip, Standardization, batches

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
    refused(
        "x must have shape",
        "second size 3",
        "not (50, 4, 4, 2)",
        call=lambda: fitted.transform(np.zeros((50, 4, 4, 2))),
    )
    refused("x must have shape (n, channels", "not (50, 24)", call=lambda: fitted.transform(TABLE))
    refused("dtype must be float32 or float64, not float16", call=lambda: fitted.transform(SAMPLES, np.float16))
    for make in (Standardization.fit, Standardization.unit):
        refused("x must have shape", "n > 0, not (0, 3)", call=lambda make=make: make(np.zeros((0, 3))))
        refused("x must have shape", "not (5, 4, 4)", call=lambda make=make: make(np.zeros((5, 4, 4))))
    refused("mean and std must", "not (3,) and (2,)", call=lambda: Standardization(np.zeros(3), np.ones(2)))
    refused("positive", call=lambda: Standardization(np.zeros(3), np.zeros(3)))


@pytest.mark.parametrize("shape", [(6, 5), (6, 3, 2, 4)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unit_only_divides_by_what_the_dtype_holds(shape, dtype):
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    x.flat[:2] = 0, 255
    unit = Standardization.unit(x)
    assert unit.mean.shape == unit.std.shape == Standardization.fit(x).mean.shape
    scaled = unit.transform(x, dtype)
    assert (scaled.dtype, scaled.min(), scaled.max()) == (dtype, 0, 1)
    np.testing.assert_allclose(scaled, np.moveaxis(x, 0, -1) / 255, rtol=2e-7 if dtype == np.float32 else 3e-16)
    floats = x.astype(np.float32) - 100
    assert np.array_equal(Standardization.unit(floats).transform(floats, dtype), np.moveaxis(floats, 0, -1))


AS_IT_IS = Standardization(np.zeros(2), np.ones(2))


@given(st.integers(1, 40), st.integers(1, 45), st.booleans(), st.none() | SEEDS)
def test_each_pass_has_every_sample_once(n, batch_size, drop_last, seed):
    x, y = np.stack([np.arange(n), -np.arange(n)], axis=1).astype(np.float32), np.arange(n)
    rng = None if seed is None else np.random.default_rng(seed)
    if drop_last and batch_size > n:
        words = (f"batch_size must be at most {n}", f"not {batch_size}")
        refused(*words, call=lambda: BatchLoader(x, y, batch_size, AS_IT_IS, drop_last=True))
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


def test_the_augmentation_comes_before_the_standardization_and_leaves_the_order_alone():
    x = SAMPLES.repeat(3, axis=2)  # 12 x 2 pixels
    fitted = Standardization.fit(x)

    def loader(**more):
        return BatchLoader(x, np.arange(50), 20, fitted, rng=np.random.default_rng(3), **more)

    change = CropAndFlip(np.random.default_rng(4), padding=1)
    for (x_batch, labels), (plain, same_labels) in zip(
        loader(augmentation=CropAndFlip(np.random.default_rng(4), padding=1)), loader(), strict=True
    ):
        assert np.array_equal(labels, same_labels)
        assert np.array_equal(x_batch, fitted.transform(change(x[labels])))
        assert not np.array_equal(x_batch, plain)


def test_the_states_of_the_generators_are_all_that_the_next_pass_needs():
    rng, changes = np.random.default_rng(3), CropAndFlip(np.random.default_rng(4), padding=1)
    loader = BatchLoader(SAMPLES, np.arange(50), 20, Standardization.unit(SAMPLES), rng=rng, augmentation=changes)
    assert (loader.rng, loader.augmentation) == (rng, changes)
    list(loader)
    states = loader.rng.bit_generator.state, changes.rng.bit_generator.state
    second = list(loader)
    loader.rng.bit_generator.state, changes.rng.bit_generator.state = states
    for (x_batch, labels), (x_again, labels_again) in zip(second, loader, strict=True):
        assert np.array_equal(labels, labels_again)
        assert np.array_equal(x_batch, x_again)


def test_a_table_cannot_be_cropped():
    changes = CropAndFlip(np.random.default_rng(0))

    def loader() -> BatchLoader:
        return BatchLoader(np.zeros((9, 2)), np.zeros(9, int), 4, AS_IT_IS, augmentation=changes)

    refused("x must have shape (n, channels, height, width)", "not (n, 2)", call=loader)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, not 0"),
        ({"batch_size": 2.0}, "batch_size must be an integer of at least 1, not 2.0"),
        ({"batch_size": True}, "batch_size must be an integer of at least 1, not True"),
        ({"batch_size": np.array([2])}, "batch_size must be an integer of at least 1, not array([2])"),
        ({"y": Y[1:]}, "not (6, 1, 2, 2) and (5,)"),
        ({"x": X[:0], "y": Y[:0]}, "n > 0, not (0, 1, 2, 2) and (0,)"),
        ({"rng": 3}, "rng must be a numpy.random.Generator, not int"),
        ({"dtype": np.int32}, "dtype must be float32 or float64, not int32"),
    ],
)
def test_batch_loader_refuses(changes, word):
    arguments = {"x": X, "y": Y, "batch_size": 2, "standardization": AS_IT_IS}
    refused(word, call=lambda: BatchLoader(**{**arguments, **changes}))
