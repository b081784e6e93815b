"""Placeholders for the names that a Python function chooses itself, as AdvTest has them (Lu et al. 2021, section 3.2).

A model that may read `def read_json(path)` learns to compare words; AdvTest's validation and test functions are called
`Func`, their parameters `arg_0` and their variables `loc_0`, so that only what the code does is left.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Sequence

import numpy as np

from manyskills.data.rows import SplitRows


def rename_some(part: SplitRows, share: float, seed: int) -> SplitRows:
    """The same rows with the code of a random share of them renamed; which ones depends on the seed alone."""
    column = part.task.inputs[-1]
    chosen = np.random.default_rng([seed, len(part.rows)]).random(len(part.rows)) < share
    rows = [
        {**row, column: with_placeholders(row[column])} if take else row
        for row, take in zip(part.rows, chosen.tolist(), strict=True)
    ]
    return SplitRows(part.task, part.split, rows, part.total, part.source, part.digest, part.synthetic)


def with_placeholders(code: str) -> str:
    """The function with its own name, its parameters and its variables replaced.

    Names that it does not choose itself (attributes, globals, calls, keywords) stay. Code that is no single Python
    function, or does not parse, is returned as it is.
    """
    if "\r" in code:  # a line end to the parser, not to the lines it counts into
        return code
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # about escapes in strings of code that is not ours
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError):
        return code
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef | ast.AsyncFunctionDef):
        return code
    names = _placeholders(tree.body[0])
    return _replaced(code, _occurrences(tree.body[0], code, names))


def _placeholders(function: ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, str]:
    names = {function.name: "Func"}
    declared = [node for node in ast.walk(function) if isinstance(node, ast.Global | ast.Nonlocal)]
    outside = {name for node in declared for name in node.names}
    parameters = sorted((node for node in ast.walk(function) if isinstance(node, ast.arg)), key=_place)
    for node in parameters:
        names.setdefault(node.arg, f"arg_{sum(value.startswith('arg_') for value in names.values())}")
    stored = [node for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    for node in sorted(stored, key=_place):
        if node.id not in outside:
            names.setdefault(node.id, f"loc_{sum(value.startswith('loc_') for value in names.values())}")
    return names


def _place(node: ast.arg | ast.Name) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _occurrences(
    function: ast.FunctionDef | ast.AsyncFunctionDef, code: str, names: dict[str, str]
) -> list[tuple[int, int, str, str]]:
    """(line, byte column, old, new) of every place where one of the names stands."""
    lines = code.encode().split(b"\n")
    found: set[tuple[int, int, str, str]] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and node.id in names:
            found.add((node.lineno, node.col_offset, node.id, names[node.id]))
        elif isinstance(node, ast.arg):
            found.add((node.lineno, node.col_offset, node.arg, names[node.arg]))
    header = re.compile(rb"def\s+(" + re.escape(function.name.encode()) + rb")\b")
    if (match := header.search(lines[function.lineno - 1], function.col_offset)) is not None:
        found.add((function.lineno, match.start(1), function.name, names[function.name]))
    return [hit for hit in found if lines[hit[0] - 1][hit[1] :].startswith(hit[2].encode())]


def _replaced(code: str, occurrences: Sequence[tuple[int, int, str, str]]) -> str:
    lines = code.encode().split(b"\n")
    for line, column, old, new in sorted(occurrences, reverse=True):  # from the end, so that columns stay right
        text = lines[line - 1]
        lines[line - 1] = text[:column] + new.encode() + text[column + len(old.encode()) :]
    return b"\n".join(lines).decode()
