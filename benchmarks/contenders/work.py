"""The work that all contenders do: the rows of some steps, and how much of it is useful.

Shape legend: E examples of one task, K texts an example, N texts of the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn

from manyskills.config import TrainConfig
from manyskills.data.preparation import Prepared
from manyskills.data.sampling import Phase, Sampler
from manyskills.data.text_set import Examples, gather
from manyskills.data.tokens import TokenStore
from manyskills.model.multitask import MultiTaskModel
from manyskills.training.loop import positive_shares
from manyskills.training.run import load_inputs


@dataclass(frozen=True)
class Work:
    """Some steps of a run, drawn and tokenised beforehand.

    Attributes:
        config: Of the run.
        prepared: All its data.
        batches: The examples of each step by task.
        device: Where the contenders train.
    """

    config: TrainConfig
    prepared: Prepared
    batches: list[dict[str, Examples]]
    device: torch.device

    @property
    def store(self) -> TokenStore:
        """The token sequences."""
        return self.prepared.store

    @property
    def rows(self) -> int:
        """Labelled rows of all steps."""
        return sum(len(examples) for batch in self.batches for examples in batch.values())

    @property
    def rows_a_task(self) -> int:
        """The largest number of rows that one task has in one step."""
        return max(len(examples) for batch in self.batches for examples in batch.values())

    @cached_property
    def useful_lengths(self) -> np.ndarray:
        """Tokens of every text that a step needs, each once a step."""
        return np.concatenate([self.store.lengths_N[gather(batch).unique_N] for batch in self.batches])

    @property
    def texts_of_rows(self) -> int:
        """How many texts the rows name, each as often as it occurs."""
        return sum(examples.texts_EK.size for batch in self.batches for examples in batch.values())


SEEN = 50
"""Steps of a run among which typical ones are looked for."""


def draw(config: TrainConfig, steps: int, device: torch.device) -> tuple[Work, MultiTaskModel]:
    """Read the data and draw typical steps as training draws them; also gives the model at step 0.

    Typical are those of the first 50 whose texts have most nearly the average number of tokens: one step alone may be
    half as long again.
    """
    model, prepared = load_inputs(config, device)
    train = prepared.examples["train"]
    sampler = Sampler(train, config.sampling, config.batch_size, config.seed, positive_shares(config))
    batches = [sampler.at(step, [Phase(0, tuple(config.tasks))]) for step in range(SEEN)]
    tokens = np.array([prepared.store.lengths_N[gather(batch).unique_N].sum() for batch in batches])
    typical = np.argsort(np.abs(tokens - tokens.mean()), kind="stable")[:steps]
    return Work(config, prepared, [batches[step] for step in np.sort(typical)], device), model


def linear_parameters(network: nn.Module) -> int:
    """Weights of the linear layers of a network as it was published; adapters are too small to count."""
    return sum(
        module.in_features * module.out_features
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in name
    )


def useful_operations(lengths_N: np.ndarray, linear: int, layers: int, hidden_size: int) -> float:
    """Floating-point operations that a step on these texts cannot do without.

    Linear layers: 2 a weight and token forward, and as many backward (to the inputs: frozen weights need no gradient).
    Attention: 4 L^2 H a layer forward (Q K^T and P V), twice that backward.
    """
    tokens, squares = float(lengths_N.sum()), float((lengths_N.astype(np.float64) ** 2).sum())
    return 4 * linear * tokens + 12 * squares * hidden_size * layers


class TokenCounter:
    """Counts the tokens that a network is given, padding and repeats included.

    Args:
        embeddings: The layer that looks token ids up.
    """

    def __init__(self, embeddings: nn.Module) -> None:
        self.tokens = 0
        embeddings.register_forward_pre_hook(self._count)

    def _count(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.tokens += inputs[0].numel()
