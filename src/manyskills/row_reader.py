"""Rows as a trained module reads them: token sequences, prompts, whole splits.

Shape legend: E rows, K texts a row.

Importing this imports neither torch nor onnxruntime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from manyskills.asking import Asked, ask
from manyskills.config import TaskConfig
from manyskills.data.finding import task_folder
from manyskills.data.long_texts import ReadingRule, refused_texts
from manyskills.data.preparation import Prepared, prepare, task_source
from manyskills.data.problems import RowProblems
from manyskills.data.prompts import PromptReader, written
from manyskills.data.reading import read_split
from manyskills.data.rows import SplitRows
from manyskills.data.text_set import Examples
from manyskills.data.tokens import Template, TextTable, TokenStore, tokenize
from manyskills.errors import UserError
from manyskills.saved import SavedTasks
from manyskills.tasks import SplitName, get_task


@dataclass(frozen=True, slots=True)
class RowReader:
    """How rows become token sequences.

    Attributes:
        saved: The module's tasks with their choices and prompts.
        tokenizer: Has a `backend_tokenizer` of the tokenizers library.
        template: Its special tokens.
        max_positions: Tokens that the network can take at most.
        routes: By task, which part of a routed module reads its texts.
        family: Of the backbone.
    """

    saved: SavedTasks
    tokenizer: Any
    template: Template
    max_positions: int | None
    routes: Mapping[str, int]
    family: str = "encoder"

    def texts(
        self, task: str | None, rows: Sequence[tuple[str, ...]], places: Sequence[str]
    ) -> tuple[TokenStore, Examples]:
        """Unique texts once, and examples that index them.

        Args:
            task: As which the texts are read; None: as `encode` without a task does.
            rows: The texts of each row.
            places: The rows' names in messages.

        Raises:
            UserError: A text is longer than it may be.
        """
        rule = self._rule(task)
        table = TextTable()
        # `encode` reads the texts of a joint pair alone
        parts = [[(row[0], row[1])] if rule.joint and len(row) == 2 else list(row) for row in rows]
        texts_EK = np.asarray([[rule.add(part, table) for part in row] for row in parts], dtype=np.int64)
        store = tokenize(table.entries, self.tokenizer, self.template, use_cache=False)
        examples = Examples(get_task(task or next(iter(self._tasks))), texts_EK, None)
        problems = RowProblems()
        for row, message in refused_texts(store, examples, rule):
            problems.add(places[row], message)
        problems.raise_if_any("the module was trained with long=error, which refuses longer texts; shorten them")
        return store, examples

    def prompts(
        self, task: str, rows: Sequence[Mapping[str, Any]], *, variant: str | None = None, max_new_tokens: int = 0
    ) -> Asked:
        """The prompts of rows of a task whose answers are written.

        Args:
            task: Its name.
            rows: Hold the text to be read.
            variant: The one that all rows are; None: each row tells its own.
            max_new_tokens: There is room for an answer of this length, and of that which was trained for.

        Raises:
            UserError: As `manyskills.asking.ask`.
        """
        config, limit = self._tasks[task], self.saved.config.max_length
        config = config.model_copy(update={"max_new_tokens": max(max_new_tokens, config.max_new_tokens)})
        reader = PromptReader(self.tokenizer, self.family, limit, self.max_positions, self.routes)
        return ask(get_task(task), rows, config, reader, self.saved.prompts, variant=variant)

    def split(self, name: str, data: str | Path | None, split: SplitName, limit: int | None) -> SplitRows:
        """Rows of a task from files.

        Args:
            name: Of the task.
            data: A folder with one folder a task; None: where the module was trained.
            split: Which.
            limit: Rows at most; None: what the run used.

        Raises:
            UserError: The data is absent or wrong.
        """
        config = self._tasks[name]
        if data is not None and not Path(data).is_dir():  # else <data>/<task> would be looked for on the hub
            raise UserError(f"there is no folder {data}", f"it is to hold one folder a task, such as {name}/")
        task = get_task(name)
        source = str(task_folder(Path(data), task)) if data is not None else task_source(self.saved.config, name)
        wanted = limit if limit is not None else getattr(config.limit, split)
        return read_split(
            task, source, split,
            columns=config.columns, variants=config.variants, limit=wanted, seed=self.saved.config.seed,
        )  # fmt: skip

    def prepared(self, split: SplitName, rows: dict[str, SplitRows]) -> Prepared:
        """Token sequences and prompts of a split's rows, by task."""
        return prepare(
            {split: rows}, {name: self._tasks[name] for name in rows}, self.saved.config.max_length, self.tokenizer,
            self.template, self.max_positions, self.routes, self.family, self.saved.prompts,
        )  # fmt: skip

    @property
    def _tasks(self) -> Mapping[str, TaskConfig]:
        return self.saved.config.tasks

    def _rule(self, task: str | None) -> ReadingRule:
        """How texts are read: as the task does; without one, up to the run's limit and as all tasks do, or else cut."""
        positions, limit = self.max_positions, self.saved.config.max_length
        if task is not None:
            return ReadingRule.of(task, self._tasks[task], limit, positions, self.routes[task])
        rule = ReadingRule(limit if positions is None else min(limit, positions))  # a task's own limit may be lower
        choices = {
            (config.long, config.window_overlap) for name, config in self._tasks.items() if not written(name, config)
        }
        if len(choices) != 1:
            return rule
        long, overlap = choices.pop()
        return replace(rule, long=long, window_overlap=overlap)
