"""What a network learns from pieces of texts: the next token, or masked spans.

Shape legend: B pieces, T tokens of the longest, N tokens of all, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional

from manyskills.config.pretraining import PretrainConfig
from manyskills.data.text_set import plan_chunks, plan_unpadded_chunks
from manyskills.model.chunks import UnpaddedChunk
from manyskills.model.cross_entropy import linear_cross_entropy
from manyskills.model.unpadded import ATTENTION, Bounds
from manyskills.pretraining.pieces import Pieces
from manyskills.pretraining.spans import Corrupted, Corruption, corrupt

CPU_TOKENS = 2048
"""Of a chunk on a CPU: larger ones are no faster and need more memory."""


def chunk_tokens(config: PretrainConfig, accelerated: bool) -> int:
    """Tokens of a chunk at most."""
    return config.token_budget if accelerated else min(config.token_budget, CPU_TOKENS)


@dataclass(frozen=True, slots=True)
class Loss:
    """Of one chunk.

    Attributes:
        total: Sum over the predicted tokens, in nats.
        tokens: How many they are.
    """

    total: torch.Tensor
    tokens: int


class Objective(Protocol):
    """Turns pieces into losses, chunk by chunk."""

    def losses(self, pieces: np.ndarray, rng: np.random.Generator) -> Iterator[Loss]:
        """The losses of these pieces; a chunk's graph may be freed before the next chunk is made."""
        ...


class NextToken:
    """Each token predicts the next one of its text: packed, with no attention across pieces, positions starting anew.

    Args:
        network: A decoder; its attention function is set.
        pieces: The texts.
        token_budget: Tokens of a chunk at most.
    """

    def __init__(self, network: Any, pieces: Pieces, token_budget: int) -> None:
        self.network, self.pieces, self.budget = network, pieces, token_budget
        network.config._attn_implementation = ATTENTION

    def losses(self, pieces: np.ndarray, rng: np.random.Generator) -> Iterator[Loss]:
        """One loss a chunk; nothing is random."""
        device = self.network.device
        for chosen in plan_unpadded_chunks(self.pieces.lengths_P[pieces], self.budget):
            positions_N = self.pieces.positions(pieces[chosen])
            ids_N, targets_N = (_tensor(self.pieces.ids_T[positions_N + ahead], device) for ahead in (0, 1))
            chunk = UnpaddedChunk(ids_N[None], Bounds(self.pieces.lengths_P[pieces[chosen]], device))
            states_1NH = self.network.model(**chunk.inputs(), use_cache=False).last_hidden_state
            total, _ = linear_cross_entropy(states_1NH[0], self.network.lm_head.weight, targets_N)
            yield Loss(total, len(positions_N))


class SpanCorruption:
    """Spans of tokens are masked and written by the decoder (Raffel et al. 2020, arXiv 1910.10683, section 3.1.4).

    Args:
        network: An encoder-decoder.
        pieces: The texts.
        token_budget: Tokens of a chunk at most, padding included.
        corruption: What is masked, and by which tokens.
    """

    def __init__(self, network: Any, pieces: Pieces, token_budget: int, corruption: Corruption) -> None:
        self.network, self.pieces, self.budget, self.corruption = network, pieces, token_budget, corruption

    def losses(self, pieces: np.ndarray, rng: np.random.Generator) -> Iterator[Loss]:
        """One loss a chunk of padded pieces of like length."""
        corrupted = [corrupt(self.pieces.piece(index), self.corruption, rng) for index in pieces]
        for chosen in plan_chunks(np.array([len(one.inputs) for one in corrupted]), self.budget):
            part = [corrupted[index] for index in chosen]
            yield Loss(self._loss(part), sum(len(one.targets) for one in part))

    def _loss(self, part: list[Corrupted]) -> torch.Tensor:
        config, device = self.network.config, self.network.device
        inputs_BT = _padded([one.inputs for one in part], config.pad_token_id, device)
        targets_BT = _padded([one.targets for one in part], config.pad_token_id, device)
        kept_BT = _mask([one.targets for one in part], device)
        read_BT = _mask([one.inputs for one in part], device)
        started_BT = functional.pad(targets_BT[:, :-1], (1, 0), value=config.decoder_start_token_id)
        memory_BTH = self.network.encoder(input_ids=inputs_BT, attention_mask=read_BT.long()).last_hidden_state
        states_BTH = self.network.decoder(
            input_ids=started_BT, encoder_hidden_states=memory_BTH, encoder_attention_mask=read_BT.long(),
            use_cache=False,
        ).last_hidden_state  # fmt: skip
        scale = config.d_model**-0.5 if config.scale_decoder_outputs else 1.0
        weight_VH, targets_N = self.network.lm_head.weight, targets_BT[kept_BT]
        return linear_cross_entropy(states_BTH[kept_BT], weight_VH, targets_N, scale=scale)[0]


def _tensor(ids: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(ids.astype(np.int64)).to(device)


def _padded(rows: list[np.ndarray], pad_id: int, device: torch.device) -> torch.Tensor:
    ids_BT = np.full((len(rows), max(map(len, rows))), pad_id, dtype=np.int64)
    for row_T, ids in zip(ids_BT, rows, strict=True):
        row_T[: len(ids)] = ids
    return torch.from_numpy(ids_BT).to(device)


def _mask(rows: list[np.ndarray], device: torch.device) -> torch.Tensor:
    lengths_B = torch.tensor([len(row) for row in rows])
    return (torch.arange(int(lengths_B.max())) < lengths_B[:, None]).to(device)
