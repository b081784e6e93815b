"""Which token comes next: the likeliest, or one that is drawn.

Shape legend: B sequences, V vocabulary, L tokens to be written.

A draw depends on the seed, on the prompt itself, on the number of the sample and on the place in the answer, and on
nothing else: not on what is beside it in a batch, nor on how many processes share the work, nor on what was written
before an interruption.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch


def uniforms(prompt: np.ndarray, seed: int, sample: int, length: int) -> np.ndarray:
    """Numbers in [0, 1) for one answer, float64, shape (L,); those of a shorter one are the first of them.

    Args:
        prompt: Its ids: the same prompt gets the same numbers wherever it stands.
        seed: Of all draws.
        sample: Number of the answer.
        length: Tokens of the answer.
    """
    digest = hashlib.sha256(f"{seed}/{sample}/".encode() + prompt.astype("<i8").tobytes()).digest()
    key = np.frombuffer(digest[:16], dtype="<u8")
    return np.random.Generator(np.random.Philox(key=key)).random(length)


def draw(
    logits_BV: torch.Tensor, uniforms_B: torch.Tensor, *, temperature: float, top_k: int, top_p: float
) -> torch.Tensor:
    """A token a row by inversion of the cumulative distribution, int64, shape (B,).

    Args:
        logits_BV: Of the next token.
        uniforms_B: float64 in [0, 1); where in its distribution each row's token is.
        temperature: Logits are divided by it; greater than 0.
        top_k: Only so many likeliest tokens; 0: all.
        top_p: Only the likeliest tokens that have this share of probability together, after top_k (nucleus sampling,
            Holtzman et al. 2020, arXiv 1904.09751).
    """
    logits_BV = logits_BV.double() / temperature
    if top_k and top_k < logits_BV.shape[1]:
        least_B1 = logits_BV.topk(top_k, dim=1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
    probabilities_BV = logits_BV.softmax(1)
    if top_p < 1:
        probabilities_BV = _nucleus(probabilities_BV, top_p)
    summed_BV = probabilities_BV.cumsum(1)
    wanted_B1 = uniforms_B[:, None] * summed_BV[:, -1:]
    # the first token whose sum is above: one without probability adds nothing and is never it
    return torch.searchsorted(summed_BV, wanted_B1, right=True)[:, 0].clamp(max=logits_BV.shape[1] - 1)


def _nucleus(probabilities_BV: torch.Tensor, top_p: float) -> torch.Tensor:
    sorted_BV, order_BV = probabilities_BV.sort(dim=1, descending=True, stable=True)
    outside_BV = sorted_BV.cumsum(1) - sorted_BV >= top_p
    return probabilities_BV.masked_fill(torch.zeros_like(outside_BV).scatter(1, order_BV, outside_BV), 0)


def all_uniforms(prompts: Sequence[np.ndarray], seed: int, samples: Iterable[int], length: int) -> np.ndarray:
    """`uniforms` of these samples of several prompts, sample after sample of each, shape (prompts x samples, L)."""
    numbers = list(samples)
    return np.stack([uniforms(prompt, seed, sample, length) for prompt in prompts for sample in numbers])
