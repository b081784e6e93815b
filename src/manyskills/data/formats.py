"""File formats: each yields (line number, record) and notes what it cannot read; one table names them.

A record is what the file holds, nothing changed: newlines and indentation stay, columns keep their names.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from manyskills.data.problems import RowProblems, shown
from manyskills.errors import UserError, require_library

Record = dict[str, Any]
Numbered = Iterator[tuple[int, Record]]
LabelForm = Literal["json", "table", "text"]
"""How a label may be written: json knows whole numbers and booleans, tables also 1.0, text nothing but strings."""

BOM = b"\xef\xbb\xbf"
LONGEST_FIELD = 1 << 27


@dataclass(frozen=True, slots=True)
class RecordSource:
    """Somewhere records come from.

    Attributes:
        name: What messages call it; a record's place is `name:line`.
        stem: What the ids of rows without their own id begin with (`train.jsonl`).
        labels: How labels may be written there.
        records: Reads it from the start, noting problems.
        added: Columns that every record gets (the language of `python_train.jsonl`).
        between: What stands between name and line number in a place.
    """

    name: str
    stem: str
    labels: LabelForm
    records: Callable[[RowProblems], Numbered]
    added: Record
    between: str = ":"

    def place(self, line: int) -> str:
        """Where a record stands, for messages."""
        return f"{self.name}{self.between}{line}"


def read_jsonl(lines: Iterable[bytes], name: str, problems: RowProblems) -> Numbered:
    """JSON objects, one a line. Lines end at a newline byte only: U+2028 inside a string is text."""
    offset = 0
    for number, line in enumerate(lines, start=1):
        start, offset = offset, offset + len(line)
        stripped = (line.removeprefix(BOM) if number == 1 else line).strip()
        if not stripped:
            continue
        try:
            record = json.loads(stripped.decode())
        except UnicodeDecodeError as error:
            position = start + line.index(stripped) + error.start
            problems.add(f"{name}:{number}", _not_utf8(stripped[error.start], position))
        except ValueError as error:
            problems.add(f"{name}:{number}", f"wanted a JSON object, found broken JSON ({_reason(error)})")
        except RecursionError:
            problems.add(f"{name}:{number}", "wanted a JSON object, found JSON nested too deeply to read")
        else:
            if isinstance(record, dict):
                yield number, record
            else:
                problems.add(f"{name}:{number}", f"wanted a JSON object, found {shown(record)}")


def _reason(error: ValueError) -> str:
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _not_utf8(byte: int, position: int) -> str:
    return f"wanted UTF-8, found byte 0x{byte:02x} at byte offset {position:,} of the file"


def _jsonl_file(path: Path, name: str, problems: RowProblems) -> Numbered:
    with path.open("rb") as file:
        yield from read_jsonl(file, name, problems)


def _csv_file(path: Path, name: str, problems: RowProblems) -> Numbered:
    text = _decoded(path.read_bytes(), name, problems)
    if text is None:
        return
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_FIELD))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    before = 0
    try:
        for fields in reader:
            number, before = before + 1, reader.line_num
            if header is None:
                header = _checked_header(fields, f"{name}:{number}")
            elif len(fields) == len(header):
                yield number, dict(zip(header, fields, strict=True))
            elif fields:
                problems.add(f"{name}:{number}", f"wanted {len(header)} fields as in the header, found {len(fields)}")
    except csv.Error as error:
        problems.add(f"{name}:{before + 1}", f"wanted a CSV record, found a broken one ({error})")


def _decoded(data: bytes, name: str, problems: RowProblems) -> str | None:
    data = data.removeprefix(BOM)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problems.add(f"{name}:{line}", _not_utf8(data[error.start], error.start))
        return None


def _checked_header(fields: list[str], place: str) -> list[str]:
    twice = sorted({name for name in fields if fields.count(name) > 1})
    if twice:
        raise UserError(f"{place}: wanted each column once, found {', '.join(map(repr, twice))} more than once")
    return fields


def _parquet_file(path: Path, name: str, problems: RowProblems) -> Numbered:
    require_library("pyarrow", f"{name}: a parquet file")
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except UnicodeDecodeError as error:
        problems.add(f"{name}:{number + 1}", f"wanted UTF-8 in the rows from here on, found {error.reason}")
    except (pa.ArrowException, OSError) as error:
        problems.add(name, f"wanted a parquet file, found one that cannot be read ({error})")


@dataclass(frozen=True, slots=True)
class Format:
    """How one kind of file is read, and how its labels may be written."""

    read: Callable[[Path, str, RowProblems], Numbered]
    labels: LabelForm


FORMATS: dict[str, Format] = {
    ".jsonl": Format(_jsonl_file, "json"),
    ".parquet": Format(_parquet_file, "table"),
    ".csv": Format(_csv_file, "text"),
}


def file_source(path: Path, added: Record | None = None) -> RecordSource:
    """A file as a source of records, its format told by its ending.

    Raises:
        UserError: There is no such file, or its ending is not in `FORMATS`.
    """
    known = ", ".join(FORMATS)
    if path.suffix not in FORMATS:
        raise UserError(f"{path}: wanted a file that ends in {known}", "convert it, JSON lines are the simplest")
    if not path.is_file():
        raise UserError(f"there is no file {path}", "check the path; relative paths start at the current folder")
    form = FORMATS[path.suffix]
    return RecordSource(
        str(path), path.name, form.labels, lambda problems: form.read(path, str(path), problems), added or {}
    )


def stream_source(stream: BinaryIO | None = None) -> RecordSource:
    """JSON lines from a stream, by default standard input."""
    lines = sys.stdin.buffer if stream is None else stream
    return RecordSource("<stdin>", "stdin", "json", lambda problems: read_jsonl(lines, "<stdin>", problems), {})


def memory_source(rows: Sequence[Mapping[str, Any]]) -> RecordSource:
    """Rows that are in memory already; the first is row 1."""

    def records(problems: RowProblems) -> Numbered:
        for number, row in enumerate(rows, start=1):
            if isinstance(row, Mapping):
                yield number, dict(row)
            else:
                problems.add(f"row {number}", f"wanted a mapping of columns to values, found {shown(row)}")

    return RecordSource("row", "row", "table", records, {}, between=" ")
