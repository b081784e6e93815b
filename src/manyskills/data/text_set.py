"""A step, an evaluation and a scan are the same thing: a set of unique texts, and views of it by index.

Shape legend: N texts of the set, E examples of one task, K texts an example (1, or 2 for pairs and searches), M texts
that one task uses, A answers of a teacher, P size of a teacher's side, B sequences of a chunk, T tokens of a chunk's
longest sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from manyskills.data.tokens import TokenStore
from manyskills.tasks.base import Task


@dataclass(frozen=True, slots=True)
class Teaching:
    """What a teacher answers for examples, and how much it counts.

    Attributes:
        answers_A: One answer for each row that it was asked for, shape (A,) or (A, 2, P), float32.
        rows_E: Index of each example's answer; -1 for those that the run does not draw.
        weight: Share in the loss, 0 to 1.
        temperature: Divides the logits of teacher and student.
    """

    answers_A: np.ndarray
    rows_E: np.ndarray
    weight: float
    temperature: float

    def take(self, rows: np.ndarray) -> Teaching:
        """For these examples only."""
        return replace(self, rows_E=self.rows_E[rows])

    def answers(self) -> np.ndarray:
        """One answer an example, shape (E,) or (E, 2, P)."""
        if (self.rows_E < 0).any():
            raise KeyError("a row that no teacher was asked for")
        return self.answers_A[self.rows_E]


@dataclass(frozen=True, slots=True)
class Examples:
    """One split of one task in columns.

    Attributes:
        texts_EK: Index of each example's texts in the token store.
        labels_E: 0 or 1 as float32; None for searches.
        teaching: What a teacher answers; None where the task has none.
    """

    task: Task
    texts_EK: np.ndarray
    labels_E: np.ndarray | None
    teaching: Teaching | None = None

    def __len__(self) -> int:
        return len(self.texts_EK)

    def take(self, rows: np.ndarray) -> Examples:
        """These rows only."""
        labels_E = None if self.labels_E is None else self.labels_E[rows]
        teaching = None if self.teaching is None else self.teaching.take(rows)
        return Examples(self.task, self.texts_EK[rows], labels_E, teaching)


@dataclass(frozen=True, slots=True)
class View:
    """What one task sees of a set.

    Attributes:
        members_M: Positions in the set of the texts this task uses, ascending and unique.
        texts_EK: Each example's texts as positions in `members_M`.
        labels_E: 0 or 1 as float32; None for searches.
        teaching: What a teacher answers for the examples; None where the task has none.
    """

    members_M: np.ndarray
    texts_EK: np.ndarray
    labels_E: np.ndarray | None
    teaching: Teaching | None = None


@dataclass(frozen=True, slots=True)
class TextSet:
    """Unique texts and each task's view of them.

    Attributes:
        unique_N: Indices in the token store, ascending.
        views: By task name.
    """

    unique_N: np.ndarray
    views: dict[str, View]

    def users_N(self) -> np.ndarray:
        """Which tasks use each text, int64: bit k is set if the k-th of `views` does."""
        users_N = np.zeros(len(self.unique_N), dtype=np.int64)
        for number, view in enumerate(self.views.values()):
            users_N[view.members_M] |= 1 << number
        return users_N


def gather(batch: Mapping[str, Examples]) -> TextSet:
    """The set of the texts that these examples need; no text is in it twice, whichever tasks use it."""
    used = [examples.texts_EK.ravel() for examples in batch.values()]
    unique_N = np.unique(np.concatenate(used)) if used else np.empty(0, dtype=np.int64)
    return TextSet(unique_N, {name: _view(examples, unique_N) for name, examples in batch.items()})


def _view(examples: Examples, unique_N: np.ndarray) -> View:
    mine_M, inverse = np.unique(examples.texts_EK, return_inverse=True)
    texts_EK = inverse.reshape(examples.texts_EK.shape)
    return View(np.searchsorted(unique_N, mine_M), texts_EK, examples.labels_E, examples.teaching)


CHUNK_COST = 128
"""What one more chunk costs, in tokens: a forward pass has work that does not depend on its size."""


def plan_chunks(lengths_N: np.ndarray, token_budget: int, chunk_cost: int = CHUNK_COST) -> list[np.ndarray]:
    """Positions of the sequences of each chunk: like lengths together, cut where it saves most padding.

    The sequences are sorted by length and cut so that padded tokens plus `chunk_cost` a chunk are least (an exact
    dynamic program). A chunk's number of sequences times its longest is at most the budget, unless one sequence alone
    exceeds it. The plan depends on nothing but the arguments, so every process and every resumed run makes the same.
    """
    order = np.argsort(lengths_N, kind="stable")
    sorted_N = np.asarray(lengths_N, dtype=np.int64)[order]
    count = len(order)
    cost = np.zeros(count + 1, dtype=np.int64)  # cost[n]: least cost of the n shortest sequences
    start = np.zeros(count + 1, dtype=np.int64)  # start[n]: where the last chunk of that plan begins
    for end in range(1, count + 1):
        longest = max(int(sorted_N[end - 1]), 1)
        first = max(end - max(token_budget // longest, 1), 0)
        candidates = cost[first:end] + longest * np.arange(end - first, 0, -1)
        best = int(candidates.argmin())
        cost[end], start[end] = candidates[best] + chunk_cost, first + best
    chunks: list[np.ndarray] = []
    end = count
    while end > 0:
        chunks.append(order[start[end] : end])
        end = int(start[end])
    return chunks[::-1]


def pad_chunk(store: TokenStore, indices_B: np.ndarray, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded ids and mask of these sequences.

    The mask comes from the lengths, never from the pad id, so a wrong or missing pad token cannot be attended to.

    Returns:
        ids_BT (int64) and mask_BT (int64, 1 for tokens).
    """
    starts_B, ends_B = store.starts_S[indices_B], store.starts_S[indices_B + 1]
    lengths_B = ends_B - starts_B
    mask_BT = np.arange(int(lengths_B.max()))[None, :] < lengths_B[:, None]
    ids_BT = np.full(mask_BT.shape, pad_id, dtype=np.int64)
    ids_BT[mask_BT] = np.concatenate([store.ids_T[s:e] for s, e in zip(starts_B, ends_B, strict=True)])
    return ids_BT, mask_BT.astype(np.int64)


def plan_unpadded_chunks(lengths_N: np.ndarray, token_budget: int) -> list[np.ndarray]:
    """Positions of the sequences of each chunk where nothing is padded: sorted by length, cut into chunks of like size.

    There are as few chunks as the budget allows but for what cutting between whole sequences costs, and none holds more
    than the budget unless one sequence alone exceeds it. Sequences of the same length lie side by side.
    """
    order = np.argsort(lengths_N, kind="stable")
    ends_N = np.cumsum(np.asarray(lengths_N, dtype=np.int64)[order])
    chunks: list[np.ndarray] = []
    start = done = 0
    while start < len(order):
        left = int(ends_N[-1]) - done
        even = -(-left // -(-left // token_budget))
        end = int(np.searchsorted(ends_N, done + even, side="left")) + 1  # up to and with the one that reaches it
        if ends_N[min(end, len(order)) - 1] - done > token_budget:
            end -= 1
        end = min(max(end, start + 1), len(order))
        chunks.append(order[start:end])
        start, done = end, int(ends_N[end - 1])
    return chunks


def join_chunk(store: TokenStore, indices_B: np.ndarray) -> np.ndarray:
    """Ids of these sequences one behind another, int64."""
    return np.concatenate([store.sequence(index) for index in indices_B]).astype(np.int64)
