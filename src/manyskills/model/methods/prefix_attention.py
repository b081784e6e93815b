"""The attention function of prefix tuning, known to transformers by name.

Shape legend: B sequences, A query heads, H key heads, Q query positions, K key positions, P prefix length, D head size.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from manyskills.errors import UserError

ATTENTION = "manyskills_prefix"


@dataclass(slots=True)
class PrefixedCall:
    """What a wrapped attention module hands to the attention function through its keyword arguments.

    Attributes:
        prefix_2HPD: Keys and values, or None for the network's own attention.
        implementation: The network's own attention, which also decides how its masks look.
        done: Set by the attention function, so that a network that goes another way is noticed.
    """

    prefix_2HPD: torch.Tensor | None
    implementation: str
    done: bool = False


def prefixed_attention(
    module: nn.Module,
    query_BAQD: torch.Tensor,
    key_BHKD: torch.Tensor,
    value_BHKD: torch.Tensor,
    mask: torch.Tensor | None,
    prefixed_call: PrefixedCall,
    **rest: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The network's own attention over [prefix; keys]: every query sees the whole prefix, and of the text what it saw.

    Args:
        module: The attention module.
        query_BAQD: Queries.
        key_BHKD: Keys of the text, positions already in them.
        value_BHKD: Values of the text.
        mask: True or 0 where a key is visible, broadcastable to (B, A, Q, K), or None.
        prefixed_call: The prefix.
        rest: What else this network's attention takes: dropout, scaling, soft-capping, position bias.

    Returns:
        Outputs of shape (B, Q, A, D), and the weights of shape (B, A, Q, P + K) where the implementation has them.

    Raises:
        UserError: The network's own attention is neither sdpa nor eager.
    """
    prefixed_call.done = True
    own = _own_attention(module, prefixed_call.implementation)
    prefix_2HPD = prefixed_call.prefix_2HPD
    if prefix_2HPD is None:
        return own(module, query_BAQD, key_BHKD, value_BHKD, mask, **rest)
    length, text, queries = prefix_2HPD.shape[2], key_BHKD.shape[2], query_BAQD.shape[2]
    if mask is None and queries > 1 and prefixed_call.implementation == "sdpa" and _is_causal(module, rest):
        # no mask means to sdpa that it may mask by itself, which it would do as if the prefix were text
        mask = torch.ones(1, 1, queries, text, dtype=torch.bool, device=query_BAQD.device).tril()
    if mask is not None:
        mask = functional.pad(mask, (length, 0), value=True if mask.dtype == torch.bool else 0.0)
    if (bias := rest.get("position_bias")) is not None:
        rest["position_bias"] = functional.pad(bias, (length, 0))
    prefix_2BHPD = prefix_2HPD.to(key_BHKD.dtype)[:, None].expand(-1, key_BHKD.shape[0], -1, -1, -1)
    key_BHKD, value_BHKD = torch.cat([prefix_2BHPD[0], key_BHKD], 2), torch.cat([prefix_2BHPD[1], value_BHKD], 2)
    return own(module, query_BAQD, key_BHKD, value_BHKD, mask, **rest)


def _is_causal(module: nn.Module, rest: dict[str, Any]) -> bool:
    """Whether a missing mask stands for the causal one: asked as transformers' sdpa asks."""
    given = rest.get("is_causal")
    return getattr(module, "is_causal", True) if given is None else given


def _own_attention(module: nn.Module, implementation: str) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    """What the network would call. Eager attention differs between families (soft-capping), so it is the family's."""
    if implementation == "sdpa":
        return sdpa_attention_forward
    if implementation == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    raise UserError(
        f"prefix_tuning works with sdpa and eager attention, the backbone is set to {implementation}",
        'load it with attn_implementation="sdpa"',
    )


AttentionInterface.register(ATTENTION, prefixed_attention)
