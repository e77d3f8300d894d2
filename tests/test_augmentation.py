"""Cropping and mirroring: every result is a crop of the padded image, and all crops come equally often."""

import itertools

import numpy as np
import pytest
from data_helpers import SEEDS, refused
from hypothesis import given
from hypothesis import strategies as st

from sparsekit.data import CropAndFlip


def crops(image, padding):
    """{(first row, first column, mirrored): crop} of all that may become of an image."""
    _, height, width = image.shape
    padded = np.pad(image, [(0, 0), (padding, padding), (padding, padding)], mode="reflect")
    found = {}
    for top, left in itertools.product(range(2 * padding + 1), repeat=2):
        crop = padded[:, top : top + height, left : left + width]
        found[top, left, False], found[top, left, True] = crop, crop[:, :, ::-1]
    return found


def which(images, candidates):
    """For each image the keys of the candidates that equal it."""
    return [[key for key, crop in candidates.items() if np.array_equal(image, crop)] for image in images]


@given(st.data(), st.integers(0, 3), SEEDS)
def test_each_sample_becomes_a_crop_of_its_padded_image(data, padding, seed):
    rng = np.random.default_rng(seed)
    sizes = st.integers(padding + 1, padding + 4)
    shape = (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3)), data.draw(sizes), data.draw(sizes))
    x = rng.integers(0, 256, shape).astype(data.draw(st.sampled_from([np.uint8, np.float32])))
    before = x.copy()
    changed = CropAndFlip(rng, padding)(x)
    assert (changed.shape, changed.dtype, changed.flags.c_contiguous) == (x.shape, x.dtype, True)
    assert np.array_equal(x, before)
    for image, result in zip(x, changed, strict=True):
        assert which([result], crops(image, padding)) != [[]]


def test_all_crops_come_equally_often_whatever_the_other_samples_get():
    image = np.arange(2 * 5 * 4, dtype=np.float32).reshape(2, 5, 4)  # all pixels differ, and so do all crops
    candidates = crops(image, 1)
    n = 200 * len(candidates)
    keys = which(CropAndFlip(np.random.default_rng(0), 1)(np.broadcast_to(image, (n, 2, 5, 4))), candidates)
    assert all(len(found) == 1 for found in keys)
    counts = np.array([keys.count([key]) for key in candidates])
    assert counts.sum() == n
    # Chi-squared with 17 degrees of freedom exceeds 40.8, and a normal variable 3.3 deviations, once in 1000.
    assert ((counts - 200) ** 2 / 200).sum() < 40.8
    is_mirrored = np.array([found[0][2] for found in keys])
    same = np.count_nonzero(is_mirrored[1:] == is_mirrored[:-1])
    assert abs(same - n / 2) < 3.3 * np.sqrt(n) / 2


def test_without_padding_images_are_only_mirrored():
    x = np.random.default_rng(0).integers(0, 256, (200, 3, 6, 1), dtype=np.uint8)
    assert np.array_equal(CropAndFlip(np.random.default_rng(0), 0)(x), x)  # one column: its own mirror image
    x = np.random.default_rng(0).integers(0, 256, (200, 3, 6, 5), dtype=np.uint8)
    changed = CropAndFlip(np.random.default_rng(0), 0)(x)
    is_same = (changed == x).all(axis=(1, 2, 3))
    assert 70 < is_same.sum() < 130
    assert np.array_equal(changed[~is_same], x[~is_same, :, :, ::-1])


def test_a_seed_gives_the_same_batches_and_calls_differ():
    x = np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
    one, two = (CropAndFlip(np.random.default_rng(7)) for _ in range(2))
    first, second = one(x), one(x)
    assert np.array_equal(two(x), first)
    assert np.array_equal(two(x), second)
    assert not np.array_equal(first, second)
    turned = np.ascontiguousarray(x.transpose(1, 2, 3, 0)).transpose(3, 0, 1, 2)
    assert np.array_equal(CropAndFlip(np.random.default_rng(7))(turned), first)  # strides do not matter


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((3,), "rng must be a numpy.random.Generator, not int"),
        ((np.random.default_rng(0), -1), "padding must be an integer of at least 0, not -1"),
        ((np.random.default_rng(0), 1.0), "padding must be an integer of at least 0, not 1.0"),
    ],
)
def test_bad_arguments_are_refused(arguments, word):
    refused(word, call=lambda: CropAndFlip(*arguments))


@pytest.mark.parametrize("shape", [(2, 3, 4, 32), (2, 3, 32, 4), (3, 32, 32), (2, 3072)])
def test_what_cannot_be_reflected_is_refused(shape):
    found = f"not (n, {', '.join(map(str, shape[1:]))})"
    words = ("(n, channels, height, width), height and width at least 5", "padding of 4", found)
    refused(*words, call=lambda: CropAndFlip(np.random.default_rng(0))(np.zeros(shape)))
