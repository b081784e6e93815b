"""Sub-trees of syntax trees, compared by shape (Ren et al. 2020, arXiv 2009.10297, section 3.2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tree_sitter import Node

Shapes = dict[Hashable, int]
"""A number for each shape, its type and the numbers of its children: equal numbers are equal sub-trees."""


def subtrees(trees: Sequence[Node], shapes: Shapes) -> Counter[Hashable]:
    """How often each shape occurs as a sub-tree with at least one child.

    A shape is made of the types of nodes only: names and literals, and so the leaves' texts, do not count. Comments are
    left out.

    Args:
        trees: Of one text.
        shapes: Shared by the texts that are compared; new shapes are added to it.
    """
    found: Counter[Hashable] = Counter()
    values: list[int] = []  # shapes of the nodes that are done and wait for their parent
    pending: list[tuple[Node, int | None]] = [(tree, None) for tree in reversed(trees)]
    while pending:  # no recursion: generated code may be nested deeper than Python's stack
        node, children = pending.pop()
        if children is None:
            inner = [child for child in node.named_children if "comment" not in child.type]
            pending.append((node, len(inner)))
            pending += [(child, None) for child in reversed(inner)]
            continue
        key = (node.type, *values[len(values) - children :])
        del values[len(values) - children :]
        values.append(shapes.setdefault(key, len(shapes)))
        if children:
            found[values[-1]] += 1
    return found
