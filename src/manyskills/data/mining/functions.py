"""The functions of a module as text: docstring cut out, dedented, everything else as its author wrote it."""

from __future__ import annotations

import ast
import builtins
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from manyskills.data.mining.limits import MiningLimits
from manyskills.data.mining.sources import Module

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef

BUILTINS = frozenset(dir(builtins))


@dataclass(frozen=True, slots=True)
class Function:
    """One function or method.

    Attributes:
        code: From `def` on (decorators are left out), without docstring, ASCII, at the left margin.
        docstring: What was cut out.
        is_method: Defined in a class: its bare name is not the function itself.
        shadowed: Built-in names that its module binds to something else.
    """

    project: str
    module: str
    qualname: str
    line: int
    code: str
    docstring: str | None = None
    is_method: bool = False
    shadowed: frozenset[str] = frozenset()

    @property
    def id(self) -> str:
        """Unique on this machine: module, place and name."""
        return f"{self.module}:{self.line}:{self.qualname}"

    @property
    def name(self) -> str:
        """The name after `def`."""
        return self.qualname.rpartition(".")[2]


def parse(text: str) -> ast.Module:
    """`ast.parse` without the warnings that old code sets off.

    Raises:
        SyntaxError: Not Python of this version; other oddities (null bytes, too deep) raise it too.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except (ValueError, RecursionError, MemoryError) as error:
            raise SyntaxError(str(error)) from error


def parse_function(code: str) -> FunctionNode:
    """The one function that `code` holds.

    Raises:
        SyntaxError: It is not Python, or not one function.
    """
    body = parse(code).body
    if len(body) != 1 or not isinstance(body[0], FunctionNode):
        raise SyntaxError("not one function")
    return body[0]


def compiles(code: str) -> bool:
    """Whether Python accepts the text; `return` outside a function and the like are seen only by the compiler."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(code, "<mined>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def extract_functions(module: Module, limits: MiningLimits) -> list[Function]:
    """Functions and methods of a module within the limits on size; none if it cannot be read or parsed."""
    try:
        text = module.path.read_bytes().decode("utf-8-sig")
        tree = parse(text)
    except (OSError, UnicodeDecodeError, SyntaxError):
        return []
    lines = text.encode("utf-8").splitlines()  # bytes: ast counts columns in them, and str splits at form feeds
    shadowed = _shadowed_builtins(tree)
    found = []
    for node, qualname in _definitions(tree, ""):
        if not limits.min_lines <= (node.end_lineno or 0) - node.lineno + 1 <= 4 * limits.max_lines:
            continue  # cheap; the limits proper count lines without the docstring
        if module.is_test and not node.name.startswith("test"):
            continue  # of a test suite only the tests are of use
        code = _source_of(node, lines)
        if code is None or not limits.admits(code):
            continue
        docstring = ast.get_docstring(node)
        found.append(
            Function(module.project, module.name, qualname, node.lineno, code, docstring, "." in qualname, shadowed)
        )
    return found


def _definitions(scope: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[FunctionNode, str]]:
    for node in scope.body:
        if isinstance(node, FunctionNode):
            yield node, prefix + node.name
        elif isinstance(node, ast.ClassDef):
            yield from _definitions(node, f"{prefix}{node.name}.")


def _shadowed_builtins(tree: ast.Module) -> frozenset[str]:
    bound: set[str] = set()
    waiting: list[ast.AST] = [*tree.body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, FunctionNode | ast.ClassDef):
            bound.add(node.name)
            continue  # what is bound inside does not show outside
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.alias):
            if node.name == "*":
                return BUILTINS  # who knows what it brings
            bound.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
    return BUILTINS & bound


def _source_of(node: FunctionNode, lines: list[bytes]) -> str | None:
    indent = lines[node.lineno - 1][: node.col_offset]
    if indent.strip():
        return None
    taken = lines[node.lineno - 1 : node.end_lineno]
    has_docstring = ast.get_docstring(node, clean=False) is not None
    if has_docstring and (len(node.body) == 1 or not _cut_docstring(node, taken)):
        return None
    dedented = [_dedent(line, indent) for line in taken]
    if any(line is None for line in dedented):
        return None
    try:
        code = b"\n".join(line.rstrip() for line in dedented if line is not None).decode("ascii")
    except UnicodeDecodeError:
        return None
    # Dedenting and stripping must not reach into strings that span lines.
    if not any(mark in code for mark in ('"""', "'''", "\\\n")):
        return code
    try:
        parsed = parse_function(code)
    except SyntaxError:
        return None
    return code if _strings(parsed, parsed.body) == _strings(node, node.body[-len(parsed.body) :]) else None


def _cut_docstring(node: FunctionNode, taken: list[bytes]) -> bool:
    doc = node.body[0]
    first, last = doc.lineno - node.lineno, (doc.end_lineno or doc.lineno) - node.lineno
    before, after = taken[first][: doc.col_offset], taken[last][doc.end_col_offset :].strip()
    if before.strip() or (after and not after.startswith(b"#")):
        return False  # it shares its lines with code
    del taken[first : last + 1]
    while first < len(taken) and not taken[first].strip():
        del taken[first]
    return True


def _dedent(line: bytes, indent: bytes) -> bytes | None:
    if line.startswith(indent):
        return line[len(indent) :]
    stripped = line.lstrip()
    return stripped if not stripped or stripped.startswith(b"#") else None


def _strings(node: FunctionNode, body: list[ast.stmt]) -> list[str | bytes]:
    roots: list[ast.AST] = [node.args, *body]
    constants = (child for root in roots for child in ast.walk(root) if isinstance(child, ast.Constant))
    return [child.value for child in constants if isinstance(child.value, str | bytes)]
