"""Where PEFT methods attach: one table by model type, and a check that they attached there and nowhere else."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import nn

from manyskills.errors import UserError

SiteKind = Literal[
    "query_value", "linear", "key_value", "attention_output", "ffn_output", "attention_block", "ffn_block", "attention"
]


@dataclass(frozen=True, slots=True)
class Sites:
    """Modules of one transformer layer, by their names below the layer.

    Attributes:
        layer: Regular expression of a layer's name in the backbone, up to its number.
        query_value: Query and value projections; a fused projection stands for both.
        linear: Every linear layer.
        key_value: Key and value projections (a fused one stands for both), for IA3.
        attention_output: The linear layers that bring attention back to the hidden size.
        ffn_output: The linear layer that brings the feed-forward block back to the hidden size.
        attention_block: Modules that map the sublayer's input to attention's output; where the module adds the residual
            itself (BERT), the one that does.
        ffn_block: The same for the feed-forward block.
        attention: Modules that call the attention function.
    """

    layer: str
    query_value: tuple[str, ...]
    linear: tuple[str, ...]
    key_value: tuple[str, ...]
    attention_output: tuple[str, ...]
    ffn_output: tuple[str, ...]
    attention_block: tuple[str, ...]
    ffn_block: tuple[str, ...]
    attention: tuple[str, ...]


_BERT = Sites(
    layer=r"encoder\.layer\.",
    query_value=("attention.self.query", "attention.self.value"),
    linear=("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
            "intermediate.dense", "output.dense"),
    key_value=("attention.self.key", "attention.self.value"),
    attention_output=("attention.output.dense",),
    ffn_output=("output.dense",),
    attention_block=("attention.output",),
    ffn_block=("output",),
    attention=("attention.self",),
)  # fmt: skip
_LLAMA = Sites(
    layer=r"layers\.",
    query_value=("self_attn.q_proj", "self_attn.v_proj"),
    linear=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
            "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    key_value=("self_attn.k_proj", "self_attn.v_proj"),
    attention_output=("self_attn.o_proj",),
    ffn_output=("mlp.down_proj",),
    attention_block=("self_attn",),
    ffn_block=("mlp",),
    attention=("self_attn",),
)  # fmt: skip
_STARCODER2 = Sites(
    layer=_LLAMA.layer,
    query_value=_LLAMA.query_value,
    linear=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.c_fc", "mlp.c_proj"),
    key_value=_LLAMA.key_value,
    attention_output=_LLAMA.attention_output,
    ffn_output=("mlp.c_proj",),
    attention_block=_LLAMA.attention_block,
    ffn_block=_LLAMA.ffn_block,
    attention=_LLAMA.attention,
)
_MODERNBERT = Sites(
    layer=r"layers\.",
    query_value=("attn.Wqkv",),
    linear=("attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo"),
    key_value=("attn.Wqkv",),
    attention_output=("attn.Wo",),
    ffn_output=("mlp.Wo",),
    attention_block=("attn",),
    ffn_block=("mlp",),
    attention=("attn",),
)


def _t5(layer: str, attentions: tuple[str, ...], ffn: str) -> Sites:
    """A T5 stack; a feed-forward block has wi, or wi_0 and wi_1 where it is gated: what exists is used."""
    return Sites(
        layer=layer,
        query_value=tuple(f"{attention}.{name}" for attention in attentions for name in "qv"),
        linear=(*(f"{attention}.{name}" for attention in attentions for name in "qkvo"),
                f"{ffn}.wi", f"{ffn}.wi_0", f"{ffn}.wi_1", f"{ffn}.wo"),
        key_value=tuple(f"{attention}.{name}" for attention in attentions for name in "kv"),
        attention_output=tuple(f"{attention}.o" for attention in attentions),
        ffn_output=(f"{ffn}.wo",),
        attention_block=attentions,
        ffn_block=(ffn,),
        attention=attentions,
    )  # fmt: skip


_T5 = (
    _t5(r"encoder\.block\.", ("layer.0.SelfAttention",), "layer.1.DenseReluDense"),
    _t5(r"decoder\.block\.", ("layer.0.SelfAttention", "layer.1.EncDecAttention"), "layer.2.DenseReluDense"),
)

SITES: dict[str, tuple[Sites, ...]] = {
    "bert": (_BERT,),
    "roberta": (_BERT,),
    "modernbert": (_MODERNBERT,),
    "t5": _T5,
    "llama": (_LLAMA,),
    "mistral": (_LLAMA,),
    "qwen2": (_LLAMA,),
    "qwen3": (_LLAMA,),
    "gemma": (_LLAMA,),
    "gemma2": (_LLAMA,),
    "gemma3_text": (_LLAMA,),
    "starcoder2": (_STARCODER2,),
}
"""By model type, the stacks of layers; a stack that a network does not have (T5's decoder) is left out."""


@dataclass(frozen=True, slots=True)
class Match:
    """The modules that a method changes.

    Attributes:
        names: Their full names.
        pattern: A regular expression that matches exactly these: what peft gets.
    """

    names: tuple[str, ...]
    pattern: str


def find_sites(model: nn.Module, model_type: str, kinds: Sequence[SiteKind], last: int | None = None) -> Match:
    """The modules of these kinds in every layer, or in the last so many.

    Full names, because matching by suffix (as peft does for lists) takes `attention.output.dense` for `output.dense`.

    Raises:
        UserError: The model type is not in the table, or the network is not built as the table says.
    """
    stacks = [stack for stack in SITES.get(model_type, ()) if number_of_layers(model, stack)]
    if not stacks:
        unknown = f"it is not known where methods attach in an architecture of type {model_type!r}"
        raise UserError(unknown, f"name the modules yourself: method.targets=[...]; {_listed(model)}")
    found: list[str] = []
    patterns: list[str] = []
    for stack in stacks:
        layers = number_of_layers(model, stack)
        numbers = range(layers) if last is None else range(layers - _at_most(last, layers), layers)
        wanted = list(dict.fromkeys(name for kind in kinds for name in getattr(stack, kind)))
        names = _in_every_layer(model, stack, wanted, numbers)
        found += [f"{_plain(stack)}{n}.{name}" for n in numbers for name in names]
        one_of = "|".join(re.escape(name) for name in names)
        patterns.append(rf"{stack.layer}({'|'.join(map(str, numbers))})\.({one_of})")
    return Match(tuple(found), "|".join(patterns))


def find_targets(model: nn.Module, targets: Sequence[str], last: int | None = None) -> Match:
    """The modules whose full names end in the given ones, checked to be the same in every layer of a stack.

    Args:
        model: The backbone.
        targets: Names, or endings of names by whole components.
        last: Only those in so many layers at the top of their stack.

    Raises:
        UserError: A name matches nothing, the matches are not the same in each layer, or one lies inside another.
    """
    names = [name for name, _ in model.named_modules() if name]
    for part in targets:
        if not any(_ends_in(name, part) for name in names):
            raise UserError(f"method.targets: {part!r} is the name of no module", _listed(model))
    found = [name for name in names if any(_ends_in(name, part) for part in targets)]
    nested = next(((outer, name) for outer in found for name in found if name.startswith(f"{outer}.")), None)
    if nested is not None:
        raise UserError(f"method.targets: {nested[1]} lies inside {nested[0]}", "name one of them, by a longer name")
    kept: list[str] = []
    for stack in dict.fromkeys(_stack(name) for name in found):
        kept += _of_stack(model, stack, [name for name in found if _stack(name) == stack], last)
    return Match(tuple(kept), "|".join(re.escape(name) for name in kept))


def _of_stack(model: nn.Module, stack: str, found: list[str], last: int | None) -> list[str]:
    """Those of the found names of one stack that are in its last layers."""
    pattern = re.compile(rf"{re.escape(stack)}(\d+)")
    layers = sum(1 for name, _ in model.named_modules() if pattern.fullmatch(name))
    in_layer = Counter(_number(name) for name in found)
    if not stack or len(in_layer) != layers or len(set(in_layer.values())) != 1:
        where = f"each of {layers} layers of {stack.rstrip('.')}" if stack else "each layer: they are outside of layers"
        raise UserError(f"method.targets: {len(found)} modules, not the same number in {where}", _listed(model))
    first = 0 if last is None else layers - _at_most(last, layers)
    return [name for name in found if _number(name) >= first]


def _stack(name: str) -> str:
    """What a module's name begins with, up to the number of its layer; empty where it is in no layer."""
    number = _LAYER_NUMBER.search(name)
    return name[: number.start() + 1] if number else ""


def _number(name: str) -> int:
    number = _LAYER_NUMBER.search(name)
    return int(number.group(1)) if number else -1


def number_of_layers(model: nn.Module, stack: Sites) -> int:
    """Layers of this stack in the network; 0 if it has none."""
    pattern = re.compile(rf"{stack.layer}(\d+)")
    return sum(1 for name, _ in model.named_modules() if pattern.fullmatch(name))


_LAYER_NUMBER = re.compile(r"\.(\d+)\.")


def _in_every_layer(model: nn.Module, stack: Sites, wanted: list[str], numbers: Sequence[int]) -> list[str]:
    """Those of the wanted names that exist, checked to be the same in each layer.

    Raises:
        UserError: Nothing exists, or a layer has what another has not.
    """
    modules = {name for name, _ in model.named_modules()}
    by_layer = [[name for name in wanted if f"{_plain(stack)}{n}.{name}" in modules] for n in numbers]
    if not all(by_layer) or any(found != by_layer[0] for found in by_layer):
        problem = f"the method's sites are not the same in each layer of {_plain(stack)}: wanted {', '.join(wanted)}"
        raise UserError(problem, f"name the modules yourself: method.targets=[...]; {_listed(model)}")
    return by_layer[0]


def _plain(stack: Sites) -> str:
    """What a layer's name begins with, up to its number."""
    return stack.layer.replace("\\", "")


def linear_sizes(module: nn.Module) -> tuple[int, int] | None:
    """Input and output size of a linear layer (transformers' Conv1D of GPT-2 is one); None if it is none."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D":
        d_in, d_out = cast("torch.Tensor", module.weight).shape
        return d_in, d_out
    return None


def _at_most(last: int, layers: int) -> int:
    if last > layers:
        raise UserError(f"method.layers: last {last} wanted, the backbone has {layers}", "set a smaller number or all")
    return last


def _ends_in(name: str, part: str) -> bool:
    return name == part or name.endswith(f".{part}")


def _listed(model: nn.Module) -> str:
    """The distinct names of modules inside layers, layer numbers left out, linear layers marked by their sizes."""
    inside: dict[str, str] = {}
    for name, module in model.named_modules():
        if _LAYER_NUMBER.search(name):
            size = f" ({' -> '.join(map(str, sizes))})" if (sizes := linear_sizes(module)) else ""
            inside.setdefault(_LAYER_NUMBER.sub(".N.", name, count=1), size)
    return "modules are: " + ", ".join(f"{name}{size}" for name, size in sorted(inside.items()))
