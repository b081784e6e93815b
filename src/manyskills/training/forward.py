"""One step between the backbone and its losses: what the losses are made of, detached, and their gradients' way back.

Shape legend: N texts of the step, M texts of one task, D size of a vector, R rows of states, H hidden size, V words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from manyskills.data.prompted import PromptExamples
from manyskills.data.text_set import Examples, Teaching, TextSet, View, gather
from manyskills.model.heads import Lesson
from manyskills.model.multitask import MultiTaskModel
from manyskills.model.token_loss import token_chance, token_loss
from manyskills.training.answer_rows import AnswerRows, TaskRows
from manyskills.training.balancing import Rule, TaskLoss
from manyskills.training.processes import Processes
from manyskills.training.task_gradients import TaskGradients
from manyskills.training.vectors import VectorSource, seeded

HEADS = 2**32 - 1
"""Stands where a chunk's number stands, in the key of the heads' random numbers; no step has so many chunks."""

Batch = Mapping[str, Examples | PromptExamples]
"""A step's examples by task."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a step's tensors come from.

    Attributes:
        vectors: Of texts.
        answers: Of written answers; None where no task has any.
        processes: Share the work; None: this one does it all.
    """

    vectors: VectorSource
    answers: AnswerRows | None = None
    processes: Processes | None = None


class Forward:
    """The vectors and rows of one step, and each task's loss on them.

    Args:
        model: In training mode.
        sources: Give vectors and rows and take their gradients.
        batch: The step's examples by task.
        seed: Of this step's random numbers.
        apart: Each task's gradient will be asked for.
        graph: Something will be sent back.
    """

    def __init__(
        self, model: MultiTaskModel, sources: Sources, batch: Batch, seed: int, *, apart: bool, graph: bool = True
    ) -> None:
        self.model, self.sources = model, sources
        self.texts = gather(_with_heads(batch))
        self._vectors_ND = self._encode(seed, apart=apart, graph=graph)
        self._rows = self._write(_written(batch), seed, apart=apart, graph=graph)
        with seeded(model.device, seed, HEADS):
            on_vectors = {} if self._vectors_ND is None else task_losses(model, self.texts, self._vectors_ND)
        on_rows = {name: self._written_loss(rows) for name, rows in self._rows.items()}
        found = on_vectors | on_rows
        self.losses: dict[str, TaskLoss] = {name: found[name] for name in batch}

    def backward(self, factors: Mapping[str, float], rule: Rule) -> None:
        """Leave the gradient of the weighted sum of the losses in the parameters."""
        torch.stack([factors[name] * rule.seen(loss) for name, loss in self.losses.items()]).sum().backward()
        if not self.model.trains_backbone:
            return
        if self._vectors_ND is not None:
            assert self._vectors_ND.grad is not None
            self.sources.vectors.backward(self._vectors_ND.grad)
        if self._rows:
            assert self.sources.answers is not None
            self.sources.answers.backward({name: _gradient(rows) for name, rows in self._rows.items()})
        if self.sources.processes is not None:
            self.sources.processes.sum_gradients(p for _, p in self.model.shared_parameters())

    def backward_by_task(self, rule: Rule, *, into_heads: bool = True) -> TaskGradients:
        """Each task's gradient on the shared module, whose parameters are left alone.

        Args:
            rule: Says which losses are balanced.
            into_heads: Leave each loss's gradient in its head's parameters.
        """
        found = TaskGradients(list(self.losses), [p for _, p in self.model.shared_parameters()])
        of_vectors: dict[str, torch.Tensor] = {}
        of_rows: dict[str, torch.Tensor] = {}
        for name, loss in self.losses.items():
            if name in self._rows:
                of_rows[name] = self._rows_gradient(name, rule.seen(loss), found)
            else:
                of_vectors[name] = self._vectors_gradient(rule.seen(loss), into_heads=into_heads)
        if of_vectors:
            self.sources.vectors.backward_by_task(of_vectors, found)
        if of_rows:
            assert self.sources.answers is not None
            self.sources.answers.backward_by_task(of_rows, found)
        if self.sources.processes is not None:
            found.sum_over(self.sources.processes)
        return found

    def tokens(self, batch: Batch) -> int:
        """Tokens of prompts and answers; those of texts are known to the token store."""
        written = _written(batch)
        return self.sources.answers.tokens(written) if self.sources.answers is not None and written else 0

    def _encode(self, seed: int, *, apart: bool, graph: bool) -> torch.Tensor | None:
        if not self.texts.views:
            return None
        users_N = self.texts.users_N() if apart else None
        if not graph:
            return self.sources.vectors.values(self.texts.unique_N, seed, users_N)
        return self.sources.vectors.forward(self.texts.unique_N, seed, users_N).requires_grad_(True)

    def _write(
        self, batch: Mapping[str, PromptExamples], seed: int, *, apart: bool, graph: bool
    ) -> dict[str, TaskRows]:
        if not batch:
            return {}
        assert self.sources.answers is not None
        if not graph:
            return self.sources.answers.values(batch, seed, apart=apart)
        rows = self.sources.answers.forward(batch, seed, apart=apart)
        for part in rows.values():
            part.rows_RH.requires_grad_(True)
        return rows

    def _written_loss(self, rows: TaskRows) -> TaskLoss:
        """Mean cross-entropy of the tokens of all processes; the graph is that of this process's tokens."""
        value = token_loss(self.model, rows.rows_RH, rows.targets_R) / rows.tokens
        if self.sources.processes is not None and self.sources.processes.count > 1:
            whole = self.sources.processes.sum(value.detach().clone())
            value = value + (whole - value.detach())
        return TaskLoss(value, token_chance(self.model))

    def _vectors_gradient(self, loss: torch.Tensor, *, into_heads: bool) -> torch.Tensor:
        """The gradient of one task's loss with respect to the vectors."""
        assert self._vectors_ND is not None
        if not into_heads:
            return torch.autograd.grad(loss, self._vectors_ND)[0]
        self._vectors_ND.grad = None
        loss.backward()
        assert self._vectors_ND.grad is not None
        return self._vectors_ND.grad

    def _rows_gradient(self, name: str, loss: torch.Tensor, found: TaskGradients) -> torch.Tensor:
        """The gradient of one task's loss with respect to its rows; that of a trained output layer goes to `found`."""
        output = self.model.output
        assert output is not None
        trained = [p for p in (output.weight_VH, output.bias_V) if p is not None and p.requires_grad]
        gradient_RH, *rest = torch.autograd.grad(loss, [self._rows[name].rows_RH, *trained])
        for parameter, gradient in zip(trained, rest, strict=True):
            found.add_direct(found.row(name), parameter, gradient)
        return gradient_RH


