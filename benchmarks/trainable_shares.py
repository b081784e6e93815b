"""Trainable shares at real size beside the published ones, on the meta device: no weights are needed.

    python benchmarks/trainable_shares.py [--output shares.json]

Published figures: Akli et al. 2026 (arXiv 2603.09978) and its later revision. Each line names the setting of ours that
the published figure belongs to; where none does, the note says what was found instead.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch

from manyskills.config import BackboneConfig, TrainConfig
from manyskills.errors import UserError
from manyskills.model.backbones import Backbone, describe
from manyskills.model.methods.overview import overview

TASKS = ["clone_detection", "defect_detection", "flaky_tests", "code_search"]


@dataclass(frozen=True)
class Row:
    """A published figure and the setting of ours that is compared with it."""

    backbone: str
    published_as: str
    published: float
    method: dict[str, Any]
    note: str = ""


def _lora(**changes: Any) -> dict[str, Any]:
    return {"name": "lora", "r": 16, **changes}


SERIAL, SERIAL_FFN = {"name": "serial_adapter"}, {"name": "serial_adapter", "where": "ffn"}
PARALLEL, PARALLEL_FFN = {"name": "parallel_adapter"}, {"name": "parallel_adapter", "where": "ffn"}
PREFIX = {"name": "prefix_tuning"}
ONE_PARALLEL = "published: one parallel adapter a layer"
QKVO = ["query", "key", "value", "attention.output.dense"]
SELF_QV = ["SelfAttention.q", "SelfAttention.v"]
SELF_AND_FFN = ["SelfAttention.o", "DenseReluDense.wo"]


def _mtl(targets: list[str]) -> dict[str, Any]:
    return {"name": "mtl_lora", "r": 32, "experts": 4, "targets": targets}


def _proj(*letters: str) -> list[str]:
    return [f"{letter}_proj" for letter in letters]


ROWS = [
    Row("UniXcoder", "Serial 64", 1.85, SERIAL),
    Row("UniXcoder", "Parallel 64", 0.93, PARALLEL_FFN, ONE_PARALLEL),
    Row("UniXcoder", "LoRA r16 q,v", 0.46, _lora()),
    Row("UniXcoder", "Prefix", 6.43, PREFIX, "published: 6.43 and 7.16 for the same backbone; no setting is given"),
    Row("CodeT5+ 770M", "Serial 64", 1.70, {**SERIAL, "targets": SELF_AND_FFN}, "published: none on cross-attention"),
    Row("CodeT5+ 770M", "Serial 64", 1.70, SERIAL, "ours by default: cross-attention has one as well"),
    Row("CodeT5+ 770M", "Parallel 64", 0.85, PARALLEL_FFN, ONE_PARALLEL),
    Row("CodeT5+ 770M", "LoRA r16 q,v", 0.42, _lora(targets=SELF_QV), "published: none on cross-attention"),
    Row("CodeT5+ 770M", "LoRA r16 q,v", 0.42, _lora(), "ours by default: cross-attention has them as well"),
    Row("DeepSeek-Coder 1.3B", "Serial 64", 0.98, SERIAL),
    Row("DeepSeek-Coder 1.3B", "Parallel 64", 0.84, PARALLEL_FFN, "published: 0.84, its revision 0.493"),
    Row("DeepSeek-Coder 1.3B", "LoRA r16 q,v", 0.24, _lora()),
    Row("Qwen2.5-Coder 1.5B", "Serial 64", 0.71, SERIAL),
    Row("Qwen2.5-Coder 1.5B", "Parallel 64", 0.35, PARALLEL_FFN, ONE_PARALLEL),
    Row("Qwen2.5-Coder 1.5B", "LoRA r16 q,v", 0.14, _lora()),
    Row("UniXcoder", "Serial d64 (revision)", 0.936, SERIAL_FFN, "revision: one serial adapter a layer"),
    Row("UniXcoder", "Parallel d64 (revision)", 0.470, PARALLEL_FFN, "revision: half of one adapter a layer"),
    Row("UniXcoder", "LoRA r32 (revision)", 1.839, _lora(r=32, targets=QKVO), "revision: q, k, v and output"),
    Row("UniXcoder", "mLoRA r32, 4 B (revision)", 4.480, _mtl(QKVO), "revision: q, k, v and output"),
    Row("UniXcoder", "Prefix 20 (revision)", 0.292, PREFIX),
    Row("CodeT5+ 770M encoder", "Serial d64 (revision)", 1.859, SERIAL),
    Row("CodeT5+ 770M encoder", "Parallel d64 (revision)", 0.94, PARALLEL_FFN, "revision: one a layer"),
    Row("CodeT5+ 770M encoder", "LoRA r32 (revision)", 1.389,
        _lora(r=32, targets=["SelfAttention.q", "SelfAttention.k", "SelfAttention.v"]), "revision: q, k and v"),
    Row("CodeT5+ 770M encoder", "mLoRA r32, 4 B (revision)", 4.49,
        _mtl([f"SelfAttention.{name}" for name in "qkvo"]), "revision: q, k, v and output"),
    Row("CodeT5+ 770M encoder", "Prefix 20 (revision)", 0.293, PREFIX),
    Row("ModernBERT-base", "Serial d64 (revision)", 2.844, SERIAL),
    Row("ModernBERT-base", "Parallel d64 (revision)", 1.442, PARALLEL_FFN, "revision: one a layer"),
    Row("ModernBERT-base", "LoRA r32 (revision)", 2.992, _lora(r=32, targets=["Wqkv", "Wo"]),
        "revision: the suffix Wo takes the feed-forward's output projection too"),
    Row("ModernBERT-base", "mLoRA r32, 4 B (revision)", 7.860, _mtl(["Wqkv", "Wo"]),
        "revision: the suffix Wo takes the feed-forward's output projection too"),
    Row("ModernBERT-base", "Prefix 20 (revision)", 0.010, PREFIX,
        "revision: 20 x 768 values in all"),
    Row("DeepSeek-Coder 1.3B", "Serial d64 (revision)", 0.981, SERIAL),
    Row("DeepSeek-Coder 1.3B", "Parallel d64 (revision)", 0.493, PARALLEL_FFN, "revision: one a layer"),
    Row("DeepSeek-Coder 1.3B", "LoRA r32 (revision)", 0.732, _lora(r=32, targets=_proj("q", "k", "v")),
        "revision: q, k and v"),
    Row("DeepSeek-Coder 1.3B", "mLoRA r32, 4 B (revision)", 2.400, _mtl(_proj("q", "k", "v", "o")),
        "revision: q, k, v and output"),
    Row("DeepSeek-Coder 1.3B", "Prefix 20 (revision)", 0.153, PREFIX),
    Row("Qwen2.5-Coder 1.5B", "Serial d64 (revision)", 0.714, SERIAL),
    Row("Qwen2.5-Coder 1.5B", "Parallel d64 (revision)", 0.358, PARALLEL_FFN, "revision: one a layer"),
    Row("Qwen2.5-Coder 1.5B", "LoRA r32 (revision)", 0.385, _lora(r=32, targets=_proj("q", "k", "v")),
        "revision: q, k and v"),
    Row("Qwen2.5-Coder 1.5B", "mLoRA r32, 4 B (revision)", 1.180, _mtl(_proj("q", "k", "v", "o")),
        "revision: q, k, v and output"),
    Row("Qwen2.5-Coder 1.5B", "Prefix 20 (revision)", 0.019, PREFIX),
]  # fmt: skip


def _configurations() -> dict[str, Callable[[], tuple[Any, BackboneConfig]]]:
    """Sizes from the model cards' config.json."""
    import transformers as hf

    t5: dict[str, Any] = {
        "vocab_size": 32100,
        "d_model": 1024,
        "d_kv": 64,
        "d_ff": 4096,
        "num_layers": 24,
        "num_heads": 16,
    }
    return {
        "UniXcoder": lambda: (
            hf.RobertaConfig(vocab_size=51416, max_position_embeddings=1026, type_vocab_size=10),
            BackboneConfig(name="unixcoder"),
        ),
        "CodeT5+ 770M": lambda: (hf.T5Config(**t5), BackboneConfig(name="codet5p-770m", part="whole")),
        "CodeT5+ 770M encoder": lambda: (hf.T5Config(**t5), BackboneConfig(name="codet5p-770m")),
        "ModernBERT-base": lambda: (hf.ModernBertConfig(), BackboneConfig(name="modernbert")),
        "DeepSeek-Coder 1.3B": lambda: (
            hf.LlamaConfig(vocab_size=32256, hidden_size=2048, intermediate_size=5504, num_hidden_layers=24,
                           num_attention_heads=16),
            BackboneConfig(name="deepseek-coder-1.3b"),
        ),
        "Qwen2.5-Coder 1.5B": lambda: (
            hf.Qwen2Config(vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
                           num_attention_heads=12, num_key_value_heads=2),
            BackboneConfig(name="qwen2.5-coder-1.5b"),
        ),
    }  # fmt: skip


