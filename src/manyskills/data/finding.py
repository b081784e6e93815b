"""Where a split's files are in a folder: the accepted layouts are the two tables at the top."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from manyskills.data.formats import FORMATS
from manyskills.errors import UserError
from manyskills.tasks.base import SPLITS, SplitName, Task

SPLIT_NAMES: dict[SplitName, tuple[str, ...]] = {
    "train": ("train",),
    "valid": ("valid", "validation", "val", "dev"),
    "test": ("test",),
}
"""What a split may be called; the first that has files counts."""

LANGUAGES = "c|cpp|csharp|go|java|javascript|kotlin|php|python|ruby|rust|scala|swift|typescript"

LAYOUTS: tuple[str, ...] = (
    r"{stem}{split}",  # pairs_train.jsonl
    rf"(?P<language>{LANGUAGES})_{{stem}}{{split}}",  # python_train.jsonl, java_train.jsonl: read one after the other
    r"{stem}{split}-\d+-of-\d+",  # train-00000-of-00002.parquet, as the hub cuts large files
    r"data/{stem}{split}-\d+-of-\d+",  # the same in the hub's data folder
)
"""Patterns of a split's path without its ending; the first layout that has files counts."""


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file of a split, and the columns that its name adds to its rows."""

    path: Path
    added: dict[str, str]


def find_split(task: Task, folder: Path, split: SplitName) -> list[FoundFile]:
    """The files of a split, in the order in which they are read; none if the folder lacks the split.

    Raises:
        UserError: The split is there in two formats.
    """
    paths = sorted([*folder.glob("*"), *folder.glob("data/*")])
    for layout in LAYOUTS:
        for name in SPLIT_NAMES[split]:
            pattern = layout.format(stem=re.escape(task.file_stem), split=name)
            found = [
                FoundFile(path, match.groupdict())
                for path in paths
                if path.suffix in FORMATS
                and (match := re.fullmatch(pattern, path.relative_to(folder).with_suffix("").as_posix()))
            ]
            if found:
                _check_one_format(found)
                return found
    return []


def find_table(task: Task, folder: Path) -> Path | None:
    """The file of the texts that a task's rows name by id, such as `functions.jsonl`.

    Raises:
        UserError: It is there in two formats.
    """
    if task.join is None:
        return None
    found = [FoundFile(path, {}) for ending in FORMATS if (path := folder / f"{task.join.table}{ending}").is_file()]
    _check_one_format(found)
    return found[0].path if found else None


def task_folder(data_dir: Path, task: Task) -> Path:
    """A task's folder in a folder of several: the one with its name, or else one with another name that it may have."""
    others = (folder for name in task.folders if (folder := data_dir / name).is_dir())
    own = data_dir / task.name
    return own if own.is_dir() else next(others, own)


def language_in(task: Task, path: Path) -> dict[str, str]:
    """What a file's name adds to rows of a task that is learnt by language: `python_test.jsonl` is Python."""
    match = re.match(rf"({LANGUAGES})_", path.name) if task.by_language else None
    return {"language": match[1]} if match else {}


def find_pattern(task: Task, pattern: str, split: SplitName) -> list[FoundFile]:
    """The files that a path with `{split}` (and perhaps `*`) in it means.

    Raises:
        UserError: The split is there in two formats.
    """
    for name in SPLIT_NAMES[split]:
        path = Path(pattern.replace("{split}", name))
        root = Path(path.anchor) if path.is_absolute() else Path()
        paths = sorted(root.glob(str(path.relative_to(root))))
        found = [FoundFile(p, language_in(task, p)) for p in paths if p.suffix in FORMATS]
        if found:
            _check_one_format(found)
            return found
    return []


def missing_split(task: Task, folder: Path, split: SplitName) -> UserError:
    """The error that says which file was wanted and what the folder holds instead."""
    there = sorted(path.name for path in folder.iterdir() if path.suffix in FORMATS)
    shown = ", ".join(there[:8]) + (f" and {len(there) - 8} more" if len(there) > 8 else "")
    name = f"{task.file_stem}{split}"
    return UserError(
        f"{task.name}: {folder} has no {split} split: wanted {name}{', '.join(FORMATS)}; "
        f"found {shown or 'no data file'}",
        f"name the file {name}.jsonl, or give a pattern such as data: {folder}/my_{{split}}.csv",
    )


def splits_in(task: Task, folder: Path) -> list[SplitName]:
    """The splits that a folder holds."""
    return [split for split in SPLITS if find_split(task, folder, split)]


def _check_one_format(found: list[FoundFile]) -> None:
    endings = sorted({file.path.suffix for file in found})
    if len(endings) > 1:
        names = " and ".join(file.path.name for file in found[:3])
        raise UserError(
            f"{found[0].path.parent}: wanted one format, found {names}",
            "keep one of them, so that it is clear which counts",
        )
