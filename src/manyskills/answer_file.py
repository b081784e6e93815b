"""A file of written answers that grows while they are written, and can be gone on with after an interruption.

One JSON object a line: `id`, `variant`, `sample` where there are several, `prediction`. A file of options beside it
(`<name>.options.json`) says what the answers were written with, so that no other answers are mixed in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from manyskills.data.rows import Row
from manyskills.errors import UserError
from manyskills.files import clear_errors, write_atomically

FORMAT = 1


def answer_lines(row: Row, answers: Sequence[str]) -> str:
    """The lines of one row's answers, all of them or none to be written."""
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(answers):
        place = {"id": row["id"], "variant": row["variant"]} | ({"sample": number} if len(answers) > 1 else {})
        lines.append(place | {"prediction": text})
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def rows_digest(rows: Sequence[Row], sources: Mapping[str, str]) -> str:
    """sha256 of what is asked.

    Args:
        rows: In order.
        sources: By variant, the column that is read.
    """
    whole = hashlib.sha256()
    for row in rows:
        whole.update(json.dumps([row["id"], row["variant"], row[sources[row["variant"]]]]).encode() + b"\n")
    return whole.hexdigest()


def module_digest(folder: Path, backbone: str) -> str:
    """sha256 of a trained module's files (its tasks and its weights) and of its backbone's.

    Args:
        folder: The module.
        backbone: A folder, whose weights and tokenizer count; or a name on the hub, whose files nobody changes in
            place. All bytes are read: it takes less time than loading them.
    """
    files = [path for path in folder.iterdir() if path.name == "tasks.json" or path.suffix == ".safetensors"]
    local = Path(backbone)
    if local.is_dir() and not local.samefile(folder):  # an exported module is its own backbone
        files += [path for path in local.iterdir() if path.suffix in (".safetensors", ".json")]
    whole = hashlib.sha256()
    for path in sorted(files):
        with path.open("rb") as file:
            whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


class AnswerFile:
    """Answers by row.

    Args:
        path: The file.
        options: What the answers are written with, ready for JSON.
        samples: Answers to each row.
    """

    def __init__(self, path: Path, options: Mapping[str, Any], samples: int) -> None:
        self.path, self.options, self.samples = path, {"format": FORMAT, **options}, samples
        self.options_path = path.parent / f"{path.name}.options.json"
        self._lines: dict[str, str] = {}
        self._file: TextIOWrapper | None = None

    def open(self, *, resume: bool, overwrite: bool) -> set[str]:
        """Begin, or go on.

        Args:
            resume: Keep the answers that are there.
            overwrite: Remove the answers that are there.

        Returns:
            Ids of rows that are answered already.

        Raises:
            UserError: The file is there and it was not said what to do with it, or its answers were written with other
                options, by another module or to other rows; or the system refuses to write it.
        """
        with clear_errors(self.path):
            return self._open(resume=resume, overwrite=overwrite)

    def _open(self, *, resume: bool, overwrite: bool) -> set[str]:
        if resume and overwrite:
            raise UserError("--resume and --overwrite contradict each other", "leave one of them out")
        if self.path.is_dir():
            raise UserError(f"{self.path} is a folder", "give the name of a file")
        if self.path.exists() and not (resume or overwrite):
            hint = "--resume goes on with it, --overwrite removes it; or choose another name"
            raise UserError(f"{self.path} is there already", hint)
        if resume and self.path.exists():
            self._refuse_others()
            self._lines = self._complete()
        # answers before options: a file without options is never gone on with
        write_atomically(self.path, "".join(self._lines.values()))
        write_atomically(self.options_path, json.dumps(self.options, indent=2) + "\n")
        self._file = self.path.open("a", encoding="utf-8", newline="\n")
        return set(self._lines)

    def add(self, row: Row, answers: Sequence[str]) -> None:
        """Write one row's answers behind those that are there."""
        assert self._file is not None
        lines = self._lines[row["id"]] = answer_lines(row, answers)
        with clear_errors(self.path):
            self._file.write(lines)
            self._file.flush()

    def finish(self, rows: Sequence[Row]) -> None:
        """Bring the answers into the order of the rows: an interruption leaves no trace."""
        self.close()
        write_atomically(self.path, "".join(self._lines[row["id"]] for row in rows))

    def close(self) -> None:
        """Keep what is there."""
        if self._file is not None:
            self._file.close()

    def _refuse_others(self) -> None:
        try:
            there = json.loads(self.options_path.read_text(encoding="utf-8"))
            differing = [key for key, value in self.options.items() if there.get(key) != value]
        except (OSError, ValueError, AttributeError) as error:
            what = f"{self.path} cannot be gone on with: {self.options_path.name} is missing or broken"
            raise UserError(what, "--overwrite begins anew; or choose another name") from error
        if differing:
            key = differing[0]
            values = "" if key in ("module", "rows") else f": {there.get(key)}, now {self.options[key]}"
            what = f"{self.path} was written with other {', '.join(differing)}{values}"
            raise UserError(what, "resume it with the options it was begun with, or begin anew with --overwrite")

    def _complete(self) -> dict[str, str]:
        """The lines of rows that have all their answers; what an interruption tore is dropped."""
        found: dict[str, list[str]] = {}
        # only the line break of JSON lines: a text may hold others, which splitlines would take for one
        for line in self.path.read_bytes().decode("utf-8", errors="replace").split("\n")[:-1]:
            try:
                entry = json.loads(line)
                id_ = entry["id"] if "prediction" in entry else None
            except (ValueError, TypeError, KeyError):
                id_ = None
            if isinstance(id_, str):
                found.setdefault(id_, []).append(f"{line}\n")
        return {id_: "".join(lines) for id_, lines in found.items() if len(lines) == self.samples}
