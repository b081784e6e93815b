"""What a task's length limit means for its texts: cut, read in windows, or refused; and how many that concerns.

Shape legend: N distinct texts, E examples, K texts an example.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from manyskills.config import TaskConfig
from manyskills.data.text_set import Examples
from manyskills.data.tokens import TextTable, TokenStore
from manyskills.errors import UserError
from manyskills.tasks import Kind, Text, get_task

Long = Literal["truncate", "window", "error"]
"""What is done with a text over its limit."""


@dataclass(frozen=True, slots=True)
class ReadingRule:
    """How one task's texts become token sequences.

    Attributes:
        max_length: Tokens of a sequence at most.
        joint: The two texts of a pair are one sequence.
        route: Which part of a routed module reads them.
        long: What is done with longer texts.
        window_overlap: Share of a window that the next one repeats.
    """

    max_length: int
    joint: bool = False
    route: int = 0
    long: Long = "truncate"
    window_overlap: float = 0.0

    @classmethod
    def of(cls, name: str, config: TaskConfig, max_length: int, max_positions: int | None, route: int) -> ReadingRule:
        """The rule of a task.

        Args:
            name: The task.
            config: Its choices.
            max_length: For tasks without their own.
            max_positions: What the backbone can take at most.
            route: Which part of a routed module reads its texts.

        Raises:
            UserError: The length limit is beyond what the backbone can read, or choices exclude each other.
        """
        kind = get_task(name).kind
        if config.read == "joint" and kind is Kind.EMBED:
            wanted = f"tasks.{name}.read: a search compares texts that were read apart, joint cannot be"
            raise UserError(wanted, f"leave tasks.{name}.read out")
        joint = config.read == "joint" and kind is Kind.PAIR
        if joint and config.long == "window":
            wanted = f"tasks.{name}.long: windows are pieces of one text, and read=joint makes one sequence of two"
            raise UserError(wanted, f"set tasks.{name}.read=separate, or tasks.{name}.long to truncate or error")
        limit = length_limit(name, config, max_length, max_positions)
        return cls(limit, joint, route, config.long, config.window_overlap)

    def add(self, text: Text, table: TextTable) -> int:
        """The index of a text that is read by this rule."""
        overlap = self.window_overlap if self.long == "window" else None
        return table.add(text, self.max_length, self.route, overlap)


def length_limit(name: str, config: TaskConfig, max_length: int, max_positions: int | None) -> int:
    """Tokens that a sequence of this task may have.

    Raises:
        UserError: More than the backbone has positions for.
    """
    limit = config.max_length or max_length
    if max_positions is not None and limit > max_positions:
        key = f"tasks.{name}.max_length" if config.max_length else "max_length"
        wanted = f"{key}: {limit} tokens wanted, the backbone reads {max_positions} at most"
        raise UserError(wanted, f"set {key}={max_positions} or less")
    return limit


@dataclass(frozen=True, slots=True)
class Truncation:
    """What the length limit costs one task.

    Attributes:
        texts: Distinct texts.
        cut: Those longer than the limit that lose their end.
        tokens: Tokens of all distinct texts before the cut.
        lost: Tokens that were cut off.
        max_length: The limit.
        long: What is done with longer texts.
        windowed: Those longer than the limit that are read in windows, and lose nothing.
        windows: How many windows these are read in.
        what: What the texts are.
    """

    texts: int
    cut: int
    tokens: int
    lost: int
    max_length: int
    long: Long = "truncate"
    windowed: int = 0
    windows: int = 0
    what: Literal["texts", "prompts", "answers"] = "texts"

    @classmethod
    def count(cls, store: TokenStore, texts_N: np.ndarray, rule: ReadingRule) -> Truncation:
        """Of these texts, which are read by that rule."""
        full_N, sequences_N = store.full_lengths_N[texts_N].astype(np.int64), store.sequences_N[texts_N]
        windowed_N = sequences_N > 1
        lost_N = np.where(windowed_N, 0, full_N - store.lengths_N[texts_N])
        return cls(
            texts=len(texts_N),
            cut=int((lost_N > 0).sum()),
            tokens=int(full_N.sum()),
            lost=int(lost_N.sum()),
            max_length=rule.max_length,
            long=rule.long,
            windowed=int(windowed_N.sum()),
            windows=int(sequences_N[windowed_N].sum()),
        )

    def sentence(self) -> str:
        """For people."""
        match self.long:
            case "error":
                return f"none of {self.texts} {self.what} is longer than {self.max_length} tokens"
            case "window":
                longer = f"{_share(self.windowed, self.texts, self.what)} are longer than {self.max_length} tokens"
                return f"{longer} and are read in {self.windows} windows, losing nothing"
            case "truncate":
                lost = self.lost / max(self.tokens, 1)
                cut = f"{_share(self.cut, self.texts, self.what)} are cut at {self.max_length} tokens"
                return f"{cut}, losing {lost:.1%} of all tokens"


def _share(count: int, texts: int, what: str) -> str:
    return f"{count} of {texts} {what} ({count / max(texts, 1):.1%})"


def refused_texts(store: TokenStore, examples: Examples, rule: ReadingRule) -> Iterator[tuple[int, str]]:
    """Texts over a limit that the rule does not let them exceed.

    Args:
        store: Holds the texts.
        examples: The rows.
        rule: How they are read.

    Yields:
        For each distinct text the first row that has it, and what is wrong there.
    """
    if rule.long != "error":
        return
    names, texts_EK = examples.task.inputs, examples.texts_EK
    texts_N, first_N = np.unique(texts_EK, return_index=True)
    tokens_N = store.full_lengths_N[texts_N]
    over_N = tokens_N > rule.max_length
    for first, tokens in sorted(zip(first_N[over_N].tolist(), tokens_N[over_N].tolist(), strict=True)):
        row, column = divmod(first, texts_EK.shape[1])
        where = f" in column {names[column]!r}" if texts_EK.shape[1] == len(names) else ""
        yield row, f"wanted at most {rule.max_length} tokens{where}, found {tokens:,}"
