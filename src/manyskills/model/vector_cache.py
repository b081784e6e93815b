"""Vectors that were computed before, for evaluations: read from disk by content and weights, and added to it.

Shape legend: N texts, S sequences they are read as, U different sequences, D size of a vector.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from manyskills.data.row_store import SUPPORTED, DamageError, content_key
from manyskills.data.tokens import TokenStore, cache_folder
from manyskills.data.vector_store import VectorStore, make_room, remove
from manyskills.model.encoding import Report, encode_texts
from manyskills.model.fingerprint import fingerprint, published_fingerprint
from manyskills.model.methods import METHODS
from manyskills.model.multitask import MultiTaskModel
from manyskills.model.pieces import pool_pieces

LIMIT = 4 << 30
"""Bytes that the vectors of all networks together may have."""

SPARE = 1 << 30
"""Bytes of the disk that are left to others: a run that finds no room for its checkpoint is worse off than one that
computes vectors again."""

LEAST_TOKENS_ON_CPU = 5_000
LEAST_TOKENS_ELSEWHERE = 500_000
"""From how many tokens on vectors are kept. A network of P weights takes some 2 P operations a token, its fingerprint
reads 2 P or 4 P bytes: how many tokens the reading is worth does not depend on P. With float32 at 0.4 GB/s it is 500
tokens for a core of 100 GFLOP/s and 5,000 for ten of them; with 2 bytes a weight it is 250,000 for a GPU of 100
TFLOP/s."""


class VectorCache:
    """The vectors of one network on disk. What goes wrong there costs the cache, never the evaluation.

    Args:
        name: The network's fingerprint.
        size: D.
        routed: Whether the vector of a sequence depends on the task that reads it.
        about: Said in the folder, for people who look for space.
    """

    def __init__(self, name: str, size: int, *, routed: bool, about: dict[str, Any]) -> None:
        self.folder, self.size, self._routed = vectors_folder() / name, size, routed
        self._store = self._open()
        with suppress(OSError), (self.folder / "about.json").open("x", encoding="utf-8") as file:
            json.dump(about, file, indent=2)

    @property
    def usable(self) -> bool:
        """Whether its files could be opened, and nothing was refused since."""
        return self._store is not None

    def keys(self, store: TokenStore, sequences_S: np.ndarray) -> list[bytes]:
        """What these sequences are found by."""
        routes_S = store.routes_S[sequences_S] if self._routed else np.zeros(len(sequences_S), dtype=np.int64)
        places = zip(sequences_S.tolist(), routes_S.tolist(), strict=True)
        return [content_key(store.sequence(index), route) for index, route in places]

    def read(self, keys: Sequence[bytes]) -> tuple[torch.Tensor, torch.Tensor]:
        """vectors_UD of these sequences, and known_U: which are there; the other rows are zero."""
        try:
            if self._store is not None:
                vectors_UD, known_U = self._store.read(keys)
                return torch.from_numpy(vectors_UD), torch.from_numpy(known_U)
        except DamageError:
            self._start_anew()
        except OSError:
            self._store = None
        return torch.zeros(len(keys), self.size), torch.zeros(len(keys), dtype=torch.bool)

    def add(self, keys: Sequence[bytes], vectors_UD: torch.Tensor) -> None:
        """Keep the vectors of these sequences, each once, all of them or none."""
        if self._store is None or not keys:
            return
        try:
            wanted = vectors_UD.numel() * vectors_UD.element_size()
            if self._store.free_bytes - wanted >= SPARE and make_room(self.folder.parent, wanted, LIMIT):
                self._store.add(keys, vectors_UD.numpy())
        except DamageError:
            self._start_anew()
        except OSError:
            self._store = None

    def _open(self) -> VectorStore | None:
        try:
            return VectorStore(self.folder, self.size)
        except OSError:
            return None

    def _start_anew(self) -> None:
        remove(self.folder)
        self._store = self._open()


def vectors_folder() -> Path:
    """Holds one folder for each network."""
    return cache_folder() / "vectors"


def vector_cache(model: MultiTaskModel, tokens: int) -> VectorCache | None:
    """The vectors of a model as it is, with its shared module.

    Args:
        model: Gives them.
        tokens: What encoding everything would cost.

    Returns:
        None where files cannot be locked, or where encoding costs less than reading all weights for their fingerprint.
    """
    if not _pays(model, tokens):
        return None
    routed = METHODS[model.method.name].routed
    return VectorCache(
        fingerprint(model), model.architecture.hidden_size, routed=routed, about=_about(model, model.method.name)
    )


def published_vector_cache(model: MultiTaskModel, tokens: int) -> VectorCache | None:
    """The vectors of a model at step 0: those of its backbone, which all runs on it share.

    Args:
        model: Gives them.
        tokens: What encoding everything would cost.

    Returns:
        None also where the method changes the vectors before the first step.
    """
    if not _pays(model, tokens) or not METHODS[model.method.name].equal_at_start:
        return None
    name, size = published_fingerprint(model), model.architecture.hidden_size
    return VectorCache(name, size, routed=False, about=_about(model, "frozen"))


def _pays(model: MultiTaskModel, tokens: int) -> bool:
    return SUPPORTED and tokens >= (LEAST_TOKENS_ON_CPU if model.device.type == "cpu" else LEAST_TOKENS_ELSEWHERE)


def _about(model: MultiTaskModel, method: str) -> dict[str, Any]:
    return {
        "what": "vectors of token sequences, float32; may be removed, they are computed anew",
        "model_type": model.architecture.model_type,
        "method": method,
        "hidden_size": model.architecture.hidden_size,
        "first_used_for": model.network.name_or_path,
    }


class Company(Protocol):
    """The processes that compute vectors together (`manyskills.training.processes.Processes`)."""

    @property
    def is_main(self) -> bool:
        """Whether this one reads and writes files."""
        ...

    @property
    def share(self) -> tuple[int, int]:
        """(rank, processes)."""
        ...

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all of them, in place."""
        ...


