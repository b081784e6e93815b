"""What every rewrite rule works with: the tree, its names, chance, and templates for new code."""

from __future__ import annotations

import ast
import copy
import keyword
import random
from collections.abc import Callable, Iterator
from functools import cached_property

from manyskills.data.mining.functions import BUILTINS, FunctionNode
from manyskills.data.mining.scopes import NESTED, Scope, analyse

Block = list[ast.stmt]

# One list for renamed and for new variables, so that a name tells nothing about the rewrite.
_WORDS = """
    account action address amount answer area argument array base batch bit block body bound box branch bucket
    buffer candidate case cell chain channel check child chunk code collected collection column common content
    context copy counter current cursor data delta depth detail device digit distance document edge element end
    entry error event extra factor field fields first flag folder frame goal group handle head header holder
    host index info initial inner inputs instance interval item items key kind label last layer left length
    level limit lines link local lower mark mask matched member message middle mode model names node note number
    numbers obj offset old option order other outcome output owner pair parent part parts path pattern payload
    piece place pool position prefix previous probe query rank rate raw reader record reference region remaining
    request rest result results root row rows sample scale section selected sequence shape shift single source
    space span start state status step stop store stream suffix table tail target temp term text timeout title
    token total tree unit upper user value values vector weight width window word words wrapper zone
"""
VOCABULARY = tuple(_WORDS.split())


class Context:
    """One application of one rule to one function.

    Attributes:
        function: Changed in place.
        changes: How many places the rule has changed.
    """

    def __init__(
        self, function: FunctionNode, rng: random.Random, shadowed: frozenset[str] = frozenset(), rate: float = 0.8
    ) -> None:
        self.function = function
        self.changes = 0
        self._rng, self._rate, self._shadowed = rng, rate, shadowed

    @cached_property
    def scope(self) -> Scope:
        """The function's names before the rule; only looked up when a rule needs them, for it takes time."""
        return analyse(self.function)

    @cached_property
    def _taken(self) -> set[str]:
        return set(self.scope.names)

    def chance(self) -> bool:
        """Whether to change this place; call it last, when nothing else speaks against it."""
        change = self._rng.random() < self._rate
        self.changes += change
        return change

    def fresh(self) -> str:
        """A name that occurs nowhere in the function and hides no built-in one."""
        for attempt in range(10_000):
            name = self._rng.choice(VOCABULARY) + (f"_{attempt // 50}" if attempt >= 50 else "")
            if name not in self._taken and name not in BUILTINS and not keyword.iskeyword(name):
                self._taken.add(name)
                return name
        raise RuntimeError("the vocabulary is used up")

    def has_builtins(self, *names: str) -> bool:
        """Whether these names surely mean the built-in objects."""
        return not (self.scope.bound | self._shadowed).intersection(names)

    def pick(self, choices: list[str]) -> str:
        """One of them at random."""
        return self._rng.choice(choices)


Rule = Callable[[Context], None]


def rewrite_blocks(context: Context, rewrite: Callable[[Block, bool], Block]) -> None:
    """Apply `rewrite` to every statement list of the function's own scope, innermost first.

    `rewrite` also learns whether the block is guarded: an exception in it may be caught, or code may run after it,
    in this very function, so that half-done work could be seen.
    """
    context.function.body = _rewrite(context.function.body, False, rewrite)


def _rewrite(block: Block, guarded: bool, rewrite: Callable[[Block, bool], Block]) -> Block:
    for statement in block:
        for holder, name in child_blocks(statement):
            inside = guarded or isinstance(statement, ast.Try | ast.TryStar | ast.With | ast.AsyncWith)
            setattr(holder, name, _rewrite(getattr(holder, name), inside, rewrite))
    return rewrite(block, guarded)


def child_blocks(statement: ast.stmt) -> Iterator[tuple[ast.AST, str]]:
    """Where a statement of this scope holds further statement lists, as (object, attribute)."""
    if isinstance(statement, NESTED):
        return
    for name in ("body", "orelse", "finalbody"):
        if getattr(statement, name, None):
            yield statement, name
    for inner in [*getattr(statement, "handlers", []), *getattr(statement, "cases", [])]:
        yield inner, "body"


def fill(template: str, **parts: str | ast.expr | Block) -> Block:
    """Code from a template: names in it stand for other names, for expressions, or (alone in a line) for statements."""
    filled = _Filler(parts).visit(ast.parse(template))
    return filled.body


class _Filler(ast.NodeTransformer):
    def __init__(self, parts: dict[str, str | ast.expr | Block]) -> None:
        self.parts = parts

    def visit_Expr(self, node: ast.Expr) -> ast.AST | Block:
        part = self.parts.get(node.value.id) if isinstance(node.value, ast.Name) else None
        return part if isinstance(part, list) else self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        part = self.parts.get(node.id)
        if isinstance(part, str):
            return ast.Name(part, node.ctx)
        if isinstance(part, ast.expr):
            part = copy.deepcopy(part)
            if isinstance(node.ctx, ast.Store):
                set_store(part)
            return part
        return node


def set_store(target: ast.expr) -> None:
    """Make an expression an assignment target."""
    if isinstance(target, ast.Name | ast.Attribute | ast.Subscript | ast.Starred | ast.Tuple | ast.List):
        target.ctx = ast.Store()
    for part in target.elts if isinstance(target, ast.Tuple | ast.List) else []:
        set_store(part)


def negated(test: ast.expr) -> ast.expr:
    """An expression that is true exactly when `test` is false; only its truth may be used, not its value.

    Order comparisons are not turned (`not a < b` is no `a >= b` for NaN or sets), nor `==` (`!=` has its own method).
    """
    opposite = {ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return test.operand
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and type(test.ops[0]) in opposite:
        return ast.Compare(test.left, [opposite[type(test.ops[0])]()], test.comparators)
    return ast.UnaryOp(ast.Not(), test)


def single_name(targets: list[ast.expr]) -> str | None:
    """The one plain name that is assigned to, if so."""
    target = targets[0]
    return target.id if len(targets) == 1 and isinstance(target, ast.Name) else None
