"""Where PEFT methods attach: one table by model type, and a check that they attached there and nowhere else."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from torch import nn

from manyskills.errors import UserError


@dataclass(frozen=True, slots=True)
class Sites:
    """Linear layers of one transformer layer.

    Attributes:
        layer: Regular expression of a layer's name in the backbone.
        attention: Query and value projections, below the layer.
        linear: Every linear layer, below the layer.
    """

    layer: str
    attention: tuple[str, ...]
    linear: tuple[str, ...]


_BERT = Sites(
    r"encoder\.layer\.\d+",
    ("attention.self.query", "attention.self.value"),
    ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
     "intermediate.dense", "output.dense"),
)  # fmt: skip
_LLAMA = Sites(
    r"layers\.\d+",
    ("self_attn.q_proj", "self_attn.v_proj"),
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
     "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)  # fmt: skip

SITES: dict[str, Sites] = {
    "bert": _BERT,
    "roberta": _BERT,
    "modernbert": Sites(r"layers\.\d+", ("attn.Wqkv",), ("attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo")),
    # a T5 feed-forward block has wi, or wi_0 and wi_1 where it is gated: what exists is used
    "t5": Sites(
        r"encoder\.block\.\d+",
        ("layer.0.SelfAttention.q", "layer.0.SelfAttention.v"),
        ("layer.0.SelfAttention.q", "layer.0.SelfAttention.k", "layer.0.SelfAttention.v", "layer.0.SelfAttention.o",
         "layer.1.DenseReluDense.wi", "layer.1.DenseReluDense.wi_0", "layer.1.DenseReluDense.wi_1",
         "layer.1.DenseReluDense.wo"),
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "starcoder2": Sites(
        r"layers\.\d+",
        _LLAMA.attention,
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.c_fc", "mlp.c_proj"),
    ),
}  # fmt: skip


def target_pattern(model_type: str, target: str) -> str:
    """A regular expression that matches exactly the full names of the sites.

    Full names, because matching by suffix (as peft does for lists) takes `attention.output.dense` for `output.dense`.

    Raises:
        UserError: The model type is not in the table.
    """
    if model_type not in SITES:
        unknown = f"it is not known where LoRA attaches in an architecture of type {model_type!r}"
        raise UserError(unknown, "name the linear layers yourself: method.target_modules=[...]")
    sites = SITES[model_type]
    names = sites.attention if target == "attention" else sites.linear
    return rf"{sites.layer}\.({'|'.join(re.escape(name) for name in names)})"


def matching_modules(model: nn.Module, pattern: str | list[str], layers: int) -> list[str]:
    """Full names of the modules that a pattern selects, checked to be the same for every layer.

    Args:
        model: The backbone.
        pattern: A regular expression of full names, or a list of names that full names end in.
        layers: The backbone's number of layers.

    Raises:
        UserError: Nothing matches, a listed name matches nothing, or the matches are not the same in each layer.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if isinstance(pattern, list):
        for part in pattern:
            if not any(name == part or name.endswith(f".{part}") for name in names):
                raise UserError(f"method.target_modules: {part!r} is the name of no linear layer", _listed(names))
        found = [name for name in names if any(name == part or name.endswith(f".{part}") for part in pattern)]
    else:
        found = [name for name in names if re.fullmatch(pattern, name)]
    in_layer = Counter(number.group(1) for name in found if (number := _LAYER_NUMBER.search(name)))
    if not found or len(in_layer) != layers or len(set(in_layer.values())) != 1 or in_layer.total() != len(found):
        wanted = f"the method would change {len(found)} modules, not the same number in each of {layers} layers"
        raise UserError(wanted, _listed(names))
    return found


_LAYER_NUMBER = re.compile(r"\.(\d+)\.")


def _listed(names: list[str]) -> str:
    """The distinct names of linear layers, layer numbers left out."""
    return "linear layers are: " + ", ".join(sorted({re.sub(r"\.\d+\.", ".N.", name) for name in names}))
