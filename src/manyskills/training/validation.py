"""Measuring a model on validation while it trains: answers, metrics, losses.

Shape legend: N texts, D size of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch

from manyskills.config import TaskConfig, TrainConfig
from manyskills.data.frames import written
from manyskills.data.preparation import Prepared
from manyskills.data.prompted import PromptExamples
from manyskills.evaluation.answers import Outputs, choose_thresholds, plain_metrics
from manyskills.evaluation.outputs import evaluation_losses, task_outputs
from manyskills.evaluation.written import likelihood_metrics, relative_losses, token_losses, written_outputs
from manyskills.model.multitask import MultiTaskModel
from manyskills.tasks import Kind, get_task
from manyskills.training.processes import Processes

TOKEN_PROBABILITY = "token_probability"

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Validation:
    """What one validation found.

    Attributes:
        metrics: Of each task.
        losses: Of each task, 1 at chance level.
        thresholds: From which each classifying task says yes.
    """

    metrics: dict[str, dict[str, float]]
    losses: dict[str, float]
    thresholds: dict[str, float]


def validation_metric(name: str, config: TaskConfig) -> str:
    """What a task is selected by."""
    return TOKEN_PROBABILITY if by_likelihood(name, config) else get_task(name).primary_metric


def by_likelihood(name: str, config: TaskConfig) -> bool:
    """Whether validation looks at the probability of the right answer instead of generating one."""
    return get_task(name).kind is Kind.GENERATE and config.select_by == "likelihood"


def validate(
    config: TrainConfig,
    model: MultiTaskModel,
    prepared: Prepared,
    vectors_ND: Callable[[], torch.Tensor],
    processes: Processes | None = None,
) -> Validation:
    """Measure all tasks on the validation split.

    Args:
        config: The run.
        model: Put into evaluation mode.
        prepared: Its data.
        vectors_ND: Gives the vectors of the split's texts, in the order of `Prepared.used_texts`.
        processes: Share the work.
    """
    outputs, losses = _with_heads(model, prepared, vectors_ND)
    prompted = prepared.prompted.get("valid", {})
    token = valid_token_losses(config, model, prepared, processes)
    likely = [name for name in prompted if by_likelihood(name, config.tasks[name])]
    generated = {name: part for name, part in prompted.items() if name not in likely}
    outputs |= answers_in_words(config, model, prepared, generated, processes)
    metric = {name: get_task(name).primary_metric for name in config.tasks}
    thresholds = choose_thresholds(outputs, metric)
    metrics = plain_metrics(outputs, thresholds) | likelihood_metrics(token, likely)
    losses |= relative_losses(model, token) if token else {}
    return Validation(_in_order(config, metrics), _in_order(config, losses), thresholds)


def answers_in_words(
    config: TrainConfig,
    model: MultiTaskModel,
    prepared: Prepared,
    examples: Mapping[str, PromptExamples],
    processes: Processes | None = None,
) -> dict[str, Outputs]:
    """Answers of the tasks whose answers are written; none without such tasks."""
    if not examples:
        return {}
    assert prepared.prompts is not None
    if processes is None:
        return written_outputs(model, prepared.prompts, examples, config.tasks, config.token_budget)
    return written_outputs(
        model, prepared.prompts, examples, config.tasks, config.token_budget,
        share=processes.share, join=processes.join, add=processes.sum,
    )  # fmt: skip


def valid_token_losses(
    config: TrainConfig, model: MultiTaskModel, prepared: Prepared, processes: Processes | None = None
) -> dict[str, float]:
    """Mean cross-entropy of the right answers' tokens on validation in nats, of the tasks whose answers are written."""
    examples = prepared.prompted.get("valid", {})
    if not examples:
        return {}
    assert prepared.prompts is not None
    if processes is None:
        return token_losses(model, prepared.prompts, examples, config.token_budget)
    return token_losses(
        model, prepared.prompts, examples, config.token_budget, share=processes.share, add=processes.sum
    )


def names_with_heads(config: TrainConfig) -> list[str]:
    """The tasks that are answered by heads on vectors."""
    return [name for name, task in config.tasks.items() if not written(name, task)]


def _with_heads(
    model: MultiTaskModel, prepared: Prepared, vectors_ND: Callable[[], torch.Tensor]
) -> tuple[dict[str, Outputs], dict[str, float]]:
    examples = prepared.examples["valid"]
    if not examples:
        return {}, {}
    vectors = vectors_ND()
    outputs = task_outputs(model, examples, vectors)
    return outputs, evaluation_losses(model, examples, vectors, outputs)


def _in_order(config: TrainConfig, found: Mapping[str, Found]) -> dict[str, Found]:
    return {name: found[name] for name in config.tasks if name in found}
