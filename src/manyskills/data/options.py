"""Which choices have an effect on which tasks."""

from __future__ import annotations

from collections.abc import Iterator

from manyskills.config import TaskConfig, TrainConfig
from manyskills.data.frames import written
from manyskills.errors import UserError
from manyskills.tasks import Kind, get_task


def refuse_useless_options(config: TrainConfig) -> None:
    """Options that cannot have an effect on a task's kind are mistakes, not decoration.

    Raises:
        UserError: All of them.
    """
    wrong = [f"tasks.{name}.{key}: {why}" for name, task in config.tasks.items() for key, why in _useless(name, task)]
    if wrong:
        raise UserError("\n".join(wrong), "leave these keys out")


def refuse_what_cannot_write(config: TrainConfig) -> None:
    """Choices that leave a task whose answers are written, or heads that there are none of, without anything to learn.

    Raises:
        UserError: All of them.
    """
    names = [name for name, task in config.tasks.items() if written(name, task)]
    wrong: list[str] = []
    if names and config.method.name == "frozen":
        wrong.append(f"method: frozen trains heads alone, and {', '.join(names)} has none")
    taught = [name for name in names if config.distillation and name in config.distillation.teachers]
    if taught:
        wrong.append(f"distillation.teachers: {', '.join(taught)}: written answers cannot be taught")
    if wrong:
        raise UserError("\n".join(wrong), "choose another method, or leave these tasks out")
    if config.heads_first and len(names) == len(config.tasks):
        raise UserError("heads_first: no task of this run has a head", "leave heads_first out")


def _useless(name: str, task: TaskConfig) -> Iterator[tuple[str, str]]:
    """The keys of one task that change nothing, with the reason."""
    kind = get_task(name).kind
    given = task.model_dump(exclude_defaults=True)
    if "answer" in given and kind not in _YES_OR_NO:
        yield "answer", "only a yes/no task can be answered by a head or by a word"
        return  # what else is given may be right for another answer
    kinds = _ONLY_FOR | (_ONLY_WRITTEN if not written(name, task) else {})
    for key, (allowed, why) in kinds.items():
        if key in given and kind not in allowed:
            yield key, why
    if written(name, task):
        yield from ((key, why) for key, why in _ONLY_FOR_HEADS.items() if key in given and kind in _kinds_of(key))
    if "window_overlap" in given and task.long != "window":
        yield "window_overlap", f"only windows overlap, and long is {task.long}"
    if kind is Kind.PAIR and task.positive_share and task.read == "separate" and not written(name, task):
        yield "positive_share", "pairs are drawn on the pair graph; use positive_weight"


def _kinds_of(key: str) -> tuple[Kind, ...]:
    """Kinds of which another sentence has not refused the key already."""
    return _ONLY_FOR[key][0] if key in _ONLY_FOR else tuple(Kind)


_YES_OR_NO = (Kind.CLASSIFY, Kind.PAIR)
_ONLY_FOR: dict[str, tuple[tuple[Kind, ...], str]] = {
    "read": ((Kind.PAIR,), "only pairs can be read jointly"),
    "rename_identifiers": ((Kind.CLASSIFY, Kind.EMBED), "both sides of a row would have to be renamed alike"),
    "positive_share": (_YES_OR_NO, "only yes/no tasks have positive rows"),
    "positive_weight": (_YES_OR_NO, "only yes/no tasks have positive rows"),
    "focal_gamma": (_YES_OR_NO, "only yes/no tasks have a cross-entropy of yes and no"),
    "variants": ((Kind.GENERATE,), "only generating tasks have variants"),
    "max_new_tokens": ((Kind.GENERATE,), "only generating tasks write texts"),
    "select_by": ((Kind.GENERATE,), "only generating tasks are measured on texts"),
    "num_beams": ((Kind.GENERATE,), "only generating tasks search for a text"),
}
"""Keys of some kinds, and why the others have none."""

_ONLY_WRITTEN: dict[str, tuple[tuple[Kind, ...], str]] = dict.fromkeys(
    ("prompt", "loss_on"), ((), "the answer comes from a head, which reads no instruction")
)
_ONLY_FOR_HEADS: dict[str, str] = {
    "head_hidden": "the answer is written, there is no head",
    "head_dropout": "the answer is written, there is no head",
    "read": "the answer is written to both texts in one prompt",
    "rename_identifiers": "the answer is written, and its names would have to change too",
    "positive_share": "the answer is written, and its probability is not corrected back",
    "positive_weight": "the answer is written, and all its words count alike",
    "focal_gamma": "the answer is written, and learnt by plain cross-entropy",
}
"""Keys that change how a head learns."""
