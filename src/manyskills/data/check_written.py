"""Looks for what makes the figures of a generating task worthless: answers in the input, leakage, cuts, empty answers.

Each variant is looked at by itself. Texts are compared after runs of white space became one blank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from manyskills.data.check_overlap import View, find_overlaps, group_views
from manyskills.data.check_texts import Lengths, TextKeys, answer_inside, measure
from manyskills.data.check_types import (
    EXAMPLES,
    MANY,
    MANY_TRUNCATED,
    Overlap,
    Problem,
    RowKey,
    SplitReport,
    TaskDataReport,
    group_column,
    pairs,
    share_of,
)
from manyskills.data.long_texts import Long
from manyskills.data.rows import Row, SplitRows
from manyskills.data.variants import VARIANT
from manyskills.tasks.base import SPLITS, SplitName, Task, Text, Variant

ENGLISH = "english"
WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class PromptLimits:
    """What prompts and answers may have in tokens.

    Attributes:
        prompt: Of a prompt with its frame.
        answer: Of an answer with its end token.
        frames: Tokens that each variant's frame takes of a prompt.
    """

    prompt: int
    answer: int
    frames: Mapping[str, int]


def check_generating(
    task: Task,
    splits: Mapping[SplitName, SplitRows],
    *,
    lengths: Callable[[list[Text]], list[int]] | None = None,
    limits: PromptLimits | None = None,
    long: Long = "truncate",
) -> TaskDataReport:
    """Check the splits of a generating task against each other and by themselves, in time linear in their size.

    Args:
        task: Whose data.
        splits: Those there are; a missing one is a problem.
        lengths: Counts the tokens of texts without any around them; none: only characters are counted.
        limits: Of prompts and answers.
        long: What will be done with longer ones.
    """
    keys = TextKeys()
    there = {row[VARIANT] for data in splits.values() for row in data.rows}
    variants = [variant for variant in task.variants if variant.name in there]
    parts: dict[Variant, dict[SplitName, _Part]] = {
        variant: {split: _part(variant, data.rows, keys) for split, data in splits.items()} for variant in variants
    }
    tokens = keys.token_lengths(lengths) if lengths else None
    problems = [
        Problem("error", "missing split", f"there is no {split} split") for split in SPLITS if split not in splits
    ]
    reports: dict[SplitName, SplitReport] = {}
    for split, data in splits.items():
        measured: dict[str, Lengths] = {}
        repeated = 0
        for variant in variants:
            part = parts[variant][split]
            if not part.rows:
                problems.append(Problem("error", "missing variant", f"{split}: there is no row of {variant.name}"))
                continue
            found = _measured(variant, part, keys, tokens, limits)
            repeats = _repeats(part)
            repeated += len(repeats)
            problems += _row_problems(task, variant, split, part, repeats)
            problems += _length_problems(split, found, long)
            measured |= found
        column = group_column(data.rows)
        groups = len({row.get(column) for row in data.rows}) if column else None
        reports[split] = SplitReport(len(data.rows), data.source, {}, repeated, 0, measured, groups)
    overlaps = [*_overlaps(parts), *_groups(splits)]
    problems += [_leak(task, parts, overlap) for overlap in overlaps if not overlap.what.startswith("group")]
    synthetic = next((data.synthetic for data in splits.values() if data.synthetic), None)
    ordered = tuple(sorted(problems, key=lambda problem: problem.severity))
    most = limits.prompt if limits and lengths else None
    return TaskDataReport(task.name, synthetic, most, long, reports, tuple(overlaps), ordered)


@dataclass(frozen=True, slots=True)
class _Part:
    """The rows of one variant in one split, with the numbers of their source and target."""

    rows: list[Row]
    keyed: list[RowKey]


def _part(variant: Variant, rows: Sequence[Row], keys: TextKeys) -> _Part:
    mine = [row for row in rows if row[VARIANT] == variant.name]
    return _Part(mine, [(keys.key(row[variant.source]), keys.key(row[variant.target])) for row in mine])


def _named(variant: Variant, column: str) -> str:
    return f"{variant.name}: {column}"


def _measured(
    variant: Variant, part: _Part, keys: TextKeys, tokens: list[int] | None, limits: PromptLimits | None
) -> dict[str, Lengths]:
    """How long prompts (with their frame) and answers (with their end) are."""
    frame = limits.frames[variant.name] if limits else 0
    around = ((variant.source, 0, frame, limits and limits.prompt), (variant.target, 1, 1, limits and limits.answer))
    return {
        _named(variant, column): measure(
            {key[side] for key in part.keyed}, keys, tokens and [n + more for n in tokens], limit
        )
        for column, side, more, limit in around
    }


def _repeats(part: _Part) -> list[tuple[str, str]]:
    """Ids of first rows and of later ones that have the same source and target."""
    first: dict[RowKey, str] = {}
    return [
        (first[key], row["id"])
        for row, key in zip(part.rows, part.keyed, strict=True)
        if first.setdefault(key, row["id"]) != row["id"]
    ]


def _row_problems(
    task: Task, variant: Variant, split: SplitName, part: _Part, repeats: list[tuple[str, str]]
) -> Iterator[Problem]:
    rows, source, target = part.rows, variant.source, variant.target
    place = f"{split}, {variant.name}"
    if repeats:
        message = f"{place}: {share_of(len(repeats), len(rows))} repeat an earlier row"
        yield Problem("warning", "duplicates", message, pairs(repeats))
    same = {row["id"] for row, key in zip(rows, part.keyed, strict=True) if key[0] == key[1]}
    yield from _many(same, rows, "nothing to change", f"{place}: the {target} is the {source} itself in")
    if variant.language == ENGLISH or _reads_sentences(task, variant):  # translated code may well be alike
        inside = {row["id"] for row in rows if row["id"] not in same and answer_inside(row[target], row[source])}
        what = f"{place}: the {target} stands verbatim inside the {source} of"
        yield from _many(inside, rows, "answer in the input", what)
    if _reads_sentences(task, variant):
        told = {row["id"] for row in rows if answer_inside(row[source], row[target])}
        what = f"{place}: the {source} stands verbatim inside the {target} (a docstring left in?) of"
        yield from _many(told, rows, "input in the answer", what)
    short = [row["id"] for row in rows if len(WORD.findall(row[target])) < 2]
    if short:
        message = f"{place}: the {target} is one word in {share_of(len(short), len(rows))}"
        yield Problem("warning", "short answer", message, tuple(short[:EXAMPLES]))
    yield from _ambiguous(variant, place, part)


def _many(ids: set[str], rows: Sequence[Row], kind: str, message: str) -> Iterator[Problem]:
    """A few may be chance, many make a figure wrong."""
    if ids:
        severity = "error" if len(ids) / len(rows) > MANY else "warning"
        examples = [row["id"] for row in rows if row["id"] in ids]
        yield Problem(severity, kind, f"{message} {share_of(len(ids), len(rows))}", tuple(examples[:EXAMPLES]))


def _ambiguous(variant: Variant, place: str, part: _Part) -> Iterator[Problem]:
    targets: dict[int, set[int]] = {}
    for source, target in part.keyed:
        targets.setdefault(source, set()).add(target)
    several = {source for source, found in targets.items() if len(found) > 1}
    if several:
        ids = [row["id"] for row, key in zip(part.rows, part.keyed, strict=True) if key[0] in several]
        message = f"{place}: {len(several):,} distinct {variant.source} texts have more than one {variant.target}"
        yield Problem("warning", "ambiguous input", message, tuple(ids[:EXAMPLES]))


def _length_problems(split: SplitName, lengths: Mapping[str, Lengths], long: Long) -> Iterator[Problem]:
    for name, found in lengths.items():
        cut = found.truncated or 0.0
        if long == "error" and cut:
            message = f"{split}: {cut:.1%} of {name} have over {found.limit} tokens, which long=error refuses"
            yield Problem("error", "long texts", message)
        elif long != "error" and cut > MANY_TRUNCATED:
            message = f"{split}: {cut:.0%} of {name} have over {found.limit} tokens and lose their end"
            yield Problem("warning", "truncation", message)


def _overlaps(parts: Mapping[Variant, Mapping[SplitName, _Part]]) -> Iterator[Overlap]:
    for variant, by_split in parts.items():
        views: list[tuple[str, View]] = [
            (_named(variant, variant.source), lambda _, key: key[:1]),
            (_named(variant, variant.target), lambda _, key: key[1:]),
        ]
        rows: dict[SplitName, list[Row]] = {split: part.rows for split, part in by_split.items()}
        keyed: dict[SplitName, list[RowKey]] = {split: part.keyed for split, part in by_split.items()}
        yield from find_overlaps(rows, keyed, views)


def _groups(splits: Mapping[SplitName, SplitRows]) -> Iterator[Overlap]:
    rows: dict[SplitName, list[Row]] = {split: data.rows for split, data in splits.items()}
    nothing: dict[SplitName, list[RowKey]] = {split: [()] * len(data.rows) for split, data in splits.items()}
    yield from find_overlaps(rows, nothing, group_views())


def _leak(task: Task, parts: Mapping[Variant, object], overlap: Overlap) -> Problem:
    """Two functions may well be described by the same sentence; the same function is in two splits by mistake."""
    sentences = {
        _named(variant, column)
        for variant in parts
        for column, wordy in (
            (variant.source, _reads_sentences(task, variant)),
            (variant.target, variant.language == ENGLISH),
        )
        if wordy
    }
    message = f"{overlap.rows:,} rows ({overlap.share:.1%}) of {overlap.later} share their {overlap.what} with "
    severity = "warning" if overlap.what in sentences else "error"
    return Problem(severity, "leakage", message + overlap.earlier, overlap.examples)


def _reads_sentences(task: Task, variant: Variant) -> bool:
    """Whether what is read is no code: the language of such a task's variants is that of the code, which is written."""
    return task.by_language and variant.language != ENGLISH
