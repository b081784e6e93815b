"""From rows to prompts and answers: the tasks whose answers are written, for training, evaluation and use alike.

A prompt is `before source after` of the task's frame, an answer is the text to be written and the frame's end token.
Sources and answers are plain text: what looks like a special token in them is none, so that no source can end its turn.

Shape legend: E examples, S prompts, T tokens of all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from manyskills.config import TaskConfig
from manyskills.data.frames import Frame, Frames, frames, refuse_unknown_variant, written
from manyskills.data.long_texts import Truncation
from manyskills.data.problems import RowProblems
from manyskills.data.prompt_rules import WORDS, FrameIds, PromptReader, PromptRule
from manyskills.data.prompted import PromptExamples, PromptStore
from manyskills.data.rows import SplitRows
from manyskills.data.tokens import Template, TextTable, TokenStore, tokenize
from manyskills.data.variants import VARIANT
from manyskills.tasks import Kind, SplitName, get_task

__all__ = ["WORDS", "BuiltPrompts", "Frame", "FrameIds", "Frames", "PromptReader", "build_prompts", "frames", "written"]

WHOLE = 1 << 30
_NOTHING_AROUND = Template((), (), ())


@dataclass(frozen=True, slots=True)
class BuiltPrompts:
    """All prompts of a run.

    Attributes:
        store: Their tokens; example after example, split after split.
        prompted: The examples by split and task.
        frames: What stands around them, by task and variant.
        prompts_cut: What the length limit costs each task's prompts.
        answers_cut: The same for `max_new_tokens` and the answers.
    """

    store: PromptStore
    prompted: dict[SplitName, dict[str, PromptExamples]]
    frames: Frames
    prompts_cut: dict[str, Truncation]
    answers_cut: dict[str, Truncation]


def build_prompts(
    rows: Mapping[SplitName, Mapping[str, SplitRows]],
    tasks: Mapping[str, TaskConfig],
    reader: PromptReader,
    saved: Mapping[str, Mapping[str, Frame]] | None = None,
) -> BuiltPrompts:
    """Frame and tokenise the rows of all tasks whose answers are written; rows without a text to write get no answer.

    Args:
        rows: By split and task; tasks with heads are passed over.
        tasks: Choices of the tasks.
        reader: Tokenizer, backbone and limits.
        saved: The frames of a trained module; None: made from the tasks' instructions.

    Raises:
        UserError: A limit leaves no room for a source, a task cannot be answered by a text, a variant is one that the
            module was not trained on, or texts are longer than their task allows.
    """
    made = {
        name: _frames_of_rows(name, config, rows, reader, saved)
        for name, config in tasks.items()
        if written(name, config)
    }
    rules = {name: PromptRule.of(name, tasks[name], by_variant, reader) for name, by_variant in made.items()}
    table = TextTable()
    gathered: dict[SplitName, dict[str, _Gathered]] = {
        split: {name: _gather(part, rules[name], table) for name, part in by_task.items() if name in rules}
        for split, by_task in rows.items()
    }
    with plain_text(reader.tokenizer):
        store = tokenize(table.entries, reader.tokenizer, _NOTHING_AROUND)
    builder = _Builder(store)
    prompted: dict[SplitName, dict[str, PromptExamples]] = {
        split: {name: builder.add(part, rules[name]) for name, part in by_task.items()}
        for split, by_task in gathered.items()
    }
    _refuse_long(rows, gathered, rules, store)
    cut = {name: _count_cut(name, gathered, rule, store) for name, rule in rules.items()}
    return BuiltPrompts(
        builder.store(), prompted, made, {n: of[0] for n, of in cut.items()}, {n: of[1] for n, of in cut.items()}
    )


@contextmanager
def plain_text(tokenizer: Any) -> Iterator[None]:
    """Within it, special tokens in a text are read as the characters that they are written with."""
    backend = tokenizer.backend_tokenizer
    before = backend.encode_special_tokens
    backend.encode_special_tokens = True
    try:
        yield
    finally:
        backend.encode_special_tokens = before


def _frames_of_rows(
    name: str,
    config: TaskConfig,
    rows: Mapping[SplitName, Mapping[str, SplitRows]],
    reader: PromptReader,
    saved: Mapping[str, Mapping[str, Frame]] | None,
) -> dict[str, Frame]:
    """The frames of a task's variants, of those that its rows have."""
    task = get_task(name)
    kept = None if saved is None else saved.get(name, {})
    found = frames(task, config, reader.tokenizer, reader.family, kept)
    parts = [by_task[name] for by_task in rows.values() if name in by_task]
    there = {row[VARIANT] for part in parts for row in part.rows} if task.variants else {""}
    for variant in sorted(there):
        refuse_unknown_variant(name, variant, found)
    return found if saved is not None else {variant: frame for variant, frame in found.items() if variant in there}


