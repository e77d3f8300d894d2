"""Run folders: what is in one, and how an old run is replaced without ever being lost.

A folder is a run if it holds config.toml and nothing that a run does not write; any other folder with something
in it is refused, because it is somebody's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparsekit.errors import InputError

CONFIG, HISTORY, MODEL, RESULT = "config.toml", "history.csv", "model.safetensors", "result.json"
FIGURES = ("history.png", "topology.png")
_FILES = {CONFIG, HISTORY, MODEL, RESULT, *FIGURES}
_ASIDE = ".replaced"  # where the old run waits while a new one is trained in its place


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds anything but a run, and a run unless `overwrite`."""
    if not folder.exists() or is_empty(folder):
        return
    others = (
        sorted({path.name for path in folder.iterdir()} - _FILES - {_ASIDE}) if folder.is_dir() else [folder.name]
    )
    if others or not any((place / CONFIG).is_file() for place in (folder, folder / _ASIDE)):
        found = f": it holds {others[0]!r}" if others and folder.is_dir() else ""
        raise InputError(f"out {folder} exists and is not a run{found}; name a new folder")
    if not overwrite:
        raise InputError(f"out {folder} holds a run already; name a new folder or pass --overwrite")


def is_empty(folder: Path) -> bool:
    """Whether this is a folder with nothing in it."""
    return folder.is_dir() and not any(folder.iterdir())


def make_folder(folder: Path) -> None:
    """Make a folder and its parents; an error in words where that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out {folder} cannot be made: {error.strerror}") from None


@contextmanager
def replacing(folder: Path) -> Iterator[None]:
    """Within the context the folder is free for a new run; an old one comes back if that fails.

    The old run's files wait in a folder within. A process that is killed on the way leaves them there, and the
    next one that overwrites the run finds them.
    """
    aside = folder / _ASIDE
    if aside.is_dir():  # an earlier replacement was killed: what lies here is the last finished run
        _remove_files(folder)
    elif (folder / CONFIG).is_file():
        aside.mkdir()
        _move_files(folder, aside)
    try:
        yield
    except BaseException:
        if aside.is_dir():
            _remove_files(folder)
            _move_files(aside, folder)
            aside.rmdir()
        raise
    if aside.is_dir():
        _remove_files(aside)
        aside.rmdir()


def _move_files(source: Path, target: Path) -> None:
    for name in _FILES:
        if (source / name).is_file():
            (source / name).replace(target / name)


def _remove_files(folder: Path) -> None:
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)
