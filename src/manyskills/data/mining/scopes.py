"""Which names a function binds, and how: what rewrites and mutations must know before they touch one."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field

from manyskills.data.mining.functions import FunctionNode

Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
NESTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, *Comprehension.__args__)

# Code that can see local names as data.
_DYNAMIC_NAMES = frozenset({"locals", "vars", "eval", "exec", "dir"})
_DYNAMIC_ATTRIBUTES = frozenset({"_getframe", "currentframe", "f_locals", "getframeinfo"})


@dataclass(slots=True)
class Scope:
    """The names of one function.

    Attributes:
        parameters: In order.
        local: Bound in the function's own scope, parameters included.
        inner: Bound in a scope inside it: nested functions, lambdas, comprehensions.
        fixed: Bound by something other than a plain name (import, def, match, walrus), or declared global or nonlocal.
        captured: Read or written in a scope inside it.
        names: Every identifier that occurs.
        dynamic: Names may be read as data (`locals()`, `eval`), or a class body makes scoping subtle: hands off.
    """

    parameters: list[str] = field(default_factory=list)
    local: set[str] = field(default_factory=set)
    inner: set[str] = field(default_factory=set)
    fixed: set[str] = field(default_factory=set)
    captured: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    dynamic: bool = False

    @property
    def bound(self) -> set[str]:
        """Every name that is bound anywhere in the function."""
        return self.local | self.inner | self.fixed

    @property
    def plain(self) -> set[str]:
        """Local names of which every occurrence in the function means the same variable."""
        return self.local - self.inner - self.fixed


def analyse(function: FunctionNode) -> Scope:
    """The scope of `function`, its decorators and defaults left out."""
    walker = _Walker()
    walker.scope.names.add(function.name)
    walker.scope.dynamic = bool(getattr(function, "type_params", []))
    walker.scope.parameters = [argument.arg for argument in arguments_of(function.args)]
    for name in walker.scope.parameters:
        walker.bind(name)
    for outer in outer_expressions(function):
        walker.scope.names |= names_in([outer])
    for statement in function.body:
        walker.visit(statement)
    return walker.scope


def arguments_of(arguments: ast.arguments) -> list[ast.arg]:
    """Every parameter, `*args` and `**kwargs` included."""
    star = [argument for argument in (arguments.vararg, arguments.kwarg) if argument is not None]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *star]


def outer_expressions(function: FunctionNode) -> list[ast.expr]:
    """Decorators, defaults and annotations: they belong to the scope around the function."""
    arguments = function.args
    annotations = [argument.annotation for argument in arguments_of(arguments)]
    found = [*function.decorator_list, *arguments.defaults, *arguments.kw_defaults, *annotations, function.returns]
    return [expression for expression in found if expression is not None]


def names_in(nodes: Iterable[ast.AST]) -> set[str]:
    """Every plain name in the trees, whatever its scope."""
    return {child.id for node in nodes for child in ast.walk(node) if isinstance(child, ast.Name)}


def contains(node: ast.AST, *kinds: type[ast.AST]) -> bool:
    """Whether a node of such a kind occurs in the tree."""
    return any(isinstance(child, kinds) for child in ast.walk(node))


class _Walker(ast.NodeVisitor):
    def __init__(self) -> None:
        self.scope = Scope()
        self.depth = 0

    def bind(self, name: str, *, fixed: bool = False) -> None:
        self.scope.names.add(name)
        (self.scope.inner if self.depth else self.scope.local).add(name)
        if fixed:
            self.scope.fixed.add(name)

    def visit_Name(self, node: ast.Name) -> None:
        self.scope.names.add(node.id)
        if self.depth:
            self.scope.captured.add(node.id)
        if not isinstance(node.ctx, ast.Load):
            self.bind(node.id)
        if node.id in _DYNAMIC_NAMES:
            self.scope.dynamic = True

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr in _DYNAMIC_ATTRIBUTES:
            self.scope.dynamic = True
        self.generic_visit(node)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.bind(node.target.id, fixed=True)
        self.visit(node.value)

    def visit_Global(self, node: ast.Global | ast.Nonlocal) -> None:
        self.scope.names.update(node.names)
        self.scope.fixed.update(node.names)

    visit_Nonlocal = visit_Global

    def visit_alias(self, node: ast.alias) -> None:
        self.bind((node.asname or node.name).partition(".")[0], fixed=True)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.name:
            self.bind(node.name)
        self.generic_visit(node)

    def visit_MatchAs(self, node: ast.MatchAs | ast.MatchStar) -> None:
        if node.name:
            self.bind(node.name, fixed=True)
        self.generic_visit(node)

    visit_MatchStar = visit_MatchAs

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        if node.rest:
            self.bind(node.rest, fixed=True)
        self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.bind(node.name, fixed=True)
        self.scope.dynamic = True
        self.generic_visit(node)

    def visit_FunctionDef(self, node: FunctionNode) -> None:
        self.bind(node.name, fixed=True)
        for outer in outer_expressions(node):
            self.visit(outer)
        self._inside(node.args, node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        for default in [*node.args.defaults, *node.args.kw_defaults]:
            if default is not None:
                self.visit(default)
        self._inside(node.args, [node.body])

    def _inside(self, arguments: ast.arguments, body: Iterable[ast.AST]) -> None:
        self.depth += 1
        for argument in arguments_of(arguments):
            self.bind(argument.arg)
        for node in body:
            self.visit(node)
        self.depth -= 1

    def _comprehension(self, node: Comprehension) -> None:
        self.visit(node.generators[0].iter)  # evaluated outside
        self.depth += 1
        for number, generator in enumerate(node.generators):
            self.visit(generator.target)
            for part in [*([generator.iter] if number else []), *generator.ifs]:
                self.visit(part)
        for part in [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]:
            self.visit(part)
        self.depth -= 1

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension
