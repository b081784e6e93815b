"""The work that all contenders do: the rows of some steps, and how much of it is useful.

Shape legend: E examples of one task, K texts an example, N texts of the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        batches: The examples by task of each step that is measured.
        drawn: The examples of all steps that those were chosen from.
        device: Where the contenders train.
    """

    config: TrainConfig
    prepared: Prepared
    batches: list[dict[str, Examples]]
    drawn: list[dict[str, Examples]]
    device: torch.device

    @property
    def store(self) -> TokenStore:
        """The token sequences."""
        return self.prepared.store

    @property
    def rows(self) -> int:
        """Labelled rows of all steps."""
        return sum(map(rows_in, self.batches))

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

    Typical are those of the first 50 that are nearest the average in two numbers at once, by the sum of the relative
    deviations: the useful tokens, which are our work, and the tokens of padded batches of one task, which are the work
    of "Trainer, default". One step alone may be half as long again. Steps that an epoch's end leaves with fewer rows
    are not taken.
    """
    model, prepared = load_inputs(config, device)
    train = prepared.examples["train"]
    sampler = Sampler(train, config.sampling, config.batch_size, config.seed, positive_shares(config))
    drawn = [sampler.at(step, [Phase(0, tuple(config.tasks))]) for step in range(SEEN)]
    most = max(map(rows_in, drawn))
    whole = [batch for batch in drawn if rows_in(batch) == most]
    return Work(config, prepared, typical(whole, prepared.store, steps), drawn, device), model


def typical(batches: Sequence[dict[str, Examples]], store: TokenStore, steps: int) -> list[dict[str, Examples]]:
    """Those nearest the average in useful and in padded tokens, in their order."""
    useful = np.array([store.lengths_N[gather(batch).unique_N].sum() for batch in batches])
    padded = np.array([padded_tokens(batch, store) for batch in batches])
    away = sum(np.abs(tokens / tokens.mean() - 1) for tokens in (useful, padded))
    return [batches[step] for step in np.sort(np.argsort(away, kind="stable")[:steps])]


def padded_tokens(batch: Mapping[str, Examples], store: TokenStore) -> int:
    """Tokens of a step in batches of one task, each side of its rows padded to its longest text."""
    lengths = [store.lengths_N[examples.texts_EK] for examples in batch.values()]
    return sum(int(len(one_EK) * one_EK.max(axis=0).sum()) for one_EK in lengths)


def rows_in(batch: Mapping[str, Examples]) -> int:
    """Labelled rows of a step."""
    return sum(map(len, batch.values()))


def first_rows(batch: Mapping[str, Examples], rows: int = 2) -> dict[str, Examples]:
    """A small step for warming up: a few rows of each task."""
    return {name: examples.take(np.arange(min(rows, len(examples)))) for name, examples in batch.items()}


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
