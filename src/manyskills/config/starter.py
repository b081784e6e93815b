"""The configuration that `manyskills init` writes: every key with its description, the rarer ones commented out.

It is generated from the models of `manyskills.config`. A line that begins with `#` and no blank is a key to uncomment.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from manyskills.config import TaskConfig, TrainConfig
from manyskills.config.sections import NAMED_SECTIONS, keys_of_choice
from manyskills.tasks import Kind, all_tasks, get_task

WRITER = "qwen2.5-coder-0.5b-instruct"
"""The backbone of a configuration with generating tasks: the default one cannot write."""

_OF_WRITTEN = ("variants", "prompt", "max_new_tokens", "loss_on", "select_by", "num_beams")
_OF_HEADS = (
    *("answer", "window_overlap", "read", "head_hidden", "head_dropout", "positive_weight", "focal_gamma"),
    *("rename_identifiers", "positive_share"),
)
"""Keys that mean nothing to a task with a head, and to a generating task."""

SHOWN = (
    *("backbone", "method", "tasks", "data_dir", "output_dir", "max_length"),
    *("learning_rate", "num_train_epochs", "batch_size", "seed"),
)
"""Keys that most people change; the others are comments."""

HEADING = """\
# A training run of manyskills. Check it with `manyskills config validate {file}`, look at the data with
# `manyskills data check {file}`, start with `manyskills train {file}`; `key.sub=value` after it overrides.
# Lines that begin with # and no blank are keys with their defaults: uncomment what you need.
"""


def starter_config(tasks: Sequence[str], data_dir: str, output_dir: str, file: str = "CONFIG") -> str:
    """A commented YAML configuration that `load_config` accepts.

    Args:
        tasks: Names of tasks. Generating ones need a backbone that writes, and get one.
        data_dir: Holds one folder a task.
        output_dir: The run folder.
        file: What the file will be called, for the commands in its heading.

    Raises:
        UserError: An unknown task.
    """
    backbone = {"name": WRITER} if any(_writes(name) for name in tasks) else {}
    config = TrainConfig.model_validate(
        {
            "backbone": backbone,
            "tasks": {get_task(name).name: {} for name in tasks},
            "data_dir": data_dir,
            "output_dir": output_dir,
        }
    )
    lines = [HEADING.format(file=file)]
    for name, field in TrainConfig.model_fields.items():
        value = getattr(config, name)
        block = list(_tasks(config.tasks) if name == "tasks" else _key(name, field, value))
        lines += block if name in SHOWN else _commented(block)
        lines.append("")
    return "\n".join(lines)


def _tasks(tasks: dict[str, TaskConfig]) -> Iterator[str]:
    yield f"# {TrainConfig.model_fields['tasks'].description}"
    if not any(_writes(name) for name in tasks):
        writing = ", ".join(name for name in all_tasks() if _writes(name))
        yield f"# With a backbone that writes (a decoder such as {WRITER}) also {writing}."
    yield "tasks:"
    explained: set[bool] = set()
    for name, options in tasks.items():
        writes = _writes(name)
        yield f"  # {get_task(name).description}"
        yield f"  {name}:"
        if writes not in explained:
            explained.add(writes)
            yield from _commented(f"    {line}" for line in _section(options, _OF_HEADS if writes else _OF_WRITTEN))


def starter_tasks() -> list[str]:
    """The tasks that the default backbone can learn."""
    return [name for name in all_tasks() if not _writes(name)]


def _writes(name: str) -> bool:
    return get_task(name).kind is Kind.GENERATE


def _key(name: str, field: FieldInfo, value: Any) -> Iterator[str]:
    """A key with its description above it; a section's keys are indented below it."""
    choices = list(keys_of_choice(TrainConfig, name)) if name in NAMED_SECTIONS[TrainConfig] else []
    said = [field.description] if field.description else []
    said += [f"One of {', '.join(choices)}."] if choices else []
    said += [] if said else [(type(value).__doc__ or "").strip()] if isinstance(value, BaseModel) else []
    if said:
        yield f"# {' '.join(said)}"
    if isinstance(value, BaseModel) and type(value).model_fields:
        yield f"{name}:"
        yield from (f"  {line}" for line in _section(value))
    else:
        yield f"{name}: {_written(value)}"


def _section(value: BaseModel, without: Sequence[str] = ()) -> Iterator[str]:
    for name, field in type(value).model_fields.items():
        if name in without:
            continue
        yield from _key(name, field, getattr(value, name))


def _commented(lines: Any) -> list[str]:
    return [line if line.startswith("# ") else f"#{line}" for line in lines]


def _written(value: Any) -> str:
    if isinstance(value, str):
        return yaml.safe_dump(value, width=10_000, allow_unicode=True).removesuffix("\n").removesuffix("\n...")
    return json.dumps(value)
