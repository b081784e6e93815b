"""Vectors of texts when only the last layers train: the lower layers' states are read from disk, the upper ones run.

Shape legend: S sequences of the token store, B sequences of a chunk, R tokens of several sequences one after
another, H hidden size, D size of a vector.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import numpy as np
import torch

from manyskills.config import TrainConfig, last_layers
from manyskills.data.activation_store import (
    ABSENT,
    STATE_BYTES,
    SUPPORTED,
    ActivationStore,
    Halves,
    content_key,
    to_half,
)
from manyskills.data.tokens import TokenStore, cache_folder
from manyskills.errors import UserError
from manyskills.model.multitask import MultiTaskModel
from manyskills.model.trunk import Trunk, why_whole

FORMAT = 1
"""Part of every folder's name: raise it when the layout of the files or the meaning of the states changes."""


class CachedTrunk:
    """Encodes chunks of a store (a `ChunkEncoder`) with the lower layers' states from disk.

    States that are not there yet are computed, kept, and then read back like all others, so that a text has the same
    half-precision states whenever it is used: in every epoch, in later runs, and in a run that was killed and goes on.
    The last needs one more thought, because the same text computed in other company may differ in the last digit. A
    chunk's missing texts are computed together and kept together or not at all (`ActivationStore.add`), and the chunks
    of a step follow from (seed, step) alone. A run that goes on from a checkpoint takes the same steps as it did before
    it was killed; of the texts that were missing in one of them the first time, each chunk's are then either all there,
    as they were computed, or are all missing again and are computed in the same company.

    This assumes that the folder still holds what the run put there and that no other run adds the same texts
    meanwhile. Several processes of one run each compute the misses of their own chunks: where one step has two texts
    with the same tokens, in chunks of two processes, it depends on their speed who computes the states. In each of
    these cases the last digit of float16 may differ.

    Args:
        trunk: Runs the lower and the upper layers apart.
        store: Holds the sequences.
        activations: Of this very trunk.
    """

    def __init__(self, trunk: Trunk, store: TokenStore, activations: ActivationStore) -> None:
        self.trunk, self.store, self.activations = trunk, store, activations
        self._spans_S = np.full(len(store.starts_S) - 1, ABSENT)

    def __call__(self, indices_B: np.ndarray) -> torch.Tensor:
        """vectors_BD, float32, with a graph of the upper layers if gradients are on."""
        return _upper(self.trunk, self.store, indices_B, self.activations.read(self._spans(indices_B)))

    def routed(self, indices_B: np.ndarray) -> AbstractContextManager[None]:
        """The network set for the tasks of these sequences."""
        return self.trunk.model.routed_for(self.store, indices_B)

    def plan(self, lengths_S: np.ndarray, token_budget: int) -> list[np.ndarray]:
        """As the model's layout wants it."""
        return self.trunk.model.plan(lengths_S, token_budget)

    def missing_bytes(self) -> int:
        """What the states of the store's sequences that are not there yet will need on disk."""
        keys = [content_key(self.store.sequence(index)) for index in range(len(self._spans_S))]
        self._spans_S = self.activations.find(keys)
        missing_M = np.flatnonzero(self._spans_S["start"] < 0)
        tokens = {keys[index]: int(self.store.lengths_S[index]) for index in missing_M}
        return sum(tokens.values()) * self.activations.width * STATE_BYTES

    def _spans(self, indices_B: np.ndarray) -> np.ndarray:
        """Where the states of these sequences are; computed where they were nowhere."""
        unknown = indices_B[self._spans_S["start"][indices_B] < 0]
        if len(unknown):
            keys = [content_key(self.store.sequence(index)) for index in unknown]
            found = self.activations.find(keys)
            if (missing := found["start"] < 0).any():
                self._compute({keys[n]: unknown[n] for n in np.flatnonzero(missing)})
                found = self.activations.find(keys)
            self._spans_S[unknown] = found
        return self._spans_S[indices_B]

    def _compute(self, missing: dict[bytes, int]) -> None:
        indices_B = np.array(list(missing.values()))
        states_RH = _lower(self.trunk, self.store, indices_B)
        self.activations.add(list(missing), self.store.lengths_S[indices_B], states_RH)


class RoundedTrunk:
    """Encodes chunks of a store as `CachedTrunk` does, with states that are rounded likewise but kept nowhere.

    Args:
        trunk: Runs the lower and the upper layers apart.
        store: Holds the sequences.
    """

    def __init__(self, trunk: Trunk, store: TokenStore) -> None:
        self.trunk, self.store = trunk, store

    def __call__(self, indices_B: np.ndarray) -> torch.Tensor:
        """vectors_BD, float32, with a graph of the upper layers if gradients are on."""
        half_RH, spans_B = to_half(_lower(self.trunk, self.store, indices_B), self.store.lengths_S[indices_B])
        return _upper(self.trunk, self.store, indices_B, Halves.of(half_RH, spans_B))

    def routed(self, indices_B: np.ndarray) -> AbstractContextManager[None]:
        """The network set for the tasks of these sequences."""
        return self.trunk.model.routed_for(self.store, indices_B)

    def plan(self, lengths_S: np.ndarray, token_budget: int) -> list[np.ndarray]:
        """As the model's layout wants it."""
        return self.trunk.model.plan(lengths_S, token_budget)


