"""Steps as manyskills' training loop takes them, with every lever or without some.

Shape legend: N texts, S sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from contenders.work import TokenCounter, Work, first_rows
from manyskills.config import TrainConfig
from manyskills.data.preparation import positive_rates
from manyskills.data.text_set import Examples, gather
from manyskills.data.tokens import TokenStore
from manyskills.model.encoding import WholeBackbone
from manyskills.model.multitask import build_model, set_class_balance
from manyskills.training.balancing import build_balancing
from manyskills.training.forward import Sources, task_losses
from manyskills.training.optimizer import Optimizer
from manyskills.training.processes import Processes
from manyskills.training.step import accumulate_gradients
from manyskills.training.vectors import BackboneVectors


class Ours:
    """One variant of manyskills.

    Args:
        work: What to train on.
        changes: Keys of the configuration that differ from the work's.
    """

    def __init__(self, work: Work, changes: Mapping[str, Any] | None = None) -> None:
        self.work = work
        self.config = TrainConfig.model_validate(work.config.model_dump() | dict(changes or {}))
        self.model = build_model(self.config, work.device)
        set_class_balance(self.model, positive_rates(work.prepared.examples["train"]))
        self.counter = TokenCounter(self.model.network.get_input_embeddings())
        self.balancing = build_balancing(self.config.balancing, list(self.config.tasks), self.config.seed)
        self.optimizer = Optimizer(self.model, self.config, 1000)
        self.batches, self.store = work.batches, work.store
        self.source = self._source()

    def run(self) -> None:
        """All steps of the work."""
        self._take(self.batches)

    def warm_up(self) -> None:
        """One step on two rows of each task."""
        self._take([first_rows(self.batches[0])])

    def _take(self, batches: Sequence[Mapping[str, Examples]]) -> None:
        for step, batch in enumerate(batches):
            self.model.train()
            accumulate_gradients(self.model, Sources(self.source), batch, self.balancing, step)
            self.optimizer.update(step)
        synchronize(self.work.device)

    def losses(self) -> dict[str, float]:
        """Each task's loss on the first step without dropout, as the configuration weighs it."""
        self.model.eval()
        texts = gather(self.batches[0])
        with torch.no_grad():
            vectors_ND = self.source.forward(texts.unique_N, 0)
            return {name: loss.scaled.item() for name, loss in task_losses(self.model, texts, vectors_ND).items()}

    def repeat_texts(self) -> None:
        """Encode a text as often as it occurs in a step's rows."""
        occurrences = [examples.texts_EK.ravel() for batch in self.batches for examples in batch.values()]
        self.store = repeated(self.store, np.concatenate(occurrences))
        start, batches = 0, []
        for batch in self.batches:
            by_task: dict[str, Examples] = {}
            for name, examples in batch.items():
                count = examples.texts_EK.size
                texts_EK = np.arange(start, start + count).reshape(examples.texts_EK.shape)
                by_task[name] = replace(examples, texts_EK=texts_EK)
                start += count
            batches.append(by_task)
        self.batches, self.source = batches, self._source()

    def keep_order(self) -> None:
        """Encode texts in chance order instead of sorted by length."""
        self.source = self._source(Unsorted(self.model, self.store))

    def _source(self, encoder: WholeBackbone | None = None) -> BackboneVectors:
        alone = Processes(0, 1, self.work.device)
        cached = self.config.step_memory == "cached"
        budget = self.config.token_budget
        return BackboneVectors(self.model, self.store, budget, cached=cached, processes=alone, encoder=encoder)


class Unsorted(WholeBackbone):
    """Chunks of 16 texts in chance order."""

    def plan(self, lengths_S: np.ndarray, token_budget: int) -> list[np.ndarray]:
        """Positions of the texts of each chunk."""
        order = np.random.default_rng(0).permutation(len(lengths_S))
        return [order[start : start + 16] for start in range(0, len(order), 16)]


def repeated(store: TokenStore, indices_N: np.ndarray) -> TokenStore:
    """A store whose texts are these of another one, repeats included (none in windows)."""
    assert store.windows is None
    starts_S = np.concatenate([[0], np.cumsum(store.lengths_S[indices_N])])
    ids_T = np.concatenate([store.sequence(index) for index in indices_N])
    return TokenStore(ids_T, starts_S, store.full_lengths_N[indices_N], store.routes_S[indices_N])


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


Lever = tuple[Mapping[str, Any], Callable[[Ours], None] | None]

LEVERS: dict[str, Lever] = {
    "padded attention": ({"attention": "padded"}, None),
    "padded, and a text encoded as often as it occurs": ({"attention": "padded"}, Ours.repeat_texts),
    "padded, and not sorted by length": ({"attention": "padded"}, Ours.keep_order),
    "padded, and the trunk's dropout on": ({"attention": "padded", "trunk_dropout": True}, None),
}
"""What is switched off, each beside the default."""


def with_lever_off(work: Work, lever: Lever) -> Ours:
    """A variant of manyskills without one of its levers."""
    changes, alter = lever
    ours = Ours(work, changes)
    if alter is not None:
        alter(ours)
    return ours
