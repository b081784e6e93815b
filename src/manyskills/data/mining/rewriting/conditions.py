"""Rewrites of conditions and branches. Each keeps the order of evaluation and the truth of every test."""

from __future__ import annotations

import ast

from manyskills.data.mining.rewriting.context import Block, Context, Rule, negated, rewrite_blocks, single_name

_TERMINATORS = (ast.Return, ast.Raise, ast.Continue, ast.Break)
_MIRRORED = {
    ast.Eq: ast.Eq,
    ast.NotEq: ast.NotEq,
    ast.Lt: ast.Gt,
    ast.Gt: ast.Lt,
    ast.LtE: ast.GtE,
    ast.GtE: ast.LtE,
}


def swap_branches(context: Context) -> None:
    """`if a: X else: Y` becomes `if not a: Y else: X`; likewise the conditional expression."""

    def rewrite(block: Block, _: bool) -> Block:
        for statement in block:
            if isinstance(statement, ast.If) and statement.orelse and context.chance():
                statement.test = negated(statement.test)
                statement.body, statement.orelse = statement.orelse, statement.body
        return block

    rewrite_blocks(context, rewrite)
    for node in ast.walk(context.function):
        if isinstance(node, ast.IfExp) and context.chance():
            node.test = negated(node.test)
            node.body, node.orelse = node.orelse, node.body


def leave_early_or_late(context: Context) -> None:
    """`if a: return X` and what follows becomes `if a: return X else: ...`, and the other way round."""

    def rewrite(block: Block, _: bool) -> Block:
        for position, statement in enumerate(block):
            if not isinstance(statement, ast.If) or not isinstance(statement.body[-1], _TERMINATORS):
                continue
            rest = block[position + 1 :]
            if statement.orelse and context.chance():
                moved, statement.orelse = statement.orelse, []
                return [*block[: position + 1], *moved, *rest]
            if not statement.orelse and rest and context.chance():
                statement.orelse = rest
                return block[: position + 1]
        return block

    rewrite_blocks(context, rewrite)


def nest_conditions(context: Context) -> None:
    """`if a and b: X` becomes `if a: if b: X`, and the other way round (no `else` anywhere)."""

    def rewrite(block: Block, _: bool) -> Block:
        for statement in block:
            if not isinstance(statement, ast.If) or statement.orelse:
                continue
            test, inner = statement.test, statement.body[0]
            if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And) and context.chance():
                rest = test.values[1] if len(test.values) == 2 else ast.BoolOp(ast.And(), test.values[1:])
                statement.test, statement.body = test.values[0], [ast.If(rest, statement.body, [])]
            elif len(statement.body) == 1 and isinstance(inner, ast.If) and not inner.orelse and context.chance():
                statement.test, statement.body = ast.BoolOp(ast.And(), [test, inner.test]), inner.body
        return block

    rewrite_blocks(context, rewrite)


def unfold_conditional(context: Context) -> None:
    """`x = a if c else b` becomes a statement with two branches, and the other way round; likewise `return`."""

    def rewrite(block: Block, _: bool) -> Block:
        return [_fold(_unfold(statement, context), context) for statement in block]

    def _unfold(statement: ast.stmt, context: Context) -> ast.stmt:
        if not isinstance(statement, ast.Assign | ast.Return) or not isinstance(statement.value, ast.IfExp):
            return statement
        if isinstance(statement, ast.Assign) and single_name(statement.targets) is None:
            return statement
        choice = statement.value
        if not context.chance():
            return statement
        first, second = (_like(statement, value) for value in (choice.body, choice.orelse))
        return ast.If(choice.test, [first], [second])

    def _fold(statement: ast.stmt, context: Context) -> ast.stmt:
        if not isinstance(statement, ast.If) or len(statement.body) != 1 or len(statement.orelse) != 1:
            return statement
        first, second = statement.body[0], statement.orelse[0]
        if isinstance(first, ast.Return) and isinstance(second, ast.Return):
            together = first.value is not None and second.value is not None
        elif isinstance(first, ast.Assign) and isinstance(second, ast.Assign):
            together = single_name(first.targets) is not None
            together = together and single_name(first.targets) == single_name(second.targets)
        else:
            return statement
        if not together or not context.chance():
            return statement
        assert first.value is not None and second.value is not None
        return _like(first, ast.IfExp(statement.test, first.value, second.value))

    rewrite_blocks(context, rewrite)


def _like(statement: ast.Assign | ast.Return, value: ast.expr) -> ast.stmt:
    if isinstance(statement, ast.Return):
        return ast.Return(value)
    return ast.Assign([ast.Name(single_name(statement.targets) or "", ast.Store())], value, lineno=0)


class _Comparisons(ast.NodeTransformer):
    """Only where Python itself promises the same answer."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        self.generic_visit(node)
        if len(node.ops) == 2 and isinstance(node.comparators[0], ast.Name | ast.Constant):
            return self._split(node)
        if len(node.ops) != 1:
            return node
        mirrored, right = _MIRRORED.get(type(node.ops[0])), node.comparators[0]
        # Such a literal never knows how to compare itself with a foreign object, so Python asks the other operand
        # in both orders; for two arbitrary objects the order can matter (and a float does know about int).
        if mirrored and (_is_literal(right) or _is_literal(node.left)) and self.context.chance():
            return ast.Compare(right, [mirrored()], [node.left])
        return node

    def _split(self, node: ast.Compare) -> ast.expr:
        middle = node.comparators[0]
        if not self.context.chance():
            return node
        first = ast.Compare(node.left, node.ops[:1], [middle])
        return ast.BoolOp(ast.And(), [first, ast.Compare(middle, node.ops[1:], node.comparators[1:])])

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        """De Morgan: `not a and not b` is `not (a or b)`, in truth and in value."""
        self.generic_visit(node)
        operands = [part.operand for part in node.values if isinstance(part, ast.UnaryOp) and _is_not(part)]
        if len(operands) < len(node.values) or not self.context.chance():
            return node
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return ast.UnaryOp(ast.Not(), ast.BoolOp(other, operands))

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        """`not (a or b)` is `not a and not b`; `not a is b` is `a is not b`."""
        self.generic_visit(node)
        inner = node.operand
        if not _is_not(node):
            return node
        if isinstance(inner, ast.BoolOp) and self.context.chance():
            other = ast.Or() if isinstance(inner.op, ast.And) else ast.And()
            return ast.BoolOp(other, [ast.UnaryOp(ast.Not(), value) for value in inner.values])
        if isinstance(inner, ast.Compare) and not isinstance(negated(inner), ast.UnaryOp) and self.context.chance():
            return negated(inner)
        return node


def turn_comparisons(context: Context) -> None:
    """`x < 5` becomes `5 > x`, `a < b < c` two comparisons, and De Morgan's laws both ways."""
    context.function.body = [_Comparisons(context).visit(statement) for statement in context.function.body]


def _is_literal(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | str | bytes | None)


def _is_not(node: ast.UnaryOp) -> bool:
    return isinstance(node.op, ast.Not)


RULES: dict[str, Rule] = {
    "swapped branches": swap_branches,
    "early or late return": leave_early_or_late,
    "nested conditions": nest_conditions,
    "conditional expression": unfold_conditional,
    "turned comparisons": turn_comparisons,
}
