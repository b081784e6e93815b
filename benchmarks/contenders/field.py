"""Who takes part in every measurement of training, and a check that all learn the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from contenders.hugging_face import HuggingFace, Order
from contenders.ours import Ours
from contenders.peer import Peer, PeerOptions
from contenders.reference import Reference
from contenders.work import TokenCounter, Work
from manyskills.model.multitask import MultiTaskModel
from measuring import Cost

OURS, REFERENCE = "manyskills", "reference recipe"
TRAINER = {
    "Trainer, default": (Order.BY_TASK, True),
    "Trainer, group_by_length": (Order.GROUPED, True),
    "Trainer, group_by_length, no trunk dropout": (Order.GROUPED, False),
    "Trainer, batch_rebalance, no trunk dropout": (Order.REBALANCED, False),
}
"""By name, the order of the rows and whether the pre-trained network's own dropout is on."""
TRAINER_WHOLE = {
    "Trainer, group_by_length, one batch": (Order.GROUPED_WHOLE, True),
    "Trainer, group_by_length, one batch, no trunk dropout": (Order.GROUPED_WHOLE, False),
}
"""For devices that have the memory and gain by large batches."""


class Contender:
    """Work to measure.

    Args:
        name: In tables.
        run: Takes the steps; gives their cost where it has measured itself.
        counter: Counts what its network is given; several contenders may share it.
        steps: How many steps a run takes.
        warm_up: Does a little of the same work before anything is measured; None: another contender does it with the
            same network.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[], Cost | None],
        counter: TokenCounter,
        steps: int,
        warm_up: Callable[[], None] | None = None,
    ) -> None:
        self.name, self.run, self.counter, self.steps, self.warm_up = name, run, counter, steps, warm_up
        self.tokens_a_step = 0.0
        self.peak_bytes = 0

    def __call__(self) -> Cost | None:
        """Take the steps; keep the number of tokens and, on a GPU, the most memory beyond what was there before."""
        before, there = self.counter.tokens, 0
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            there = torch.cuda.memory_allocated()
        cost = self.run()
        self.tokens_a_step = (self.counter.tokens - before) / self.steps
        if torch.cuda.is_available():
            self.peak_bytes = torch.cuda.max_memory_allocated() - there
        return cost


def common_field(
    work: Work,
    model: MultiTaskModel,
    folder: Path,
    options: PeerOptions,
    trainers: Mapping[str, tuple[Order, bool]] = TRAINER,
) -> list[Contender]:
    """manyskills first, the Trainer in its orders, the reference recipe.

    Args:
        work: The rows.
        model: At step 0; peers copy its heads and the configuration of its adapter.
        folder: The Trainer wants one.
        options: Of the peers' backbones.
        trainers: By name, the order of the Trainer's rows and whether the pre-trained network's own dropout is on.

    Raises:
        AssertionError: The losses of the first step differ.
    """
    steps, ours = len(work.batches), Ours(work)
    peers = {on: Peer(work, model, replace(options, trunk_dropout=on)) for on in (True, False)}
    found = [Contender(OURS, ours.run, ours.counter, steps, ours.warm_up)]
    for name, (order, dropout) in trainers.items():
        trainer = HuggingFace(work, peers[dropout], order, folder)
        # bfloat16 has three digits, and 4-bit weights are rounded from different copies
        check_same(ours.losses(), trainer.losses(), 1e-3 if options.dtype == torch.float32 else 0.1)
        found.append(Contender(name, trainer.run, peers[dropout].counter, steps, trainer.warm_up))
    found.append(Contender(REFERENCE, Reference(work, peers[True]).run, peers[True].counter, 1))
    return found


def check_same(ours: Mapping[str, float], others: Mapping[str, float], tolerance: float) -> None:
    """The contenders must learn the same thing.

    Raises:
        AssertionError: A loss differs by more than the tolerance.
    """
    for name, loss in ours.items():
        if abs(loss - others[name]) > tolerance:
            raise AssertionError(f"{name}: loss {loss:.6f} of manyskills, {others[name]:.6f} of the Trainer's model")


def seconds_a_step(contenders: Mapping[str, Contender], costs: Mapping[str, Sequence[Cost]]) -> dict[str, list[Cost]]:
    """Costs of rounds as costs of one step."""
    return {
        name: [Cost(cost.cpu / contenders[name].steps, cost.wall / contenders[name].steps) for cost in found]
        for name, found in costs.items()
    }
