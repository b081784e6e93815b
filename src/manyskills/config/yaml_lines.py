"""YAML that remembers where each key stood, refuses a key that is written twice, and reads `1e-4` as a number."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

from manyskills.errors import UserError

KeyPath = tuple[str | int, ...]
"""Where a value is: `("tasks", "code_search", "limit")`."""


PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader; YAML 1.1 as it reads it takes `1e-4` for a text, as it wants a dot before the exponent."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@dataclass(slots=True)
class YamlFile:
    """What a file says.

    Attributes:
        value: Plain mappings, lists and scalars.
        lines: The line of each key or list item.
        problems: `file:line: …` for keys that are written twice or are no text.
    """

    value: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_yaml(text: str, place: Callable[[int], str]) -> YamlFile:
    """Read YAML with the lines of its keys.

    Args:
        text: The YAML.
        place: What messages call a line of it.

    Raises:
        UserError: It is no YAML, or holds tags that a safe loader refuses.
    """
    loader = _Loader(text)
    result = YamlFile()
    try:
        node = loader.get_single_node()
        if node is not None:
            result.value = _Reader(loader, place, result).read(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(
            f"{place(mark.line + 1 if mark else 1)}: broken YAML: {error.problem or error.context}",
            "check indentation, colons and quotes there",
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(
            f"{place(1)}: broken YAML: {str(error).splitlines()[0]}", "check the file's encoding"
        ) from error
    finally:
        loader.dispose()
    return result


class _Reader:
    """Walks PyYAML's node tree."""

    def __init__(self, loader: _Loader, place: Callable[[int], str], result: YamlFile) -> None:
        self.loader, self.place, self.result = loader, place, result
        self.open: set[int] = set()

    def read(self, node: yaml.Node, path: KeyPath) -> Any:
        if id(node) in self.open:
            raise UserError(f"{self.place(node.start_mark.line + 1)}: an alias that holds itself", "write it out")
        if not isinstance(node, yaml.ScalarNode) and node.tag not in PLAIN_TAGS:
            place = self.place(node.start_mark.line + 1)
            raise UserError(f"{place}: broken YAML: the tag {node.tag} means nothing here", "remove the tag")
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self._item(child, (*path, index)) for index, child in enumerate(node.value)]
            return self.loader.construct_object(node, deep=True)
        finally:
            self.open.discard(id(node))

    def _item(self, node: yaml.Node, path: KeyPath) -> Any:
        self.result.lines[path] = node.start_mark.line + 1
        return self.read(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        self._note_repeated(node, path)
        self.loader.flatten_mapping(node)  # merge keys, `<<: *defaults`
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.result.problems.append(f"{self.place(line)}: a key must be a name")
                continue
            self.result.lines[(*path, key)] = line
            values[key] = self.read(value_node, (*path, key))
        return values

    def _note_repeated(self, node: yaml.MappingNode, path: KeyPath) -> None:
        first: dict[str, int] = {}
        for key_node, _ in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in first and key != "<<":
                dotted = ".".join(map(str, (*path, key)))
                self.result.problems.append(f"{self.place(line)}: {dotted}: written twice (first in line {first[key]})")
            first.setdefault(key, line)
