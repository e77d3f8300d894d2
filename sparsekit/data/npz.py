"""A user's own data set in one .npz file."""

import math
import zipfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from sparsekit.data.dataset import Dataset, finite_samples
from sparsekit.data.splits import stratified_split
from sparsekit.data.unpacking import most_unpacked_bytes
from sparsekit.errors import InputError

_KEYS = ("x", "y", "x_test", "y_test", "class_names")
_OF_NUMPY = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_TEST_FRACTION = 0.2
_SPLIT_SEED = 0
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_npz(path: str | Path) -> Dataset:
    """Read a data set that ``numpy.savez`` or ``numpy.savez_compressed`` wrote.

    Parameters
    ----------
    path : of a file that holds

        * ``x`` (n, features), (n, height, width) or (n, channels, height, width): uint8 stays uint8, any
          other numeric dtype becomes float32; images without channels get one.
        * ``y`` (n,): labels 0, 1, ... without a gap; whole numbers stored as floats will do.
        * ``x_test`` and ``y_test``, if there is a test set. Without it, a stratified fifth of the samples
          becomes the test set, drawn with ``numpy.random.default_rng(0)``: always the same ones for the same
          ``y``.
        * ``class_names``, strings, if there are any; by default "0", "1", ...

        Other arrays in it are not read. Nothing in it is ever unpickled. Together the arrays may unpack to a GiB
        or 200 times the size of the file.

    Returns
    -------
    a data set named after the file

    Raises
    ------
    InputError
        If the file is not a sound .npz, an array is missing or refused by `Dataset`, the labels are not whole
        numbers from 0 on, or a class has no training sample. The message starts with the path.
    """
    path = Path(path)
    arrays = read_arrays(path, _KEYS)
    try:
        return _build(path.stem, arrays)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def read_arrays(
    path: Path, keys: Iterable[str], compressions: Collection[int] = _OF_NUMPY
) -> dict[str, np.ndarray]:
    """Those of the arrays `keys` that an .npz file has; a file that is damaged or needs pickle is refused.

    Of what else zip archives may be compressed by, Python unpacks some without a limit to the memory.
    """
    keys = tuple(keys)
    try:
        with path.open("rb") as stream:
            is_zip = zipfile.is_zipfile(stream)
            stream.seek(0)
            if is_zip:
                with zipfile.ZipFile(stream) as archive:
                    _check_members(archive, keys, most_unpacked_bytes(path), compressions)
                stream.seek(0)
            # NumPy would take what is no zip for a pickle, and say so.
            archive = np.load(stream, allow_pickle=False) if is_zip else {}
            arrays = {key: archive[key] for key in keys if key in archive}
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # NumPy, zipfile and the decompressors raise a dozen kinds for damaged bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} is damaged, or holds more than plain arrays: {reason}") from error
    if not is_zip:
        raise InputError(f"{path} is not an .npz file: it is no zip archive, or the end of it is missing")
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):  # NumPy hands out the bytes of a member that is no .npy file
            raise InputError(f"{path}: {key} is not stored as an array")
    return arrays


def _check_members(
    archive: zipfile.ZipFile, keys: Collection[str], most_bytes: int, compressions: Collection[int]
) -> None:
    """Refuse members that unpack to too much, or whose header claims more than is there."""
    members = [member for member in archive.infolist() if member.filename.removesuffix(".npy") in keys]
    if sum(member.file_size for member in members) > most_bytes:
        raise ValueError(f"its arrays unpack to more than {most_bytes} bytes")
    for member in members:
        if member.compress_type not in compressions:
            raise ValueError(f"{member.filename} is not compressed as NumPy does it")
        with archive.open(member) as stream:
            claimed = _claimed_bytes(stream)
            found = member.file_size - stream.tell()
        if claimed is not None and claimed != found:
            raise ValueError(f"{member.filename} must hold {claimed} bytes by its header, but holds {found}")


def _claimed_bytes(stream: IO[bytes]) -> int | None:
    """Bytes of the array by the header of a .npy file; None for what is none, or not plain, and refused later."""
    if stream.read(len(npy.MAGIC_PREFIX)) != npy.MAGIC_PREFIX:
        return None
    stream.seek(0)
    version = npy.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of the .npy format has no place here")
    shape, _, dtype = _HEADERS[version](stream)
    return None if dtype.hasobject else math.prod(shape) * dtype.itemsize


def _build(name: str, arrays: dict[str, np.ndarray]) -> Dataset:
    for key in ("x", "y"):
        if key not in arrays:
            raise InputError(f"array {key} is missing; x and y are needed, {', '.join(_KEYS[2:])} are not")
    if ("x_test" in arrays) != ("y_test" in arrays):
        raise InputError("x_test and y_test must be given together")
    x, y = _samples(arrays["x"], "x"), _whole_numbers(arrays["y"], "y")
    if y.shape != (len(x),):
        raise InputError(f"y must have shape ({len(x)},), one label per sample of x, not {y.shape}")
    names = _class_names(arrays.get("class_names"), y)
    if "x_test" in arrays:
        x_test, y_test = _samples(arrays["x_test"], "x_test"), _whole_numbers(arrays["y_test"], "y_test")
    else:
        n_test = int(_TEST_FRACTION * len(y) + 0.5)
        train, test = stratified_split(y, n_test, np.random.default_rng(_SPLIT_SEED))
        if len(test) == 0:
            raise InputError(f"{len(y)} samples are too few to set a fifth aside as x_test and y_test")
        x, y, x_test, y_test = x[train], y[train], x[test], y[test]
    return Dataset(name, x, y, x_test, y_test, names)


def _samples(x: np.ndarray, name: str) -> np.ndarray:
    """Checked here, under the name and with the positions that the file has."""
    if x.ndim not in (2, 3, 4):
        expected = "(n, features), (n, height, width) or (n, channels, height, width)"
        raise InputError(f"{name} must have shape {expected}, not {x.shape}")
    x = x[:, np.newaxis] if x.ndim == 3 else x
    return finite_samples(x, x.shape[1:], name)


def _whole_numbers(y: np.ndarray, name: str) -> np.ndarray:
    """Labels as integers."""
    if y.dtype.kind in "iu":
        return y
    if y.dtype.kind != "f":
        raise InputError(f"{name} must be whole numbers, not {y.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):  # what such values become is refused below
        values = y.astype(np.float64)
        whole = (np.trunc(values) == values) & (np.abs(values) < 2**53)
    if not whole.all():
        raise InputError(f"{name} must be whole numbers, not {values[~whole][0]}")
    return values.astype(np.int64)


def _class_names(given: np.ndarray | None, y: np.ndarray) -> tuple[str, ...]:
    """Names of the classes, after a check that the labels are those classes, each of them with a sample."""
    if given is not None and (given.dtype.kind != "U" or given.ndim != 1):
        raise InputError(f"class_names must be a row of strings, not {given.dtype} of shape {given.shape}")
    present = np.unique(y)  # not a count per label: one mistaken label may be as large as 2**63
    n_classes = int(present[-1]) + 1 if given is None else len(given)
    for label in (present[0], present[-1]):
        if not 0 <= label < n_classes:
            raise InputError(f"y[{np.argmax(y == label)}] must lie in [0, {n_classes}), not {label}")
    if len(present) < n_classes:
        gaps = np.flatnonzero(present != np.arange(len(present)))
        absent = gaps[0] if len(gaps) else len(present)
        raise InputError(f"y must have samples of all its {n_classes} classes, but has none of class {absent}")
    return tuple(map(str, range(n_classes) if given is None else given))
