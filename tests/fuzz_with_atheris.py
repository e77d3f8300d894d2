"""Fuzzing led by the lines that it reaches, where atheris is installed: python tests/fuzz_with_atheris.py READER.

It goes on until Ctrl-C, or for as long as libFuzzer's flags say, as -max_total_time=60.
"""

import contextlib
import json
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["sparsekit", "tomllib", "pickletools", "tarfile", "zipfile", "csv"]):
    from sparsekit.config import make_config, read_toml
    from sparsekit.data import cifar, read_idx, read_npz
    from sparsekit.errors import DivergedError, InputError, RunError
    from sparsekit.training import History
    from sparsekit.training.arrays import read_arrays
    from sparsekit.training.evolution import read_evolution


def read_archive(path: Path) -> None:
    cifar.locate = lambda *_: path
    cifar._read_archive(cifar._BINARY)


READERS = {  # what reads a file, by the name of the file
    "a.idx": read_idx,
    "a.idx.gz": read_idx,
    "a.npz": read_npz,
    "a.tar.gz": read_archive,
    "batch": lambda path: cifar._parse(cifar._PYTHON, path.read_bytes(), path.name),
    "a.toml": lambda path: make_config(read_toml(path)),
    "a.safetensors": lambda path: read_arrays(path, "model-1"),
    "history.csv": History.load,
    "topology.csv": read_evolution,
}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in READERS:
        sys.exit(f"READER must be one of {json.dumps(list(READERS))}")
    name = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name

        def read(content: bytes) -> None:
            path.write_bytes(content)
            with contextlib.suppress(InputError, RunError, DivergedError):
                READERS[name](path)

        atheris.Setup(sys.argv, read)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
