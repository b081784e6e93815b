"""Clone pairs of one module: a function and its rewrite, and another function and that same rewrite."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from manyskills.data.mining.functions import Function, FunctionNode, parse_function
from manyskills.data.mining.rewriting import Rewritten, rewrite
from manyskills.data.mining.scopes import arguments_of
from manyskills.data.rows import Row


@dataclass(slots=True)
class _Candidate:
    """A function, printed from its tree so that layout and comments are as in a rewrite, and its rewrite once tried."""

    function: Function
    code: str
    words: frozenset[str]
    rewrites: list[Rewritten | None] = field(default_factory=list)

    def rewritten(self, rng: random.Random, claim: Callable[[str], bool]) -> Rewritten | None:
        if not self.rewrites:
            made = rewrite(self.function, rng)
            self.rewrites.append(made if made is not None and claim(made.code) else None)
        return self.rewrites[0]


def clone_pairs(
    functions: Sequence[Function], rng: random.Random, claim: Callable[[str], bool], *, room: int
) -> list[Row]:
    """Pairs with labels 1 and 0 in equal number, at most `room` rows.

    Each rewrite is in one pair of either label, opposite a printed original in both: a side alone tells nothing.
    The wrong partner is the function of the module that shares most words with the right one, among those that can
    be rewritten as well.
    """
    rows: list[Row] = []
    candidates = [made for function in functions if (made := _candidate(function, claim)) is not None]
    for candidate in candidates:
        if len(rows) + 2 > room:
            break
        rewritten = candidate.rewritten(rng, claim)
        if rewritten is None:
            continue
        for other in _by_likeness(candidate, candidates)[:5]:
            if other.rewritten(rng, claim) is not None:
                rows.append(_row(candidate, candidate, rewritten, rng))
                rows.append(_row(other, candidate, rewritten, rng))
                break
    return rows


def _row(partner: _Candidate, rewritten_of: _Candidate, rewritten: Rewritten, rng: random.Random) -> Row:
    sides = [(partner.function.id, partner.code), (f"{rewritten_of.function.id}#rewritten", rewritten.code)]
    rng.shuffle(sides)
    (id1, code1), (id2, code2) = sides
    label = int(partner is rewritten_of)
    return {"id1": id1, "id2": id2, "label": label, "rewrites": rewritten.rules, "code1": code1, "code2": code2}


def _candidate(function: Function, claim: Callable[[str], bool]) -> _Candidate | None:
    tree = parse_function(function.code)
    code = ast.unparse(tree)
    # Shapes are claimed, too: two functions that differ only in names would be clones in two splits, or a false 0.
    if not claim(code) or not claim(_shape(tree, code)):
        return None
    return _Candidate(function, code, frozenset(re.findall(r"\w+", code)))


def _by_likeness(candidate: _Candidate, candidates: Sequence[_Candidate]) -> list[_Candidate]:
    def likeness(other: _Candidate) -> float:
        return len(candidate.words & other.words) / len(candidate.words | other.words)

    size = len(candidate.code)
    others = [other for other in candidates if other is not candidate and size / 3 <= len(other.code) <= 3 * size]
    return sorted(others, key=likeness, reverse=True)


def _shape(tree: FunctionNode, code: str) -> str:
    """The code with the function's name and its variables numbered by first appearance."""
    own = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own |= {argument.arg for argument in arguments_of(tree.args)}
    numbers = {tree.name: "$"}

    def numbered(word: re.Match[str]) -> str:
        text = word.group()
        return numbers.setdefault(text, f"${len(numbers)}") if text in own else numbers.get(text, text)

    return "shape " + re.sub(r"\w+", numbered, code)
