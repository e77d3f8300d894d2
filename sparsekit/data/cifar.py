"""CIFAR-10 in the two formats of its home page, and a part of it in one file.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", technical report, University of Toronto,
2009; https://www.cs.toronto.edu/~kriz/cifar.html describes both formats.
"""

import gzip
import io
import os
import pickle
import pickletools
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
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
_MOST_UNPACKED = 256 << 20  # bytes of an archive; the six batches have 176 MiB
_BLOCK = 512  # bytes; a tar archive consists of them
_PICKLED_NAMES = {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}
# What Python 2 writes for a batch, and Python 3 by the protocols 2 and 3; all other operations are refused.
_PICKLED = {
    "PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1",
    "BININT2", "LONG1", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINUNICODE", "EMPTY_TUPLE",
    "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS",
}  # fmt: skip
_MEMORIES, _RECALLS = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}
_MOST_RECALLS = 20

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
    compressions = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA}
    arrays = read_arrays(locate("cifar10-subset", "cifar10_subset.npz"), _SUBSET_ARRAYS, compressions)
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
    _check_operations(content)
    batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
    _, shape, _, is_fortran, pixels = batch[b"data"].state
    images = np.frombuffer(pixels, dtype=np.uint8).reshape(shape, order="F" if is_fortran else "C")
    labels = batch[b"labels"]
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels):
        raise ValueError("its labels are no list of integers")
    return images.reshape(-1, *_IMAGE_SHAPE), np.array(labels, dtype=np.int64)


def _check_operations(content: bytes) -> None:
    """Refuse a pickle that would take more time or memory than its length.

    It may number what it remembers as it likes, up to 2^32, and has room made for all numbers below. What it
    recalls may double with every recall: a batch has next to nothing that it would say twice.
    """
    number = recalls = 0
    for number, (operation, argument, _) in enumerate(pickletools.genops(content)):
        recalls += operation.name in _RECALLS
        if operation.name not in _PICKLED | _MEMORIES | _RECALLS or recalls > _MOST_RECALLS:
            raise pickle.UnpicklingError(f"a batch has no place for its operation {operation.name}")
        if operation.name in _MEMORIES and argument > number:
            raise pickle.UnpicklingError(f"it remembers something as number {argument}")


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
    try:
        with gzip.open(path) as stream:
            for name, content in _regular_members(stream):
                if name in members:
                    batches[name] = _parse(form, content, f"{name} in {path}")
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise InputError(f"{path} is not a sound .tar.gz archive: {error}") from error
    if missing := [member for member in members if member not in batches]:
        raise InputError(f"{path} must have the six batches of CIFAR-10, but lacks {', '.join(missing)}")
    return [batches[member] for member in members]


def _regular_members(stream: gzip.GzipFile) -> Iterator[tuple[str, bytes]]:
    """Name and content of the regular files in a tar archive, in their order.

    Extensions of the format, links and folders are passed over; the batches need none of them, and the class
    `tarfile.TarFile` can be led by them to read without an end.
    """
    left = _MOST_UNPACKED
    while (header := stream.read(_BLOCK)).strip(b"\0"):
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        n_bytes = -(-member.size // _BLOCK) * _BLOCK
        left -= _BLOCK + n_bytes
        if member.size < 0 or left < 0:
            raise tarfile.ReadError(f"member {member.name!r} does not end within {_MOST_UNPACKED} bytes")
        content = stream.read(member.size)
        if len(content) < member.size:
            raise EOFError(f"it ends within member {member.name!r}")
        stream.read(n_bytes - member.size)
        if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
            yield member.name, content


def _parse(form: _Format, content: bytes, name: str) -> _Batch:
    try:
        return form.parse(content)
    except Exception as error:  # what is no pickle of this form raises any of a dozen kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name} is not a batch of CIFAR-10: {reason}") from error
