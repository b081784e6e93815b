"""Tokens of answers to text, and when an answer has ended.

Shape legend: N prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from manyskills.model.decoding.loop import Ended
from manyskills.model.decoding.options import Stop
from manyskills.model.decoding.prompts import language_model
from manyskills.model.decoding.stopping import LANGUAGES, function_end, may_end

if TYPE_CHECKING:
    from manyskills.model.multitask import MultiTaskModel


class AnswerTexts:
    """Reads answers of one model.

    Args:
        model: Its tokenizer reads.
        stop: function: an answer ends behind its first function.
        languages: What is written for each prompt; None: unknown.
    """

    def __init__(self, model: MultiTaskModel, stop: Stop, languages: Sequence[str] | None) -> None:
        self.tokenizer = model.tokenizer.backend_tokenizer
        self.end_ids = end_ids(model)
        self.languages = list(languages) if languages is not None and stop == "function" else None
        self._may_end: dict[tuple[int, str], bool] = {}

    def text(self, position: int, tokens: list[int]) -> str:
        """The answer to a prompt, cut behind its first function where that is wanted."""
        text = self._decode(tokens)
        if self.languages is None:
            return text
        return text[: function_end(text, self.languages[position])]

    def ended(self, positions: np.ndarray, samples: int) -> Ended | None:
        """Whether the answers of a batch have ended, for those who write them; None where only the end token counts."""
        if self.languages is None:
            return None
        languages = [self.languages[position] for position in positions for _ in range(samples)]
        if not set(languages) & set(LANGUAGES):
            return None

        def ended(answer: int, tokens: list[int]) -> bool:
            language = languages[answer]
            # a line's end is seen at its break, the next one's indentation with the token behind that
            if language not in LANGUAGES or not any(self._worth_asking(token, language) for token in tokens[-2:]):
                return False
            return function_end(self._decode(tokens), language) is not None

        return ended

    def _decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def _worth_asking(self, token: int, language: str) -> bool:
        key = token, language
        if key not in self._may_end:
            self._may_end[key] = may_end(self._decode([token]), language)
        return self._may_end[key]


def end_ids(model: MultiTaskModel) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's end token, and what the backbone's authors name besides."""
    named = language_model(model).generation_config.eos_token_id
    found = {*(named if isinstance(named, list) else [named]), model.tokenizer.eos_token_id}
    return frozenset(int(token) for token in found if token is not None)
