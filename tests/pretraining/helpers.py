"""A toy corpus and configurations that train in a second."""

from __future__ import annotations

import json
from pathlib import Path

from manyskills.config.pretraining import PretrainConfig

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def corpus(count: int = 60) -> list[str]:
    """Functions of different lengths."""
    return [
        f"def f{n}(x):\n" + "".join(f"    x = x + {n * k}\n" for k in range(1 + n % 7)) + "    return x\n"
        for n in range(count)
    ]


def write_corpus(folder: Path, count: int = 60) -> Path:
    path = folder / "code.jsonl"
    path.write_text("".join(json.dumps({"code": text}) + "\n" for text in corpus(count)), encoding="utf-8")
    return path


def small_config(data: Path, output: Path, name: str = "qwen2", **changes) -> PretrainConfig:
    values = {
        "data": [{"path": str(data), "columns": ["code"]}],
        "architecture": {"name": name, **SMALL},
        "tokenizer": {"vocab_size": 400},
        "output_dir": str(output),
        "max_length": 32,
        "batch_tokens": 256,
        "max_steps": 6,
        "validation": 0.1,
        "logging_steps": 2,
        "save_steps": 2,
        **changes,
    }
    return PretrainConfig.model_validate(values)
