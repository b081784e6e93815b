"""One miner a task: the functions of a module become rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from manyskills.data.mining.clones import clone_pairs
from manyskills.data.mining.flakiness import inject, is_suspect, is_test
from manyskills.data.mining.functions import Function
from manyskills.data.mining.mutations import mutate
from manyskills.data.mining.search import query_of
from manyskills.data.rows import Row
from manyskills.tasks.base import SplitName


@dataclass(frozen=True, slots=True)
class Turn:
    """What a miner may use while it works on one module.

    Attributes:
        taken: Rows that the split has already; labels alternate by it.
        room: Rows that it still takes.
        claim: True the first time it sees a text (blanks aside): a text that comes again must be left out.
    """

    split: SplitName
    taken: int
    room: int
    rng: random.Random
    claim: Callable[[str], bool]


class Miner(Protocol):
    """A task's way from functions to rows; `synthetic` says how labels were made, None if nobody made any."""

    task: str
    synthetic: str | None
    from_tests: bool

    def rows(self, functions: Sequence[Function], turn: Turn) -> list[Row]:
        """At most `turn.room` rows from the functions of one module."""
        ...


class CloneMiner:
    """Pairs of functions; both sides are printed from their trees, for a rewrite has no layout of its own."""

    task = "clone_detection"
    from_tests = False
    synthetic: str | None = (
        "label 1 is a function and its own behaviour-preserving rewrite by rules (renaming, loops, conditions, order), "
        "label 0 is that rewrite and the most similar other function of the module; nobody has judged them"
    )

    def rows(self, functions: Sequence[Function], turn: Turn) -> list[Row]:
        """Positive and negative pairs, in equal number."""
        return clone_pairs(functions, turn.rng, turn.claim, room=turn.room)


class DefectMiner:
    """Functions with and without one mutation, both as their authors laid them out."""

    task = "defect_detection"
    from_tests = False
    synthetic: str | None = (
        "label 1 has one mistake put in by a rule (wrong operator, off by one, swapped arguments, dropped guard, wrong "
        "variable), label 0 is as its author wrote it; training has both versions of each function, valid and test "
        "one of them, so that their rows are independent"
    )

    def rows(self, functions: Sequence[Function], turn: Turn) -> list[Row]:
        """Both versions for training, else one, labels alternating; only functions that can be mutated."""
        rows: list[Row] = []
        step = 2 if turn.split == "train" else 1
        for function in functions:
            if len(rows) + step > turn.room or not turn.claim(function.code):
                continue
            mutated = mutate(function, turn.rng)
            if mutated is None or not turn.claim(mutated.code):
                continue
            sound = self._row(function, function.code, 0, None)
            broken = self._row(function, mutated.code, 1, mutated.kind)
            both = [sound, broken]
            rows += both if step == 2 else [both[(turn.taken + len(rows)) % 2]]
        return rows

    @staticmethod
    def _row(function: Function, code: str, label: int, kind: str | None) -> Row:
        suffix = "#mutated" if label else ""
        return {"id": function.id + suffix, "code": code, "label": label, "mutation": kind, "project": function.project}


class FlakyMiner:
    """Real tests: with a root cause, with its harmless look-alike, or untouched."""

    task = "flaky_tests"
    from_tests = True
    synthetic: str | None = (
        "label 1 has a known root cause of flakiness put in by a rule (fixed wait, unseeded randomness, wall clock, "
        "unordered collection, shared state), label 0 is a real test that is untouched or got a harmless look-alike of "
        "such a cause; no test was run"
    )

    def __init__(self, share: float) -> None:
        self._share = share

    def rows(self, functions: Sequence[Function], turn: Turn) -> list[Row]:
        """Every so many rows one is flaky; of the others more than half have a look-alike."""
        rows: list[Row] = []
        for function in functions:
            if len(rows) == turn.room or not is_test(function) or is_suspect(function) or not turn.claim(function.code):
                continue
            number = turn.taken + len(rows)
            flaky = int((number + 1) * self._share) > int(number * self._share)
            touched = flaky or turn.rng.random() < 0.6
            injected = inject(function, turn.rng, flaky=flaky) if touched else None
            if touched and (injected is None or not turn.claim(injected.code)):
                continue
            cause = injected.cause if injected else None
            rows.append(
                {
                    "id": function.id,
                    "code": injected.code if injected else function.code,
                    "label": int(flaky),
                    "root_cause": cause if flaky else None,
                    "look_alike_of": None if flaky else cause,
                    "project": function.project,
                }
            )
        return rows


class SearchMiner:
    """Docstrings and the functions they were cut out of."""

    task = "code_search"
    from_tests = False
    synthetic: str | None = None

    def rows(self, functions: Sequence[Function], turn: Turn) -> list[Row]:
        """One row for each function with a docstring that says something."""
        rows: list[Row] = []
        for function in functions:
            query = query_of(function.docstring)
            if query is None or len(rows) == turn.room:
                continue
            if turn.claim(query.lower()) and turn.claim(function.code):
                rows.append({"id": function.id, "query": query, "code": function.code, "project": function.project})
        return rows
