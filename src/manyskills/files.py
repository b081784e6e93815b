"""Writing that a crash cannot spoil: a temporary name beside the target, fsync, rename.

A file is replaced by one rename. A folder cannot be, so its swap has two: `target` becomes `target.old`, then the new
folder becomes `target`. At every instant one of the two is complete, and `recover_folder` mends what a kill left.
A run folder has one writer at a time; nothing here locks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from manyskills.errors import UserError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
TEMPORARY = re.compile(r".+\.tmp-(\d+)")


def is_no_space(error: BaseException) -> bool:
    """Whether the disk is full; libraries written in Rust or C++ wrap the system's error in their own."""
    return (isinstance(error, OSError) and error.errno in NO_SPACE) or "No space left on device" in str(error)


@contextlib.contextmanager
def clear_errors(path: Path) -> Iterator[None]:
    """Turn the system's refusals to write `path` into a `UserError`: no space, no permission, a folder in the way, a
    file system that is read-only or broken."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_no_space(error):
            hint = "free some space, or choose another output_dir, and run again"
            raise UserError(f"no space left on device: {path}", hint) from error
        if isinstance(error, OSError) and error.strerror:  # libraries raise some of their own without a reason
            raise UserError(f"cannot write {path}: {error.strerror}", "choose another place to write to") from error
        raise


def write_atomically(path: str | Path, data: str | bytes) -> None:
    """Write a file so that readers, and whoever comes after a crash, see the old content or the new, never a part.

    Missing parent folders are made. Text is written as UTF-8 without changing line ends.

    Raises:
        UserError: The system refuses: no space left, no permission, `path` is a folder.
    """
    path = Path(path)
    temporary = _temporary(path)
    with clear_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)  # noqa: PTH105 (tests simulate crashes at the calls of os)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync(path.parent)


def replace_folder_atomically(build: Callable[[Path], None], target: str | Path) -> None:
    """Build a folder under a temporary name, then swap it with `target`.

    Args:
        build: Fills the empty folder that it is given. If it raises, `target` stays as it was.
        target: The folder to make or to replace.

    Raises:
        UserError: The system refuses: no space left, no permission; or `target` is a file.
    """
    target = Path(target)
    temporary, old = _temporary(target), _old(target)
    recover_folder(target)
    with clear_errors(target):
        if target.exists() and not target.is_dir():
            raise UserError(f"cannot write the folder {target}: a file of that name is in the way")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.mkdir()
            build(temporary)
            _sync_tree(temporary)
            if target.exists():
                os.rename(target, old)  # noqa: PTH104
                _sync(target.parent)
            os.rename(temporary, target)  # noqa: PTH104
            _sync(target.parent)
        except BaseException:
            _mend(target)
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)


def recover_folder(target: str | Path) -> bool:
    """Mend a swap that was interrupted: afterwards `target` is the newest complete folder, if there ever was one.

    Returns:
        Whether `target` exists.
    """
    target = Path(target)
    _mend(target)
    if target.exists():
        shutil.rmtree(_old(target), ignore_errors=True)
    remove_stale(target.parent, target.name)
    return target.exists()


def complete_folder(target: str | Path) -> Path | None:
    """The complete folder (`target`, or `target.old`) for readers: they must not mend what a writer may be swapping."""
    target = Path(target)
    return next((folder for folder in (target, _old(target)) if folder.is_dir()), None)


def remove_stale(folder: str | Path, name: str | None = None) -> None:
    """Remove what killed processes left half-written in `folder`: `*.tmp-<process id>` of processes that are gone.

    Args:
        folder: Where to look; its sub-folders are left alone. It need not exist.
        name: Only the temporaries of this file or folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        match = TEMPORARY.fullmatch(path.name)
        if match is None or (name is not None and path.name != f"{name}.tmp-{match[1]}"):
            continue
        if _is_other_living_process(int(match[1])):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp-{os.getpid()}")


def _old(target: Path) -> Path:
    return target.with_name(f"{target.name}.old")


def _mend(target: Path) -> None:
    old = _old(target)
    if old.exists() and not target.exists():
        os.rename(old, target)  # noqa: PTH104
        _sync(target.parent)


def _is_other_living_process(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk; file systems that cannot sync a folder are no error."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if not path.is_symlink():
            _sync(path)
    _sync(folder)
