"""Where a step's vectors come from, and how their gradient flows back.

Shape legend: N texts of the step, S sequences they are read as (of precomputed vectors: the texts there are), D size of
a vector, B sequences of a chunk, T tokens.

`forward` gives detached vectors and `backward` takes the gradient of all losses with respect to them, whichever way the
two are joined in between. Gradient caching (Gao et al. 2021, arXiv 2101.06983) is then one way among others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch

from manyskills.data.tokens import TokenStore
from manyskills.data.windows import Pieces
from manyskills.model.encoding import ChunkEncoder, WholeBackbone
from manyskills.model.multitask import MultiTaskModel
from manyskills.model.pieces import pool_pieces, spread_gradient
from manyskills.training.processes import Processes


class VectorSource(Protocol):
    """Gives the vectors of a step and takes their gradient."""

    def forward(self, unique_N: np.ndarray, seed: int) -> torch.Tensor:
        """vectors_ND of these texts, detached, on the model's device."""
        ...

    def backward(self, gradient_ND: torch.Tensor) -> None:
        """Add to the gradients of the shared module what this gradient of the vectors means."""
        ...


class PrecomputedVectors:
    """Vectors that do not change because nothing of the backbone trains.

    Args:
        vectors_SD: One row for each row of `indices_S`.
        indices_S: Ascending indices of texts in the token store.
        device: Where the heads are.
    """

    def __init__(self, vectors_SD: torch.Tensor, indices_S: np.ndarray, device: torch.device) -> None:
        self.vectors_SD, self.indices_S, self.device = vectors_SD, indices_S, device

    def forward(self, unique_N: np.ndarray, seed: int) -> torch.Tensor:
        """Look the vectors up."""
        rows_N = np.searchsorted(self.indices_S, unique_N)
        if not np.array_equal(self.indices_S[np.minimum(rows_N, len(self.indices_S) - 1)], unique_N):
            raise KeyError("a text whose vector was not computed")
        return self.vectors_SD[torch.from_numpy(rows_N)].to(self.device)

    def backward(self, gradient_ND: torch.Tensor) -> None:
        """Nothing trains."""


class BackboneVectors:
    """Vectors encoded by the backbone in length-sorted chunks, each text once; one in windows is their mean.

    Args:
        model: Gives the vectors.
        store: Holds the token sequences.
        token_budget: Tokens in one chunk, padding included.
        cached: Encode without a graph and once more, chunk by chunk, when the gradient is known: the memory of one
            chunk instead of the step's.
        processes: Share the chunks.
        encoder: How a chunk is encoded; default: by the whole backbone.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        store: TokenStore,
        token_budget: int,
        *,
        cached: bool,
        processes: Processes,
        encoder: ChunkEncoder | None = None,
    ) -> None:
        self.model, self.store, self.token_budget = model, store, token_budget
        self.encoder = encoder or WholeBackbone(model, store)
        self.cached, self.processes = cached, processes
        self._chunks: list[tuple[int, np.ndarray, torch.Tensor | None]] = []
        self._pieces = Pieces.one_each(np.empty(0, dtype=np.int64))
        self._seed = 0

    def forward(self, unique_N: np.ndarray, seed: int) -> torch.Tensor:
        """Encode; keeps each chunk's graph unless cached."""
        self._pieces, self._seed, self._chunks = self.store.pieces(unique_N), seed, []
        sequences_S, device = self._pieces.sequences_S, self.model.device
        vectors_SD = torch.zeros(len(sequences_S), self.model.architecture.hidden_size, device=device)
        plan = self.encoder.plan(self.store.lengths_S[sequences_S], self.token_budget)
        # the longest chunks come last: dealing them out in turn keeps the processes' shares alike
        for number, chunk in list(enumerate(plan))[self.processes.rank :: self.processes.count]:
            with torch.set_grad_enabled(not self.cached):
                vectors_BD = self._encode(number, chunk)
            self._chunks.append((number, chunk, None if self.cached else vectors_BD))
            vectors_SD[torch.from_numpy(chunk).to(device)] = vectors_BD.detach()
        return pool_pieces(self.processes.sum(vectors_SD), self._pieces)

    def backward(self, gradient_ND: torch.Tensor) -> None:
        """Back-propagate chunk by chunk; a cached chunk is encoded again with the same random numbers."""
        gradient_SD = spread_gradient(gradient_ND, self._pieces)
        for number, chunk, vectors_BD in self._chunks:
            again_BD = self._encode(number, chunk) if vectors_BD is None else vectors_BD
            # gradient checkpointing computes layers again in here
            with self.encoder.routed(self._pieces.sequences_S[chunk]):
                again_BD.backward(gradient_SD[torch.from_numpy(chunk).to(gradient_SD.device)])
        self._chunks = []
        self.processes.sum_gradients(p for _, p in self.model.shared_parameters())

    def _encode(self, number: int, chunk: np.ndarray) -> torch.Tensor:
        with seeded(self.model.device, self._seed, number):
            return self.encoder(self._pieces.sequences_S[chunk])


@contextmanager
def seeded(device: torch.device, *key: int) -> Iterator[None]:
    """Random numbers that depend on the key alone: the same chunk gets the same dropout when it is encoded again, after
    a resume, and in whichever process."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        yield
