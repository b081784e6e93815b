"""Rewrites of straight-line code: order, temporaries, augmented assignment, string formatting."""

from __future__ import annotations

import ast
import re
import string
from functools import cache

from manyskills.data.mining.rewriting.context import Block, Context, Rule, rewrite_blocks, single_name
from manyskills.data.mining.scopes import contains, names_in


def reorder_assignments(context: Context) -> None:
    """Two neighbouring assignments of plain values to plain names change places if neither needs the other."""

    def rewrite(block: Block, _: bool) -> Block:
        position = 0
        while position + 1 < len(block):
            first, second = block[position], block[position + 1]
            if _independent(first, second, context) and context.chance():
                block[position : position + 2] = [second, first]
                position += 1
            position += 1
        return block

    rewrite_blocks(context, rewrite)


def _independent(first: ast.stmt, second: ast.stmt, context: Context) -> bool:
    if not isinstance(first, ast.Assign) or not isinstance(second, ast.Assign):
        return False
    one, other = single_name(first.targets), single_name(second.targets)
    if one is None or other is None or one == other or not {one, other} <= context.scope.plain:
        return False
    if not _is_pure(first.value, context) or not _is_pure(second.value, context):
        return False
    return one not in names_in([second.value]) and other not in names_in([first.value])


def _is_pure(node: ast.expr, context: Context) -> bool:
    """Runs no code of anybody's and cannot fail: constants, parameters, and displays of such."""
    if isinstance(node, ast.Constant):
        return True
    if isinstance(node, ast.Name):  # another local variable might not be bound yet, or no longer
        unbound = contains(context.function, ast.Delete) or node.id in _handler_names(context)
        return node.id in context.scope.parameters and node.id in context.scope.plain and not unbound
    if isinstance(node, ast.Tuple | ast.List):
        return all(_is_pure(part, context) for part in node.elts)
    return isinstance(node, ast.Dict) and not node.keys


def split_tuples(context: Context) -> None:
    """`a, b = x, y` of plain values becomes two assignments."""

    def rewrite(block: Block, _: bool) -> Block:
        rewritten: Block = []
        for statement in block:
            rewritten += _parts(statement, context) or [statement]
        return rewritten

    rewrite_blocks(context, rewrite)


def _parts(statement: ast.stmt, context: Context) -> Block | None:
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return None
    targets, values = statement.targets[0], statement.value
    if not isinstance(targets, ast.Tuple) or not isinstance(values, ast.Tuple) or len(targets.elts) != len(values.elts):
        return None
    names = [target.id for target in targets.elts if isinstance(target, ast.Name)]
    if len(set(names)) != len(targets.elts) or not set(names) <= context.scope.plain:
        return None
    if set(names) & names_in([values]) or not all(_is_pure(value, context) for value in values.elts):
        return None
    if not context.chance():
        return None
    return [ast.Assign([target], value, lineno=0) for target, value in zip(targets.elts, values.elts, strict=True)]


def name_the_result(context: Context) -> None:
    """`return f(x)` becomes `y = f(x); return y`, and the other way round."""

    def rewrite(block: Block, guarded: bool) -> Block:
        last = block[-1]
        if not isinstance(last, ast.Return) or last.value is None:
            return block
        previous = block[-2] if len(block) > 1 else None
        if isinstance(last.value, ast.Name):
            name = last.value.id
            seen_elsewhere = guarded or name in context.scope.captured or name not in context.scope.plain
            if not isinstance(previous, ast.Assign) or single_name(previous.targets) != name or seen_elsewhere:
                return block
            return [*block[:-2], ast.Return(previous.value)] if context.chance() else block
        if isinstance(last.value, ast.Constant) or not context.chance():
            return block
        name = context.fresh()
        kept = ast.Assign([ast.Name(name, ast.Store())], last.value, lineno=0)
        return [*block[:-1], kept, ast.Return(ast.Name(name, ast.Load()))]

    rewrite_blocks(context, rewrite)


def spell_out_augmented(context: Context) -> None:
    """`n += 1` becomes `n = n + 1` and back, only for variables that never hold anything mutable."""
    immutable = cache(lambda: _immutable(context))

    def rewrite(block: Block, _: bool) -> Block:
        return [_turned(statement) for statement in block]

    def _turned(statement: ast.stmt) -> ast.stmt:
        if isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Name):
            name = statement.target.id
            if name not in immutable() or not context.chance():
                return statement
            sum_ = ast.BinOp(ast.Name(name, ast.Load()), statement.op, statement.value)
            return ast.Assign([ast.Name(name, ast.Store())], sum_, lineno=0)
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.BinOp):
            name, sum_ = single_name(statement.targets), statement.value
            grows = isinstance(sum_.left, ast.Name) and sum_.left.id == name
            if grows and name in immutable() and context.chance():
                return ast.AugAssign(ast.Name(name, ast.Store()), sum_.op, sum_.right)
        return statement

    rewrite_blocks(context, rewrite)


def _immutable(context: Context) -> set[str]:
    """Local names that are only ever bound to numbers and strings written down in the function."""
    bindings: dict[str, int] = {}
    safe: dict[str, int] = {}
    for node in ast.walk(context.function):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            bindings[node.id] = bindings.get(node.id, 0) + 1
        name, value = None, None
        if isinstance(node, ast.Assign):
            name, value = single_name(node.targets), node.value
            if isinstance(value, ast.BinOp) and isinstance(value.left, ast.Name) and value.left.id == name:
                value = value.right
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            name, value = node.target.id, node.value
        if name is not None and _is_number_or_text(value, context):
            safe[name] = safe.get(name, 0) + 1
    names = context.scope.plain - set(context.scope.parameters) - _handler_names(context)
    return {name for name in names if bindings.get(name) == safe.get(name)}


