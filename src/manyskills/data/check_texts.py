"""Distinct texts of a task's data: keys for comparing them, their lengths, and whether one holds the other."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from manyskills.tasks.base import Text

NOT_WORD = re.compile(r"\W+")
LEAST_WORDS = 3
LEAST_CHARACTERS = 12


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of a length over distinct texts."""

    p5: int
    p50: int
    p95: int
    max: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long distinct texts are; `truncated` is the share over `limit` tokens, where tokens were counted.

    They lose their end only if that is what the task's `long` says.
    """

    texts: int
    characters: Percentiles
    tokens: Percentiles | None
    truncated: float | None
    limit: int | None = None


class TextKeys:
    """Numbers texts, or pairs that are read jointly, so that those which differ only in white space have one number."""

    def __init__(self) -> None:
        self._by_text: dict[Text, int] = {}
        self._by_normal: dict[tuple[str, ...], int] = {}
        self._texts: list[Text] = []

    def key(self, text: Text) -> int:
        """The number of a text."""
        known = self._by_text.get(text)
        if known is None:
            known = self._by_normal.setdefault(tuple(" ".join(p.split()) for p in _parts(text)), len(self._texts))
            if known == len(self._texts):
                self._texts.append(text)
            self._by_text[text] = known
        return known

    def characters(self, key: int) -> int:
        """How long the first text of that number is."""
        return sum(map(len, _parts(self._texts[key])))

    def token_lengths(self, lengths: Callable[[list[Text]], list[int]]) -> list[int]:
        """Tokens of every distinct text, in the order of their numbers."""
        return lengths(self._texts)


def _parts(text: Text) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else text


def measure(wanted: Collection[int], keys: TextKeys, tokens: list[int] | None, max_length: int | None) -> Lengths:
    """Length percentiles of the texts with these numbers."""
    characters = _percentiles([keys.characters(key) for key in wanted])
    if tokens is None:
        return Lengths(len(wanted), characters, None, None)
    counted = [tokens[key] for key in wanted]
    truncated = None if max_length is None else sum(count > max_length for count in counted) / len(counted)
    return Lengths(len(wanted), characters, _percentiles(counted), truncated, max_length)


def _percentiles(values: list[int]) -> Percentiles:
    p5, p50, p95, most = np.percentile(values, (5, 50, 95, 100), method="nearest")
    return Percentiles(int(p5), int(p50), int(p95), int(most))


def answer_inside(query: str, code: str) -> bool:
    """Whether a sentence stands in a code, white space and punctuation aside, as when the docstring was left in.

    Sentences of one or two words, or a few letters, say nothing: they are names of things.
    """
    if len(query.split()) < LEAST_WORDS:
        return False
    sentence = NOT_WORD.sub("", query).lower()
    return len(sentence) >= LEAST_CHARACTERS and sentence in NOT_WORD.sub("", code).lower()