@dataclass(frozen=True, slots=True)
class Alone:
    """One process."""

    is_main: bool = True
    share: tuple[int, int] = (0, 1)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor."""
        return tensor


def cached_vectors(
    model: MultiTaskModel,
    store: TokenStore,
    indices_N: np.ndarray,
    token_budget: int,
    cache: VectorCache | None,
    *,
    processes: Company | None = None,
    report: Report | None = None,
) -> torch.Tensor:
    """Vectors of these texts as `encode_texts` gives them, those read from the cache that are there.

    The rest is computed, added to the cache as a whole, and read back with what was there, so that whoever comes later
    reads what was used here, and texts that are read as the same sequence have the same vector. A vector that was
    computed in other company, in another chunk, may differ in the last digits.

    Args:
        model: Put into evaluation mode.
        store: Holds the token sequences.
        indices_N: Which texts, each once.
        token_budget: Tokens in one chunk, padding included.
        cache: Of this very model; None: everything is computed and nothing kept.
        processes: Share the work; every process must have a cache, or none.
        report: Is told of tokens done, of this process's share.

    Returns:
        vectors_ND, float32, on the CPU, the same in every process.
    """
    processes = processes or Alone()
    if cache is None:
        vectors_ND = encode_texts(model, store, indices_N, token_budget, share=processes.share, report=report)
        return processes.sum(vectors_ND)
    pieces = store.pieces(indices_N)
    keys, first_U, inverse_S = _different(cache.keys(store, pieces.sequences_S))
    read_UD, known_U = _read_by_main(cache, keys, processes)
    missing_M = np.flatnonzero(~known_U)
    sequences_M = pieces.sequences_S[first_U[missing_M]]
    if report is not None:
        done = store.lengths_S[pieces.sequences_S].sum() - store.lengths_S[sequences_M].sum()
        report(int(done) // processes.share[1])
    if len(missing_M):
        by_sequence = TokenStore(store.ids_T, store.starts_S, store.lengths_S, store.routes_S)
        computed_MD = encode_texts(model, by_sequence, sequences_M, token_budget, share=processes.share, report=report)
        computed_MD = processes.sum(computed_MD)
        if processes.is_main:
            read_UD[torch.from_numpy(missing_M)] = _kept(cache, [keys[index] for index in missing_M], computed_MD)
    return pool_pieces(processes.sum(read_UD)[torch.from_numpy(inverse_S)], pieces)


def _different(keys_S: Sequence[bytes]) -> tuple[list[bytes], np.ndarray, np.ndarray]:
    """The different keys, where each stands first (first_U), and which one each is (inverse_S)."""
    numbers: dict[bytes, int] = {}
    inverse_S = np.array([numbers.setdefault(key, len(numbers)) for key in keys_S], dtype=np.int64)
    return list(numbers), np.unique(inverse_S, return_index=True)[1], inverse_S


def _read_by_main(cache: VectorCache, keys: Sequence[bytes], processes: Company) -> tuple[torch.Tensor, np.ndarray]:
    """What the main process reads, zero in the others; and which vectors those are, in every process alike: two that
    look at different moments may find different ones."""
    if processes.is_main:
        read_UD, known_U = cache.read(keys)
    else:
        read_UD, known_U = torch.zeros(len(keys), cache.size), torch.zeros(len(keys), dtype=torch.bool)
    return read_UD, processes.sum(known_U.float()).bool().numpy()


def _kept(cache: VectorCache, keys: Sequence[bytes], computed_MD: torch.Tensor) -> torch.Tensor:
    """The vectors that later readers will find: of what another run added meanwhile, its own."""
    cache.add(keys, computed_MD)
    read_MD, known_M = cache.read(keys)
    return torch.where(known_M[:, None], read_MD, computed_MD)