def _handler_names(context: Context) -> set[str]:
    handlers = (node for node in ast.walk(context.function) if isinstance(node, ast.ExceptHandler))
    return {handler.name for handler in handlers if handler.name}


def _is_number_or_text(value: ast.expr | None, context: Context) -> bool:
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "len":
        return context.has_builtins("len")
    if isinstance(value, ast.Constant):
        return isinstance(value.value, int | float | str | bytes)
    return isinstance(value, ast.JoinedStr)


class _Formats(ast.NodeTransformer):
    def __init__(self, context: Context) -> None:
        self.context = context

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.expr:
        """`f"{a}: {b!r}"` becomes `"{}: {!r}".format(a, b)`."""
        pieces, operands = [], []
        for part in node.values:
            if isinstance(part, ast.Constant):
                pieces.append(str(part.value).replace("{", "{{").replace("}", "}}"))
            elif isinstance(part, ast.FormattedValue):
                spec = _constant_spec(part)
                if spec is None:
                    return node
                pieces.append("{" + ("" if part.conversion == -1 else "!" + chr(part.conversion)) + spec + "}")
                operands.append(part.value)
        if not operands or not _order_free(operands) or not self.context.chance():
            return node
        text = ast.Constant("".join(pieces))
        return ast.Call(ast.Attribute(text, "format", ast.Load()), operands, [])

    def visit_Call(self, node: ast.Call) -> ast.expr:
        """`"{}: {!r}".format(a, b)` becomes an f-string."""
        self.generic_visit(node)
        method = node.func
        if node.keywords or not isinstance(method, ast.Attribute) or method.attr != "format":
            return node
        text = method.value.value if isinstance(method.value, ast.Constant) else None
        if not isinstance(text, str) or not _order_free(node.args):
            return node
        values = _fields(text, node.args)
        return ast.JoinedStr(values) if values and self.context.chance() else node

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        """`"%s: %r" % (a, b)` becomes an f-string; only with a tuple in sight, for a lone operand might be one."""
        self.generic_visit(node)
        text = node.left.value if isinstance(node.left, ast.Constant) else None
        if not isinstance(text, str) or not isinstance(node.op, ast.Mod) or not isinstance(node.right, ast.Tuple):
            return node
        pieces = re.split(r"(%.?)", text, flags=re.DOTALL)
        operands = list(node.right.elts)
        marks = [piece for piece in pieces[1::2] if piece != "%%"]
        if not marks or set(marks) - {"%s", "%r"} or len(marks) != len(operands) or not _order_free(operands):
            return node
        if not self.context.chance():
            return node
        values: list[ast.expr] = []
        for piece in pieces:
            if piece in ("%s", "%r"):
                values.append(ast.FormattedValue(operands.pop(0), ord(piece[1]), None))
            elif piece:
                values.append(ast.Constant("%" if piece == "%%" else piece))
        return ast.JoinedStr(_merged(values))


def change_formatting(context: Context) -> None:
    """Between f-strings, `str.format` and `%`."""
    context.function.body = [_Formats(context).visit(statement) for statement in context.function.body]


def _constant_spec(part: ast.FormattedValue) -> str | None:
    if part.format_spec is None:
        return ""
    values = part.format_spec.values if isinstance(part.format_spec, ast.JoinedStr) else []
    text = "".join(str(value.value) for value in values if isinstance(value, ast.Constant))
    return ":" + text if len(values) == 1 and text and not set(text) & set("{}") else None


def _order_free(operands: list[ast.expr]) -> bool:
    """`format` evaluates all operands before it formats one, an f-string takes turns: plain ones cannot tell."""
    if any(
        isinstance(operand, ast.Starred) or contains(operand, ast.Yield, ast.Await, ast.Lambda, ast.NamedExpr)
        for operand in operands
    ):
        return False
    return len(operands) == 1 or all(isinstance(operand, ast.Name | ast.Constant) for operand in operands)


def _fields(text: str, operands: list[ast.expr]) -> list[ast.expr] | None:
    try:
        pieces = list(string.Formatter().parse(text))
    except ValueError:
        return None
    left, values = list(operands), []
    for literal, name, spec, conversion in pieces:
        if literal:
            values.append(ast.Constant(literal))
        if name is None:
            continue
        if name or not left or (spec and set(spec) & set("{}")) or conversion not in (None, "r", "s", "a"):
            return None
        nested = ast.JoinedStr([ast.Constant(spec)]) if spec else None
        values.append(ast.FormattedValue(left.pop(0), ord(conversion) if conversion else -1, nested))
    return None if left or len(values) == 0 else _merged(values)


def _merged(values: list[ast.expr]) -> list[ast.expr]:
    """Neighbouring literals become one, as the parser would have them."""
    merged: list[ast.expr] = []
    for value in values:
        last = merged[-1] if merged else None
        if isinstance(value, ast.Constant) and isinstance(last, ast.Constant):
            merged[-1] = ast.Constant(str(last.value) + str(value.value))
        else:
            merged.append(value)
    return merged


RULES: dict[str, Rule] = {
    "reordered assignments": reorder_assignments,
    "split tuples": split_tuples,
    "named result": name_the_result,
    "augmented assignment": spell_out_augmented,
    "string formatting": change_formatting,
}
