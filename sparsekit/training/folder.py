"""Run folders: what is in one, and how an old run is replaced without ever being lost.

A folder is a run if it holds config.toml and nothing that a run does not write; any other folder with something
in it is refused, because it is somebody's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from sparsekit.errors import InputError

CONFIG, HISTORY, MODEL, RESULT = "config.toml", "history.csv", "model.safetensors", "result.json"
FIGURES = ("history.png", "topology.png")
_FILES = {CONFIG, HISTORY, MODEL, RESULT, *FIGURES}
_ASIDE = ".replaced"  # where the old run waits while a new one is trained in its place
_MOVING = ".moving"  # on its way there, or back
_DISCARDED = ".discarded"  # the new run is finished, the old one may go
_OURS = {*_FILES, _ASIDE, _MOVING, _DISCARDED}


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds anything but a run, and a run unless `overwrite`."""
    if not folder.exists() or is_empty(folder):
        return
    others = sorted(path.name for path in folder.iterdir() if not _is_ours(path.name)) if folder.is_dir() else []
    places = (folder, folder / _ASIDE, folder / _MOVING)
    if others or not any((place / CONFIG).is_file() for place in places):
        found = f": it holds {others[0]!r}" if others else ""
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

    The old run's files wait in a folder within. A process may be killed at any point: each change from one state
    to the next is a single rename, and the next replacement goes on from the state that it finds.
    """
    _finish_what_was_interrupted(folder)
    if (folder / _ASIDE).is_dir():  # a replacement was killed in training: here lies the last finished run
        _remove_files(folder)
    elif (folder / CONFIG).is_file():
        (folder / _MOVING).mkdir()
        _move_files(folder, folder / _MOVING)
        (folder / _MOVING).rename(folder / _ASIDE)
    try:
        yield
    except BaseException:
        if (folder / _ASIDE).is_dir():
            _remove_files(folder)
            (folder / _ASIDE).rename(folder / _MOVING)
            _finish_what_was_interrupted(folder)
        raise
    if (folder / _ASIDE).is_dir():
        (folder / _ASIDE).rename(folder / _DISCARDED)
        _finish_what_was_interrupted(folder)


def _finish_what_was_interrupted(folder: Path) -> None:
    """Move back what was on its way, remove what was to be removed and what was only half written."""
    for path in [*folder.iterdir()] if folder.is_dir() else []:
        if _is_leftover(path.name):
            path.unlink()
    if (folder / _MOVING).is_dir():
        _move_files(folder / _MOVING, folder)
        (folder / _MOVING).rmdir()
    if (folder / _DISCARDED).is_dir():
        _remove_files(folder / _DISCARDED)
        (folder / _DISCARDED).rmdir()


def _move_files(source: Path, target: Path) -> None:
    for name in _FILES:
        if (source / name).is_file():
            (source / name).replace(target / name)


def _remove_files(folder: Path) -> None:
    for path in [*folder.iterdir()]:
        if path.name in _FILES:
            path.unlink()


def _is_ours(name: str) -> bool:
    return name in _OURS or _is_leftover(name)


def _is_leftover(name: str) -> bool:
    """Whether a file was being written, by :mod:`sparsekit.atomic`, when its process was killed."""
    return any(fnmatch(name, f".{Path(file).stem}-????????{Path(file).suffix}") for file in _FILES)
