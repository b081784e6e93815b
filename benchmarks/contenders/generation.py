"""Ways of answering prompts greedily with one decoder: ours, and `generate` of transformers.

Shape legend: N prompts, B prompts of a batch, T tokens of the longest prompt, L tokens of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from contenders.ours import synchronize
from contenders.work import TokenCounter
from manyskills.asking import Asked
from manyskills.model.decoding.batches import plan_batches
from manyskills.model.decoding.prompts import left_padded
from manyskills.model.decoding.text import end_ids
from manyskills.model.generation import Decoding, generate
from manyskills.model.multitask import MultiTaskModel


@dataclass(frozen=True)
class Answering:
    """What is to be answered.

    Attributes:
        model: With a language model, a decoder.
        asked: The prompts.
        max_new_tokens: Of an answer.
        token_budget: Tokens of prompts and answers of a batch.
    """

    model: MultiTaskModel
    asked: Asked
    max_new_tokens: int
    token_budget: int

    @property
    def indices_N(self) -> np.ndarray:
        """The prompts' places in the store."""
        return self.asked.examples.prompts_E

    @cached_property
    def prompts(self) -> list[np.ndarray]:
        """Ids of each prompt."""
        return [self.asked.store.prompt(int(index)) for index in self.indices_N]

    @cached_property
    def counter(self) -> TokenCounter:
        """Of what the network reads, whoever makes it."""
        return TokenCounter(self.model.network.get_input_embeddings())

    def sorted_batches(self) -> list[np.ndarray]:
        """The batches that ours makes."""
        lengths_N = np.array([len(prompt) for prompt in self.prompts])
        limits_N = np.full(len(lengths_N), self.max_new_tokens)
        return [batch.positions for batch in plan_batches(lengths_N, limits_N, self.token_budget)]

    def batches_in_order(self, size: int) -> list[np.ndarray]:
        """So many prompts at a time, as they come."""
        return [np.arange(start, min(start + size, len(self.prompts))) for start in range(0, len(self.prompts), size)]


class OurAnswers:
    """Our loop: ended answers leave the batch, a token is written in place behind those before.

    Args:
        work: What to answer.
    """

    def __init__(self, work: Answering) -> None:
        self.work = work
        self.answers: list[str] = []

    def run(self) -> None:
        """Answer all prompts."""
        work = self.work
        texts = generate(
            work.model, work.asked.store, work.indices_N, Decoding(work.max_new_tokens), token_budget=work.token_budget
        )
        self.answers = [only for (only,) in texts]
        synchronize(work.model.device)


class TransformersAnswers:
    """`generate` of transformers on the same network, in given batches.

    Args:
        work: What to answer.
        batches: Positions of the prompts that are answered together.
    """

    def __init__(self, work: Answering, batches: Sequence[np.ndarray]) -> None:
        self.work, self.batches = work, batches
        self.ends = end_ids(work.model)
        self.tokens_N: list[list[int]] = [[] for _ in work.prompts]

    @property
    def answers(self) -> list[str]:
        """The texts."""
        decode = self.work.model.tokenizer.backend_tokenizer.decode
        return [decode(tokens, skip_special_tokens=True) for tokens in self.tokens_N]

    @property
    def written(self) -> int:
        """Tokens of all answers, an end token being one that had to be written too."""
        return sum(min(len(tokens) + 1, self.work.max_new_tokens) for tokens in self.tokens_N)

    @torch.inference_mode()
    def run(self) -> None:
        """Answer all prompts."""
        model = self.work.model
        language_model: Any = model.language_model
        pad_id = model.architecture.pad_id
        for positions in self.batches:
            prompts = [self.work.prompts[position] for position in positions]
            ids_BT, seen_BT = left_padded(prompts, pad_id, model.device)
            with model.autocast():
                written_BL = language_model.generate(
                    input_ids=ids_BT, attention_mask=seen_BT.long(), max_new_tokens=self.work.max_new_tokens,
                    do_sample=False, num_beams=1, pad_token_id=pad_id, eos_token_id=sorted(self.ends),
                )[:, ids_BT.shape[1] :]  # fmt: skip
            for position, tokens in zip(positions.tolist(), written_BL.tolist(), strict=True):
                self.tokens_N[position] = self._before_end(tokens)
        synchronize(model.device)

    def _before_end(self, tokens: list[int]) -> list[int]:
        end = next((place for place, token in enumerate(tokens) if token in self.ends), len(tokens))
        return tokens[:end]
