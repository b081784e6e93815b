"""Span corruption (Raffel et al. 2020, arXiv 1910.10683, section 3.1.4 and figure 2).

Of `a b c d e f` with the spans `b c` and `e f` masked, the network reads `a <0> d <1> END` and writes
`<0> b c <1> e f <2> END`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Corruption:
    """What is masked, and by which tokens.

    Attributes:
        density: Share of tokens that are masked.
        span_length: Mean tokens of a span.
        sentinels: Tokens that stand for spans, in order; one more than spans of a piece.
        end_id: Stands behind inputs and targets.
    """

    density: float
    span_length: float
    sentinels: np.ndarray
    end_id: int


@dataclass(frozen=True, slots=True)
class Corrupted:
    """A piece as it is read and what is to be written, both with sentinels and end token."""

    inputs: np.ndarray
    targets: np.ndarray


def corrupt(ids_T: np.ndarray, corruption: Corruption, rng: np.random.Generator) -> Corrupted:
    """Mask spans of a piece of two tokens or more; kept and masked spans take turns, a kept one first."""
    starts_S, ends_S = draw_spans(len(ids_T), corruption, rng)
    inputs: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    for number, (begin, start, end) in enumerate(zip([0, *ends_S], starts_S, ends_S, strict=False)):
        mark = corruption.sentinels[number : number + 1]
        inputs += [ids_T[begin:start], mark]
        targets += [mark, ids_T[start:end]]
    last, end_token = corruption.sentinels[len(starts_S)], corruption.end_id
    return Corrupted(np.concatenate([*inputs, [end_token]]), np.concatenate([*targets, [last, end_token]]))


def draw_spans(length: int, corruption: Corruption, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Where the masked spans of a piece begin and end: a fixed share of its tokens, cut into spans at random."""
    masked = min(max(_randomly_rounded(length * corruption.density, rng), 1), length - 1)
    spans = max(round(masked / corruption.span_length), 1)
    spans = min(spans, masked, length - masked, len(corruption.sentinels) - 1)
    masked_S, kept_S = _cut(masked, spans, rng), _cut(length - masked, spans, rng)
    starts_S = np.cumsum(kept_S) + np.cumsum(masked_S) - masked_S
    return starts_S, starts_S + masked_S


def _randomly_rounded(value: float, rng: np.random.Generator) -> int:
    """Up or down so that the mean is the value: rounding down always would spare short pieces."""
    return int(value + rng.random())


def _cut(tokens: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """So many tokens in so many parts of one or more, every way of cutting equally likely."""
    borders = np.sort(rng.permutation(tokens - 1)[: parts - 1]) + 1
    return np.diff([0, *borders, tokens])
