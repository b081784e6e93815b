"""Behaviour-preserving rewrites of a function: one file a family, each rule exact on its own.

Rules work on the syntax tree and so lose comments and layout; whoever compares a rewrite with an original must print
the original from its tree, too.
"""

from __future__ import annotations

import ast
import random
from dataclasses import dataclass

from manyskills.data.mining.functions import Function, compiles, parse_function
from manyskills.data.mining.rewriting import conditions, loops, statements
from manyskills.data.mining.rewriting.context import Context, Rule
from manyskills.data.mining.rewriting.renaming import rename

__all__ = ["RULES", "Rewritten", "rewrite"]

RULES: dict[str, Rule] = {**conditions.RULES, **loops.RULES, **statements.RULES}


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A function that does the same in other words, and the names of the rules that made it."""

    code: str
    rules: tuple[str, ...]


def rewrite(function: Function, rng: random.Random) -> Rewritten | None:
    """The function under as many rules as apply, and renamed; None if no rule beside renaming applies.

    Also None where names may be read as data (`locals()`, `eval`) or a class is defined inside.
    """
    tree = parse_function(function.code)
    if Context(tree, rng).scope.dynamic:
        return None
    applied = []
    for name, rule in rng.sample(sorted(RULES.items()), len(RULES)):
        context = Context(tree, rng, function.shadowed)
        rule(context)
        if context.changes:
            applied.append(name)
    if not applied:
        return None
    context = Context(tree, rng, function.shadowed)
    rename(context, is_method=function.is_method)
    if context.changes:
        applied.append("renaming")
    try:
        code = ast.unparse(tree)
        same = ast.dump(parse_function(code)) == ast.dump(tree)
    except (SyntaxError, ValueError, RecursionError):
        return None  # f-strings that this Python cannot print
    return Rewritten(code, tuple(applied)) if same and compiles(code) else None
