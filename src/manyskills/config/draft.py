"""Values on their way to a configuration: short forms, overrides, and where each mistake was written."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from manyskills.config import TrainConfig
from manyskills.config.pretraining import PretrainConfig
from manyskills.config.section import Section
from manyskills.config.sections import NAMED_SECTIONS, default_name, keys_of_choice, section_keys
from manyskills.config.yaml_lines import KeyPath, read_yaml
from manyskills.errors import UserError
from manyskills.tasks import all_tasks

FEW = 12
"""So many choices are named where none is near."""

HINTS: dict[type[Section], str] = {
    TrainConfig: "`manyskills config schema` lists every key; `manyskills config show` prints a configuration with its "
    "defaults",
    PretrainConfig: "`manyskills config schema --for pretrain` lists every key",
}


@dataclass(slots=True)
class Draft:
    """A configuration before it is checked.

    Attributes:
        model: What it is to become.
        name: The file that it comes from.
        values: Plain values, short forms written out.
        origins: Where each value was written: `file:line`, or the override.
        problems: What was found wrong so far.
    """

    model: type[Section]
    name: str
    values: dict[str, Any]
    origins: dict[KeyPath, str]
    problems: list[str] = field(default_factory=list)
    _overridden: set[KeyPath] = field(default_factory=set)

    def override(self, text: str) -> None:
        """Apply `key.sub=value`; mistakes in its form are noted."""
        dotted, equals, written = text.partition("=")
        path: KeyPath = tuple(part.strip() for part in dotted.split("."))
        if not equals or not all(path):
            self.problems.append(f"override {text!r}: wanted key=value or key.sub=value")
            return
        read = read_yaml(written, lambda _: f"override {text!r}")
        self.problems += read.problems
        section = self._section(path[:-1], text)
        if section is None:
            return
        last = str(path[-1])
        if path[0] in NAMED_SECTIONS[self.model] and len(path) == 2 and last == "name":
            self._drop_former_choice(str(path[0]), section, read.value)
        former = section.get(last)
        section[last] = read.value
        if path == ("tasks",) and isinstance(read.value, list) and isinstance(former, dict):
            section[last] = {str(name): former.get(name, {}) for name in read.value}  # chosen among, not written anew
        for known in [key for key in self.origins if key[: len(path)] == path]:
            del self.origins[known]
        self.origins[path] = f"override {text!r}"
        self._overridden.add(path)
        expand(self.values, self.model)

    def _section(self, path: KeyPath, text: str) -> dict[str, Any] | None:
        section = self.values
        for depth, part in enumerate(path, start=1):
            inner = section.get(str(part))
            if inner is None:
                inner = section[str(part)] = {}
                self.origins.setdefault(path[:depth], f"override {text!r}")
            if not isinstance(inner, dict):
                dotted = ".".join(map(str, path[:depth]))
                self.problems.append(f"override {text!r}: {dotted} is {inner!r}, which has no keys")
                return None
            section = inner
        return section

    def _drop_former_choice(self, part: str, section: dict[str, Any], new: Any) -> None:
        choices = keys_of_choice(self.model, part)
        former = choices.get(section.get("name", default_name(self.model, part)), set())
        for key in [*section]:
            if key in former - choices.get(new, former) and (part, key) not in self._overridden:
                del section[key]

    def fill_names(self) -> None:
        """A section that gives keys but no name means the default choice: `method: {r: 8}` is LoRA."""
        for part in NAMED_SECTIONS[self.model]:
            section = self.values.get(part)
            if isinstance(section, dict) and "name" not in section:
                self.values[part] = {"name": default_name(self.model, part), **section}

    def check_tasks(self) -> None:
        """Note names of tasks that do not exist, and weights of tasks that the run does not have."""
        known = all_tasks()
        tasks = self.values.get("tasks")
        if not isinstance(tasks, dict):
            return
        for name in tasks:
            if name not in known:
                self._add(("tasks", name), f"unknown task{_nearest(name, known)}")
        balancing = self.values.get("balancing")
        weights = balancing.get("weights") if isinstance(balancing, dict) else None
        for name in weights if isinstance(weights, dict) else ():
            if name not in tasks:
                self._add(("balancing", "weights", name), f"this run has no such task{_nearest(name, tasks)}")

    def add_all(self, error: ValidationError) -> None:
        """Note pydantic's findings; what the members of a union say about one value becomes one problem."""
        found: dict[KeyPath, list[str]] = {}
        for item in error.errors(include_url=False):
            path, message = self._explain(item)
            found.setdefault(path, []).append(message)
        for path, messages in found.items():
            self._add(path, _one_message(messages))

    def _explain(self, item: Any) -> tuple[KeyPath, str]:
        path = self._real_path(item["loc"], missing=item["type"] == "missing")
        given, context = item["input"], item.get("ctx", {})
        match item["type"]:
            case "extra_forbidden":
                return path, f"unknown key{_nearest(str(path[-1]), section_keys(self.model, path[:-1], self.values))}"
            case "union_tag_invalid":
                choices = keys_of_choice(self.model, str(path[0]))
                return (*path, "name"), f"unknown name {context['tag']!r}{_nearest(context['tag'], choices)}"
            case "literal_error":
                near = difflib.get_close_matches(str(given), context["expected"].replace("'", "").split(", "), n=1)
                return path, f"wanted {context['expected']}, found {given!r}" + (
                    f" (typing {near[0]}?)" if near else ""
                )
            case "missing":
                return path, "this key is missing"
            case "value_error":
                return path, str(context["error"])
        wanted = item["msg"].removeprefix("Input should be ").split(", unable to", 1)[0]
        return path, f"wanted {wanted[0].lower()}{wanted[1:]}, found {given!r}"

    def _real_path(self, location: Sequence[str | int], *, missing: bool) -> KeyPath:
        """Pydantic's place without the names of union members that it mixes in."""
        path: list[str | int] = []
        current: Any = self.values
        for index, part in enumerate(location):
            held: Any = dict(enumerate(current)) if isinstance(current, list) else current
            inside = isinstance(held, dict) and part in held
            if inside:
                current = held[part]
            if inside or (missing and index == len(location) - 1):
                path.append(part)
        return tuple(path)

    def _add(self, path: KeyPath, message: str) -> None:
        place = next((self.origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.origins), self.name)
        key = ".".join(map(str, path))
        self.problems.append(f"{place}: {key}: {message}" if key else f"{place}: {message}")

    def raise_problems(self) -> None:
        """End with everything that was found, in the order of the file.

        Raises:
            UserError: There was a problem.
        """
        self.problems.sort(key=self._order)
        if len(self.problems) == 1:
            raise UserError(self.problems[0], HINTS[self.model])
        if self.problems:
            heading = f"{len(self.problems)} problems in the configuration:"
            raise UserError("\n  ".join([heading, *self.problems]), HINTS[self.model])

    def _order(self, problem: str) -> int:
        place = re.match(re.escape(self.name) + r":(\d+)", problem)
        return int(place[1]) if place else sys.maxsize


