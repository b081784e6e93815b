import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from manyskills import files
from manyskills.errors import UserError
from manyskills.files import complete_folder, recover_folder, remove_stale, replace_folder_atomically, write_atomically


class Crash(BaseException):
    """The power goes at the n-th call of fsync, replace or rename; nothing after it is done, cleaning up included."""


@pytest.fixture
def crash_at(monkeypatch):
    def arm(point: int) -> list[str]:
        calls: list[str] = []

        def patch(module, name):
            real = getattr(module, name)

            def call(*args, **kwargs):
                calls.append(name)
                if len(calls) >= point:
                    raise Crash
                return real(*args, **kwargs)

            monkeypatch.setattr(module, name, call)

        for name in ("fsync", "replace", "rename"):
            patch(os, name)
        patch(shutil, "rmtree")
        monkeypatch.setattr(Path, "unlink", lambda *args, **kwargs: None)
        return calls

    return arm


def fill(text: str):
    def build(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "a.txt").write_text(text)
        (folder / "sub" / "b.txt").write_text(text)

    return build


def content(folder: Path) -> set[str]:
    return {path.read_text() for path in folder.rglob("*.txt")}


def test_writes_text_and_bytes_and_makes_folders(tmp_path):
    write_atomically(tmp_path / "deep" / "a.txt", "é\r\n")
    write_atomically(tmp_path / "deep" / "a.bin", b"\x00\xff")
    assert (tmp_path / "deep" / "a.txt").read_bytes() == "é\r\n".encode()
    assert (tmp_path / "deep" / "a.bin").read_bytes() == b"\x00\xff"
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["a.bin", "a.txt"]


@pytest.mark.parametrize("point", range(1, 4))
def test_a_crash_while_writing_leaves_old_or_new(tmp_path, crash_at, monkeypatch, point):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with monkeypatch.context():
        crash_at(point)
        with pytest.raises(Crash):
            write_atomically(path, "new")
        monkeypatch.undo()
    assert path.read_text() == ("new" if point == 3 else "old")
    remove_stale(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("existed", [True, False])
@pytest.mark.parametrize("point", range(1, 12))
def test_a_crash_while_swapping_leaves_a_complete_folder(tmp_path, crash_at, monkeypatch, point, existed):
    target = tmp_path / "best"
    if existed:
        replace_folder_atomically(fill("old"), target)
    crash_at(point)
    crashed = False
    try:
        replace_folder_atomically(fill("new"), target)
    except Crash:
        crashed = True
    monkeypatch.undo()
    assert crashed or content(target) == {"new"}
    if existed:
        complete = [f for f in (target, tmp_path / "best.old") if f.is_dir() and len(list(f.rglob("*.txt"))) == 2]
        assert complete, "at every instant target or target.old is complete"
    exists = recover_folder(target)
    assert exists == target.exists()
    assert exists or not existed
    if exists:
        assert content(target) in ({"old"}, {"new"})
    assert {path.name for path in tmp_path.iterdir()} <= {"best"}
    replace_folder_atomically(fill("newer"), target)
    assert content(target) == {"newer"}
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_enough_crash_points_are_tried(tmp_path, crash_at):
    replace_folder_atomically(fill("old"), tmp_path / "best")
    calls = crash_at(1000)
    replace_folder_atomically(fill("new"), tmp_path / "best")
    assert calls.count("rename") == 2
    assert len(calls) <= 11


def test_a_failing_build_leaves_the_target_and_nothing_else(tmp_path):
    target = tmp_path / "best"
    replace_folder_atomically(fill("old"), target)

    def build(folder: Path) -> None:
        (folder / "part").write_text("x")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        replace_folder_atomically(build, target)
    assert content(target) == {"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_failing_second_rename_puts_the_old_folder_back(tmp_path, monkeypatch):
    target = tmp_path / "best"
    replace_folder_atomically(fill("old"), target)
    real = os.rename

    def rename(source, destination):
        if ".tmp-" in str(source):
            raise OSError(errno.EIO, "input/output error")
        real(source, destination)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(UserError, match="best: input/output"):
        replace_folder_atomically(fill("new"), target)
    assert content(target) == {"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_no_space_is_one_clear_sentence(tmp_path, monkeypatch, error):
    def fsync(_):
        raise error

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UserError, match=r"no space left on device: .*a\.txt") as caught:
        write_atomically(tmp_path / "a.txt", "x")
    assert caught.value.hint
    with pytest.raises(UserError, match=r"no space left on device: .*best"):
        replace_folder_atomically(fill("x"), tmp_path / "best")
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "best").write_text("mine")
    with pytest.raises(UserError, match="a file of that name is in the way"):
        replace_folder_atomically(fill("x"), tmp_path / "best")
    with pytest.raises(UserError, match="cannot write"):
        write_atomically(tmp_path / "best" / "a.txt", "x")
    assert (tmp_path / "best").read_text() == "mine"


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOENT, errno.EIO, errno.ENAMETOOLONG])
def test_what_the_system_refuses_is_one_sentence_with_the_place(number, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=rf"cannot write .*a\.txt: {os.strerror(number)}"):
        write_atomically(tmp_path / "a.txt", "x")
    assert list(tmp_path.iterdir()) == []


def test_stale_temporaries_of_dead_processes_only(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f"a.tmp-{dead.pid}").mkdir()
    (tmp_path / f"b.tmp-{dead.pid}").write_text("x")
    (tmp_path / f"c.tmp-{os.getppid()}").write_text("x")
    (tmp_path / "d.tmp-file").write_text("x")
    remove_stale(tmp_path, "a")
    assert not (tmp_path / f"a.tmp-{dead.pid}").exists()
    assert (tmp_path / f"b.tmp-{dead.pid}").exists()
    remove_stale(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"c.tmp-{os.getppid()}", "d.tmp-file"]
    remove_stale(tmp_path / "missing")


def test_recover_prefers_the_newest_complete_folder(tmp_path):
    fill_old, target = tmp_path / "best.old", tmp_path / "best"
    fill_old.mkdir()
    assert recover_folder(target)
    assert not fill_old.exists()
    fill_old.mkdir()
    (target / "new").write_text("x")
    assert recover_folder(target)
    assert (target / "new").exists()
    assert not fill_old.exists()
    assert not recover_folder(tmp_path / "nothing")
    assert complete_folder(tmp_path / "nothing") is None
    assert complete_folder(target) == target
    target.rename(tmp_path / "best.old")
    assert complete_folder(target) == tmp_path / "best.old"
    assert files.recover_folder(tmp_path / "no" / "such") is False
