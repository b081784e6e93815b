"""A training of a few seconds that goes through every part, to tell whether an installation works."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from manyskills.config import TrainConfig


def toy_training() -> None:
    """Train, save, load and answer with a tiny random network on made-up rows.

    Raises:
        Exception: Whatever is broken.
    """
    from manyskills.api import load
    from manyskills.training.run import train

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _write_backbone(root / "backbone")
        _write_data(root / "data")
        config = TrainConfig.model_validate({
            "backbone": str(root / "backbone"),
            "tasks": ["defect_detection", "code_search"],
            "data_dir": str(root / "data"),
            "output_dir": str(root / "run"),
            "method": {"name": "lora", "r": 2},
            "max_length": 32,
            "batch_size": 8,
            "max_steps": 4,
            "bootstrap_samples": 10,
        })  # fmt: skip
        run = train(config, announce=lambda _: None)
        rows = [{"code": f"return value{number}"} for number in range(3)]
        answers = load(run.path).predict("defect_detection", rows)
        if len(answers) != len(rows):
            raise RuntimeError(f"{len(answers)} answers to {len(rows)} rows")


def _write_backbone(folder: Path) -> None:
    """A BERT of two tiny layers whose tokens are bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        pre_tokenizers.Split("", "isolated"),
    ])  # fmt: skip
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(names), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)


def _write_data(folder: Path) -> None:
    for split in ("train", "valid", "test"):
        rows = {
            "defect_detection": [{"code": f"x = {n} {'+' if n % 2 else '-'} 1", "label": n % 2} for n in range(16)],
            "code_search": [{"query": f"number {n}", "code": f"return {n}"} for n in range(16)],
        }
        for task, found in rows.items():
            path = folder / task / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(os.linesep.join(json.dumps(row) for row in found), encoding="utf-8")
