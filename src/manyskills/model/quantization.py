"""4-bit backbones: NormalFloat with double quantisation (Dettmers et al. 2023, arXiv 2305.14314, section 3).

The linear layers inside the transformer layers are kept in 4 bits; embeddings, biases and norms stay as
`backbone.dtype` says, and norms are computed in float32 as without quantisation. bitsandbytes does the arithmetic: each
weight is brought back to the number format of the computation when it is used.

The codes are made from the weights as they were published, before any rounding to bfloat16, so that a module which was
trained on a GPU answers on the same 4-bit weights elsewhere.
"""

from __future__ import annotations

import logging
import math
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from manyskills.errors import require_extra

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

BLOCK, NESTED_BLOCK = 64, 256
"""Weights that share an 8-bit scale; scales that share a float32 scale of their own."""

_IN_A_LAYER = re.compile(r"\.\d+\.")

# on some processors it asks for a package of compiled kernels on every import, for a path that is off here (`settle`)
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def layers_to_quantize(model: nn.Module) -> list[str]:
    """Names of the linear layers inside transformer layers, but for those that the architecture keeps in float32.

    The exception is T5's second feed-forward projection, which overflows in half precision and whose code reads the
    weight's number format.

    Args:
        model: The network as transformers builds it, on any device, without adapters.
    """
    kept = _kept_in_float32(model)
    return [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and _IN_A_LAYER.search(name) and kept.isdisjoint(name.split("."))
    ]


def quantization_config(model: nn.Module, dtype: torch.dtype) -> BitsAndBytesConfig:
    """What transformers needs to load the weights in 4 bits.

    Args:
        model: The network on the meta device: it says what is left as it is.
        dtype: Of the computation.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    require_extra("bitsandbytes", "quant")
    from transformers import BitsAndBytesConfig

    chosen = set(layers_to_quantize(model))
    others = [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and name not in chosen]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[re.escape(name) for name in others],
    )


def settle(model: nn.Module, dtype: torch.dtype) -> None:
    """Make a network that was just loaded in 4 bits compute as meant.

    Args:
        model: Its weights were read in float32; what is not quantised is brought to `dtype` in place.
        dtype: Of the computation and of what is not quantised.
    """
    kept = _kept_in_float32(model) if dtype is torch.float16 else set()
    for name, p in model.named_parameters():
        if (state := _quant_state(p)) is not None:
            state.dtype = dtype
        elif p.is_floating_point() and kept.isdisjoint(name.split(".")):
            p.data = p.data.to(dtype)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # bitsandbytes would repack the weight when a layer in eval mode meets an input without gradient, for a
            # kernel that answers in bfloat16 and lets no gradient through afterwards
            module.support_avx512bf16_for_cpu = False  # pyright: ignore[reportArgumentType]


def parameter_count(model: nn.Module) -> int:
    """Parameters of a network; two 4-bit ones are stored in one byte, and count as two."""
    return sum(_numel(p) for p in model.parameters())


def saved_bytes(model: nn.Module) -> int:
    """What quantising would save of a network's memory; needs neither weights nor bitsandbytes.

    Args:
        model: Not quantised, without adapters.
    """
    weights = (model.get_parameter(f"{name}.weight") for name in layers_to_quantize(model))
    return sum(w.numel() * w.element_size() - nf4_bytes(w.numel()) for w in weights)


def nf4_bytes(weights: int) -> int:
    """Bytes of so many weights: half a byte each, and the scales in 8 bits with float32 scales of their own."""
    scales = math.ceil(weights / BLOCK)
    return math.ceil(weights / 2) + scales + 4 * math.ceil(scales / NESTED_BLOCK)


def _kept_in_float32(model: nn.Module) -> set[str]:
    return set(getattr(model, "_keep_in_fp32_modules", None) or ())


def _numel(p: nn.Parameter) -> int:
    state = _quant_state(p)
    return p.numel() if state is None else math.prod(state.shape)


def _quant_state(p: nn.Parameter) -> Any:
    """bitsandbytes' description of a 4-bit weight; None for an ordinary one."""
    return getattr(p, "quant_state", None)
