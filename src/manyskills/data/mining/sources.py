"""Which Python files to read: one project after the other in turn, so that none dominates."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path, PurePosixPath

from manyskills.errors import UserError

MAX_BYTES = 200_000  # larger files are mostly generated tables, and cost most of the parsing time

# Copies of other projects would put the same function into two modules, hence into two splits.
_SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__",
        "site-packages",
        "node_modules",
        "vendor",
        "vendored",
        "_vendor",
        "_vendored",
        "externals",
        "extern",
    }
    | {"venv", "manyskills"}
)
_TEST_FOLDERS = frozenset({"test", "tests", "idle_test", "unittests"})


@dataclass(frozen=True, slots=True)
class Module:
    """One Python file.

    Attributes:
        project: The package it belongs to; rows carry it.
        name: Dotted, from the project's name on. It, not the path, decides the split.
        is_test: It belongs to a test suite.
    """

    project: str
    name: str
    path: Path
    is_test: bool


def default_sources() -> list[Path]:
    """The standard library's and the installed packages' top folders and files, without this package."""
    paths = sysconfig.get_paths()
    roots = sorted({Path(paths[key]) for key in ("stdlib", "purelib", "platlib")})
    children = (child for root in roots if root.is_dir() for child in sorted(root.iterdir()))
    return [child for child in children if _is_source(child) and child.name not in _SKIPPED_FOLDERS]


def find_modules(sources: Sequence[Path] | None, seed: int) -> list[Module]:
    """Every module below `sources` (each a folder or a file, and one project), projects taking turns.

    The order is a function of names and seed alone.

    Raises:
        UserError: A source does not exist.
    """
    by_project: dict[str, list[Module]] = {}
    for source in default_sources() if sources is None else sources:
        if not source.exists():
            raise UserError(f"{source}: no such file or folder to mine", "name folders that hold Python code")
        for module in _modules_of(source):
            by_project.setdefault(module.project, []).append(module)
    for modules in by_project.values():
        modules.sort(key=lambda module: (digest(seed, module.name), str(module.path)))
    order = sorted(by_project, key=lambda project: digest(seed, project))
    return list(_take_turns([by_project[project] for project in order]))


def digest(*parts: object) -> str:
    """A hash that is the same in every process (Python's own is not)."""
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogatepass")).hexdigest()


def _is_source(path: Path) -> bool:
    if path.is_dir():
        return path.name.isidentifier()
    return path.suffix == ".py" and path.stem.isidentifier()


def _modules_of(source: Path) -> Iterator[Module]:
    project = source.resolve().name if source.is_dir() else source.stem
    if not source.is_dir():
        yield _module(project, PurePosixPath(source.name), source)
        return
    for folder, folders, files in os.walk(source):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED_FOLDERS and not name.startswith("."))
        for file in sorted(files):
            path = Path(folder, file)
            if file.endswith(".py") and path.stat().st_size <= MAX_BYTES:
                yield _module(project, PurePosixPath(path.relative_to(source).as_posix()), path)


def _module(project: str, relative: PurePosixPath, path: Path) -> Module:
    parts = [*relative.parts[:-1], relative.stem]
    name = ".".join(dict.fromkeys([project, *parts])) if parts == [project] else ".".join([project, *parts])
    folders = {project, *relative.parts[:-1]}
    is_test = bool(folders & _TEST_FOLDERS) or relative.stem.startswith("test_") or relative.stem.endswith("_test")
    return Module(project, name, path, is_test)


def _take_turns(queues: Iterable[list[Module]]) -> Iterator[Module]:
    for turn in zip_longest(*queues):
        yield from (module for module in turn if module is not None)