@dataclass(frozen=True, slots=True)
class _Gathered:
    """One split of one task as indices of texts.

    Attributes:
        part: The rows.
        sources: Of each row, the indices of one text, or two.
        answers: Of each row the index of its answer; -1 for none.
        references: The same as texts.
        variants: Name of each row's variant.
        labels: Of a yes/no task; None where rows have none.
    """

    part: SplitRows
    sources: list[tuple[int, ...]]
    answers: list[int]
    references: list[str]
    variants: list[str]
    labels: list[int] | None


def _gather(part: SplitRows, rule: PromptRule, table: TextTable) -> _Gathered:
    if part.task.kind is not Kind.GENERATE:
        return _gather_questions(part, table)
    by_name = {variant.name: variant for variant in part.task.variants}
    variants = [row[VARIANT] for row in part.rows]
    sources = [(table.add(row[by_name[name].source], WHOLE),) for row, name in zip(part.rows, variants, strict=True)]
    references = [_target(row, by_name[name].target) for row, name in zip(part.rows, variants, strict=True)]
    answers = [table.add(text, WHOLE) if text else -1 for text in references]
    return _Gathered(part, sources, answers, references, variants, None)


def _target(row: Mapping[str, Any], column: str) -> str:
    """What is to be written; rows to predict on need not have it."""
    value = row.get(column)
    return value if isinstance(value, str) else ""


def _gather_questions(part: SplitRows, table: TextTable) -> _Gathered:
    label = part.task.label
    assert label is not None
    found = [row.get(label) for row in part.rows]
    references = ["" if answer is None else WORDS[answer] for answer in found]
    sources = [tuple(table.add(row[name], WHOLE) for name in part.task.inputs) for row in part.rows]
    answers = [table.add(word, WHOLE) if word else -1 for word in references]
    labels = (
        None if any(answer is None for answer in found) else [int(answer) for answer in found if answer is not None]
    )
    return _Gathered(part, sources, answers, references, [""] * len(found), labels)


