"""CIFAR-10 in the two formats of its home page, and a part of it in one file.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", technical report, University of Toronto,
2009; https://www.cs.toronto.edu/~kriz/cifar.html describes both formats.
"""

import io
import os
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsekit.data.dataset import Dataset
from sparsekit.data.npz import read_arrays
from sparsekit.data.sources import BATCHES_BIN, BATCHES_PY, find_local, locate
from sparsekit.errors import InputError

_CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_IMAGE_SHAPE = (3, 32, 32)
_IMAGE_BYTES = 3 * 32 * 32
_SUBSET_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_PICKLED_NAMES = {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}

_Batch = tuple[np.ndarray, np.ndarray]  # images (n, 3, 32, 32) uint8, labels (n,)


def read_cifar10() -> Dataset:
    """Read CIFAR-10 from the first of these that is there.

    1. ``$SPARSEKIT_DATA/cifar10/cifar-10-batches-py/``, the unpacked archive of pickles. Their SHA-256 must be
       right, and even then nothing that they name is called.
    2. ``$SPARSEKIT_DATA/cifar10/cifar-10-batches-bin/``, the unpacked archive of plain bytes
    3. ``cifar-10-python.tar.gz`` or ``cifar-10-binary.tar.gz`` in ``$SPARSEKIT_DATA/cifar10/``; archives are
       read without unpacking them to disk.
    4. ``cifar-10-python.tar.gz`` in the user's cache, downloaded if need be (163 MiB)

    Returns
    -------
    50000 training and 10000 test images (3, 32, 32), uint8

    Raises
    ------
    InputError
        If a folder lacks a file, a file is not the one it should be, or the download fails.
    """
    images, labels = zip(*_read_batches(), strict=True)
    x_train, y_train = np.concatenate(images[:-1]), np.concatenate(labels[:-1])
    x_test, y_test = images[-1].copy(), labels[-1]  # a view would keep the whole file, and be read-only
    return Dataset("cifar10", x_train, y_train, x_test, y_test, _CLASS_NAMES)


def read_cifar10_subset() -> Dataset:
    """Read ``$SPARSEKIT_DATA/cifar10-subset/cifar10_subset.npz``: 20000 training and 10000 test images.

    The training images are those of the first two of the five batches.

    Raises
    ------
    InputError
        If the file is not there or is not the one it should be.
    """
    arrays = read_arrays(locate("cifar10-subset", "cifar10_subset.npz"), _SUBSET_ARRAYS)
    for key in ("x_train", "x_test"):
        arrays[key] = np.ascontiguousarray(np.moveaxis(arrays[key], -1, 1))  # the file has channels last
    return Dataset("cifar10-subset", **arrays, class_names=_CLASS_NAMES)


def _read_batches() -> list[_Batch]:
    """The five training batches and the test batch."""
    for form in (_PYTHON, _BINARY):
        if folder := find_local("cifar10", form.folder):
            return _read_folder(folder, form)
    has_binary = find_local("cifar10", _BINARY.archive) and not find_local("cifar10", _PYTHON.archive)
    return _read_archive(_BINARY if has_binary else _PYTHON)


def _parse_binary(content: bytes) -> _Batch:
    """Records of one label and the red, green and blue pixels."""
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, 1 + _IMAGE_BYTES)
    return records[:, 1:].reshape(-1, *_IMAGE_SHAPE), records[:, 0]


def _parse_pickle(content: bytes) -> _Batch:
    """A dictionary with an array ``data`` (n, 3072) and a list ``labels``."""
    batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
    _, shape, _, is_fortran, pixels = batch[b"data"].state
    images = np.frombuffer(pixels, dtype=np.uint8).reshape(shape, order="F" if is_fortran else "C")
    return images.reshape(-1, *_IMAGE_SHAPE), np.array(batch[b"labels"])


class _BatchUnpickler(pickle.Unpickler):
    """Reads plain Python values, and the parts that NumPy would build an array from.

    A pickle may name anything for Python to import and call. The three names that an array needs all become
    `_Parts`; any other name is refused. So nothing outside this class is ever called.
    """

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) in _PICKLED_NAMES:
            return _Parts
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")


class _Parts:
    """What stands for an array, or its dtype: keeps the state, drops the arguments."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: tuple) -> None:
        self.state = state


@dataclass(frozen=True)
class _Format:
    """One of the two forms in which the same images are published."""

    archive: str
    folder: str  # in the archive, and where it is unpacked
    suffix: str
    parse: Callable[[bytes], _Batch]

    @property
    def files(self) -> list[str]:
        """The five training batches in their order, then the test batch."""
        names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
        return [name + self.suffix for name in names]


_PYTHON = _Format("cifar-10-python.tar.gz", BATCHES_PY, "", _parse_pickle)
_BINARY = _Format("cifar-10-binary.tar.gz", BATCHES_BIN, ".bin", _parse_binary)


def _read_folder(folder: Path, form: _Format) -> list[_Batch]:
    missing = [file for file in form.files if not os.path.isfile(folder / file)]
    if missing:
        raise InputError(f"{folder} must have the six batches of CIFAR-10, but lacks {', '.join(missing)}")
    paths = [locate("cifar10", f"{form.folder}/{file}") for file in form.files]
    return [_parse(form, path.read_bytes(), str(path)) for path in paths]


def _read_archive(form: _Format) -> list[_Batch]:
    path = locate("cifar10", form.archive)
    members = [f"{form.folder}/{file}" for file in form.files]
    batches = {}
    with tarfile.open(path) as archive:
        for member in archive:  # in their order: to go back is to decompress the archive from its beginning
            if member.name in members:
                content = archive.extractfile(member).read()
                batches[member.name] = _parse(form, content, f"{member.name} in {path}")
    return [batches[member] for member in members]


def _parse(form: _Format, content: bytes, name: str) -> _Batch:
    try:
        return form.parse(content)
    except Exception as error:  # what is no pickle of this form raises any of a dozen kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name} is not a batch of CIFAR-10: {reason}") from error
