"""How answers are written. Importing this does not import torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from manyskills.errors import UserError

Stop = Literal["end", "function"]
LEAST_TEMPERATURE = 1e-6
"""Of draws: at this one they are the likeliest tokens, and logits divided by less are no numbers any more."""

STOPS: tuple[Stop, ...] = ("end", "function")


@dataclass(frozen=True, slots=True)
class Decoding:
    """How answers are written.

    Attributes:
        max_new_tokens: Tokens of an answer at most.
        num_beams: Beams of the search; 1: no search.
        temperature: 0: the likeliest token each time (greedy); else tokens are drawn, from logits divided by it.
        top_k: Draws: only so many likeliest tokens; 0: all.
        top_p: Draws: only the likeliest tokens that have this share of probability together.
        samples: Answers to each prompt.
        seed: Of draws.
        stop: Where an answer ends besides at `max_new_tokens`: at the end token (end), or also behind its first
            function (function), in languages where that is known.

    Raises:
        UserError: Numbers are out of range or exclude each other.
    """

    max_new_tokens: int
    num_beams: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    samples: int = 1
    seed: int = 0
    stop: Stop = "end"

    def __post_init__(self) -> None:
        for wrong, wanted in (
            (self.max_new_tokens < 1, f"max_new_tokens: wanted 1 or more, found {self.max_new_tokens}"),
            (self.num_beams < 1, f"num_beams: wanted 1 or more, found {self.num_beams}"),
            (self.samples < 1, f"samples: wanted 1 or more, found {self.samples}"),
            (
                not self._temperature_fits(),
                f"temperature: wanted 0, or a number from {LEAST_TEMPERATURE} on, found {self.temperature}",
            ),
            (self.top_k < 0, f"top_k: wanted 0 (all tokens) or more, found {self.top_k}"),
            (not 0 < self.top_p <= 1, f"top_p: wanted more than 0 and at most 1, found {self.top_p}"),
            (self.seed < 0, f"seed: wanted 0 or more, found {self.seed}"),
            (self.stop not in STOPS, f"stop: wanted one of {', '.join(STOPS)}, found {self.stop!r}"),
        ):
            if wrong:
                raise UserError(wanted, "see `manyskills generate --help`")
        self._refuse_contradictions()

    def _temperature_fits(self) -> bool:
        return self.temperature == 0 or LEAST_TEMPERATURE <= self.temperature < math.inf

    def _refuse_contradictions(self) -> None:
        if self.num_beams > 1 and (self.draws or self.samples > 1):
            hint = "leave num_beams out, or samples and temperature"
            raise UserError("beam search gives one answer and draws nothing", hint)
        if self.samples > 1 and not self.draws:
            raise UserError(f"{self.samples} samples without drawing are all alike", "set temperature, such as 0.8")
        if not self.draws and (self.top_k or self.top_p < 1):
            raise UserError("top_k and top_p are for drawing, and temperature is 0", "set temperature, such as 0.8")

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn."""
        return self.temperature > 0
