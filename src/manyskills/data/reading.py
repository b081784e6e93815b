"""Reads and checks the rows of a task, from a folder, a file pattern or the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manyskills.data.checking import RowChecker, TextTable, read_table
from manyskills.data.columns import Columns, checked_columns
from manyskills.data.finding import find_pattern, find_split, find_table, language_in, missing_split, splits_in
from manyskills.data.formats import RecordSource, file_source, memory_source, stream_source
from manyskills.data.hub import hub_source, hub_splits, hub_table, may_be_hub_id
from manyskills.data.problems import RowProblems
from manyskills.data.rows import Row, SplitRows
from manyskills.data.sampling_rows import sample_rows
from manyskills.data.variants import VARIANT, VariantRule
from manyskills.errors import UserError
from manyskills.tasks.base import SPLITS, Kind, SplitName, Task

CARD = "dataset.json"
MEND = "mend these rows; `columns:` renames columns, and `manyskills data show` prints rows as they are read"


def read_split(
    task: Task,
    source: str,
    split: SplitName,
    *,
    columns: Mapping[str, str] | None = None,
    variants: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> SplitRows:
    """Read and check one split.

    Args:
        task: Whose rows.
        source: A folder, a path with `{split}` in it, or a hub id (`organisation/name`); folders are looked at first.
        split: Which split.
        columns: Our column name -> the name in the files.
        variants: Of a generating task, those that are read; None: all.
        limit: At most so many rows, drawn at random and stratified by label or variant; every row is checked all the
            same. A record that becomes a row of each of several variants is several rows.
        seed: Of that draw.

    Returns:
        The rows in file order. A row's `id` is its own if all in the split differ, else `<file name>:<line>`.

    Raises:
        UserError: No such folder, split, column or variant, or rows with problems (all of them in one message, up to a
            limit).
    """
    names = checked_columns(task, columns or {})
    problems = RowProblems()
    rule = VariantRule.of(task, variants)
    opened = _open(task, source, split)
    loader = _table_loader(task, opened.table, names, problems)
    checker = RowChecker(task, names, problems, rule.always() if rule else task.inputs, True, loader, rule)
    rows = _unique_ids(checker, opened.sources)
    problems.raise_if_any(MEND)
    if not rows:
        raise UserError(f"{opened.name}: the {split} split of {task.name} is empty", "it needs at least one row")
    if variants is not None:
        _refuse_missing_variants(task, variants, rows, opened.name)
    kept = rows if limit is None else sample_rows(rows, limit, task, split, seed)
    return SplitRows(task, split, kept, len(rows), opened.name, _digest(task, kept), opened.synthetic)


def available_splits(task: Task, source: str) -> list[SplitName]:
    """The splits that a folder, file pattern or hub data set holds.

    Raises:
        UserError: There is nothing of that name.
    """
    if "{split}" in source:
        return [split for split in SPLITS if find_pattern(task, source, split)]
    if Path(source).is_dir():
        return splits_in(task, Path(source))
    _check_hub_id(task, source)
    found = hub_splits(source)
    return [split for split in SPLITS if split in found]


def _refuse_missing_variants(task: Task, variants: Sequence[str], rows: Sequence[Row], source: str) -> None:
    missing = [name for name in variants if name not in {row[VARIANT] for row in rows}]
    if missing:
        there = ", ".join(sorted({row[VARIANT] for row in rows}))
        raise UserError(
            f"{source}: no rows of {task.name}'s variant {', '.join(missing)}; found {there}",
            f"add rows, or take {', '.join(missing)} out of tasks.{task.name}.variants",
        )


def read_rows_for_prediction(
    task: Task,
    path: str,
    *,
    columns: Mapping[str, str] | None = None,
    inputs: tuple[str, ...] | None = None,
    variants: Sequence[str] | None = None,
    variant: str | None = None,
) -> list[Row]:
    """Read rows to predict on: the checks of training, but labels may be missing (those that are there must be right).

    Of a generating task only the text that is read must be there. Its variant is told by the column `variant` (or
    `language`, or a file name such as `python_test.jsonl`), or by which text is there if that leaves only one.

    Args:
        task: Whose rows.
        path: A file (`.jsonl`, `.parquet`, `.csv`), or `-` for JSON lines on standard input. Pairs may name their texts
            by id if the table of texts (`functions.jsonl`) is beside the file.
        columns: Our column name -> the name in the file.
        inputs: Text columns that must be there. Default: all of the task's; for searches only the query, as the
            candidates are a file of their own, read with `inputs=("code",)`.
        variants: Of a generating task, those that the module knows; None: all.
        variant: The one that all rows are, whatever they say themselves.

    Raises:
        UserError: No such file, column or variant, no rows, rows with problems, or nothing tells a row's variant.
    """
    names = checked_columns(task, columns or {})
    problems = RowProblems()
    rule = VariantRule.of(task, variants, targets=False, forced=variant)
    source = stream_source() if path == "-" else file_source(Path(path), language_in(task, Path(path)))
    table = None if path == "-" else find_table(task, Path(path).parent)
    loader = _table_loader(task, lambda: file_source(table), names, problems) if table else None
    wanted = inputs or (rule.always() if rule else prediction_inputs(task))
    checker = RowChecker(task, names, problems, wanted, False, loader, rule)
    rows = _unique_ids(checker, [source])
    problems.raise_if_any(MEND)
    if not rows:
        raise UserError(f"{source.name}: wanted rows of {task.name}, found none", "it needs at least one row")
    return rows


def check_rows(
    task: Task,
    rows: Sequence[Mapping[str, Any]],
    *,
    labels_required: bool,
    inputs: tuple[str, ...] | None = None,
    variants: Sequence[str] | None = None,
    variant: str | None = None,
) -> list[Row]:
    """Check rows in memory; problems are at `row N`, the first is row 1. The given rows stay as they are.

    Args:
        task: Whose rows.
        rows: Mappings of our column names to values; pairs hold their texts, not ids.
        labels_required: Whether a row without a label, or without the text that is to be written, is a problem.
        inputs: Text columns that must be there; default: all, or for searches without labels only the query.
        variants: As for `read_rows_for_prediction`.
        variant: As for `read_rows_for_prediction`.

    Raises:
        UserError: Rows with problems.
    """
    problems = RowProblems()
    rule = VariantRule.of(task, variants, targets=labels_required, forced=variant)
    wanted = inputs or (task.inputs if labels_required else prediction_inputs(task))
    needed = rule.always() if rule else wanted
    checker = RowChecker(task, checked_columns(task, {}), problems, needed, labels_required, variants=rule)
    checked = _unique_ids(checker, [memory_source(rows)])
    problems.raise_if_any(f"rows of {task.name} hold {', '.join(needed or wanted)}")
    return checked


def prediction_inputs(task: Task) -> tuple[str, ...]:
    """The text columns that a row to predict on must have: a search's candidates come separately, and what a generating
    task reads depends on the variant."""
    if task.kind is Kind.GENERATE:
        return tuple(dict.fromkeys(variant.source for variant in task.variants))
    return task.inputs[:1] if task.kind is Kind.EMBED else task.inputs


@dataclass(frozen=True, slots=True)
class _Opened:
    """A split that was found: where its records and the table of texts come from."""

    name: str
    sources: list[RecordSource]
    table: Callable[[], RecordSource | None]
    synthetic: str | None


def _open(task: Task, source: str, split: SplitName) -> _Opened:
    if "{split}" in source:
        files = find_pattern(task, source, split)
        if not files:
            raise UserError(f"{task.name}: no file for the {split} split at {source}", "check the pattern")
        folder = files[0].path.parent
    elif Path(source).exists():
        folder = Path(source)
        if not folder.is_dir():
            hint = f"name its folder; for other file names give a pattern such as {folder.parent}/my_{{split}}.csv"
            raise UserError(f"{task.name}: wanted a folder of splits, found the file {source}", hint)
        files = find_split(task, folder, split)
        if not files:
            raise missing_split(task, folder, split)
    else:
        return _open_hub(task, source, split)
    table = find_table(task, folder)
    sources = [file_source(file.path, dict(file.added)) for file in files]
    name = ", ".join(source.name for source in sources)
    return _Opened(name, sources, lambda: file_source(table) if table else None, _synthetic(folder / CARD))


def _open_hub(task: Task, source: str, split: SplitName) -> _Opened:
    _check_hub_id(task, source)
    splits = hub_splits(source)
    if split not in splits:
        found = ", ".join(splits) or "none of train, valid, test"
        raise UserError(f"{source}: wanted the split {split}, found {found}", "choose a data set that has the split")
    found = hub_source(source, split, splits[split])
    return _Opened(found.name, [found], lambda: hub_table(source, task), None)


def _check_hub_id(task: Task, source: str) -> None:
    if not may_be_hub_id(source):
        hint = f"set data_dir to the folder that holds {task.name}/, or tasks.{task.name}.data to the folder itself"
        raise UserError(f"{task.name}: there is no folder {source}", hint)


def _table_loader(
    task: Task, find: Callable[[], RecordSource | None], columns: Columns, problems: RowProblems
) -> Callable[[], TextTable] | None:
    join = task.join
    if join is None:
        return None

    def load() -> TextTable:
        source = find()
        if source is None:
            raise UserError(
                f"{task.name}: rows name their texts by {', '.join(join.references)}, and the file "
                f"{join.table}.jsonl (or .parquet, .csv) with {join.key}, {join.value} is not beside them",
                f"add it, or give rows with {', '.join(task.inputs)}",
            )
        return read_table(source, join, columns, problems)

    return load


def _unique_ids(checker: RowChecker, sources: Iterable[RecordSource]) -> list[Row]:
    """All rows; if their own ids are not unique in the split, every row is named by its place instead."""
    rows: list[Row] = []
    places: list[str] = []
    for source in sources:
        for place, row in checker.rows(source):
            places.append(place)
            rows.append(row)
    if len({row["id"] for row in rows}) < len(rows):
        for place, row in zip(places, rows, strict=True):
            row["id"] = place
    return rows


def _digest(task: Task, rows: Sequence[Row]) -> str:
    """sha256 over the rows' content without their ids; each distinct text is hashed once, however often it occurs."""
    known: dict[str, str] = {}

    def text_digest(text: str) -> str:
        if text not in known:
            known[text] = hashlib.sha256(text.encode()).hexdigest()
        return known[text]

    whole = hashlib.sha256()
    encode = json.JSONEncoder(sort_keys=True, default=str).encode
    for row in rows:
        content = {
            name: text_digest(value) if name in task.inputs else value for name, value in row.items() if name != "id"
        }
        whole.update(encode(content).encode() + b"\n")
    return whole.hexdigest()


def _synthetic(card: Path) -> str | None:
    """What a folder's card says about how its labels were made."""
    if not card.is_file():
        return None
    try:
        content = json.loads(card.read_bytes())
    except ValueError as error:
        raise UserError(
            f"{card}: wanted a JSON object, found broken JSON ({error})", "mend or remove the file"
        ) from error
    synthetic = content.get("synthetic") if isinstance(content, dict) else content
    if not isinstance(content, dict) or not isinstance(synthetic, str | None):
        raise UserError(
            f"{card}: wanted a JSON object whose `synthetic` is a sentence or null", "mend or remove the file"
        )
    return synthetic
