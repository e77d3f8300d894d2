"""What the tests of data sets, their files and their batches share."""

import hashlib
import os

import numpy as np
import pooch
import pytest
from hypothesis import strategies as st

from sparsekit.data import sources
from sparsekit.errors import InputError

X, Y = np.arange(24, dtype=np.uint8).reshape(6, 1, 2, 2), np.array([0, 1, 2, 0, 1, 2])
NAN = np.where(np.arange(12).reshape(6, 2) == 7, np.nan, 1.0)  # in sample 3
SEEDS = st.integers(0, 2**32 - 1)


def refused(*words, call):
    """The call raises InputError, in one line that has all the words."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def offer(monkeypatch, tmp_path, name, contents):
    """Put files, {name: bytes}, in place of those of a data set, with their SHA-256, as a download.

    Returns where $SPARSEKIT_DATA and the cache would have them, and the list that takes down the addresses asked
    for. A download fails while the environment has the variable "offline".
    """
    sums = {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
    monkeypatch.setitem(sources.SOURCES, name, sources.Source("https://example.org/", sums))
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
    return tmp_path / "local" / name, tmp_path / "cache" / name, asked