class _Builder:
    """Puts prompts and answers of all splits and tasks one behind another."""

    def __init__(self, texts: TokenStore) -> None:
        self._texts = texts
        self._prompts: list[np.ndarray] = []
        self._prompt_lengths: list[int] = []
        self._answers: list[np.ndarray] = []
        self._answer_lengths: list[int] = []
        self._routes: list[np.ndarray] = []
        self._learnt: list[np.ndarray] = []

    def add(self, gathered: _Gathered, rule: PromptRule) -> PromptExamples:
        """One split of one task."""
        start, count = len(self._prompt_lengths), len(gathered.variants)
        pieces = {name: _arrays(frame) for name, frame in rule.ids.items()}
        for sources, answer, variant in zip(gathered.sources, gathered.answers, gathered.variants, strict=True):
            self._add_prompt(sources, pieces[variant], rule.room(variant))
            self._add_answer(answer, pieces[variant].end, rule.answer_limit)
        self._routes.append(np.full(count, rule.route, dtype=np.int64))
        self._learnt.append(np.full(count, rule.learnt))
        return PromptExamples(
            gathered.part.task,
            np.arange(start, start + count, dtype=np.int64),
            np.array(gathered.references, dtype=object),
            np.array(gathered.variants, dtype=object),
            None if gathered.labels is None else np.array(gathered.labels, dtype=np.float32),
            rule.choices,
        )

    def store(self) -> PromptStore:
        """All of them."""
        return PromptStore(
            _joined(self._prompts, np.int32), _starts(self._prompt_lengths),
            _joined(self._answers, np.int32), _starts(self._answer_lengths),
            _joined(self._routes, np.int64), _joined(self._learnt, np.bool_),
        )  # fmt: skip

    def _add_prompt(self, sources: tuple[int, ...], frame: _FrameArrays, room: int) -> None:
        first, *second = (self._texts.sequence(index) for index in sources)
        if second:  # of a pair the longer one is cut first
            first = first[: max(room // 2, room - len(second[0]))]
            parts = [frame.before, first, frame.middle, second[0][: room - len(first)], frame.after]
        else:
            parts = [frame.before, first[:room], frame.after]
        self._prompts += parts
        self._prompt_lengths.append(sum(map(len, parts)))

    def _add_answer(self, index: int, end: np.ndarray, limit: int) -> None:
        """A cut answer has no end: it must not teach to stop there."""
        parts: list[np.ndarray] = []
        if index >= 0:
            text = self._texts.sequence(index)
            parts = [text, end] if len(text) + len(end) <= limit else [text[:limit]]
        self._answers += parts
        self._answer_lengths.append(sum(map(len, parts)))


@dataclass(frozen=True, slots=True)
class _FrameArrays:
    before: np.ndarray
    middle: np.ndarray
    after: np.ndarray
    end: np.ndarray


def _arrays(frame: FrameIds) -> _FrameArrays:
    parts = (np.asarray(ids, dtype=np.int32) for ids in (frame.before, frame.middle, frame.after, frame.end))
    return _FrameArrays(*parts)


def _joined(parts: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.empty(0, dtype=dtype)


def _starts(lengths: Sequence[int]) -> np.ndarray:
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _full_lengths(gathered: _Gathered, rule: PromptRule, texts: TokenStore) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each row's prompt and answer before they are cut; 0 where there is no answer."""
    tokens_N = texts.full_lengths_N.astype(np.int64)
    frame_E = np.array([rule.ids[variant].length for variant in gathered.variants], dtype=np.int64)
    source_E = np.array([sum(tokens_N[index] for index in sources) for sources in gathered.sources], dtype=np.int64)
    end_E = np.array([len(rule.ids[variant].end) for variant in gathered.variants], dtype=np.int64)
    answers_E = np.array(gathered.answers, dtype=np.int64)
    if not len(tokens_N):
        return frame_E, np.zeros_like(frame_E)
    return frame_E + source_E, np.where(answers_E >= 0, tokens_N[answers_E] + end_E, 0)


def _refuse_long(
    rows: Mapping[SplitName, Mapping[str, SplitRows]],
    gathered: Mapping[SplitName, Mapping[str, _Gathered]],
    rules: Mapping[str, PromptRule],
    texts: TokenStore,
) -> None:
    """All prompts and answers that are longer than a strict task allows, in all splits."""
    problems = RowProblems()
    for split, by_task in gathered.items():
        for name, part in by_task.items():
            rule = rules[name]
            if not rule.strict:
                continue
            prompt_E, answer_E = _full_lengths(part, rule, texts)
            for lengths_E, limit, what in ((prompt_E, rule.limit, "prompt"), (answer_E, rule.answer_limit, "answer")):
                for row in np.flatnonzero(lengths_E > limit).tolist():
                    place = f"{name}, {split}, {rows[split][name].rows[row]['id']}"
                    problems.add(place, f"wanted at most {limit} tokens in the {what}, found {int(lengths_E[row]):,}")
    strict = ", ".join(f"tasks.{name}.long" for name, rule in rules.items() if rule.strict)
    problems.raise_if_any(
        f"raise max_length (or max_new_tokens), shorten or take out these rows, or set {strict} to truncate"
    )


def _count_cut(
    name: str, gathered: Mapping[SplitName, Mapping[str, _Gathered]], rule: PromptRule, texts: TokenStore
) -> tuple[Truncation, Truncation]:
    """What the limits cost a task's prompts and answers over all splits, each distinct one once."""
    parts = [by_task[name] for by_task in gathered.values() if name in by_task]
    lengths = [_full_lengths(part, rule, texts) for part in parts]
    prompts = {
        (variant, sources): int(tokens)
        for part, (prompt_E, _) in zip(parts, lengths, strict=True)
        for variant, sources, tokens in zip(part.variants, part.sources, prompt_E, strict=True)
    }
    answers = {
        (variant, answer): int(tokens)
        for part, (_, answer_E) in zip(parts, lengths, strict=True)
        for variant, answer, tokens in zip(part.variants, part.answers, answer_E, strict=True)
        if answer >= 0
    }
    return (
        _truncation("prompts", prompts.values(), rule.limit, rule),
        _truncation("answers", answers.values(), rule.answer_limit, rule),
    )


def _truncation(
    what: Literal["prompts", "answers"], tokens: Collection[int], limit: int, rule: PromptRule
) -> Truncation:
    over = [count - limit for count in tokens if count > limit]
    long = "error" if rule.strict else "truncate"
    return Truncation(len(tokens), len(over), sum(tokens), sum(over), limit, long, what=what)