def _network(hf_config: Any, part: str) -> torch.nn.Module:
    from transformers import AutoModel, AutoModelForTextEncoding

    encoder_alone = hf_config.model_type == "t5" and part != "whole"
    extra = {"add_pooling_layer": False} if hf_config.model_type == "roberta" else {}
    with torch.device("meta"):
        return (AutoModelForTextEncoding if encoder_alone else AutoModel).from_config(hf_config, **extra)


class _NoTokenizer:
    pad_token_id = 0


def main() -> None:
    """Print a Markdown table; with --output, write JSON as well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path)
    wanted = parser.parse_args()
    backbones: dict[str, Backbone] = {}
    for name, make in _configurations().items():
        hf_config, config = make()
        network = _network(hf_config, config.part)
        architecture = describe(network, hf_config, _NoTokenizer(), config, config.name)
        backbones[name] = Backbone(network, None, cast("Any", None), architecture, config)
    lines = []
    print("| backbone | published as | published % | ours % | trainable | setting of ours | note |")
    print("|---|---|---:|---:|---:|---|---|")
    for row in ROWS:
        method = TrainConfig.model_validate({"tasks": TASKS, "method": row.method}).method
        (found,) = overview(backbones[row.backbone], [method], TASKS)
        if isinstance(found, UserError):
            raise found
        setting = " ".join(f"{key}={value}" if key != "name" else str(value) for key, value in row.method.items())
        print(f"| {row.backbone} | {row.published_as} | {row.published} | {100 * found.share:.3f} | "
              f"{found.trainable:,} | {setting} | {row.note} |")  # fmt: skip
        lines.append({**asdict(row), "share": 100 * found.share, "trainable": found.trainable})
    if wanted.output:
        wanted.output.write_text(json.dumps(lines, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
