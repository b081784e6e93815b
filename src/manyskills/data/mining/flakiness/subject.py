"""A test under injection: where lines may go, and how its author writes assertions."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Callable, Sequence

from manyskills.data.mining.edits import Edit, Source
from manyskills.data.mining.functions import Function, FunctionNode
from manyskills.data.mining.rewriting.context import VOCABULARY
from manyskills.data.mining.scopes import analyse

_OPERATORS = {
    "assertEqual": "==", "assertNotEqual": "!=", "assertLess": "<", "assertLessEqual": "<=", "assertGreater": ">",
    "assertGreaterEqual": ">=", "assertIn": "in", "assertNotIn": "not in",
}  # fmt: skip


class Subject:
    """One test and the means to edit it."""

    def __init__(self, function: Function, tree: FunctionNode, rng: random.Random) -> None:
        self.tree, self.rng = tree, rng
        self.source = Source(function.code)
        self._taken = set(analyse(tree).names)
        self._unittest = "self.assert" in function.code
        self._words = [word for word in re.findall(r"[a-z]{3,}", function.name.lower()) if word != "test"]

    @property
    def places(self) -> list[ast.stmt]:
        """Statements of the body that lines can be put before: they begin their own line."""
        return [statement for statement in self.tree.body if self.source.own_lines(statement)]

    def pick(self, *choices: str) -> str:
        """One of them at random."""
        return self.rng.choice(choices)

    def name(self, *wishes: str) -> str:
        """A variable name that the test does not use, from `wishes` or the vocabulary."""
        for _ in range(1000):
            name = self.rng.choice(wishes) if wishes and self.rng.random() < 0.5 else self.rng.choice(VOCABULARY)
            if name not in self._taken:
                self._taken.add(name)
                return name
        raise RuntimeError("the vocabulary is used up")

    def words(self, count: int) -> list[str]:
        """Different words, from the test's name where it has enough."""
        pool = [*dict.fromkeys(self._words), *self.rng.sample(VOCABULARY, 2 * count)]
        return list(dict.fromkeys(pool))[:count]

    def check(self, method: str, left: str, right: str) -> str:
        """An assertion in the test's own style."""
        if self._unittest:
            return f"self.{method}({left}, {right})"
        return f"assert {left} {_OPERATORS[method]} {right}"

    def before(self, statement: ast.stmt, lines: Sequence[str]) -> Edit:
        """Put lines before a statement of `places`, with its indentation."""
        start = self.source.span(statement)[0]
        indent = self.source.indentation(statement)
        return Edit(start, start, "".join(f"{line}\n{indent}" for line in lines))

    def after(self, statement: ast.stmt, lines: Sequence[str]) -> Edit:
        """Put lines after a statement of `places`, with its indentation."""
        end = (self.source.own_lines(statement) or self.source.span(statement))[1]
        indent = self.source.indentation(statement)
        if self.source.text[end - 1 : end] == "\n":
            return Edit(end, end, "".join(f"{indent}{line}\n" for line in lines))
        return Edit(end, end, "".join(f"\n{indent}{line}" for line in lines))

    def replaced(self, statement: ast.stmt, lines: Sequence[str]) -> Edit:
        """Put lines in a statement's place."""
        return self.source.replace(statement, ("\n" + self.source.indentation(statement)).join(lines))

    def checks(self) -> list[ast.stmt]:
        """Assertions among `places`."""
        return [statement for statement in self.places if is_check(statement)]

    def around(self, before: Sequence[str], after: Sequence[str]) -> list[Edit]:
        """Lines before and after some statements that follow each other (one at least); no place, no edits."""
        places = self.places
        if not places:
            return []
        first = self.rng.randrange(len(places))
        last = min(len(places) - 1, first + self.rng.randrange(3))
        if isinstance(places[last], ast.Return | ast.Raise):
            return []
        return [self.before(places[first], before), self.after(places[last], after)]

    def inserted(self, lines: Sequence[str]) -> list[Edit]:
        """Lines before any statement."""
        places = self.places
        return [self.before(self.rng.choice(places), lines)] if places else []


Cause = Callable[[Subject, bool], list[Edit]]
"""Edits that bring a root cause in, or (second argument false) its harmless look-alike; none where it does not fit."""


def is_check(statement: ast.stmt) -> bool:
    """Whether the statement asserts something."""
    if isinstance(statement, ast.Assert):
        return True
    call = statement.value if isinstance(statement, ast.Expr) else None
    name = call.func if isinstance(call, ast.Call) else None
    text = name.attr if isinstance(name, ast.Attribute) else getattr(name, "id", "")
    return text.startswith(("assert", "fail"))
