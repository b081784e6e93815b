"""Which variants of a generating task a row is: languages or directions, and how a row tells its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from manyskills.data.problems import RowProblems, shown
from manyskills.errors import UserError, did_you_mean
from manyskills.tasks.base import Task, Variant

VARIANT, LANGUAGE = "variant", "language"
"""Columns in which a row may say what it is."""


def chosen_variants(task: Task, names: Sequence[str] | None) -> tuple[Variant, ...]:
    """The variants of a task with these names, in the task's order; all without names.

    Raises:
        UserError: A name that the task does not know, or none at all.
    """
    if names is None:
        return task.variants
    known = [variant.name for variant in task.variants]
    for name in names:
        if name not in known:
            raise UserError(f"{task.name} has no variant {name!r}", did_you_mean(name, known))
    if not names:
        raise UserError(f"tasks.{task.name}.variants: wanted at least one", f"known are: {', '.join(known)}")
    return tuple(variant for variant in task.variants if variant.name in names)


@dataclass(frozen=True, slots=True)
class VariantRule:
    """Tells the variants of rows.

    Attributes:
        task: Whose rows.
        chosen: Those that are read.
        named: Somebody chose them: rows of others are left out without a word.
        targets: Whether the text to be written must be there; rows to predict on lack it.
        forced: Every row is this one, whatever it says itself.
    """

    task: Task
    chosen: tuple[Variant, ...]
    named: bool = False
    targets: bool = True
    forced: Variant | None = None

    @classmethod
    def of(
        cls, task: Task, names: Sequence[str] | None, *, targets: bool = True, forced: str | None = None
    ) -> VariantRule | None:
        """The rule of a task; none if it has no variants.

        Raises:
            UserError: A name that the task does not know.
        """
        if not task.variants:
            if forced:
                raise UserError(f"{task.name} has no variants, so none can be chosen", "leave the variant out")
            return None
        chosen = chosen_variants(task, names)
        if forced is not None and forced not in [variant.name for variant in chosen]:
            known = [variant.name for variant in chosen]
            raise UserError(f"{task.name}: unknown variant {forced!r}", did_you_mean(forced, known))
        wanted = next((variant for variant in chosen if variant.name == forced), None)
        return cls(task, chosen, names is not None, targets, wanted)

    def columns(self, variant: Variant) -> tuple[str, ...]:
        """The texts that a row of a variant must have."""
        return (variant.source, variant.target) if self.targets else (variant.source,)

    def always(self) -> tuple[str, ...]:
        """The texts that every row must have, whatever its variant."""
        wanted = [self.columns(variant) for variant in ((self.forced,) if self.forced else self.chosen)]
        everywhere = self.targets and not self.task.by_language  # rows become all of the variants
        names = dict.fromkeys(name for columns in wanted for name in columns)
        return tuple(name for name in names if everywhere or all(name in columns for columns in wanted))

    def of_row(
        self, row: Mapping[str, Any], added: Mapping[str, str], place: str, problems: RowProblems
    ) -> list[Variant]:
        """The variants that a row is read as; none if it is left out or has a problem, which is noted.

        Args:
            row: Under our names.
            added: What the name of its file says.
            place: Of the row, for messages.
            problems: Where a name that the task does not know is noted.

        Raises:
            UserError: Nothing tells the variant, or the file is of a language that the task does not know.
        """
        if self.forced is not None:
            return [self.forced]
        if _says(row, VARIANT):
            return self._named(row[VARIANT], VARIANT, place, problems)
        if self.task.by_language and LANGUAGE in added:
            return self._of_file(added[LANGUAGE], place)
        if self.task.by_language and _says(row, LANGUAGE):
            return self._named(row[LANGUAGE], LANGUAGE, place, problems)
        if self.targets and not self.task.by_language:
            return list(self.chosen)
        candidates = [variant for variant in self.chosen if variant.source in row]
        if len(self.chosen) == 1 or (len(candidates) == 1 and not self.task.by_language):
            return [*(candidates or self.chosen)]
        raise self._untold(row, place)

    def _named(self, value: Any, column: str, place: str, problems: RowProblems) -> list[Variant]:
        known = self.task.variants if self.targets else self.chosen
        wanted = value.strip().lower() if isinstance(value, str) else None
        found = [variant for variant in known if variant.name.lower() == wanted]
        if not found:
            names = ", ".join(variant.name for variant in known)
            problems.add(place, f"wanted one of {names} in column {column!r}, found {shown(value)}")
        return [variant for variant in found if variant in self.chosen]

    def _of_file(self, language: str, place: str) -> list[Variant]:
        known = [variant.name for variant in self.task.variants]
        if language not in known and not self.named:
            what = f"{place}: the file is of {language}, and {self.task.name} knows {', '.join(known)}"
            raise UserError(what, f"move the file away, or set tasks.{self.task.name}.variants=[{', '.join(known)}]")
        return [variant for variant in self.chosen if variant.name == language]

    def _untold(self, row: Mapping[str, Any], place: str) -> UserError:
        known = ", ".join(variant.name for variant in self.chosen)
        column = LANGUAGE if self.task.by_language else VARIANT
        what = f"{place}: nothing tells whether this row is {known}; found {', '.join(map(str, row)) or 'no columns'}"
        where = f"add a column {column!r}"
        if self.targets:
            first = self.chosen[0].name
            where += f", name the file {first}_train.jsonl, or set tasks.{self.task.name}.variants=[{first}]"
        return UserError(what, where if self.targets else f"{where}, or give the variant")


def _says(row: Mapping[str, Any], column: str) -> bool:
    return row.get(column) not in (None, "")