def task_losses(model: MultiTaskModel, texts: TextSet, vectors_ND: torch.Tensor) -> dict[str, TaskLoss]:
    """The loss of every task with a head on its view of the vectors."""
    return {name: _task_loss(model, name, view, vectors_ND) for name, view in texts.views.items()}


def _task_loss(model: MultiTaskModel, name: str, view: View, vectors_ND: torch.Tensor) -> TaskLoss:
    device = vectors_ND.device
    vectors_MD = vectors_ND[torch.from_numpy(view.members_M).to(device)]
    texts_EK = torch.from_numpy(view.texts_EK).to(device)
    labels_E = None if view.labels_E is None else torch.from_numpy(view.labels_E).to(device)
    lesson = None if view.teaching is None else _lesson(view.teaching, device)
    return TaskLoss(*model.head(name).loss(vectors_MD, texts_EK, labels_E, lesson))


def _lesson(teaching: Teaching, device: torch.device) -> Lesson:
    return Lesson(torch.from_numpy(teaching.answers()).to(device), teaching.weight, teaching.temperature)


def _gradient(rows: TaskRows) -> torch.Tensor:
    return torch.zeros_like(rows.rows_RH) if rows.rows_RH.grad is None else rows.rows_RH.grad


def _with_heads(batch: Batch) -> dict[str, Examples]:
    return {name: part for name, part in batch.items() if isinstance(part, Examples)}


def _written(batch: Batch) -> dict[str, PromptExamples]:
    return {name: part for name, part in batch.items() if isinstance(part, PromptExamples)}
