"""Vectors of texts when only the last layers train: the lower layers' states are read from disk, the upper ones run.

Shape legend: S sequences of the token store, B sequences of a chunk, T tokens, R tokens of several sequences one after
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
from manyskills.data.activation_store import ActivationStore, content_key
from manyskills.data.tokens import TokenStore, cache_folder
from manyskills.model.encoding import chunk_tensors, routed
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

    Several processes of one run each compute the misses of their own chunks. Where one step has two texts with the same
    tokens, in chunks of two processes, it depends on their speed who computes the states; this, and other runs that use
    the same folder at the same time, may change the last digit of float16.

    Args:
        trunk: Runs the lower and the upper layers apart.
        store: Holds the sequences.
        activations: Of this very trunk.
    """

    def __init__(self, trunk: Trunk, store: TokenStore, activations: ActivationStore) -> None:
        self.trunk, self.model, self.store, self.activations = trunk, trunk.model, store, activations
        self._entries_S = np.full(len(store.starts_S) - 1, -1, dtype=np.int64)

    def __call__(self, indices_B: np.ndarray) -> torch.Tensor:
        """vectors_BD, float32, with a graph of the upper layers if gradients are on."""
        padded = self.activations.read(self._entries(indices_B))
        states_BTH = torch.from_numpy(padded.states_BTH).to(self.model.device).float()
        if padded.exponents_B.any():
            scales_B = torch.from_numpy(padded.exponents_B).to(self.model.device)
            states_BTH = torch.ldexp(states_BTH, scales_B[:, None, None])
        ids_BT, mask_BT = self._tensors(indices_B)
        with self.routed(indices_B):
            return self.trunk.upper(states_BTH, ids_BT, mask_BT)

    def routed(self, indices_B: np.ndarray) -> AbstractContextManager[None]:
        """The network set for the tasks of these sequences."""
        return routed(self.model, self.store, indices_B)

    def _entries(self, indices_B: np.ndarray) -> np.ndarray:
        """Where the states of these sequences are; computed where they were nowhere."""
        unknown = indices_B[self._entries_S[indices_B] < 0]
        if len(unknown):
            keys = [content_key(self.store.sequence(index)) for index in unknown]
            found = self.activations.find(keys)
            if (found < 0).any():
                self._compute({keys[n]: unknown[n] for n in np.flatnonzero(found < 0)})
                found = self.activations.find(keys)
            self._entries_S[unknown] = found
        return self._entries_S[indices_B]

    def _compute(self, missing: dict[bytes, int]) -> None:
        indices_B = np.array(list(missing.values()))
        ids_BT, mask_BT = self._tensors(indices_B)
        states_RH = self.trunk.lower(ids_BT, mask_BT)[mask_BT.bool()].float().cpu().numpy()
        self.activations.add(list(missing), self.store.lengths_S[indices_B], states_RH)

    def _tensors(self, indices_B: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return chunk_tensors(self.store, indices_B, self.model.architecture.pad_id, self.model.device)


def training_encoder(
    config: TrainConfig, model: MultiTaskModel, store: TokenStore, announce: Callable[[str], None]
) -> CachedTrunk | None:
    """What encodes in the steps and validations of a run with `layers: last K`; None: the whole backbone does.

    Answers after training, in evaluation and prediction, come from the whole network in full precision: nobody but
    training reads a text often enough for states on disk to pay.

    Args:
        config: The run.
        model: Its model.
        store: Holds the sequences.
        announce: Gets sentences for people.

    Raises:
        UserError: The folder of the states cannot be written.
    """
    last = last_layers(config.method)
    if last is None or not config.activation_cache:
        return None
    if problem := why_whole(model.architecture, last):
        announce(f"no activations are kept, every layer runs each time: {problem}")
        return None
    encoder = cached_trunk(model, last, store)
    announce(f"the states below the last {last} layers are kept in {encoder.activations.folder}")
    return encoder


def cached_trunk(model: MultiTaskModel, last: int, store: TokenStore) -> CachedTrunk:
    """A model's lower layers with their store on disk.

    Args:
        model: Its last layers alone train.
        last: How many; `why_whole` says nothing against it.
        store: Holds the sequences.

    Raises:
        UserError: The folder of the states cannot be written.
    """
    trunk = Trunk(model, last)
    folder = activations_folder() / f"{trunk.fingerprint()}-{FORMAT}"
    activations = ActivationStore(folder, model.architecture.hidden_size)
    _describe(folder, model, trunk)
    return CachedTrunk(trunk, store, activations)


def activations_folder() -> Path:
    """Holds one folder for each combination of backbone, number format and number of lower layers."""
    return cache_folder() / "activations"


def _describe(folder: Path, model: MultiTaskModel, trunk: Trunk) -> None:
    """Say in the folder what it is of, for people who look for space."""
    about = {
        "what": "hidden states of frozen lower layers, float16; can be deleted while no run uses them",
        "model_type": model.architecture.model_type,
        "lower_layers": trunk.lower_layers,
        "layers": model.architecture.layers,
        "hidden_size": model.architecture.hidden_size,
        "first_used_for": model.network.name_or_path,
    }
    with suppress(FileExistsError), (folder / "about.json").open("x", encoding="utf-8") as file:
        json.dump(about, file, indent=2)
