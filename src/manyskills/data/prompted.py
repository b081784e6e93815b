"""What generating tasks read and write, as token sequences.

Shape legend: E examples, S prompts, T tokens of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from manyskills.tasks.base import Task


@dataclass(frozen=True, slots=True)
class PromptStore:
    """Prompts and the answers to them. Prompt s is read, answer s is written behind it.

    Attributes:
        prompt_ids_T: Ids of all prompts one behind another, frame and special tokens included, int32.
        prompt_starts_S: Where each begins, int64, with the end appended (S + 1 values).
        answer_ids_T: Ids of all answers, the end token included, int32.
        answer_starts_S: Where each begins, with the end appended.
        routes_S: Which task's part of a routed module reads each; 0 where no method is routed.
        learnt_S: Whether the prompt's tokens are learnt as well (`loss_on: all`).
    """

    prompt_ids_T: np.ndarray
    prompt_starts_S: np.ndarray
    answer_ids_T: np.ndarray
    answer_starts_S: np.ndarray
    routes_S: np.ndarray
    learnt_S: np.ndarray

    def __len__(self) -> int:
        """How many prompts."""
        return len(self.prompt_starts_S) - 1

    @property
    def prompt_lengths_S(self) -> np.ndarray:
        """Tokens of each prompt."""
        return np.diff(self.prompt_starts_S)

    @property
    def answer_lengths_S(self) -> np.ndarray:
        """Tokens of each answer."""
        return np.diff(self.answer_starts_S)

    @property
    def lengths_S(self) -> np.ndarray:
        """Tokens of each prompt with its answer."""
        return self.prompt_lengths_S + self.answer_lengths_S

    def prompt(self, index: int) -> np.ndarray:
        """The ids of one prompt."""
        return self.prompt_ids_T[self.prompt_starts_S[index] : self.prompt_starts_S[index + 1]]

    def answer(self, index: int) -> np.ndarray:
        """The ids of one answer."""
        return self.answer_ids_T[self.answer_starts_S[index] : self.answer_starts_S[index + 1]]


@dataclass(frozen=True, slots=True)
class PromptExamples:
    """One split of one task whose answers are written.

    Attributes:
        task: Whose rows.
        prompts_E: Index of each example's prompt in the prompt store.
        references_E: The texts that should be written.
        variants_E: Name of each example's variant; empty for a yes/no task.
        labels_E: Of a yes/no task whose answer is a word: 0 or 1 as float32; None for texts.
        choices: Of such a task, the ids of the words for 0 and 1, as they stand in the answers.
    """

    task: Task
    prompts_E: np.ndarray
    references_E: np.ndarray
    variants_E: np.ndarray
    labels_E: np.ndarray | None = None
    choices: tuple[tuple[int, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.prompts_E)

    def take(self, rows: np.ndarray) -> PromptExamples:
        """These rows only."""
        labels_E = None if self.labels_E is None else self.labels_E[rows]
        return replace(
            self,
            prompts_E=self.prompts_E[rows],
            references_E=self.references_E[rows],
            variants_E=self.variants_E[rows],
            labels_E=labels_E,
        )
