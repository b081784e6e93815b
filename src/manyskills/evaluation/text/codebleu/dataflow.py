"""Where the values of variables come from (Ren et al. 2020, arXiv 2009.10297, section 3.3).

An edge says that a variable's value comes from an earlier occurrence of it, or is computed from other variables, as in
GraphCodeBERT (Guo et al. 2021, arXiv 2009.08366). Variables are numbered in the order in which edges name them, so that
renaming all of them changes nothing. Order of statements is order of execution: branches and loops are read once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manyskills.evaluation.text.codebleu.languages import FLOW_RULES, OWNERS, SKIPPED_FIELDS, FlowRules

if TYPE_CHECKING:
    from tree_sitter import Node

Name = bytes
Edge = tuple[Name, str, tuple[Name, ...]]


@dataclass(frozen=True, slots=True)
class _Definition:
    """Comes after the value was read: from here on the targets hold what was computed from it.

    Attributes:
        targets: Variables that get the value.
        since: How many variables had been read before it.
    """

    targets: tuple[Name, ...]
    since: int


def data_flow(trees: Sequence[Node], language: str) -> Counter[Hashable]:
    """How often each edge occurs: (variable, `comes from` or `computed from`, variables), as numbers."""
    numbers: dict[Name, int] = {}

    def number(name: Name) -> int:
        return numbers.setdefault(name, len(numbers))

    edges = _Reader(FLOW_RULES[language]).read(trees)
    return Counter((number(name), relation, tuple(number(parent) for parent in of)) for name, relation, of in edges)


class _Reader:
    """One pass over the trees of a text, without recursion: generated code may be nested deeper than Python's stack."""

    def __init__(self, rules: FlowRules) -> None:
        self.rules = rules
        self.known: set[Name] = set()
        self.read_names: list[Name] = []
        self.edges: list[Edge] = []
        self.pending: list[Node | _Definition] = []

    def read(self, trees: Sequence[Node]) -> list[Edge]:
        """The edges, in the order in which they arise."""
        self.pending = list(reversed(trees))
        while self.pending:
            item = self.pending.pop()
            if isinstance(item, _Definition):
                self._define(item)
            elif self._variable(item) is not None:
                self._use(item)
            elif item.type in self.rules.definitions or self._is_update(item):
                self._enter_definition(item)
            else:
                children = self._children(item)
                if item.type in self.rules.inside_out:
                    children = children[1:] + children[:1]
                self.pending += reversed(children)
        return self.edges

    def _use(self, node: Node) -> None:
        name = self._variable(node)
        assert name is not None
        if name in self.known:
            self.edges.append((name, "comes from", (name,)))
        self.known.add(name)
        self.read_names.append(name)

    def _define(self, definition: _Definition) -> None:
        parents = tuple(dict.fromkeys(self.read_names[definition.since :]))
        if parents:
            self.edges += [(target, "computed from", parents) for target in definition.targets]
        self.known.update(definition.targets)

    def _enter_definition(self, node: Node) -> None:
        targets, values, rest = self._parts(node)
        names, read = self._targets(targets)
        read_first = targets if self._reads_what_it_writes(node) else read
        self.pending += reversed([*read_first, *values, _Definition(names, len(self.read_names)), *rest])

    def _parts(self, node: Node) -> tuple[list[Node], list[Node], list[Node]]:
        """What gets a value, the value, and what follows, such as the body of a loop."""
        children = self._children(node)
        if self._is_update(node):
            return children, [], []
        target_field, value_field = self.rules.definitions[node.type]
        targets = node.children_by_field_name(target_field)
        others = [child for child in children if child not in targets]
        if value_field is None:
            return targets, others, []
        values = node.children_by_field_name(value_field)
        return targets, values, [child for child in others if child not in values]

    def _targets(self, nodes: Sequence[Node]) -> tuple[tuple[Name, ...], list[Node]]:
        """The variables that get a value, and what is read to find the place: of `a[i]` the variable a, and i."""
        names, read = [], []
        pending = list(reversed(nodes))
        while pending:
            node = pending.pop()
            if node.type in self.rules.patterns:
                pending += reversed(self._children(node))
                continue
            variables = self._variables(node)
            if variables:
                names.append(self._variable(variables[0]))
                read += variables[1:]
        return tuple(names), read

    def _variables(self, node: Node) -> list[Node]:
        found, pending = [], [node]
        while pending:
            node = pending.pop()
            if self._variable(node) is not None:
                found.append(node)
            else:
                pending += reversed(self._children(node))
        return found

    def _variable(self, node: Node) -> Name | None:
        """The name of a variable, None of anything else."""
        if node.type == "identifier":
            return node.text
        kind, owner_field, name_field = self.rules.own_field
        if node.type != kind:
            return None
        owner, name = node.child_by_field_name(owner_field), node.child_by_field_name(name_field)
        return name.text if owner is not None and name is not None and owner.text in OWNERS else None

    def _is_update(self, node: Node) -> bool:
        """`i++`; in C# `-i` is a node of the same type."""
        return node.type in self.rules.updates and any(child.type in ("++", "--") for child in node.children)

    def _reads_what_it_writes(self, node: Node) -> bool:
        if self._is_update(node):
            return True
        if node.type not in self.rules.augmented:
            return False
        operator = node.child_by_field_name("operator")
        return operator is not None and operator.type != "="

    def _children(self, node: Node) -> list[Node]:
        """The named children that may hold variables."""
        found = []
        for place, child in enumerate(node.named_children):
            field = node.field_name_for_named_child(place)
            named = child.type == "identifier" and (node.type, field) in self.rules.names
            if field not in SKIPPED_FIELDS and not named:
                found.append(child)
        return found
