"""From rows to token sequences and index views, for all tasks and splits of a run at once.

Shape legend: E examples, K texts an example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from manyskills.config import TaskConfig, TrainConfig
from manyskills.data.finding import task_folder
from manyskills.data.long_texts import ReadingRule, Truncation, refused_texts
from manyskills.data.problems import RowProblems
from manyskills.data.prompted import PromptExamples, PromptStore
from manyskills.data.prompts import BuiltPrompts, Frame, Frames, PromptReader, build_prompts, written
from manyskills.data.reading import read_split
from manyskills.data.rows import SplitRows
from manyskills.data.text_set import Examples
from manyskills.data.tokens import Template, TextTable, TokenStore, tokenize
from manyskills.data.variants import VARIANT
from manyskills.errors import UserError
from manyskills.tasks import Kind, SplitName, Text, get_task

SplitTable = dict[SplitName, dict[str, SplitRows]]


@dataclass(frozen=True, slots=True)
class Prepared:
    """All data of a run.

    Attributes:
        rows: The checked rows by split and task.
        examples: Those of the tasks with heads, as indices and labels.
        store: The texts they refer to, as token sequences.
        truncation: By task, over all splits; of a task whose answers are written, that of its prompts.
        prompts: Prompts and answers of the tasks whose answers are written, as token sequences; None if there are none.
        prompted: Their rows, as indices into these.
        frames: What stands around their sources and answers, by task and variant.
        answers_cut: What `max_new_tokens` costs their answers, over all splits.
    """

    rows: SplitTable
    examples: dict[SplitName, dict[str, Examples]]
    store: TokenStore
    truncation: dict[str, Truncation]
    prompts: PromptStore | None = None
    prompted: dict[SplitName, dict[str, PromptExamples]] = field(default_factory=dict)
    frames: Frames = field(default_factory=dict)
    answers_cut: dict[str, Truncation] = field(default_factory=dict)

    def used_texts(self, split: SplitName) -> np.ndarray:
        """Indices of the texts that a split's tasks with heads use, each once, ascending."""
        return _unique([part.texts_EK.ravel() for part in self.examples[split].values()])

    def all_examples(self, split: SplitName) -> dict[str, Examples | PromptExamples]:
        """The examples of every task of a split, in the configuration's order."""
        both = {**self.examples[split], **self.prompted.get(split, {})}
        return {name: both[name] for name in self.rows[split] if name in both}

    def only(self, names: Sequence[str]) -> Prepared:
        """The same with the examples of these tasks alone."""
        return replace(
            self,
            examples={s: {n: part for n, part in by.items() if n in names} for s, by in self.examples.items()},
            prompted={s: {n: part for n, part in by.items() if n in names} for s, by in self.prompted.items()},
        )


def task_source(config: TrainConfig, name: str) -> str:
    """Where a task's data is: its own `data` key, or its folder in data_dir, under any name that it may have.

    Raises:
        UserError: It is in data_dir, and that is no folder: `data/code_search` must not be taken for a hub id.
    """
    own = config.tasks[name].data
    if own is None and not Path(config.data_dir).is_dir():
        hint = f"set data_dir, or tasks.{name}.data to a folder or hub id"
        raise UserError(f"data_dir: {config.data_dir} is not a folder", hint)
    return own or str(task_folder(Path(config.data_dir), get_task(name)))


def read_tasks(config: TrainConfig, splits: Sequence[SplitName], *, limited: bool = True) -> SplitTable:
    """Read and check these splits of every task of a run.

    A limit draws training and validation rows by the run's seed, and the same test rows for all seeds: runs are
    compared row by row.

    Raises:
        UserError: Something is wrong with the data; the message has the place.
    """
    table: SplitTable = {split: {} for split in splits}
    for name, task_config in config.tasks.items():
        for split in splits:
            table[split][name] = read_split(
                get_task(name),
                task_source(config, name),
                split,
                columns=task_config.columns,
                variants=task_config.variants,
                limit=getattr(task_config.limit, split) if limited else None,
                seed=0 if split == "test" else config.seed,
            )
        _refuse_other_variants(name, {split: table[split][name] for split in splits})
    return table


def _refuse_other_variants(name: str, by_split: Mapping[SplitName, SplitRows]) -> None:
    """A variant that is in one split and not in another would be learnt and not measured, or the other way round."""
    if get_task(name).kind is not Kind.GENERATE:
        return
    found = [(split, part, {row[VARIANT] for row in part.rows}) for split, part in by_split.items()]
    every = sorted({variant for _, _, there in found for variant in there})
    for split, rows, there in found:
        missing = [variant for variant in every if variant not in there]
        if missing:
            kept = f" (with limit, {len(rows.rows)} of {rows.total} rows)" if len(rows.rows) < rows.total else ""
            what = f"{name}: the {split} split{kept} has no rows of {', '.join(missing)}, and another split has"
            raise UserError(what, f"set tasks.{name}.variants to those that every split has")


