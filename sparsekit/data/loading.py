"""The data sets known by name, and the way from a name to a `Dataset`."""

from pathlib import Path
from typing import Any

import numpy as np

from sparsekit.checks import nearest
from sparsekit.data.cifar import read_cifar10, read_cifar10_subset
from sparsekit.data.dataset import Dataset
from sparsekit.data.idx import read_idx
from sparsekit.data.npz import read_npz
from sparsekit.data.sources import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS, locate
from sparsekit.data.splits import stratified_split
from sparsekit.errors import InputError

DATASETS = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar10-subset")

_DIGIT_NAMES = tuple("0123456789")
_FASHION_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_DIGITS_TEST_SAMPLES = 360
_DIGITS_SPLIT_SEED = 0


def load_dataset(
    name_or_npz: str | Path, *, validation: float = 0.0, rng: np.random.Generator | None = None
) -> Dataset:
    """Load a data set by name, or a user's own from a file.

    Parameters
    ----------
    name_or_npz : one of

        * ``"digits"``: 1797 images (1, 8, 8) uint8 with values 0 to 16, from scikit-learn. It has no official
          test set: here 360 stratified samples, drawn with ``numpy.random.default_rng(0)``, are the test set
          and the other 1437 the training set, the same in every run.
        * ``"mnist"``, ``"fashion-mnist"``: 60000 + 10000 images (1, 28, 28) uint8, from the folder that the
          environment variable SPARSEKIT_DATA names, the user's cache, or the network (see
          `sparsekit.data.sources`).
        * ``"cifar10"``: 50000 + 10000 images (3, 32, 32) uint8, from the same places (see
          `sparsekit.data.cifar.read_cifar10`).
        * ``"cifar10-subset"``: the first 20000 training images and all 10000 test images of it, only from the
          folder that SPARSEKIT_DATA names. Accuracies published for CIFAR-10 use all training images.
        * a path that ends in ``.npz`` (see `sparsekit.data.npz.read_npz`).
    validation : in [0, 1), part of the training set to move to the validation set (`Dataset.with_validation`)
    rng : random source of the validation set; ``numpy.random.default_rng(0)`` if None

    Raises
    ------
    InputError
        If the name is unknown, a file cannot be found, read or trusted, or `validation` is out of range.
    """
    name = str(name_or_npz)
    if name.lower().endswith(".npz"):
        dataset = read_npz(name)
    elif name == "digits":
        dataset = _load_digits()
    elif name == "mnist":
        dataset = _load_idx(name, _DIGIT_NAMES)
    elif name == "fashion-mnist":
        dataset = _load_idx(name, _FASHION_NAMES)
    elif name == "cifar10":
        dataset = read_cifar10()
    elif name == "cifar10-subset":
        dataset = read_cifar10_subset()
    else:
        names = ", ".join(DATASETS)
        hint = nearest(name, DATASETS)
        raise InputError(f"dataset must be one of {names} or a path ending in .npz, not {name!r}{hint}")
    return dataset.with_validation(validation, np.random.default_rng(0) if rng is None else rng)


def _load_digits() -> Dataset:
    from sklearn.datasets import load_digits  # here, because importing scikit-learn takes a second

    bunch: Any = load_digits()
    x = bunch.images.astype(np.uint8)[:, np.newaxis]
    y = bunch.target.astype(np.int64)
    train, test = stratified_split(y, _DIGITS_TEST_SAMPLES, np.random.default_rng(_DIGITS_SPLIT_SEED))
    return Dataset("digits", x[train], y[train], x[test], y[test], _DIGIT_NAMES)


def _load_idx(name: str, class_names: tuple[str, ...]) -> Dataset:
    def images(file: str) -> np.ndarray:
        return read_idx(locate(name, file))[:, np.newaxis]

    def labels(file: str) -> np.ndarray:
        return read_idx(locate(name, file)).astype(np.int64)

    return Dataset(
        name,
        images(TRAIN_IMAGES),
        labels(TRAIN_LABELS),
        images(TEST_IMAGES),
        labels(TEST_LABELS),
        class_names,
    )
