"""Where the states come from that predict the tokens of a step's written answers, and how their gradient flows back.

Shape legend: E examples of a task, S prompts of a step, B prompts of a chunk, R rows (one a predicted token), H hidden
size.

As with vectors (`manyskills.training.vectors`), the states are detached from the backbone: losses and whatever balances
them see rows of states, and the gradient of the losses is sent back afterwards, chunk by chunk. What a chunk holds is
not seen by any loss, so one of several tasks is as good as one of a single task. Unlike vectors, which every process
gets all of, rows stay in the process that made them: a token's loss needs no other token's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from manyskills.data.prompted import PromptExamples
from manyskills.model.answers import AnswerStates
from manyskills.training.processes import Processes
from manyskills.training.task_gradients import TaskGradients
from manyskills.training.vectors import seeded

WRITTEN = 2**31
"""Added to a chunk's number in the key of its random numbers: a step's chunks of texts have small ones."""


@dataclass(frozen=True, slots=True)
class TaskRows:
    """What one task's loss is made of.

    Attributes:
        rows_RH: This process's states, detached.
        targets_R: The token that each is to predict.
        tokens: How many there are in all processes; the loss is their mean.
    """

    rows_RH: torch.Tensor
    targets_R: torch.Tensor
    tokens: int


class AnswerRows:
    """Rows of states of a step's examples, in length-sorted chunks.

    Args:
        states: Gives a chunk's rows.
        token_budget: Tokens in one chunk, padding included.
        cached: Compute without a graph and once more, chunk by chunk, when the gradient is known.
        processes: Share the chunks.
    """

    def __init__(self, states: AnswerStates, token_budget: int, *, cached: bool, processes: Processes) -> None:
        self.states, self.token_budget = states, token_budget
        self.cached, self.processes = cached, processes
        self._chunks: list[tuple[int, np.ndarray, torch.Tensor | None]] = []
        self._prompts_S = self._owners_S = np.empty(0, dtype=np.int64)
        self._tasks: list[str] = []
        self._seed, self._apart = 0, False

    def forward(self, batch: Mapping[str, PromptExamples], seed: int, *, apart: bool = False) -> dict[str, TaskRows]:
        """Each task's rows; keeps each chunk's graph unless cached.

        Args:
            batch: The step's examples whose answers are written.
            seed: Of this step's random numbers.
            apart: A chunk holds one task's prompts only; needed where each task's gradient will be asked for.
        """
        self._begin(batch, seed, apart)
        rows, self._chunks = self._run(graph=not self.cached)
        return rows

    def values(self, batch: Mapping[str, PromptExamples], seed: int, *, apart: bool = False) -> dict[str, TaskRows]:
        """As `forward` under the weights of now, without anything to be sent back."""
        self._begin(batch, seed, apart)
        return self._run(graph=False)[0]

    def backward(self, gradients: Mapping[str, torch.Tensor]) -> None:
        """Add to the parameters' gradients what these gradients of the tasks' rows mean."""
        done = dict.fromkeys(self._tasks, 0)
        for again_RH, chunk in self._graphs():
            gradient_RH = torch.empty_like(again_RH)
            for name, rows_R in self._rows_by_task(chunk):
                end = done[name] + len(rows_R)
                gradient_RH[rows_R.to(gradient_RH.device)] = gradients[name][done[name] : end].to(gradient_RH.dtype)
                done[name] = end
            with self.states.routed(self._prompts_S[chunk]):  # gradient checkpointing computes layers again in here
                again_RH.backward(gradient_RH)

    def backward_by_task(self, gradients: Mapping[str, torch.Tensor], found: TaskGradients) -> None:
        """Add to each task's row what the gradient of its rows means; parameters are left alone."""
        done = dict.fromkeys(self._tasks, 0)
        for again_RH, chunk in self._graphs():
            name = self._tasks[self._owners_S[chunk[0]]]
            end = done[name] + len(again_RH)
            with self.states.routed(self._prompts_S[chunk]):
                gradient_RH = gradients[name][done[name] : end].to(again_RH.dtype)
                found.add(found.row(name), again_RH, gradient_RH, keep_graph=False)
            done[name] = end

    def tokens(self, batch: Mapping[str, PromptExamples]) -> int:
        """Tokens that these examples' prompts and answers have."""
        return sum(int(self.states.lengths(part.prompts_E).sum()) for part in batch.values())

    def _begin(self, batch: Mapping[str, PromptExamples], seed: int, apart: bool) -> None:
        self._tasks, self._seed, self._apart = list(batch), seed, apart
        self._prompts_S = np.concatenate([part.prompts_E for part in batch.values()])
        self._owners_S = np.repeat(np.arange(len(batch)), [len(part) for part in batch.values()])

    def _plan(self) -> list[np.ndarray]:
        """Positions of the prompts of each chunk."""
        if not self._apart:
            return self.states.plan(self._prompts_S, self.token_budget)
        groups = [np.flatnonzero(self._owners_S == owner) for owner in range(len(self._tasks))]
        plans = [self.states.plan(self._prompts_S[group], self.token_budget) for group in groups]
        return [group[chunk] for group, plan in zip(groups, plans, strict=True) for chunk in plan]

    def _run(self, *, graph: bool) -> tuple[dict[str, TaskRows], list[tuple[int, np.ndarray, torch.Tensor | None]]]:
        """This process's rows by task, in the order of its chunks, and the chunks with what is needed to go back."""
        rows: dict[str, list[torch.Tensor]] = {name: [] for name in self._tasks}
        targets: dict[str, list[np.ndarray]] = {name: [] for name in self._tasks}
        chunks: list[tuple[int, np.ndarray, torch.Tensor | None]] = []
        # the longest chunks come last: dealing them out in turn keeps the processes' shares alike
        for number, chunk in list(enumerate(self._plan()))[self.processes.rank :: self.processes.count]:
            with torch.set_grad_enabled(graph):
                chunk_RH = self._encode(number, chunk)
            chunks.append((number, chunk, chunk_RH if graph else None))
            targets_R = self.states.targets(self._prompts_S[chunk])
            for name, rows_R in self._rows_by_task(chunk):
                rows[name].append(chunk_RH.detach()[rows_R.to(chunk_RH.device)])
                targets[name].append(targets_R[rows_R.numpy()])
        return {name: self._task_rows(name, rows[name], targets[name]) for name in self._tasks}, chunks

    def _task_rows(self, name: str, rows: list[torch.Tensor], targets: list[np.ndarray]) -> TaskRows:
        model = self.states.model
        mine_S = self._prompts_S[self._owners_S == self._tasks.index(name)]
        tokens = int(self.states.counts(mine_S).sum())
        if not rows:  # all of its chunks are other processes'
            empty_RH = torch.empty(0, model.architecture.hidden_size, device=model.device)
            return TaskRows(empty_RH, torch.empty(0, dtype=torch.long, device=model.device), tokens)
        targets_R = torch.from_numpy(np.concatenate(targets)).to(model.device)
        return TaskRows(torch.cat(rows), targets_R, tokens)

    def _rows_by_task(self, chunk: np.ndarray) -> Iterator[tuple[str, torch.Tensor]]:
        """Which rows of a chunk are whose."""
        owners_R = np.repeat(self._owners_S[chunk], self.states.counts(self._prompts_S[chunk]))
        for owner in np.unique(owners_R).tolist():
            yield self._tasks[owner], torch.from_numpy(np.flatnonzero(owners_R == owner))

    def _graphs(self) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
        """Each chunk's rows with their graph, and its positions; forgotten as they are gone through."""
        chunks, self._chunks = self._chunks, []
        chunks.reverse()
        while chunks:
            number, chunk, rows_RH = chunks.pop()
            yield self._encode(number, chunk) if rows_RH is None else rows_RH, chunk

    def _encode(self, number: int, chunk: np.ndarray) -> torch.Tensor:
        with seeded(self.states.model.device, self._seed, WRITTEN + number):
            return self.states(self._prompts_S[chunk])
