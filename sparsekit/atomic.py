"""Files that are either complete or not there: written beside their place, flushed to disk, then renamed."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sparsekit.errors import InputError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to; on leaving the context it takes the name `path`, or is removed on an error.

    A process that is killed on the way leaves an older `path` as it was. The temporary file keeps the suffix of
    `path`, because libraries tell formats by it.
    """
    path = Path(os.path.realpath(path))  # where a link leads, so that the link stays one
    # The name comes first: Ctrl-C while the file is made must not leave one whose name nobody knows.
    temporary = path.parent / f".{path.stem}-{secrets.token_urlsafe(6)}{path.suffix}"
    try:
        _make(temporary, path)
        yield temporary
        _publish(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None  # the user's file, not the temporary one
    finally:
        with suppress(OSError):  # where it could not be made, it need not be removed
            temporary.unlink()


def _make(temporary: Path, path: Path) -> None:
    try:
        os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


def _publish(temporary: Path, path: Path) -> None:
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.chmod(temporary, 0o666 & ~_umask())
    os.replace(temporary, path)
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Put a rename on the disk, so that a power cut does not undo it."""
    with suppress(OSError):  # Windows opens no folders, and some network file systems flush none
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _umask() -> int:
    """Temporary files are private; results are as readable as any other file of the user."""
    umask = os.umask(0)
    os.umask(umask)
    return umask
