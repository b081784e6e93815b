"""Consistent renaming of a function's own variables, and of the function."""

from __future__ import annotations

import ast

from manyskills.data.mining.functions import FunctionNode
from manyskills.data.mining.rewriting.context import Context
from manyskills.data.mining.scopes import Scope, arguments_of, outer_expressions

_KEPT = frozenset({"self", "cls", "mcs", "_"})
_VERBS = ["apply", "build", "check", "collect", "compute", "convert", "do", "get", "handle", "make", "process", "run"]


def rename(context: Context, *, is_method: bool = False) -> None:
    """New names for local variables, parameters and the function itself.

    Only names of which every occurrence means the same variable are touched. A parameter that a recursive call
    passes by keyword keeps its name, and so does everything with two leading underscores (mangled in classes).
    """
    function, scope = context.function, context.scope
    kept = _KEPT | _keywords_to_itself(function)
    new = {
        name: context.fresh()
        for name in sorted(scope.plain - kept)
        if not name.startswith("__") and name != function.name and context.chance()
    }
    outer = {id(node) for expression in outer_expressions(function) for node in ast.walk(expression)}
    for node in ast.walk(function):
        if id(node) in outer:
            continue
        if isinstance(node, ast.Name):
            node.id = new.get(node.id, node.id)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            node.name = new.get(node.name, node.name)
    for argument in arguments_of(function.args):
        argument.arg = new.get(argument.arg, argument.arg)
    _rename_function(context, scope, is_method, outer)


def _rename_function(context: Context, scope: Scope, is_method: bool, outer: set[int]) -> None:
    function = context.function
    old, new = function.name, f"{context.pick(_VERBS)}_{context.fresh()}"
    if old in scope.bound:
        return
    context.changes += 1
    function.name = new
    for node in ast.walk(function) if not is_method else []:  # inside a method the bare name is something else
        if isinstance(node, ast.Name) and node.id == old and id(node) not in outer:
            node.id = new


def _keywords_to_itself(function: FunctionNode) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            called = node.func
            name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", None)
            if name == function.name:
                found |= {keyword.arg for keyword in node.keywords if keyword.arg}
    return found
