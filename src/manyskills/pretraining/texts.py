"""The texts to learn from, without exact duplicates: out of files, folders and patterns; and what is held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from manyskills.config.pretraining import PretrainConfig, TextsConfig
from manyskills.data.formats import FORMATS, Record, file_source
from manyskills.data.problems import RowProblems, shown
from manyskills.errors import UserError, did_you_mean

SKIPPED = frozenset({"__pycache__", "node_modules"})
"""Folders that a search through a folder leaves out, besides hidden ones."""


@dataclass(frozen=True, slots=True)
class Texts:
    """What is learnt from and what is held out.

    Attributes:
        train: Texts to learn from.
        valid: Held out; none of them is among `train`.
        duplicates: Exact repetitions that were left out.
        digest: sha256 of the texts and their order.
    """

    train: list[str]
    valid: list[str]
    duplicates: int
    digest: str


def read_texts(config: PretrainConfig) -> Texts:
    """Read all texts and hold some out, drawn at random by the seed.

    Raises:
        UserError: No such file, nothing in it, rows without the columns, or bytes that are not UTF-8: all rows with
            problems in one message, up to a limit.
    """
    problems = RowProblems()
    found: list[str] = []
    for number, entry in enumerate(config.data):
        placed = entry.model_copy(update={"path": str(Path(config.data_dir) / entry.path)})
        found += _read_entry(placed, f"data[{number}]", [config.seed, number], problems)
    problems.raise_if_any("mend or leave out these places; `columns` names the columns that hold texts")
    unique = list(dict.fromkeys(found))
    if not unique:
        raise UserError("data: wanted texts, found none that is not empty", "check the paths and columns under data")
    held_out = _held_out(len(unique), config)
    train = [text for text, held in zip(unique, held_out, strict=True) if not held]
    valid = [text for text, held in zip(unique, held_out, strict=True) if held]
    return Texts(train, valid, len(found) - len(unique), _digest(unique))


def _held_out(count: int, config: PretrainConfig) -> np.ndarray:
    """Which texts are held out: the rounded share, and one at least where a share is wanted and there are several."""
    wanted = round(count * config.validation)
    if config.validation and count > 1:
        wanted = min(max(wanted, 1), count - 1)
    held_out = np.zeros(count, dtype=bool)
    held_out[np.random.default_rng([config.seed, len(config.data)]).permutation(count)[:wanted]] = True
    return held_out


def _digest(texts: Sequence[str]) -> str:
    whole = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        whole.update(b"%d:" % len(data))
        whole.update(data)
    return whole.hexdigest()


def _read_entry(entry: TextsConfig, key: str, seed: list[int], problems: RowProblems) -> list[str]:
    """The texts of one entry, in the order of the files; empty ones and those of white space alone are left out."""
    paths = _paths(entry.path, key)
    tables = [path for path in paths if path.suffix in FORMATS]
    if tables and not entry.columns:
        raise UserError(f"{key}: {tables[0]} holds rows, and no column is named", "add columns: [code] or the like")
    if entry.columns and not tables:
        raise UserError(f"{key}: columns are named, and {entry.path} holds no {', '.join(FORMATS)}", "remove columns")
    units: list[list[str]] = []
    for path in paths:
        units += _rows(path, entry, problems) if path.suffix in FORMATS else _source(path, problems)
    if entry.limit is not None and entry.limit < len(units):
        drawn = np.random.default_rng(seed).permutation(len(units))[: entry.limit]
        units = [units[index] for index in np.sort(drawn)]
    return [text for unit in units for text in unit if text.strip()]


def _paths(pattern: str, key: str) -> list[Path]:
    """The files that a path or pattern means, sorted.

    Raises:
        UserError: There is none.
    """
    path = Path(pattern)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [inner for inner in sorted(path.rglob("*")) if inner.is_file() and _is_wanted(inner.relative_to(path))]
    elif any(mark in pattern for mark in "*?["):
        root = Path(path.anchor) if path.is_absolute() else Path()
        found = sorted(inner for inner in root.glob(str(path.relative_to(root))) if inner.is_file())
    else:
        hint = "relative paths start at data_dir"
        siblings = [inner.name for inner in path.parent.iterdir()] if path.parent.is_dir() else []
        near = did_you_mean(path.name, siblings) if siblings else ""
        raise UserError(f"{key}: there is no file or folder {pattern}", near if near.startswith("did") else hint)
    if not found:
        raise UserError(f"{key}: no file at {pattern}", "check the path; relative paths start at data_dir")
    return found


def _is_wanted(path: Path) -> bool:
    return not any(part.startswith(".") or part in SKIPPED for part in path.parts)


def _source(path: Path, problems: RowProblems) -> list[list[str]]:
    """A source file as one text."""
    data = path.read_bytes()
    try:
        return [[data.decode("utf-8-sig")]]
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{error.object[error.start]:02x} at byte offset {error.start:,}"
        problems.add(f"{path}:{line}", f"wanted UTF-8, found {byte}")
        return []


def _rows(path: Path, entry: TextsConfig, problems: RowProblems) -> list[list[str]]:
    """The texts of each row of a file."""
    source = file_source(path)
    rows: list[list[str]] = []
    for number, record in source.records(problems):
        if not rows:
            _check_columns(record, entry.columns, source.place(number))
        cells = [_cell(record, name, source.place(number), problems) for name in entry.columns]
        rows.append(cells if entry.join is None else [entry.join.join(cells)])
    return rows


def _check_columns(record: Record, columns: Sequence[str], place: str) -> None:
    for name in columns:
        if name not in record:
            raise UserError(f"{place}: there is no column {name!r}", did_you_mean(name, record))


def _cell(record: Record, name: str, place: str, problems: RowProblems) -> str:
    """A cell's text; null is an empty one."""
    value = record.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        problems.add(place, f"{name}: wanted text, found {shown(value)}")
        return ""
    return value
