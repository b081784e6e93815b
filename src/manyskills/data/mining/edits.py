"""Changes to source text by place, so that layout and comments stay what they were."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Edit:
    """Replace the characters from `start` to `end` by `text`."""

    start: int
    end: int
    text: str


class Source:
    """A text whose syntax nodes know where they stand. ASCII only: `ast` counts bytes."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._starts = [0]
        for line in text.split("\n"):
            self._starts.append(self._starts[-1] + len(line) + 1)

    def span(self, node: ast.expr | ast.stmt | ast.keyword) -> tuple[int, int]:
        """Where the node begins and ends; parentheses around it are not its own."""
        start = self._starts[node.lineno - 1] + node.col_offset
        return start, self._starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)

    def slice(self, node: ast.expr | ast.stmt | ast.keyword) -> str:
        """The node's text."""
        start, end = self.span(node)
        return self.text[start:end]

    def replace(self, node: ast.expr | ast.stmt | ast.keyword, text: str) -> Edit:
        """Put `text` in the node's place."""
        return Edit(*self.span(node), text)

    def own_lines(self, node: ast.stmt) -> tuple[int, int] | None:
        """The characters of the node's lines, with the last line's end; None if something else is on them."""
        start, end = self._starts[node.lineno - 1], self._starts[node.end_lineno or node.lineno]
        first, last = self.span(node)
        after = self.text[last : end - 1].strip()
        if self.text[start:first].strip() or (after and not after.startswith("#")):
            return None
        return start, min(end, len(self.text))

    def indentation(self, node: ast.stmt) -> str:
        """The blanks before a statement that begins its line."""
        return self.text[self._starts[node.lineno - 1] : self.span(node)[0]]


def apply_edits(text: str, edits: Iterable[Edit]) -> str:
    """The text with every edit made.

    Raises:
        ValueError: Two edits overlap.
    """
    pieces, position = [], 0
    for edit in sorted(edits):
        if edit.start < position:
            raise ValueError(f"edits overlap at {edit.start}")
        pieces += [text[position : edit.start], edit.text]
        position = edit.end
    return "".join([*pieces, text[position:]])
