"""Prompts that are read and continued token by token, whichever kind of network reads them.

Shape legend: B sequences, T tokens of the longest prompt, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from manyskills.model.decoding.cache import decoder_cache, encoder_decoder_cache, select_rows
from manyskills.model.unpadded import ATTENTION

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from manyskills.model.backbones import Architecture, Backbone


class Writer(Protocol):
    """What writing asks of a `MultiTaskModel`."""

    @property
    def language_model(self) -> PreTrainedModel | None:
        """The network with its output layer."""
        ...

    @property
    def network(self) -> PreTrainedModel:
        """The network below it."""
        ...

    @property
    def architecture(self) -> Architecture:
        """What differs between backbones."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    def routed(self, routes: torch.Tensor | None) -> AbstractContextManager[None]:
        """Within it, these tasks' parts of a routed module read the sequences."""
        ...


class Continuation(Protocol):
    """Prompts of a batch with what was written behind them so far."""

    def read(self) -> torch.Tensor:
        """Read the prompts; returns logits_BV of the first token of the answers."""
        ...

    def write(self, tokens_B: torch.Tensor) -> torch.Tensor:
        """Put a token behind each; returns logits_BV of the next."""
        ...

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these sequences only, in this order; one may come several times."""
        ...


class DecoderContinuation:
    """A decoder behind left-padded prompts.

    Args:
        model: Has a language model of the family `decoder`.
        prompts: Ids of each.
        routes_B: Which task's part of a routed module reads each.
    """

    def __init__(self, model: Writer, prompts: Sequence[np.ndarray], routes_B: torch.Tensor) -> None:
        self.model, self.cache, self.routes_B = model, decoder_cache(), routes_B
        self.ids_BT, seen_BT = left_padded(prompts, model.architecture.pad_id, model.device)
        self.lengths_B = seen_BT.sum(1)
        self.padded = bool((self.lengths_B < self.ids_BT.shape[1]).any())
        self.seen_BT = seen_BT
        self.ready_masks = _takes_ready_masks(model)

    def read(self) -> torch.Tensor:
        """One pass over the prompts."""
        positions_BT = (self.seen_BT.cumsum(1) - 1).clamp(min=0)
        mask_BT = self.seen_BT if self.padded else None
        return self._logits(self.ids_BT, mask_BT, positions_BT)

    def write(self, tokens_B: torch.Tensor) -> torch.Tensor:
        """One pass over one token a sequence."""
        self._see_one_more()
        positions_B1 = self.lengths_B[:, None]
        self.lengths_B = self.lengths_B + 1
        mask = self.seen_BT[:, : self.width] if self.padded else None
        if mask is not None and self.ready_masks:
            mask = mask[:, None, None]
        return self._logits(tokens_B[:, None], mask, positions_B1)

    def keep(self, rows: torch.Tensor) -> None:
        """Cut everything down to them."""
        select_rows(self.cache, rows)
        self.seen_BT, self.lengths_B = self.seen_BT[rows], self.lengths_B[rows]
        self.routes_B = self.routes_B[rows]

    def _see_one_more(self) -> None:
        self.width = int(self.cache.get_seq_length()) + 1
        if self.padded and self.width > self.seen_BT.shape[1]:
            self.seen_BT = torch.nn.functional.pad(self.seen_BT, (0, 64), value=True)

    def _logits(self, ids_BT: torch.Tensor, mask: torch.Tensor | None, positions_BT: torch.Tensor) -> torch.Tensor:
        with self.model.routed(self.routes_B):
            out = language_model(self.model)(
                input_ids=ids_BT,
                attention_mask=mask,
                position_ids=positions_BT,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return out.logits[:, -1]


class EncoderDecoderContinuation:
    """An encoder-decoder: the encoder reads the prompts once, the decoder writes behind its start token.

    Args:
        model: Has a language model of the family `encoder_decoder`.
        prompts: Ids of each.
        routes_B: Which task's part of a routed module reads each.
    """

    def __init__(self, model: Writer, prompts: Sequence[np.ndarray], routes_B: torch.Tensor) -> None:
        self.model, self.cache, self.routes_B = model, encoder_decoder_cache(), routes_B
        self.ids_BT, self.seen_BT = right_padded(prompts, model.architecture.pad_id, model.device)
        self.padded = not bool(self.seen_BT.all())
        self.states_BTH: torch.Tensor | None = None

    def read(self) -> torch.Tensor:
        """Encode, and write the start token."""
        self.states_BTH = encoded(self.model, self.ids_BT, self.seen_BT, self.routes_B)
        return self.write(self.ids_BT.new_full((len(self.ids_BT),), self.model.architecture.start_id))

    def write(self, tokens_B: torch.Tensor) -> torch.Tensor:
        """One pass of the decoder over one token a sequence."""
        from transformers.modeling_outputs import BaseModelOutput

        assert self.states_BTH is not None
        with self.model.routed(self.routes_B):
            out = language_model(self.model)(
                encoder_outputs=BaseModelOutput(last_hidden_state=self.states_BTH),  # pyright: ignore
                attention_mask=self.seen_BT.long() if self.padded else None,
                decoder_input_ids=tokens_B[:, None],
                past_key_values=self.cache,
                use_cache=True,
            )
        return out.logits[:, -1]

    def keep(self, rows: torch.Tensor) -> None:
        """Cut everything down to them."""
        assert self.states_BTH is not None
        select_rows(self.cache, rows)
        self.seen_BT, self.states_BTH = self.seen_BT[rows], self.states_BTH[rows]
        self.routes_B = self.routes_B[rows]


def continuation(model: Writer, prompts: Sequence[np.ndarray], routes_B: torch.Tensor) -> Continuation:
    """The continuation for a model's family."""
    of_family = EncoderDecoderContinuation if model.architecture.family == "encoder_decoder" else DecoderContinuation
    return of_family(model, prompts, routes_B)


