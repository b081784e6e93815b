"""From records to rows: every text, label and reference is looked at, and every problem has its place."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from manyskills.data.columns import Columns
from manyskills.data.formats import LabelForm, Record, RecordSource
from manyskills.data.problems import RowProblems, shown
from manyskills.data.rows import Row
from manyskills.data.variants import VARIANT, VariantRule
from manyskills.tasks.base import Join, Task, Variant

LABEL_WORDS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
"""Labels in a format that knows nothing but text (csv)."""


@dataclass(frozen=True, slots=True)
class TextTable:
    """Texts by id, for rows that only name them; `complete` is false if a row of it could not be read."""

    name: str
    texts: dict[str, str]
    complete: bool


@dataclass(slots=True)
class RowChecker:
    """Turns records into rows of a task.

    Attributes:
        task: Whose rows.
        columns: What our columns are called in the files.
        problems: Where problems are noted.
        inputs: Text columns that must be there (the others are checked where they are).
        labels_required: Whether a row without a label is a problem.
        load_table: Reads the texts that rows name by id; none where there is no such table.
        variants: Tells the variants of a generating task's rows; none for other tasks.
    """

    task: Task
    columns: Columns
    problems: RowProblems
    inputs: tuple[str, ...]
    labels_required: bool
    load_table: Callable[[], TextTable] | None = None
    variants: VariantRule | None = None
    _table: TextTable | None = field(default=None, init=False)

    def rows(self, source: RecordSource) -> Iterator[tuple[str, Row]]:
        """The rows of a source, each with `<file>:<line>`; records with a problem are left out.

        A row's `id` is its own, or else that place. A record of several variants becomes a row of each, with `variant`
        in it and at the end of its id.

        Raises:
            UserError: The first record lacks a column, or nothing tells the variant of a record.
        """
        join: Join | None = None
        first = True
        for line, record in source.records(self.problems):
            row = self.columns.rename(record)
            if first:
                join, first = self._join_for(row, source.place(line)), False
            before = self.problems.total
            place = source.place(line)
            if join is not None:
                self._resolve(row, join, place)
            variants = self.variants.of_row(row, source.added, place, self.problems) if self.variants else []
            self._check_texts(row, join, variants, place)
            self._check_id(row, place)
            self._check_label(row, source.labels, place)
            if self.problems.total == before:
                short = f"{source.stem}:{line}"
                row["id"] = _own_id(row.get("id")) or short
                row.update(source.added)
                if self.variants is None:
                    yield short, row
                for variant in variants:
                    end = "" if self.task.by_language else f":{variant.name}"
                    own = row["id"].removesuffix(end)  # rows that were read before have it already
                    yield short + end, row | {"id": own + end, VARIANT: variant.name}

    def _join_for(self, row: Record, place: str) -> Join | None:
        """Which of the two ways to give texts the source uses, told by its first record."""
        label = (self.task.label,) if self.task.label and self.labels_required else ()
        join = self.task.join
        direct = all(name in row for name in self.inputs)
        if direct or join is None or self.load_table is None:
            if not all(name in row for name in (*self.inputs, *label)):
                other = f" (or {', '.join(join.references)} beside a file {join.table}.jsonl)" if join else ""
                raise self.columns.missing(place, (*self.inputs, *label), row, other)
            return None
        if not all(name in row for name in (*join.references, *label)):
            other = f" (or {', '.join(self.inputs)} instead of the ids)"
            raise self.columns.missing(place, (*join.references, *label), row, other)
        self._table = self._table or self.load_table()
        return join

    def _resolve(self, row: Record, join: Join, place: str) -> None:
        assert self._table is not None
        for name, reference in zip(self.task.inputs, join.references, strict=True):
            key = _own_id(row.get(reference))
            text = None if key is None else self._table.texts.get(key)
            if text is not None:
                row[name] = text
                row[reference] = sys.intern(str(key))  # hundreds of thousands of pairs share a few thousand ids
            elif key is None:
                self.problems.add(place, f"wanted an id in column {reference!r}, found {shown(row.get(reference))}")
            elif self._table.complete:
                self.problems.add(place, f"wanted an id of {self._table.name} in column {reference!r}, found {key!r}")
            else:
                row[name] = "x"  # its row in the table may be one of those already reported

    def _check_texts(self, row: Record, join: Join | None, variants: list[Variant], place: str) -> None:
        if join is not None:
            return  # the table's texts were checked once, when it was read
        wanted: tuple[str, ...] = self.inputs
        present = tuple(name for name in self.task.inputs if name in row)
        if self.variants is not None:  # what a row to predict on holds besides its source is not looked at
            wanted, present = tuple(n for variant in variants for n in self.variants.columns(variant)), ()
        for name in self.task.inputs:
            if name in wanted or name in present:
                check_text(row, name, place, self.problems)

    def _check_id(self, row: Record, place: str) -> None:
        """Answers are written under it."""
        id_ = row.get("id")
        if isinstance(id_, str) and (position := _half_character(id_)) is not None:
            self.problems.add(
                place, f"wanted text in column 'id', found half a surrogate pair at character {position:,}"
            )

    def _check_label(self, row: Record, form: LabelForm, place: str) -> None:
        name = self.task.label
        if name is None or (row.get(name) is None and not self.labels_required):
            return
        label = label_of(row.get(name), form)
        if label is not None:
            row[name] = label
        elif name not in row:
            self.problems.add(place, f"wanted column {name!r}, found {', '.join(map(str, row)) or 'no columns'}")
        else:
            self.problems.add(place, f"wanted 0 or 1 in column {name!r}, found {shown(row[name])}")


def label_of(value: Any, form: LabelForm) -> int | None:
    """0 or 1 if `value` says so in that form, else none."""
    if isinstance(value, Integral):
        return int(value) if value in (0, 1) else None
    if form == "table" and isinstance(value, float):
        return int(value) if value in (0.0, 1.0) else None
    if form == "text" and isinstance(value, str):
        return LABEL_WORDS.get(value.strip().lower())
    return None


def check_text(row: Record, name: str, place: str, problems: RowProblems) -> bool:
    """Whether a column holds text that a tokenizer can read; notes the problem if not."""
    value = row.get(name)
    if name not in row:
        problems.add(place, f"wanted column {name!r}, found {', '.join(map(str, row)) or 'no columns'}")
    elif not isinstance(value, str):
        problems.add(place, f"wanted text in column {name!r}, found {shown(value)}")
    elif not value or value.isspace():
        problems.add(place, f"wanted text in column {name!r}, found nothing but blanks")
    elif (position := _half_character(value)) is not None:
        problems.add(place, f"wanted text in column {name!r}, found half a surrogate pair at character {position:,}")
    else:
        return True
    return False


def read_table(source: RecordSource, join: Join, columns: Columns, problems: RowProblems) -> TextTable:
    """The texts by id; each id once.

    Raises:
        UserError: The first record lacks a column.
    """
    texts: dict[str, str] = {}
    lines: dict[str, int] = {}
    before = problems.total
    for line, record in source.records(problems):
        row, place = columns.rename(record), source.place(line)
        if not lines and not {join.key, join.value} <= row.keys():
            raise columns.missing(place, (join.key, join.value), row)
        key = _own_id(row.get(join.key))
        if key is None:
            problems.add(place, f"wanted an id in column {join.key!r}, found {shown(row.get(join.key))}")
        elif key in lines:
            problems.add(place, f"wanted each {join.key!r} once, found {key!r} again (first in line {lines[key]})")
        elif check_text(row, join.value, place, problems):
            texts[key] = row[join.value]
        if key is not None:
            lines.setdefault(key, line)
    return TextTable(source.name, texts, problems.total == before)


def _own_id(value: Any) -> str | None:
    if isinstance(value, str):
        return value if value.strip() and _half_character(value) is None else None
    return str(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


def _half_character(value: str) -> int | None:
    """Where a text holds half a surrogate pair, which no file takes; None: nowhere."""
    if value.isascii():
        return None
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None
