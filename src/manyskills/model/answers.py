"""The states that predict the tokens of written answers.

Shape legend: B prompts of a chunk, N prompts, S prompts of the store, T tokens of the longest, R rows (one a predicted
token), H hidden size, V vocabulary.

Prompts and answers lie one behind another, or are padded where a network cannot run so; either way no token sees
another sequence. Each position predicts the next token, so the last one is no input, and of the states only those that
predict something are given.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import numpy as np
import torch

from manyskills.data.prompted import PromptStore
from manyskills.data.text_set import plan_chunks
from manyskills.model.attention import first_position
from manyskills.model.chunks import Chunk, PaddedChunk, UnpaddedChunk
from manyskills.model.methods import METHODS
from manyskills.model.multitask import CPU_TOKENS, MultiTaskModel
from manyskills.model.pairs import laid_out_tokens, lay_out
from manyskills.model.unpadded import Bounds

PACKED_PAIRS = ("t5",)
"""Model types of encoder-decoders that read several pairs in one row as they read each alone."""


class AnswerStates:
    """Reads prompts with their right answers, some of a store at once.

    Args:
        model: Gives the states.
        store: Holds the prompts and answers; each answer has a token at least.
    """

    def __init__(self, model: MultiTaskModel, store: PromptStore) -> None:
        self.model, self.store = model, store
        self._pairs = model.architecture.family == "encoder_decoder"
        # a routed method must know each token's task, and the decoder's tokens meet those of the encoder in a layer
        packed = (
            model.architecture.model_type in PACKED_PAIRS
            and model.network.config._attn_implementation == "sdpa"
            and not METHODS[model.method.name].routed
        )
        self._packed_size = model.architecture.hidden_size if packed else None

    def __call__(self, indices_B: np.ndarray) -> torch.Tensor:
        """rows_RH: the states that predict tokens, sequence after sequence in this order; with a graph if gradients are
        on."""
        with self.routed(indices_B), self.model.autocast():
            return self._pair_rows(indices_B) if self._pairs else self._rows(indices_B)

    def counts(self, indices_B: np.ndarray) -> np.ndarray:
        """Tokens that are predicted for each, shape (B,): those of the answer, or all but the first."""
        prompts_B = np.where(self.store.learnt_S[indices_B], self.store.prompt_lengths_S[indices_B] - 1, 0)
        return self.store.answer_lengths_S[indices_B] + prompts_B

    def targets(self, indices_B: np.ndarray) -> np.ndarray:
        """The tokens that are to be predicted, in the order of the rows, shape (R,), int64."""
        whole = zip(self._sequences(indices_B), self.counts(indices_B), strict=True)
        return np.concatenate([ids[len(ids) - count :] for ids, count in whole]).astype(np.int64)

    def lengths(self, indices_B: np.ndarray) -> np.ndarray:
        """Tokens that the network reads for each, shape (B,); an encoder-decoder reads a start token too."""
        return self.store.lengths_S[indices_B] - (0 if self._pairs else 1)

    def plan(self, indices_N: np.ndarray, token_budget: int, device_type: str | None = None) -> list[np.ndarray]:
        """Positions of the prompts of each chunk, each chunk within the budget, shorter ones first.

        Args:
            indices_N: Of the store.
            token_budget: Tokens of a chunk at most.
            device_type: Of the device that will read them; default: the model's.
        """
        lengths_N = self.lengths(indices_N)
        if not self._pairs:
            return self.model.plan(lengths_N, token_budget, device_type)
        most = min(token_budget, CPU_TOKENS) if (device_type or self.model.device.type) == "cpu" else token_budget
        parts = [part for chunk in plan_chunks(lengths_N, most) for part in self._within(chunk, indices_N, most)]
        return sorted(parts, key=lambda part: lengths_N[part].max())

    def chunk_tokens(self, indices_B: np.ndarray) -> int:
        """Tokens that a chunk of these costs, padding included."""
        if not self._pairs:
            return self.model.chunk_tokens(self.lengths(indices_B))
        lengths_2B = np.stack([self.store.prompt_lengths_S[indices_B], self.store.answer_lengths_S[indices_B]])
        return laid_out_tokens(lengths_2B, self._packed_size)

    def routed(self, indices_B: np.ndarray) -> AbstractContextManager[None]:
        """The network set for the tasks of these prompts: for back-propagating them."""
        routes_B = torch.from_numpy(self.store.routes_S[indices_B]).to(self.model.device)
        if self._pairs or self.model.attention == "padded":
            return self.model.routed(routes_B)
        lengths_B = torch.from_numpy(self.lengths(indices_B)).to(self.model.device)
        return self.model.routed(routes_B.repeat_interleave(lengths_B)[None])

    def _within(self, chunk: np.ndarray, indices_N: np.ndarray, token_budget: int) -> list[np.ndarray]:
        """A chunk of pairs in parts that are within the budget when both sides are padded."""
        if len(chunk) == 1 or self.chunk_tokens(indices_N[chunk]) <= token_budget:
            return [chunk]
        order, half = np.argsort(self.store.prompt_lengths_S[indices_N[chunk]], kind="stable"), len(chunk) // 2
        parts = chunk[order[:half]], chunk[order[half:]]
        return [part for one in parts for part in self._within(one, indices_N, token_budget)]

    def _sequences(self, indices_B: np.ndarray) -> list[np.ndarray]:
        """Each prompt with its answer."""
        return [np.concatenate([self.store.prompt(index), self.store.answer(index)]) for index in indices_B]

    def _rows(self, indices_B: np.ndarray) -> torch.Tensor:
        """Of a decoder."""
        lengths_B = self.lengths(indices_B)
        chunk, starts_B = self._chunk(self._sequences(indices_B), lengths_B)
        states_RH = self.model.states(chunk).flatten(0, 1)
        ends = zip(starts_B + lengths_B, self.counts(indices_B), strict=True)
        predicting_R = np.concatenate([np.arange(end - count, end) for end, count in ends])
        return states_RH[torch.from_numpy(predicting_R).to(states_RH.device)]

    def _chunk(self, sequences: list[np.ndarray], lengths_B: np.ndarray) -> tuple[Chunk, np.ndarray]:
        """All but the last token of each, and where each begins on the axis of all positions."""
        device, ids_N = self.model.device, np.concatenate([ids[:-1] for ids in sequences]).astype(np.int64)
        if self.model.attention == "unpadded":
            ids_1N = torch.from_numpy(ids_N)[None].to(device)
            chunk = UnpaddedChunk(ids_1N, Bounds(lengths_B, device), first_position(self.model.network))
            return chunk, np.cumsum(lengths_B) - lengths_B
        mask_BT = np.arange(int(lengths_B.max())) < lengths_B[:, None]
        ids_BT = np.full(mask_BT.shape, self.model.architecture.pad_id, dtype=np.int64)
        ids_BT[mask_BT] = ids_N
        mask = torch.from_numpy(mask_BT.astype(np.int64)).to(device)
        return PaddedChunk(torch.from_numpy(ids_BT).to(device), mask), np.arange(len(ids_BT)) * mask_BT.shape[1]

    def _pair_rows(self, indices_B: np.ndarray) -> torch.Tensor:
        """Of an encoder-decoder: the decoder reads its start token and the answer."""
        start, pad = self.model.architecture.start_id, self.model.architecture.pad_id
        prompts = [self.store.prompt(index) for index in indices_B]
        inputs = [np.concatenate([[start], self.store.answer(index)[:-1]]) for index in indices_B]
        pairs = lay_out(prompts, inputs, pad, self.model.device, hidden_size=self._packed_size)
        encoded = self.model.network.get_encoder()(**pairs.encoder_inputs())
        out = self.model.backbone(encoder_outputs=encoded, **pairs.decoder_inputs())
        return out.last_hidden_state.flatten(0, 1)[pairs.answers_T]