def _one_message(messages: list[str]) -> str:
    """`wanted a, found x` and `wanted b, found x` say: `wanted a or b, found x`."""
    unique = list(dict.fromkeys(messages))
    if len(unique) == 1 or not all(message.startswith("wanted ") for message in unique):
        return unique[0]
    wanted = [message.removeprefix("wanted ").rsplit(", found ", 1)[0] for message in unique]
    return f"wanted {' or '.join(wanted)}, found {unique[0].rsplit(', found ', 1)[1]}"


def _nearest(name: str, choices: Iterable[str]) -> str:
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6) or [k for k in known if name.startswith(k)]
    if near:
        return f": did you mean {near[0]!r}?"
    return f": known are {', '.join(known)}" if len(known) <= FEW else ""


def expand(values: dict[str, Any], model: type[Section]) -> None:
    """Write short forms out in place, as the validators of `model` would, so that overrides find their place."""
    for name in NAMED_SECTIONS[model]:
        if isinstance(values.get(name), str):
            values[name] = {"name": values[name]}
    tasks = values.get("tasks")
    if isinstance(tasks, list) and all(isinstance(name, str) for name in tasks):
        tasks = values["tasks"] = {name: {} for name in tasks}
    if isinstance(tasks, dict):
        for name, options in tasks.items():
            tasks[name] = {} if options is None else options
            if isinstance(options, dict) and type(options.get("limit")) is int:
                options["limit"] = dict.fromkeys(("train", "valid", "test"), options["limit"])
    if isinstance(values.get("early_stopping"), bool):
        values["early_stopping"] = {} if values["early_stopping"] else None