def language_model(model: Writer | Backbone) -> Any:
    """The network with its output layer."""
    assert model.language_model is not None
    return model.language_model


def encoded(model: Writer, ids_BT: torch.Tensor, seen_BT: torch.Tensor, routes_B: torch.Tensor) -> torch.Tensor:
    """States of an encoder-decoder's encoder."""
    with model.routed(routes_B):
        return language_model(model).get_encoder()(input_ids=ids_BT, attention_mask=seen_BT.long()).last_hidden_state


def left_padded(prompts: Sequence[np.ndarray], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """ids_BT and seen_BT (True for tokens): the ends are side by side, so that all write at the same place."""
    longest = max(map(len, prompts))
    ids_BT = np.full((len(prompts), longest), pad_id, dtype=np.int64)
    seen_BT = np.zeros(ids_BT.shape, dtype=bool)
    for row, prompt in enumerate(prompts):
        ids_BT[row, longest - len(prompt) :] = prompt
        seen_BT[row, longest - len(prompt) :] = True
    return torch.from_numpy(ids_BT).to(device), torch.from_numpy(seen_BT).to(device)


def right_padded(prompts: Sequence[np.ndarray], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """ids_BT and seen_BT: the beginnings are side by side."""
    longest = max(map(len, prompts))
    ids_BT = np.full((len(prompts), longest), pad_id, dtype=np.int64)
    seen_BT = np.zeros(ids_BT.shape, dtype=bool)
    for row, prompt in enumerate(prompts):
        ids_BT[row, : len(prompt)] = prompt
        seen_BT[row, : len(prompt)] = True
    return torch.from_numpy(ids_BT).to(device), torch.from_numpy(seen_BT).to(device)


def _takes_ready_masks(model: Writer) -> bool:
    """Whether the attention takes a mask of True and False that is the same for all layers: no sliding windows."""
    config = model.network.config
    return config._attn_implementation in ("sdpa", ATTENTION) and not getattr(config, "sliding_window", None)
