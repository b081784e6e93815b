"""Code to syntax trees, with tree-sitter's grammars of single languages."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

GRAMMARS = {"python": "tree_sitter_python", "java": "tree_sitter_java", "csharp": "tree_sitter_c_sharp"}
"""The package that holds each language's grammar."""

FRAME = {"python": (b"", b""), "java": (b"class A {", b"\n}"), "csharp": (b"class A {", b"\n}")}
"""What is put around a text. The rows are methods, which are no programs of Java or C#: of the 1,000 test rows of
CodeXGLUE's translation 164 and 166 do not parse as they stand, and 0 and 1 inside a class."""


def can_parse(language: str) -> bool:
    """Whether the packages for this language are installed."""
    names = ("tree_sitter", GRAMMARS.get(language, ""))
    return language in GRAMMARS and all(importlib.util.find_spec(name) is not None for name in names)


def parse(text: str, language: str) -> list[Node]:
    """The trees of a text, without what was put around it; a wrong text gives trees with error nodes."""
    before, after = FRAME[language]
    code = before + text.encode("utf-8", "replace") + after
    pending, found = [_parser(language).parse(code).root_node], []
    while pending:
        node = pending.pop()
        if node.start_byte >= len(code) - len(after):
            continue
        if node.start_byte >= len(before):
            found.append(node)
        else:
            pending += reversed(node.named_children)
    return found


@cache
def _parser(language: str) -> Parser:
    from tree_sitter import Language, Parser

    return Parser(Language(importlib.import_module(GRAMMARS[language]).language()))
