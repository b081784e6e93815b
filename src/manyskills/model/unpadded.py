"""Attention for texts that lie one behind another on a single axis of tokens, known to transformers by name.

Shape legend: S sequences of a chunk, N tokens of all of them, A query heads, K key heads, D head size, B sequences of a
group, T tokens of its longest.

A network runs on ids of shape (1, N) with positions that start anew in each sequence: linear layers, norms and
activations never see padding. Only attention must know where one sequence ends and the next begins. It is told by an
argument of its own (`bounds`), which transformers' networks pass through to their attention function, gradient
checkpointing included.

On a GPU with half-precision states the sequences go to PyTorch's variable-length attention as they are. Else sequences
of the same length, which lie side by side because chunks are sorted, are attended to together, and each group of them
apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from manyskills.model.precision import autocasts

ATTENTION = "manyskills_unpadded"


@dataclass(frozen=True)
class Bounds:
    """Where each sequence of a chunk is on the axis of tokens.

    Attributes:
        lengths_S: Tokens of each.
        device: Where the network is.
    """

    lengths_S: np.ndarray
    device: torch.device

    @cached_property
    def groups(self) -> list[tuple[int, int]]:
        """Neighbours of the same length: how many, and how long."""
        borders = np.flatnonzero(np.diff(self.lengths_S)) + 1
        return [(len(part), int(part[0])) for part in np.split(self.lengths_S, borders)]

    @cached_property
    def tokens(self) -> list[int]:
        """Tokens of each group."""
        return [count * length for count, length in self.groups]

    @cached_property
    def starts(self) -> torch.Tensor:
        """Where each sequence begins, and the end of the last one, int32 on the device, shape (S + 1,)."""
        ends_S = np.concatenate([[0], np.cumsum(self.lengths_S)]).astype(np.int32)
        return torch.from_numpy(ends_S).to(self.device)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return int(self.lengths_S.max())

    @cached_property
    def positions(self) -> torch.Tensor:
        """Position of each token in its sequence, shape (1, N)."""
        starts_S = np.cumsum(self.lengths_S) - self.lengths_S
        positions_N = np.arange(int(self.lengths_S.sum())) - np.repeat(starts_S, self.lengths_S)
        return torch.from_numpy(positions_N)[None].to(self.device)


NO_MASK_SHAPE = (1, 1, 1, 0)
"""Of what is passed as mask: transformers leaves a mask of four axes alone, instead of making one of N x N."""


def unpadded_attention(
    module: nn.Module,
    query_1AND: torch.Tensor,
    key_1KND: torch.Tensor,
    value_1KND: torch.Tensor,
    mask: torch.Tensor | None,
    bounds: Bounds | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention within each sequence; without bounds that of a padded batch, by PyTorch's own function.

    Args:
        module: The attention module; says whether attention is causal.
        query_1AND: Queries.
        key_1KND: Keys, positions already in them.
        value_1KND: Values.
        mask: Of a padded batch.
        bounds: Where the sequences are.
        rest: What else a network gives: dropout, scaling, sliding_window, is_causal.

    Returns:
        Outputs of shape (1, N, A, D), and None for the weights.
    """
    if bounds is None:
        return sdpa_attention_forward(module, query_1AND, key_1KND, value_1KND, mask, **rest)
    causal = rest.get("is_causal")
    rule = _Rule(
        causal=getattr(module, "is_causal", True) if causal is None else causal,
        window=rest.get("sliding_window"),
        dropout=rest.get("dropout") or 0.0,
        scale=rest.get("scaling"),
    )
    states = (query_1AND, key_1KND, value_1KND)
    if autocasts(query_1AND.device.type):  # as PyTorch does for its own attention; rotary embeddings give float32
        states = [x.to(torch.get_autocast_dtype(x.device.type)) for x in states]
    query_NAD, key_NKD, value_NKD = (x[0].transpose(0, 1) for x in states)
    attend = _by_bounds if has_varlen(query_NAD.device, query_NAD.dtype) and not rule.dropout else _by_groups
    return attend(query_NAD, key_NKD, value_NKD, bounds, rule)[None], None


@dataclass(frozen=True, slots=True)
class _Rule:
    """Who sees whom: earlier tokens only (causal), tokens at a distance below the window only."""

    causal: bool
    window: int | None
    dropout: float
    scale: float | None

    def hides(self, length: int) -> bool:
        """Whether the window hides anything in a sequence of this length."""
        return self.window is not None and length > self.window

    def mask(self, length: int, device: torch.device) -> torch.Tensor:
        """True where a token is seen, shape (T, T)."""
        assert self.window is not None
        positions_T = torch.arange(length, device=device)
        distance_TT = positions_T[:, None] - positions_T[None]
        return (distance_TT.abs() < self.window) & ((distance_TT >= 0) | (not self.causal))


def has_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether PyTorch has attention by sequence bounds for such states (flash attention: half precision on a GPU)."""
    return device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)


def _by_bounds(
    query_NAD: torch.Tensor, key_NKD: torch.Tensor, value_NKD: torch.Tensor, bounds: Bounds, rule: _Rule
) -> torch.Tensor:
    """Variable-length flash attention (Dao et al. 2022, arXiv 2205.14135)."""
    from torch.nn.attention.varlen import varlen_attn

    reach = -1 if rule.window is None else rule.window - 1
    starts, longest = bounds.starts, bounds.longest
    result = varlen_attn(
        query_NAD, key_NKD, value_NKD, starts, starts, longest, longest,
        scale=rule.scale, window_size=(reach, 0 if rule.causal else reach),
        enable_gqa=query_NAD.shape[1] != key_NKD.shape[1],
    )  # fmt: skip
    assert isinstance(result, torch.Tensor)
    return result


def _by_groups(
    query_NAD: torch.Tensor, key_NKD: torch.Tensor, value_NKD: torch.Tensor, bounds: Bounds, rule: _Rule
) -> torch.Tensor:
    # split, not slices: their gradients are joined by one copy, where each slice's would fill a tensor of all tokens
    queries, keys, values = (x.split(bounds.tokens) for x in (query_NAD, key_NKD, value_NKD))
    parts = zip(queries, keys, values, bounds.groups, strict=True)
    return torch.cat([_attend(query, key, value, *group, rule) for query, key, value, group in parts])


def _attend(
    query_NAD: torch.Tensor, key_NKD: torch.Tensor, value_NKD: torch.Tensor, count: int, length: int, rule: _Rule
) -> torch.Tensor:
    """Attention within so many sequences of one length."""
    hides, heads = rule.hides(length), query_NAD.shape[1]
    out_BATD = functional.scaled_dot_product_attention(
        *(_heads_first(x, count, length, heads) for x in (query_NAD, key_NKD, value_NKD)),
        attn_mask=rule.mask(length, query_NAD.device) if hides else None,
        dropout_p=rule.dropout,
        is_causal=rule.causal and not hides and length > 1,
        scale=rule.scale,
    )
    return out_BATD.transpose(1, 2).flatten(0, 1)


def _heads_first(x_NKD: torch.Tensor, count: int, length: int, heads: int) -> torch.Tensor:
    """As (B, A, T, D), each key head repeated for the query heads that share it."""
    x_BKTD = x_NKD.unflatten(0, (count, length)).transpose(1, 2)
    return x_BKTD if x_BKTD.shape[1] == heads else x_BKTD.repeat_interleave(heads // x_BKTD.shape[1], dim=1)


AttentionInterface.register(ATTENTION, unpadded_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
