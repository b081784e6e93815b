"""Rewrites of loops: `for` to `while`, comprehension to loop and back."""

from __future__ import annotations

import ast
import copy
from collections import Counter

from manyskills.data.mining.rewriting.context import Block, Context, Rule, fill, negated, rewrite_blocks, single_name
from manyskills.data.mining.scopes import NESTED, contains, names_in

_COUNTED = """
counter = START
limit = STOP
while COMPARISON:
    TARGET = counter
    counter += STEP
    BODY
"""
_ITERATED = """
iterator = iter(SOURCE)
while True:
    try:
        item = next(iterator)
    except StopIteration:
        break
    BODY
"""
_SUSPENDING = (ast.Yield, ast.YieldFrom, ast.Await, ast.NamedExpr)


def for_to_while(context: Context) -> None:
    """`for` becomes `while`. The step stands before the body, where `continue` cannot skip it."""

    def rewrite(block: Block, _: bool) -> Block:
        rewritten = []
        for statement in block:
            parts = _counted(statement, context) or _iterated(statement, context) or [statement]
            rewritten += parts
        return rewritten

    rewrite_blocks(context, rewrite)


def _counted(statement: ast.stmt, context: Context) -> Block | None:
    """A loop over `range` whose bounds are surely whole numbers (`range` would refuse others, a comparison not)."""
    if not isinstance(statement, ast.For) or statement.orelse or not context.has_builtins("range", "len"):
        return None
    call = statement.iter
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "range"):
        return None
    if call.keywords or not 1 <= len(call.args) <= 3 or not isinstance(statement.target, ast.Name):
        return None
    start = call.args[0] if len(call.args) > 1 else ast.Constant(0)
    stop = call.args[1] if len(call.args) > 1 else call.args[0]
    step = _integer(call.args[2]) if len(call.args) == 3 else 1
    if _integer(start) is None or not step or not _is_whole(stop) or not context.chance():
        return None
    counter, limit = context.fresh(), context.fresh()
    test = ast.Compare(_load(counter), [ast.Lt() if step > 0 else ast.Gt()], [_load(limit)])
    return fill(
        _COUNTED,
        counter=counter,
        limit=limit,
        START=start,
        STOP=stop,
        STEP=ast.Constant(step),
        COMPARISON=test,
        TARGET=statement.target,
        BODY=statement.body,
    )


def _iterated(statement: ast.stmt, context: Context) -> Block | None:
    if not isinstance(statement, ast.For) or statement.orelse:
        return None
    if not context.has_builtins("iter", "next", "StopIteration") or not context.chance():
        return None
    item = statement.target.id if isinstance(statement.target, ast.Name) else context.fresh()
    # Taking a tuple apart outside the `try` keeps a StopIteration of its own from being caught.
    unpack: Block = []
    if not isinstance(statement.target, ast.Name):
        unpack = [ast.Assign([statement.target], _load(item), lineno=0)]
    return fill(_ITERATED, iterator=context.fresh(), item=item, SOURCE=statement.iter, BODY=[*unpack, *statement.body])


def unroll_while_test(context: Context) -> None:
    """`while a: X` becomes `while True: if not a: break; X`."""

    def rewrite(block: Block, _: bool) -> Block:
        for statement in block:
            if not isinstance(statement, ast.While) or statement.orelse or isinstance(statement.test, ast.Constant):
                continue
            if context.chance():
                leave = ast.If(negated(statement.test), [ast.Break()], [])
                statement.test, statement.body = ast.Constant(True), [leave, *statement.body]
        return block

    rewrite_blocks(context, rewrite)


def comprehension_to_loop(context: Context) -> None:
    """`x = [f(a) for a in b if c]` (or `return`, or a set) becomes a loop that collects into a new variable."""

    def rewrite(block: Block, _: bool) -> Block:
        rewritten = []
        for statement in block:
            rewritten += _spelled_out(statement, context) or [statement]
        return rewritten

    rewrite_blocks(context, rewrite)


