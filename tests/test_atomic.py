"""Atomic files: a reader sees the old content or the new one, whatever happens to the writer."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sparsekit.atomic import atomic_path, write_text
from sparsekit.errors import InputError

OLD, NEW = "the old content\n", "the new content, with ünïcödé\n"


@pytest.fixture(params=[False, True], ids=["a new file", "an old file"])
def target(request, tmp_path):
    path = tmp_path / "result.json"
    if request.param:
        path.write_text(OLD)
    return path


def state(path: Path) -> dict[str, str]:
    """All files beside the target, hidden ones too, with what they hold."""
    return {other.name: other.read_text(encoding="utf-8") for other in path.parent.iterdir()}


def test_the_content_is_written(target):
    with atomic_path(target) as temporary:
        temporary.write_text(NEW, encoding="utf-8")
    assert state(target) == {target.name: NEW}


def test_text_is_written_as_utf_8(target):
    write_text(target, NEW)
    assert target.read_bytes() == NEW.encode()
    write_text(str(target), "")
    assert state(target) == {target.name: ""}


def test_the_target_keeps_its_content_until_the_end(target):
    before = state(target)
    with atomic_path(target) as temporary:
        assert temporary != target
        assert temporary.parent == target.parent  # a rename within one file system
        assert temporary.suffix == target.suffix
        with temporary.open("w") as file:
            file.write(NEW[:5])
            file.flush()
            assert {k: v for k, v in state(target).items() if k != temporary.name} == before
            file.write(NEW[5:])
    assert state(target) == {target.name: NEW}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_writer_that_fails_leaves_things_as_they_were(target, error):
    before = state(target)

    def write():
        with atomic_path(target) as temporary:
            temporary.write_text(NEW[:5])
            raise error

    with pytest.raises(error):
        write()
    assert state(target) == before


def test_a_rename_publishes_what_is_on_the_disk(target, monkeypatch):
    """Were the name changed before the content is on the disk, a power cut could leave an empty file."""
    before = state(target)
    events = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("replace"), replace(*paths)))
    write_text(target, NEW)
    assert events[:2] == ["fsync", "replace"]

    def fail(*paths):
        raise OSError("no rename")

    target.unlink()
    for name, content in before.items():
        target.with_name(name).write_text(content)
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises((OSError, InputError)):
        write_text(target, NEW)
    assert state(target) == before


KILLED = """
import sys
from sparsekit.atomic import atomic_path

with atomic_path(sys.argv[1]) as temporary:
    with open(temporary, "w") as file:
        file.write("half of the new con")
        file.flush()
        print("writing", flush=True)
        sys.stdin.read()  # until killed
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_killed_process_leaves_the_old_file(target):
    before = state(target)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", KILLED, str(target)], **pipes) as process:
        try:
            assert process.stdout.readline() == "writing\n"
        finally:
            process.kill()
        assert process.wait() == -signal.SIGKILL
    after = state(target)
    assert {name: after.get(name) for name in before} == before
    assert target.exists() == bool(before)
    write_text(target, NEW)  # what the dead process left is in nobody's way
    assert target.read_text(encoding="utf-8") == NEW


def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "history.csv"
    contents = {letter: letter * 300_000 for letter in "abc"}
    write_text(path, contents["a"])
    seen, done = set(), threading.Event()

    def read():
        while not done.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(15):
            for content in contents.values():
                write_text(path, content)
    finally:
        done.set()
        reader.join()
    assert seen <= set(contents.values())
    assert len(seen) > 1
    assert [p.name for p in tmp_path.iterdir()] == ["history.csv"]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(target, umask, mode):
    before = os.umask(umask)
    try:
        write_text(target, NEW)
        assert target.stat().st_mode & 0o777 == mode
        assert os.umask(umask) == umask  # reading it changes nothing
    finally:
        os.umask(before)


def test_a_missing_folder_is_named(tmp_path):
    path = tmp_path / "missing" / "result.json"
    with pytest.raises((InputError, OSError)) as caught:
        write_text(path, NEW)
    assert str(path) in str(caught.value)


def test_a_file_in_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_text(OLD)
    path = tmp_path / "file" / "result.json"
    with pytest.raises((InputError, OSError)) as caught:
        write_text(path, NEW)
    assert str(path) in str(caught.value)
    assert (tmp_path / "file").read_text() == OLD


def test_a_folder_in_place_of_the_file_is_named(tmp_path):
    path = tmp_path / "result.json"
    path.mkdir()
    with pytest.raises((InputError, OSError)) as caught:
        write_text(path, NEW)
    assert str(path) in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    path = tmp_path / "result.json"
    try:
        with pytest.raises((InputError, OSError)) as caught:
            write_text(path, NEW)
    finally:
        tmp_path.chmod(0o700)
    assert str(path) in str(caught.value)