def _lower(trunk: Trunk, store: TokenStore, indices_B: np.ndarray) -> np.ndarray:
    """states_RH of these sequences after the lower layers, float32."""
    chunk = trunk.model.chunk(store, indices_B)
    return chunk.rows(trunk.lower(chunk)).float().cpu().numpy()


def _upper(trunk: Trunk, store: TokenStore, indices_B: np.ndarray, halves: Halves) -> torch.Tensor:
    """vectors_BD of these sequences from what the lower layers made of them."""
    device = trunk.model.device
    states_RH = torch.from_numpy(halves.states_RH).to(device).float()
    if halves.exponents_B.any():
        exponents_R = torch.from_numpy(np.repeat(halves.exponents_B, halves.lengths_B)).to(device)
        states_RH = torch.ldexp(states_RH, exponents_R[:, None])
    chunk = trunk.model.chunk(store, indices_B)
    with trunk.model.routed_for(store, indices_B):
        return trunk.upper(chunk.states(states_RH), chunk)


def training_encoder(
    config: TrainConfig, model: MultiTaskModel, store: TokenStore, announce: Callable[[str], None]
) -> CachedTrunk | None:
    """What encodes in the steps and validations of a run with `layers: last K`; None: the whole backbone does.

    Answers after training, in evaluation and prediction, come from the whole network, where no state is rounded to
    float16: nobody but training reads a text often enough for states on disk to pay.

    Args:
        config: The run.
        model: Its model; put into evaluation mode.
        store: Holds the sequences.
        announce: Gets sentences for people.

    Raises:
        UserError: The folder of the states cannot be written, or has no room for those of the store.
    """
    trunk = _trunk(config, model, announce)
    if trunk is None:
        return None
    encoder = cached_trunk(trunk, store)
    activations, missing = encoder.activations, encoder.missing_bytes()
    if missing > activations.free_bytes:
        what = f"up to {_size(missing)} wanted for the states of lower layers, {_size(activations.free_bytes)} are free"
        hint = f"remove old folders in {activations_folder()}, set the variable MANYSKILLS_CACHE to a folder elsewhere"
        raise UserError(f"{activations.folder}: {what}", f"{hint}, or set activation_cache=false")
    where = f"the states after the lower {trunk.lower_layers} layers are kept in {activations.folder}"
    announce(f"{where}; those that are not there yet need up to {_size(missing)}")
    return encoder


def rounded_trunk(config: TrainConfig, model: MultiTaskModel, store: TokenStore) -> RoundedTrunk | None:
    """What gives a run's vectors as its `training_encoder` did, without the disk; None: the whole backbone did."""
    trunk = _trunk(config, model, lambda _: None)
    return None if trunk is None else RoundedTrunk(trunk, store)


def cached_trunk(trunk: Trunk, store: TokenStore) -> CachedTrunk:
    """A model's lower layers with their store on disk.

    Args:
        trunk: The model, taken apart.
        store: Holds the sequences.

    Raises:
        UserError: The folder of the states cannot be written.
    """
    folder = activations_folder() / f"{trunk.fingerprint()}-{FORMAT}"
    activations = ActivationStore(folder, trunk.model.architecture.hidden_size)
    _describe(folder, trunk)
    return CachedTrunk(trunk, store, activations)


def _trunk(config: TrainConfig, model: MultiTaskModel, announce: Callable[[str], None]) -> Trunk | None:
    """The model taken apart, where the configuration wants it and it can be."""
    last = last_layers(config.method)
    if last is None or not config.activation_cache:
        return None
    problem = why_whole(model.architecture, last)
    if problem is None and not SUPPORTED:
        problem = "this system has no locks on files, as POSIX systems do"
    if problem is None:
        trunk = Trunk(model, last)
        problem = trunk.problem()
        if problem is None:
            return trunk
        problem = f"this version of transformers does not run the lower and the upper layers apart ({problem})"
    announce(f"no activations are kept, every layer runs each time: {problem}")
    return None


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def activations_folder() -> Path:
    """Holds one folder for each combination of backbone, number format and number of lower layers."""
    return cache_folder() / "activations"


def _describe(folder: Path, trunk: Trunk) -> None:
    """Say in the folder what it is of, for people who look for space."""
    model = trunk.model
    about = {
        "what": "hidden states of frozen lower layers, float16; may be removed, they are computed anew",
        "model_type": model.architecture.model_type,
        "lower_layers": trunk.lower_layers,
        "layers": model.architecture.layers,
        "hidden_size": model.architecture.hidden_size,
        "first_used_for": model.network.name_or_path,
    }
    with suppress(OSError), (folder / "about.json").open("x", encoding="utf-8") as file:
        json.dump(about, file, indent=2)