def _spelled_out(statement: ast.stmt, context: Context) -> Block | None:
    if not isinstance(statement, ast.Assign | ast.Return) or not isinstance(
        statement.value, ast.ListComp | ast.SetComp
    ):
        return None
    made = statement.value
    generator = made.generators[0]
    if len(made.generators) > 1 or generator.is_async or not context.has_builtins("set"):
        return None
    inside: list[ast.expr] = [generator.target, made.elt, *generator.ifs]
    if any(contains(part, *_SUSPENDING, *NESTED) for part in inside):
        return None
    if contains(generator.target, ast.Attribute, ast.Subscript) or not context.chance():
        return None
    # The comprehension's own variables must not meet the function's.
    new = {name: context.fresh() for name in sorted(names_in([generator.target]))}
    target, element, *tests = (_renamed(part, new) for part in inside)
    collected = context.fresh()
    is_list = isinstance(made, ast.ListComp)
    body: Block = fill(f"collected.{'append' if is_list else 'add'}(ELEMENT)", collected=collected, ELEMENT=element)
    for test in reversed(tests):
        body = [ast.If(test, body, [])]
    start = fill(f"collected = {'[]' if is_list else 'set()'}", collected=collected)
    statement.value = _load(collected)
    return [*start, ast.For(target, generator.iter, body, [], lineno=0), statement]


def loop_to_comprehension(context: Context) -> None:
    """`x = []` and a loop that only appends to it become `x = [... for ...]`."""

    def rewrite(block: Block, guarded: bool) -> Block:
        rewritten: Block = []
        for statement in block:
            made = None if guarded or not rewritten else _collected(rewritten[-1], statement, context)
            if made is not None:
                rewritten[-1] = made
            else:
                rewritten.append(statement)
        return rewritten

    rewrite_blocks(context, rewrite)


def _collected(start: ast.stmt, loop: ast.stmt, context: Context) -> ast.stmt | None:
    if not isinstance(start, ast.Assign) or not isinstance(start.value, ast.List) or start.value.elts:
        return None
    name = single_name(start.targets)
    if name is None or name in context.scope.captured or name not in context.scope.plain:
        return None
    if not isinstance(loop, ast.For) or loop.orelse or len(loop.body) != 1:
        return None
    inner, tests = loop.body[0], []
    if isinstance(inner, ast.If) and not inner.orelse and len(inner.body) == 1:
        tests, inner = [inner.test], inner.body[0]
    element = _appended(inner, name)
    if element is None:
        return None
    inside: list[ast.expr] = [element, *tests]
    own = names_in([loop.target])
    if not isinstance(loop.target, ast.Name | ast.Tuple) or not own <= context.scope.plain:
        return None
    parts: list[ast.expr] = [loop.target, loop.iter, *inside]
    if name in names_in(parts) or "super" in names_in(inside) or "__class__" in names_in(inside):
        return None
    if contains(loop.target, ast.Attribute, ast.Subscript) or own & names_in([loop.iter]):
        return None
    if any(contains(part, *_SUSPENDING, *NESTED) for part in inside):
        return None
    here, everywhere = _occurrences(loop), _occurrences(context.function)
    if any(here[variable] != everywhere[variable] for variable in own):
        return None  # read after the loop, or a parameter that means something before
    if own & set(context.scope.parameters) or not context.chance():
        return None
    generator = ast.comprehension(loop.target, loop.iter, tests, 0)
    return ast.Assign(start.targets, ast.ListComp(element, [generator]), lineno=0)


def _occurrences(tree: ast.AST) -> Counter[str]:
    return Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))


def _appended(statement: ast.stmt, name: str) -> ast.expr | None:
    call = statement.value if isinstance(statement, ast.Expr) else None
    if not isinstance(call, ast.Call) or call.keywords or len(call.args) != 1 or isinstance(call.args[0], ast.Starred):
        return None
    method = call.func
    if not isinstance(method, ast.Attribute) or method.attr != "append" or not isinstance(method.value, ast.Name):
        return None
    return call.args[0] if method.value.id == name else None


def _renamed(node: ast.expr, new: dict[str, str]) -> ast.expr:
    node = copy.deepcopy(node)
    for child in ast.walk(node):
        if isinstance(child, ast.Name):
            child.id = new.get(child.id, child.id)
    return node


def _load(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def _integer(node: ast.expr) -> int | None:
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        sign, node = -1, node.operand
    value = node.value if isinstance(node, ast.Constant) else None
    return sign * value if isinstance(value, int) and not isinstance(value, bool) else None


def _is_whole(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.FloorDiv):
        return _is_whole(node.left) and _is_whole(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "len":
        return True
    return _integer(node) is not None


RULES: dict[str, Rule] = {
    "for to while": for_to_while,
    "loop test inside": unroll_while_test,
    "comprehension to loop": comprehension_to_loop,
    "loop to comprehension": loop_to_comprehension,
}
