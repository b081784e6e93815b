"""Where a step's vectors come from, and how their gradient flows back.

Shape legend: N texts of the step, S sequences they are read as (of precomputed vectors: the texts there are), D size of
a vector, B sequences of a chunk, T tokens, K tasks.

`forward` gives detached vectors and `backward` takes the gradient of all losses with respect to them, whichever way the
two are joined in between. Gradient caching (Gao et al. 2021, arXiv 2101.06983) is then one way among others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
from manyskills.training.task_gradients import TaskGradients


class VectorSource(Protocol):
    """Gives the vectors of a step and takes their gradient."""

    def forward(self, unique_N: np.ndarray, seed: int, users_N: np.ndarray | None = None) -> torch.Tensor:
        """vectors_ND of these texts, detached, on the model's device.

        Args:
            unique_N: Indices of the texts.
            seed: Of this step's random numbers.
            users_N: Which tasks use each text, bit by bit; needed where each task's gradient will be asked for.
        """
        ...

    def values(self, unique_N: np.ndarray, seed: int, users_N: np.ndarray | None = None) -> torch.Tensor:
        """As `forward` under the weights of now, without anything to be sent back."""
        ...

    def backward(self, gradient_ND: torch.Tensor) -> None:
        """Add to the gradients of the shared module what this gradient of the vectors means, for this process's
        share of the texts."""
        ...

    def backward_by_task(self, gradients: Mapping[str, torch.Tensor], found: TaskGradients) -> None:
        """Add to each task's row what its gradient of the vectors (N, D) means for the shared module, for this
        process's share of the texts; parameters are left alone."""
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

    def forward(self, unique_N: np.ndarray, seed: int, users_N: np.ndarray | None = None) -> torch.Tensor:
        """Look the vectors up."""
        rows_N = np.searchsorted(self.indices_S, unique_N)
        if not np.array_equal(self.indices_S[np.minimum(rows_N, len(self.indices_S) - 1)], unique_N):
            raise KeyError("a text whose vector was not computed")
        return self.vectors_SD[torch.from_numpy(rows_N)].to(self.device)

    def values(self, unique_N: np.ndarray, seed: int, users_N: np.ndarray | None = None) -> torch.Tensor:
        """The same."""
        return self.forward(unique_N, seed)

    def backward(self, gradient_ND: torch.Tensor) -> None:
        """Nothing trains."""

    def backward_by_task(self, gradients: Mapping[str, torch.Tensor], found: TaskGradients) -> None:
        """Never asked for: there is no shared module."""
        raise NotImplementedError


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
        self._users_S: np.ndarray | None = None
        self._seed = 0

    def forward(self, unique_N: np.ndarray, seed: int, users_N: np.ndarray | None = None) -> torch.Tensor:
        """Encode; keeps each chunk's graph unless cached."""
        self._begin(unique_N, seed, users_N)
        vectors_SD, self._chunks = self._run(graph=not self.cached)
        return pool_pieces(self.processes.sum(vectors_SD), self._pieces)

    def values(self, unique_N: np.ndarray, seed: int, users_N: np.ndarray | None = None) -> torch.Tensor:
        """Encode without a graph."""
        self._begin(unique_N, seed, users_N)
        vectors_SD, _ = self._run(graph=False)
        return pool_pieces(self.processes.sum(vectors_SD), self._pieces)

    def backward(self, gradient_ND: torch.Tensor) -> None:
        """Back-propagate chunk by chunk; a cached chunk is encoded again with the same random numbers."""
        gradient_SD = spread_gradient(gradient_ND, self._pieces)
        for again_BD, chunk in self._graphs():
            # gradient checkpointing computes layers again in here
            with self.encoder.routed(self._pieces.sequences_S[chunk]):
                again_BD.backward(gradient_SD[torch.from_numpy(chunk).to(gradient_SD.device)])

    def backward_by_task(self, gradients: Mapping[str, torch.Tensor], found: TaskGradients) -> None:
        """The same, each chunk once for each task that uses its texts: once for nearly all."""
        assert self._users_S is not None
        rows = [found.row(name) for name in gradients]
        gradients_SD = [spread_gradient(gradient_ND, self._pieces) for gradient_ND in gradients.values()]
        for again_BD, chunk in self._graphs():
            users = int(self._users_S[chunk[0]])
            tasks = [task for task in range(len(gradients)) if users >> task & 1]
            rows_B = torch.from_numpy(chunk).to(again_BD.device)
            with self.encoder.routed(self._pieces.sequences_S[chunk]):
                for task in tasks:
                    found.add(rows[task], again_BD, gradients_SD[task][rows_B], keep_graph=task != tasks[-1])

    def _begin(self, unique_N: np.ndarray, seed: int, users_N: np.ndarray | None) -> None:
        self._pieces, self._seed = self.store.pieces(unique_N), seed
        self._users_S = None if users_N is None else np.repeat(users_N, self._pieces.counts_N)

    def _plan(self) -> list[np.ndarray]:
        """Positions of the sequences of each chunk; where tasks are told apart, a chunk's are used by the same ones."""
        lengths_S = self.store.lengths_S[self._pieces.sequences_S]
        if self._users_S is None:
            return self.encoder.plan(lengths_S, self.token_budget)
        groups = [np.flatnonzero(self._users_S == users) for users in np.unique(self._users_S)]
        return [group[chunk] for group in groups for chunk in self.encoder.plan(lengths_S[group], self.token_budget)]

    def _run(self, *, graph: bool) -> tuple[torch.Tensor, list[tuple[int, np.ndarray, torch.Tensor | None]]]:
        """vectors_SD of this process's chunks (zero elsewhere), and the chunks with what is needed to go back."""
        device, chunks = self.model.device, []
        vectors_SD = torch.zeros(len(self._pieces.sequences_S), self.model.architecture.hidden_size, device=device)
        # the longest chunks come last: dealing them out in turn keeps the processes' shares alike
        for number, chunk in list(enumerate(self._plan()))[self.processes.rank :: self.processes.count]:
            with torch.set_grad_enabled(graph):
                vectors_BD = self._encode(number, chunk)
            chunks.append((number, chunk, vectors_BD if graph else None))
            vectors_SD[torch.from_numpy(chunk).to(device)] = vectors_BD.detach()
        return vectors_SD, chunks

    def _graphs(self) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
        """Each chunk's vectors with their graph, and its positions; forgotten as they are gone through."""
        chunks, self._chunks = self._chunks, []
        chunks.reverse()
        while chunks:
            number, chunk, vectors_BD = chunks.pop()
            yield self._encode(number, chunk) if vectors_BD is None else vectors_BD, chunk

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
