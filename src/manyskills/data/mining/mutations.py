"""Single realistic mistakes: wrong operator, off by one, swapped arguments, dropped guard, wrong variable.

They are edits of the text, so that a defective function keeps its author's layout and comments as a sound one does.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from manyskills.data.mining.edits import Edit, Source, apply_edits
from manyskills.data.mining.functions import Function, FunctionNode, compiles, parse_function
from manyskills.data.mining.scopes import Scope, analyse

_WRONG = {
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Lt: ("<", ">"),
    ast.Gt: (">", "<"),
    ast.LtE: ("<=", ">="),
    ast.GtE: (">=", "<="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "/"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.LShift: ("<<", ">>"),
}
_OFF_BY_ONE = {ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">")}

# Their arguments may change places without harm, or no one would confuse them.
_SYMMETRIC = frozenset({"max", "min", "gcd", "isclose", "zip", "print", "isinstance", "hasattr", "getattr", "setattr"})

Site = list[Edit]


@dataclass(frozen=True, slots=True)
class Mutated:
    """A function with one mistake in it, and which kind."""

    code: str
    kind: str


@dataclass(frozen=True, slots=True)
class _Subject:
    tree: FunctionNode
    source: Source
    scope: Scope

    def nodes(self) -> Iterator[ast.AST]:
        """Everything in the body but what only words an error message, or annotates."""
        waiting: list[ast.AST] = list(reversed(self.tree.body))
        while waiting:
            node = waiting.pop()
            yield node
            if isinstance(node, ast.Raise | ast.JoinedStr):
                continue
            skipped = {id(getattr(node, name, None)) for name in ("annotation", "returns", "msg")}
            waiting += [child for child in reversed(list(ast.iter_child_nodes(node))) if id(child) not in skipped]


def mutate(function: Function, rng: random.Random) -> Mutated | None:
    """The function with one mistake, kinds being equally likely; None if it offers no place for any.

    The result parses, compiles, and differs in its syntax tree.
    """
    tree = parse_function(function.code)
    subject = _Subject(tree, Source(function.code), analyse(tree))
    before = ast.dump(tree)
    for kind in rng.sample(sorted(KINDS), len(KINDS)):
        sites = list(KINDS[kind](subject))
        for site in rng.sample(sites, len(sites))[:3]:
            code = apply_edits(function.code, site)
            try:
                changed = ast.dump(parse_function(code)) != before
            except SyntaxError:
                continue
            if changed and compiles(code):
                return Mutated(code, kind)
    return None


def _wrong_operator(subject: _Subject) -> Iterator[Site]:
    for node in subject.nodes():
        for operator, gaps in _operators(node, subject.source):
            if type(operator) in _WRONG and not _joins_text(node):
                yield from _exchanged(*_WRONG[type(operator)], gaps, subject.source.text)


def _off_by_one(subject: _Subject) -> Iterator[Site]:
    source = subject.source
    for node in subject.nodes():
        for operator, gaps in _operators(node, source):
            if type(operator) in _OFF_BY_ONE:
                yield from _exchanged(*_OFF_BY_ONE[type(operator)], gaps, source.text)
        for index in _indices(node):
            yield from _shifted(index, source)


def _indices(node: ast.AST) -> list[ast.expr]:
    """Expressions that count or point: indices, bounds of slices and of ranges, what is compared with a number."""
    if isinstance(node, ast.Subscript):
        index = node.slice
        bounds = [index.lower, index.upper] if isinstance(index, ast.Slice) else [index]
        return [bound for bound in bounds if bound is not None and (isinstance(index, ast.Slice) or _counts(bound))]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        return node.args[:2]
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        return [side for side in node.comparators if _number(side) is not None]
    return []


def _shifted(index: ast.expr, source: Source) -> Iterator[Site]:
    number = _number(index)
    if number is not None:
        for neighbour in (number + 1, number - 1):
            if neighbour >= 0:
                yield [source.replace(index, str(neighbour))]
    elif isinstance(index, ast.BinOp) and _number(index.right) == 1 and isinstance(index.op, ast.Add | ast.Sub):
        yield [Edit(source.span(index.left)[1], source.span(index)[1], "")]
    elif isinstance(index, ast.Name | ast.Attribute | ast.Call):
        for change in (" + 1", " - 1"):
            yield [Edit(source.span(index)[1], source.span(index)[1], change)]


def _swapped_arguments(subject: _Subject) -> Iterator[Site]:
    source = subject.source
    for node in subject.nodes():
        if not isinstance(node, ast.Call) or len(node.args) < 2:
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in _SYMMETRIC or any(isinstance(argument, ast.Starred) for argument in node.args):
            continue
        for first, second in zip(node.args, node.args[1:], strict=False):
            if _is_simple(first) and _is_simple(second) and source.slice(first) != source.slice(second):
                yield [source.replace(first, source.slice(second)), source.replace(second, source.slice(first))]


def _dropped_guard(subject: _Subject) -> Iterator[Site]:
    source = subject.source
    for node in subject.nodes():
        for block in _blocks(node):
            yield from _dropped_exits(block, source)
        test = node.test if isinstance(node, ast.If | ast.While | ast.IfExp) else None
        if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
            first, last = test.values[0], test.values[-1]
            yield [Edit(source.span(first)[0], source.span(test.values[1])[0], "")]
            yield [Edit(source.span(test.values[-2])[1], source.span(last)[1], "")]
    yield from _dropped_exits(subject.tree.body, source)


def _dropped_exits(block: list[ast.stmt], source: Source) -> Iterator[Site]:
    """An `if` that only leaves, with the comment above it; the last statement of a block guards nothing."""
    for statement in block[:-1]:
        if not isinstance(statement, ast.If) or statement.orelse or len(statement.body) != 1:
            continue
        lines = source.own_lines(statement)
        if isinstance(statement.body[0], ast.Return | ast.Raise | ast.Continue | ast.Break) and lines:
            start, end = lines
            above = re.search(r"(?:^[ \t]*#.*\n)+\Z", source.text[:start], re.MULTILINE)
            yield [Edit(above.start() if above else start, end, "")]


def _wrong_variable(subject: _Subject) -> Iterator[Site]:
    scope = subject.scope
    bound_at = dict.fromkeys(scope.parameters, 0)
    for node in subject.nodes():
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound_at.setdefault(node.id, node.lineno)
    choices = [name for name in bound_at if name in scope.plain and name not in ("self", "cls", "_")]
    called = {id(node.func) for node in subject.nodes() if isinstance(node, ast.Call)}
    for node in subject.nodes():
        if not isinstance(node, ast.Name) or not isinstance(node.ctx, ast.Load) or id(node) in called:
            continue
        if node.id in choices:
            for name in choices:
                if name != node.id and bound_at[name] < node.lineno:
                    yield [subject.source.replace(node, name)]


KINDS: dict[str, Callable[[_Subject], Iterator[Site]]] = {
    "wrong operator": _wrong_operator,
    "off by one": _off_by_one,
    "swapped arguments": _swapped_arguments,
    "dropped guard": _dropped_guard,
    "wrong variable": _wrong_variable,
}


def _operators(node: ast.AST, source: Source) -> Iterator[tuple[ast.AST, list[tuple[int, int]]]]:
    """Operators with the gaps between operands in which they are written."""

    def gap(left: ast.expr, right: ast.expr) -> tuple[int, int]:
        return source.span(left)[1], source.span(right)[0]

    if isinstance(node, ast.Compare):
        operands = [node.left, *node.comparators]
        for operator, left, right in zip(node.ops, operands, operands[1:], strict=False):
            yield operator, [gap(left, right)]
    elif isinstance(node, ast.BinOp):
        yield node.op, [gap(node.left, node.right)]
    elif isinstance(node, ast.BoolOp):
        yield node.op, [gap(left, right) for left, right in zip(node.values, node.values[1:], strict=False)]
    elif isinstance(node, ast.AugAssign):
        yield node.op, [gap(node.target, node.value)]


def _exchanged(old: str, new: str, gaps: list[tuple[int, int]], text: str) -> Iterator[Site]:
    pattern = r"\s+".join(re.escape(word) for word in old.split())
    pattern = rf"\b{pattern}\b" if old[0].isalpha() else pattern
    edits = []
    for start, end in gaps:
        matches = list(re.finditer(pattern, text[start:end]))
        if len(matches) != 1 or "#" in text[start:end]:
            return
        edits.append(Edit(start + matches[0].start(), start + matches[0].end(), new))
    yield edits


def _joins_text(node: ast.AST) -> bool:
    sides = [node.left, node.right] if isinstance(node, ast.BinOp) else []
    sides += [node.value] if isinstance(node, ast.AugAssign) else []
    return any(
        isinstance(side, ast.JoinedStr | ast.List | ast.Tuple | ast.ListComp)
        or (isinstance(side, ast.Constant) and isinstance(side.value, str | bytes))
        for side in sides
    )


def _number(node: ast.expr) -> int | None:
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _counts(node: ast.expr) -> bool:
    if isinstance(node, ast.Name):
        return node.id in {"i", "j", "k", "n", "idx", "index", "pos", "position", "start", "end", "offset"}
    return _number(node) is not None or (isinstance(node, ast.BinOp) and _number(node.right) == 1)


def _is_simple(node: ast.expr) -> bool:
    return isinstance(node, ast.Name | ast.Attribute | ast.Constant | ast.Subscript)


def _blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        block = getattr(node, name, None)
        if isinstance(block, list):
            yield block