def prepare(
    rows: SplitTable,
    tasks: Mapping[str, TaskConfig],
    max_length: int,
    tokenizer: Any,
    template: Template,
    max_positions: int | None = None,
    routes: Mapping[str, int] | None = None,
    family: str = "encoder",
    saved_frames: Mapping[str, Mapping[str, Frame]] | None = None,
) -> Prepared:
    """Intern every text, tokenise each distinct one once and express the examples as indices.

    Tasks whose answers are written get prompts and answers instead, within their frames.

    Args:
        rows: By split and task.
        tasks: Choices of the tasks; decide reading and length limits.
        max_length: For tasks without their own.
        tokenizer: A fast tokenizer.
        template: Its special tokens.
        max_positions: What the backbone can take at most.
        routes: By task, which part of a routed module reads its texts; None: nothing is routed.
        family: Of the backbone; decides what stands around a prompt.
        saved_frames: Of a trained module, which are used as they are; None: made from the tasks' instructions.

    Raises:
        UserError: A length limit is beyond what the backbone can read, choices exclude each other, or texts are longer
            than their task allows.
    """
    table = TextTable()
    rules = {
        name: ReadingRule.of(name, config, max_length, max_positions, (routes or {}).get(name, 0))
        for name, config in tasks.items()
        if not written(name, config)
    }
    # texts that are alike up to the limit stay two texts: merged, a search would have fewer candidates than it has
    examples: dict[SplitName, dict[str, Examples]] = {
        split: {name: _index(part, rules[name], table) for name, part in by_task.items() if name in rules}
        for split, by_task in rows.items()
    }
    store = tokenize(table.entries, tokenizer, template)
    truncation = {name: Truncation.count(store, _used(examples, name), rule) for name, rule in rules.items()}
    prepared = Prepared(rows, examples, store, truncation)
    _refuse_long_texts(prepared, rules)
    if len(rules) == len(tasks):
        return prepared
    reader = PromptReader(tokenizer, family, max_length, max_positions, routes)
    return _with_prompts(prepared, build_prompts(rows, tasks, reader, saved_frames), list(tasks))


def _with_prompts(prepared: Prepared, built: BuiltPrompts, tasks: Sequence[str]) -> Prepared:
    both = prepared.truncation | built.prompts_cut
    return replace(
        prepared,
        truncation={name: both[name] for name in tasks},
        prompts=built.store,
        prompted=built.prompted,
        frames=built.frames,
        answers_cut=built.answers_cut,
    )


def _refuse_long_texts(prepared: Prepared, rules: Mapping[str, ReadingRule]) -> None:
    """All texts that are longer than their task allows, in all splits."""
    problems = RowProblems()
    for split, by_task in prepared.rows.items():
        for name, part in by_task.items():
            if name not in rules:
                continue
            for row, message in refused_texts(prepared.store, prepared.examples[split][name], rules[name]):
                problems.add(f"{name}, {split}, {part.rows[row]['id']}", message)
    strict = ", ".join(f"tasks.{name}.long" for name, rule in rules.items() if rule.long == "error")
    problems.raise_if_any(f"raise max_length, shorten or take out these rows, or set {strict} to truncate or window")


def refuse_one_label(examples: Mapping[str, Examples | PromptExamples]) -> None:
    """Training rows that all have the same label teach nothing.

    Raises:
        UserError: A classifying task has only one label.
    """
    for name, rate in positive_rates(examples).items():
        if not 0 < rate < 1:
            found = f"all {len(examples[name])} training rows have label {int(rate)}"
            raise UserError(
                f"{name}: {found}, wanted both 0 and 1", "add rows with the other label, or leave the task out"
            )


def _index(part: SplitRows, rule: ReadingRule, table: TextTable) -> Examples:
    texts: list[list[int]] = []
    labels: list[float] = []
    known: dict[Text, int] = {}  # hundreds of thousands of pairs share a few thousand texts
    for example in part.examples(joint=rule.joint):
        for text in example.texts:
            if text not in known:
                known[text] = rule.add(text, table)
        texts.append([known[text] for text in example.texts])
        if example.label is not None:
            labels.append(float(example.label))
    width = 1 if rule.joint else len(part.task.inputs)
    texts_EK = np.asarray(texts, dtype=np.int64).reshape(-1, width)
    return Examples(part.task, texts_EK, np.asarray(labels, dtype=np.float32) if labels else None)


def _used(examples: Mapping[SplitName, Mapping[str, Examples]], name: str) -> np.ndarray:
    """Every text that a task uses in any split, once."""
    return _unique([by_task[name].texts_EK.ravel() for by_task in examples.values()])


def _unique(indices: Sequence[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate(indices)) if indices else np.empty(0, dtype=np.int64)


def positive_rates(examples: Mapping[str, Examples | PromptExamples]) -> dict[str, float]:
    """Share of positive rows of every classifying task."""
    return {name: float(part.labels_E.mean()) for name, part in examples.items() if part.labels_E is not None}


def synthetic_tasks(rows: SplitTable) -> dict[str, str]:
    """Tasks whose labels were made by a program, with how."""
    return {name: part.synthetic for by_task in rows.values() for name, part in by_task.items() if part.synthetic}
