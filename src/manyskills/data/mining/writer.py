"""Writing mined rows: all folders or none."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from manyskills.data.rows import Row
from manyskills.errors import UserError


def check_empty(output_dir: Path) -> None:
    """Refuse a place where something is already.

    Raises:
        UserError: `output_dir` is a file, or a folder with something in it.
    """
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise UserError(f"{output_dir}: wanted a new or empty folder, found something in it", "name another folder")


def jsonl(rows: Iterable[Row]) -> str:
    """One JSON object a line, ASCII, keys in their order."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_folder(output_dir: Path, files: Mapping[str, str]) -> None:
    """Write `files` (relative path to content) so that the folder appears with all of them or not at all.

    Raises:
        UserError: The disk is full, the place is not writable, or somebody else has put something there.
    """
    check_empty(output_dir)
    temporary: Path | None = None
    try:
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}.", suffix=".tmp", dir=output_dir.parent))
        for name, content in files.items():
            _write(temporary / name, content)
        for folder in sorted({path.parent for path in map(temporary.joinpath, files)} | {temporary}):
            _sync(folder)
        temporary.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        temporary.replace(output_dir)
        _sync(output_dir.parent)
    except OSError as error:
        raise UserError(
            f"{output_dir}: could not be written ({error.strerror})", "choose another output folder"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def card(content: Mapping[str, Any]) -> str:
    """A `dataset.json`."""
    return json.dumps(content, indent=2) + "\n"


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
