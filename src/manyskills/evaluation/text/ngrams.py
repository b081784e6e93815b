"""Counts of n-grams, and how many of them two texts share; n is how long they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

ORDER = 4
"""The longest n-grams that BLEU counts (Papineni et al. 2002)."""


def ngrams(tokens: Sequence[Hashable], n: int) -> Counter[Hashable]:
    """How often each n-gram occurs."""
    if n == 1:
        return Counter(tokens)
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))


def character_ngrams(text: str, n: int) -> Counter[Hashable]:
    """How often each run of n characters occurs."""
    return Counter([text[start : start + n] for start in range(len(text) - n + 1)])


def shared(prediction: Counter[Hashable], reference: Counter[Hashable]) -> int:
    """Occurrences in both: for each n-gram the smaller of its counts ("clipped")."""
    return sum(min(count, reference[item]) for item, count in prediction.items() if item in reference)


def clipped_counts(prediction: Sequence[Hashable], reference: Sequence[Hashable]) -> list[int]:
    """For n = 1 to 4 the prediction's n-grams that the reference has too, then for n = 1 to 4 all it has."""
    matches = [shared(ngrams(prediction, n), ngrams(reference, n)) for n in range(1, ORDER + 1)]
    return matches + [max(len(prediction) - n + 1, 0) for n in range(1, ORDER + 1)]
