"""What a task is: the columns it reads, the texts a model sees, the label, and the metric that decides.

A task is data, not code: how its kind is learned (head, loss) lives in `manyskills.model.heads`, how it is measured in
`manyskills.evaluation`. A new task is therefore one file with one `Task` and an entry point in the group
`manyskills.tasks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

SplitName = Literal["train", "valid", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "valid", "test")

Text = str | tuple[str, str]
"""What is encoded: one text, or two parts that are read jointly by the backbone."""


class Kind(StrEnum):
    """How a task's vectors become answers."""

    CLASSIFY = "classify"
    PAIR = "pair"
    EMBED = "embed"
    GENERATE = "generate"


@dataclass(frozen=True, slots=True)
class Join:
    """Pairs that name their texts by id: `pairs_train` refers to rows of the table `functions`.

    A row `{id1, id2, label}` becomes `{code1, code2, label, id1, id2}`.
    """

    table: str
    key: str
    value: str
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """One row as the model sees it: one text, or two (a pair, or a query and its answer)."""

    texts: tuple[Text, ...]
    label: int | None


@dataclass(frozen=True, slots=True)
class Variant:
    """One language or direction of a generating task.

    Attributes:
        name: Its key in configurations, rows and results, such as `python` or `java_csharp`.
        source: Column of the text that is read.
        target: Column of the text that is written.
        language: Of what is written: a programming language, or `english`.
        prompt: The instruction; `{source}` stands where the text is put.
    """

    name: str
    source: str
    target: str
    language: str
    prompt: str


@dataclass(frozen=True, slots=True)
class Task:
    """One skill.

    Attributes:
        name: Its key in configurations, files and results.
        kind: Which head, loss and metrics serve it.
        inputs: Columns that hold text, in order; pair tasks and searches have two.
        label: The column of the 0/1 label; none for searches, where row i's answer is its own second text.
        primary_metric: The metric that selects checkpoints and fills the tables.
        description: One line for people.
        file_stem: What the split's file name starts with (`pairs_` for `pairs_train.jsonl`).
        join: Where texts come from if the rows only name them.
        symmetric: Whether (a, b) and (b, a) are the same row.
        variants: Of a generating task, its languages or directions.
        by_language: A row is of the one variant that its column `language` names, not of all that its columns allow.
        folders: Other names that its folder in data_dir may have.
        question: Of a yes/no task, the instruction where the answer is asked for as a text; its columns stand in
            braces.
    """

    name: str
    kind: Kind
    inputs: tuple[str, ...]
    label: str | None
    primary_metric: str
    description: str
    file_stem: str = ""
    join: Join | None = None
    symmetric: bool = False
    variants: tuple[Variant, ...] = ()
    by_language: bool = False
    folders: tuple[str, ...] = ()
    question: str = ""

    def example(self, row: Mapping[str, Any], *, joint: bool = False) -> Example:
        """The texts and label of a checked row; `joint` makes a pair one text of two parts."""
        texts = tuple(row[name] for name in self.inputs)
        label = None if self.label is None else row.get(self.label)
        return Example(((texts[0], texts[1]),) if joint else texts, label)
