"""Where the files of MNIST and Fashion-MNIST come from, and what they must contain.

A file is looked for in this order:

1. ``$SPARSEKIT_DATA/<data set>/<file>``, where that environment variable names a folder. The files of the two
   data sets have the same names, so each data set has its own folder, ``mnist`` and ``fashion-mnist``.
2. the user's cache, ``<cache of the user>/sparsekit/<data set>/<file>``
3. the data set's own address, from which it is put into the cache.

Whatever its origin, it is used only if its SHA-256 is the one written here.
"""

import hashlib
import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sparsekit.errors import InputError

TRAIN_IMAGES = "train-images-idx3-ubyte.gz"
TRAIN_LABELS = "train-labels-idx1-ubyte.gz"
TEST_IMAGES = "t10k-images-idx3-ubyte.gz"
TEST_LABELS = "t10k-labels-idx1-ubyte.gz"


@dataclass(frozen=True)
class Source:
    """Download address of a data set (a file name is appended to it) and the SHA-256 of each file."""

    address: str
    sha256: dict[str, str]


SOURCES = {
    "mnist": Source(
        address="https://ossci-datasets.s3.amazonaws.com/mnist/",
        sha256={
            TRAIN_IMAGES: "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            TRAIN_LABELS: "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            TEST_IMAGES: "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            TEST_LABELS: "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
    "fashion-mnist": Source(
        # This host serves no https; the checksum is what vouches for the content.
        address="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        sha256={
            TRAIN_IMAGES: "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            TRAIN_LABELS: "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            TEST_IMAGES: "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            TEST_LABELS: "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
}


def locate(dataset_name: str, file: str) -> Path:
    """Find a file of a data set, downloading it where it is not on this machine.

    Parameters
    ----------
    dataset_name : a key of `SOURCES`
    file : a file name in that entry

    Returns
    -------
    path of a file whose SHA-256 has been verified

    Raises
    ------
    InputError
        If the file that was found has another SHA-256, or if it was not found and cannot be downloaded.
    """
    expected = SOURCES[dataset_name].sha256[file]
    if folder := os.environ.get("SPARSEKIT_DATA"):
        local = Path(folder).expanduser() / dataset_name / file
        if os.path.isfile(local):
            return _verified(local, expected, advice="replace the file, or unset SPARSEKIT_DATA")

    import pooch  # here, because most uses of this package need no download

    cached = Path(pooch.os_cache("sparsekit")) / dataset_name / file
    if not os.path.isfile(cached):
        _download(dataset_name, file, cached)
    return _verified(cached, expected, advice="delete the file to have it downloaded again")


def _verified(path: Path, expected: str, advice: str) -> Path:
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if found != expected:
        raise InputError(f"{path} is damaged: its SHA-256 is {found}, but expected {expected}; {advice}")
    return path


def _download(dataset_name: str, file: str, target: Path) -> None:
    """Download to a temporary name, verify, and only then move to `target` (pooch does all three)."""
    import pooch

    pooch.get_logger().setLevel("WARNING")  # the progress bar says enough
    source = SOURCES[dataset_name]
    try:
        pooch.retrieve(
            source.address + file,
            known_hash=f"sha256:{source.sha256[file]}",
            fname=file,
            path=target.parent,
            progressbar=find_spec("tqdm") is not None and sys.stderr.isatty(),
        )
    except (OSError, ValueError) as error:  # the network, the disk, or a wrong checksum
        reason = " ".join(str(error).split())
        raise InputError(
            f"data set {dataset_name}: {file} cannot be downloaded; if you have it, set SPARSEKIT_DATA to a "
            f"folder with {dataset_name}/{file} in it (the reason: {reason[:200]})"
        ) from None
