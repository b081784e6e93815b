"""Rows of a task whose answers are written, as prompts: what is asked of a trained module.

Importing this does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from manyskills.config import TaskConfig
from manyskills.data.prompted import PromptExamples, PromptStore
from manyskills.data.prompts import Frames, PromptReader, build_prompts
from manyskills.data.reading import check_rows
from manyskills.data.rows import SplitRows
from manyskills.model.decoding.options import Decoding, Stop
from manyskills.tasks import Kind, Task


@dataclass(frozen=True, slots=True)
class Asked:
    """Rows as prompts.

    Attributes:
        store: The prompts.
        examples: The rows.
    """

    store: PromptStore
    examples: PromptExamples

    @property
    def languages(self) -> list[str]:
        """What each answer is written in; nothing is known of a yes/no task's."""
        written = {variant.name: variant.language for variant in self.examples.task.variants}
        return [written.get(name, "") for name in self.examples.variants_E.tolist()]


def ask(
    task: Task,
    rows: Sequence[Mapping[str, Any]],
    config: TaskConfig,
    reader: PromptReader,
    frames: Frames,
    *,
    variant: str | None = None,
) -> Asked:
    """The prompts of rows.

    Args:
        task: Whose rows.
        rows: Hold the text to be read; the text to be written is not looked at.
        config: The task's choices.
        reader: Tokenizer, backbone and limits.
        frames: Of the trained module.
        variant: The one that all rows are; None: each row tells its own.

    Raises:
        UserError: A row lacks a column, nothing tells its variant, the module did not learn it, or a text is longer
            than it may be.
    """
    known = list(frames.get(task.name, {})) if task.kind is Kind.GENERATE else None
    checked = check_rows(task, rows, labels_required=False, variants=known, variant=variant)
    part = SplitRows(task, "test", checked, len(checked), "rows", "")
    built = build_prompts({"test": {task.name: part}}, {task.name: config}, reader, frames)
    return Asked(built.store, built.prompted["test"][task.name])


def decoding_for(
    config: TaskConfig,
    *,
    max_new_tokens: int | None,
    num_beams: int | None,
    temperature: float,
    top_p: float,
    top_k: int,
    samples: int,
    seed: int,
    stop: Stop | None,
) -> Decoding:
    """How answers of a task are written; what is None is as the task's configuration says.

    Raises:
        UserError: Numbers are out of range or exclude each other.
    """
    draws = temperature > 0 or samples > 1
    beams = num_beams if num_beams is not None else 1 if draws else config.num_beams
    length = max_new_tokens if max_new_tokens is not None else config.max_new_tokens
    return Decoding(length, beams, temperature, top_k, top_p, samples, seed, stop or "end")
