"""Run folders: what is in one, and how an old run is replaced without ever being lost.

A folder is a run if it holds config.toml and nothing that a run does not write; any other folder with something
in it is refused, because it is somebody's. The run is finished if there is a result.json, and can be resumed if
there is none.
"""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from sparsekit.errors import InputError

CONFIG, HISTORY, EVOLUTION, RESULT = "config.toml", "history.csv", "topology.csv", "result.json"
MODEL, BEST, CHECKPOINT = "model.safetensors", "best.safetensors", "checkpoint.safetensors"
FIGURES = ("history.png", "topology.png")
INSPECTION = "inspection.png"
EXPORTS = {storage: f"{storage}.safetensors" for storage in ("condensed", "csr", "dense")}
_FILES = {CONFIG, HISTORY, EVOLUTION, RESULT, MODEL, BEST, CHECKPOINT, *FIGURES, INSPECTION, *EXPORTS.values()}
_ASIDE = ".replaced"  # where the old run waits while a new one is trained in its place
_MOVING = ".moving"  # on its way there, or back
_DISCARDED = ".discarded"  # the new run is finished, the old one may go
_OURS = {*_FILES, _ASIDE, _MOVING, _DISCARDED}


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds anything but a run, and a run unless `overwrite`."""
    if not folder.exists() or is_empty(folder):
        return
    _require_run(folder, "name a new folder")
    if not overwrite and _is_finished(folder):
        raise InputError(f"out {folder} holds a run already; name a new folder or pass --overwrite")
    if not overwrite:
        raise InputError(
            f"out {folder} holds a run already, not finished; name a new folder or pass --resume or --overwrite"
        )


def require_unfinished(folder: Path) -> None:
    """Refuse a folder without a run that can be resumed; what a killed process left half done is put in order."""
    if not folder.exists() or is_empty(folder):
        found = "is empty" if folder.exists() else "does not exist"
        raise InputError(f"out {folder} {found}; there is nothing to resume")
    _require_run(folder, "there is nothing to resume")
    _finish_what_was_interrupted(folder)
    if not (folder / CONFIG).is_file():  # killed before the new run had begun
        _give_back(folder)
    if _is_finished(folder):
        raise InputError(f"out {folder} holds a finished run; there is nothing to resume")


def is_empty(folder: Path) -> bool:
    """Whether this is a folder with nothing in it but what was half written when its process was killed."""
    return folder.is_dir() and all(_is_leftover(path.name) for path in folder.iterdir())


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
    except BaseException as error:
        if (folder / _ASIDE).is_dir():
            _give_back(folder)
        else:
            _say_how_to_resume(folder, error)
        raise
    _finish_what_was_interrupted(folder)


@contextmanager
def resuming(folder: Path) -> Iterator[None]:
    """Within the context the folder's run is trained to its end; if that fails it stays, to be resumed again.

    An old run that it replaces is gone at the end, and waits on if it fails.
    """
    try:
        yield
    except BaseException as error:
        _say_how_to_resume(folder, error)
        raise
    _finish_what_was_interrupted(folder)


def _say_how_to_resume(folder: Path, error: BaseException) -> None:
    """Add the command to an error that says nothing against going on."""
    if isinstance(error, KeyboardInterrupt | OSError | MemoryError) and (folder / CHECKPOINT).is_file():
        error.add_note(f"go on with: sparsekit train --resume --out {shlex.quote(str(folder))}")


def _require_run(folder: Path, advice: str) -> None:
    others = sorted(path.name for path in folder.iterdir() if not _is_ours(path.name)) if folder.is_dir() else []
    places = (folder, folder / _ASIDE, folder / _MOVING)
    if others or not any((place / CONFIG).is_file() for place in places):
        found = f": it holds {others[0]!r}" if others else ""
        raise InputError(f"out {folder} exists and is not a run{found}; {advice}")


def _is_finished(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / RESULT).is_file()


def _give_back(folder: Path) -> None:
    """Put the old run in the place of the new one, which did not come to its end."""
    _remove_files(folder)
    (folder / _ASIDE).rename(folder / _MOVING)
    _finish_what_was_interrupted(folder)


def _finish_what_was_interrupted(folder: Path) -> None:
    """Move back what was on its way, remove what a finished run has replaced and what was only half written."""
    for path in [*folder.iterdir()] if folder.is_dir() else []:
        if _is_leftover(path.name):
            path.unlink()
    if (folder / _MOVING).is_dir():
        _move_files(folder / _MOVING, folder)
        (folder / _MOVING).rmdir()
    if (folder / _ASIDE).is_dir() and _is_finished(folder):
        (folder / _ASIDE).rename(folder / _DISCARDED)
    if (folder / _DISCARDED).is_dir():
        _remove_files(folder / _DISCARDED)
        (folder / _DISCARDED).rmdir()


def _move_files(source: Path, target: Path) -> None:
    for name in _FILES:
        if (source / name).is_file():
            (source / name).replace(target / name)


def _remove_files(folder: Path) -> None:
    """Remove a run; config.toml goes first, because without it what is left is none."""
    for name in (CONFIG, *sorted(_FILES - {CONFIG})):
        (folder / name).unlink(missing_ok=True)


def _is_ours(name: str) -> bool:
    return name in _OURS or _is_leftover(name)


def _is_leftover(name: str) -> bool:
    """Whether a file was being written, by :mod:`sparsekit.atomic`, when its process was killed."""
    return any(fnmatch(name, f".{Path(file).stem}-????????{Path(file).suffix}") for file in _FILES)
