"""Where the files of MNIST, Fashion-MNIST and CIFAR-10 come from, and what they must contain.

A file is looked for in this order:

1. ``$SPARSEKIT_DATA/<data set>/<file>``, where that environment variable names a folder. The files of MNIST and
   Fashion-MNIST have the same names, so each data set has its own folder.
2. the user's cache, ``<cache of the user>/sparsekit/<data set>/<file>``
3. the data set's own address, from which it is put into the cache. ``cifar10-subset`` has none, and so no
   cache either.

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
BATCHES_PY = "cifar-10-batches-py"
BATCHES_BIN = "cifar-10-batches-bin"


@dataclass(frozen=True)
class Source:
    """What is known of the files of a data set.

    Parameters
    ----------
    address : to download from, a file name is appended to it; None where there is none
    sha256 : of each file
    about : what the files are, for those who have to find them without an address
    """

    address: str | None
    sha256: dict[str, str]
    about: str = ""


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
    "cifar10": Source(
        address="https://www.cs.toronto.edu/~kriz/",
        sha256={
            "cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            f"{BATCHES_PY}/data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
            f"{BATCHES_PY}/data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
            f"{BATCHES_PY}/data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
            f"{BATCHES_PY}/data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
            f"{BATCHES_PY}/data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
            f"{BATCHES_PY}/test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
            "cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            f"{BATCHES_BIN}/data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
            f"{BATCHES_BIN}/data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
            f"{BATCHES_BIN}/data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
            f"{BATCHES_BIN}/data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
            f"{BATCHES_BIN}/data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
            f"{BATCHES_BIN}/test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
        },
    ),
    "cifar10-subset": Source(
        address=None,
        sha256={"cifar10_subset.npz": "06d8a134d93e2626638725398caa331f0bb7ddebad8de57670c4c1fe3be8ac7b"},
        about="the first 20000 of the 50000 training images of cifar10 and its 10000 test images",
    ),
}


def locate(dataset_name: str, file: str) -> Path:
    """Find a file of a data set, downloading it where it is not on this machine.

    Parameters
    ----------
    dataset_name : a key of `SOURCES`
    file : a file in that entry

    Returns
    -------
    path of a file whose SHA-256 has been verified

    Raises
    ------
    InputError
        If the file that was found has another SHA-256, or if it was not found and cannot be downloaded.
    """
    source = SOURCES[dataset_name]
    if local := find_local(dataset_name, file):
        return _verified(local, source.sha256[file], advice="replace the file, or unset SPARSEKIT_DATA")
    if source.address is None:
        raise InputError(
            f"data set {dataset_name}: {file} ({source.about}) cannot be downloaded from anywhere; if you have "
            f"it, set SPARSEKIT_DATA to a folder with {dataset_name}/{file} in it"
        )

    import pooch  # here, because most uses of this package need no download

    cached = Path(pooch.os_cache("sparsekit")) / dataset_name / file
    if not os.path.isfile(cached):
        _download(dataset_name, file, cached)
    return _verified(cached, source.sha256[file], advice="delete the file to have it downloaded again")


def find_local(dataset_name: str, name: str) -> Path | None:
    """A file or folder of a data set in $SPARSEKIT_DATA, None where there is none."""
    if folder := os.environ.get("SPARSEKIT_DATA"):
        path = Path(folder).expanduser() / dataset_name / name
        return path if os.path.exists(path) else None
    return None


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
            f"{source.address}{file}",
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
