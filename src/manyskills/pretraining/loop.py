"""The training loop: steps, records, validations and states."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from manyskills.config.pretraining import PretrainConfig
from manyskills.errors import UserError
from manyskills.pretraining.folder import BackboneFolder, State
from manyskills.pretraining.objectives import Objective
from manyskills.pretraining.optimizer import Optimizer
from manyskills.pretraining.pieces import Batches
from manyskills.training.reporting import progress_bar

SAVES = 5
"""States of a run that does not say."""

VALIDATED = 256
"""Pieces that are planned together in a validation: sorted by length, so that more of them pad less."""


@dataclass(frozen=True, slots=True)
class Held:
    """Texts that are held out.

    Attributes:
        objective: Over their pieces.
        pieces: How many there are.
    """

    objective: Objective
    pieces: int


@dataclass(frozen=True, slots=True)
class Trainer:
    """Everything that a step needs.

    Attributes:
        config: The run.
        network: What learns.
        objective: Over the training pieces.
        batches: Which pieces each step holds.
        total: Updates in all.
        held: For validations; None: nothing is held out.
        folder: Where states and records go.
        announce: Gets sentences for people.
    """

    config: PretrainConfig
    network: Any
    objective: Objective
    batches: Batches
    total: int
    held: Held | None
    folder: BackboneFolder
    announce: Callable[[str], None]

    def run(self, digest: str, *, hide_bar: bool) -> State:
        """Train from the newest state, or from the start, to the end.

        Args:
            digest: Of the texts.
            hide_bar: No progress bar.

        Raises:
            UserError: The loss is no finite number, or a state belongs to other texts.
        """
        optimizer = Optimizer(self.network, self.config, self.total)
        state = self.folder.load_state(self.network, optimizer, digest) or State(0, 0, 0.0, digest)
        self.folder.records(until=state.step)
        if state.step:
            self.announce(f"continuing after step {state.step:,} of {self.total:,}")
        save_steps = self.config.save_steps or max(1, math.ceil(self.total / SAVES))
        bar = progress_bar(self.total, "pretrain", hidden=hide_bar)
        bar.update(state.step)
        interval = _Interval()
        try:
            while state.step < self.total:
                state = self._step(state, optimizer, interval)
                bar.update(1)
                if state.step % self.config.logging_steps == 0 or state.step == self.total:
                    record = interval.record(state, optimizer.rate(state.step - 1))
                    self.folder.append(record)
                    bar.set_postfix_str(f"loss {record['loss']:.3f}")
                    interval = _Interval()
                if state.step % save_steps == 0 or state.step == self.total:
                    self._validate(state)
                    self.folder.save_state(self.network, optimizer, state)
        finally:
            bar.close()
        return state

    def _step(self, state: State, optimizer: Optimizer, interval: _Interval) -> State:
        began = time.perf_counter()
        total, tokens = 0.0, 0
        with self._precision():
            for loss in self.objective.losses(*self.batches.pieces(state.step)):
                loss.total.backward()
                total, tokens = total + float(loss.total.detach()), tokens + loss.tokens
        if not math.isfinite(total):
            raise UserError(f"the loss is {total} at step {state.step}", "lower learning_rate, or set bf16=false")
        norm = optimizer.update(state.step, tokens)
        seconds = time.perf_counter() - began
        interval.add(total, tokens, norm, seconds)
        return State(state.step + 1, state.tokens + tokens, state.seconds + seconds, state.digest)

    def _validate(self, state: State) -> None:
        loss = self.validation_loss()
        if loss is not None:
            perplexity = math.exp(loss)
            self.folder.append({"kind": "valid", "step": state.step, "loss": loss, "perplexity": perplexity})
            self.announce(f"step {state.step:,}: held-out loss {loss:.3f}, perplexity {perplexity:.2f}")

    @torch.no_grad()
    def validation_loss(self) -> float | None:
        """Mean loss of a held-out token in nats; None: nothing is held out."""
        if self.held is None:
            return None
        rng = np.random.default_rng([self.config.seed, 2])  # the same spans are masked in every validation
        total, tokens = 0.0, 0
        with self._precision():
            for pieces in np.split(np.arange(self.held.pieces), range(VALIDATED, self.held.pieces, VALIDATED)):
                for loss in self.held.objective.losses(pieces, rng):
                    total, tokens = total + float(loss.total), tokens + loss.tokens
        return total / tokens

    def _precision(self) -> AbstractContextManager[Any]:
        device = self.network.device
        gpu = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        wanted = gpu if self.config.bf16 == "auto" else self.config.bf16
        return torch.autocast(device.type, torch.bfloat16) if wanted else nullcontext()


@dataclass(slots=True)
class _Interval:
    """What the steps since the last record measured."""

    total: float = 0.0
    tokens: int = 0
    norm: float = 0.0
    steps: int = 0
    seconds: float = 0.0

    def add(self, total: float, tokens: int, norm: float, seconds: float) -> None:
        self.total, self.tokens, self.norm = self.total + total, self.tokens + tokens, self.norm + norm
        self.steps, self.seconds = self.steps + 1, self.seconds + seconds

    def record(self, state: State, rate: float) -> dict[str, Any]:
        return {
            "kind": "train",
            "step": state.step,
            "loss": self.total / self.tokens,
            "learning_rate": rate,
            "gradient_norm": self.norm / self.steps,
            "tokens": state.tokens,
            "tokens_per_second": self.tokens / self.seconds,
        }
