"""Answers token by token, greedily or drawn.

Shape legend: B sequences that are still being written, A answers of the batch, L tokens to be written, V vocabulary.

transformers' `generate` spends as long around the network of a small decoder as in it, and goes on with answers that
have ended until all have. Here ended answers leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from manyskills.model.decoding.prompts import Continuation
from manyskills.model.decoding.sampling import draw

LEAVE = 0.15
"""Share of the batch that must have ended before what goes on is copied together."""

Ended = Callable[[int, list[int]], bool]
"""Whether answer number so of the batch, with these tokens, has ended: asked after each token."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How the next token is chosen.

    Attributes:
        uniforms_AL: Where in its distribution each token is; None: the likeliest is taken.
        temperature: As for `draw`.
        top_k: As for `draw`.
        top_p: As for `draw`.
    """

    uniforms_AL: np.ndarray | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def next(self, logits_BV: torch.Tensor, answers_B: Sequence[int], place: int) -> torch.Tensor:
        """The tokens of these answers at this place, shape (B,)."""
        if self.uniforms_AL is None:
            return logits_BV.argmax(1)
        uniforms_B = torch.from_numpy(self.uniforms_AL[list(answers_B), place]).to(logits_BV.device)
        return draw(logits_BV, uniforms_B, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


def write_answers(
    source: Continuation,
    prompts: int,
    *,
    samples: int,
    length: int,
    choice: Choice,
    end_ids: frozenset[int],
    ended: Ended | None,
) -> list[list[int]]:
    """The tokens of each answer, the end token not included.

    Args:
        source: The prompts, not yet read.
        prompts: How many.
        samples: Answers to each; a prompt is read once for all of them.
        length: Tokens of an answer at most.
        choice: Of tokens.
        end_ids: Tokens that end an answer.
        ended: What else ends one.
    """
    answers: list[list[int]] = [[] for _ in range(prompts * samples)]
    writing = list(range(len(answers)))  # which answer each row of the batch is
    going = [True] * len(answers)
    logits_BV = source.read()
    if samples > 1:
        rows = torch.arange(prompts, device=logits_BV.device).repeat_interleave(samples)
        source.keep(rows)
        logits_BV = logits_BV[rows]
    for place in range(length):
        tokens_B = choice.next(logits_BV, writing, place)
        for row, token in enumerate(tokens_B.tolist()):
            if not going[row]:
                continue
            answer = answers[writing[row]]
            if token in end_ids:
                going[row] = False
                continue
            answer.append(token)
            going[row] = ended is None or not ended(writing[row], answer)
        left = sum(going)
        if left == 0 or place == length - 1:
            break
        if len(going) - left > LEAVE * len(going):
            rows = [row for row, goes in enumerate(going) if goes]
            kept = torch.tensor(rows, device=tokens_B.device)
            source.keep(kept)
            tokens_B = tokens_B[kept]
            writing, going = [writing[row] for row in rows], [True] * left
        logits_BV = source.write(tokens_B)
    return answers
