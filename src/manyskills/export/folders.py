"""What an export writes: a stand-alone backbone or an adapter folder of peft, with heads and tasks beside it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from manyskills.config import DoraConfig, FrozenConfig, LoraConfig, MtlLoraConfig, QloraConfig
from manyskills.data.tokens import read_template
from manyskills.export.source import Source, in_float32
from manyskills.model.backbones import quiet
from manyskills.model.checkpoint import ADAPTER_FILE, save_heads, save_model
from manyskills.model.methods.mtl_lora import as_lora
from manyskills.model.multitask import MultiTaskModel
from manyskills.saved import OWN_FOLDER, SavedTasks

LORA_KIN = (LoraConfig, DoraConfig, QloraConfig, MtlLoraConfig)
"""Methods whose update is LoRA of the peft library, at least for one task."""


def merge(model: MultiTaskModel) -> None:
    """Add the update to the backbone's weights, in place: the answers stay, the method is `frozen` afterwards.

    Args:
        model: Its method can be merged, or has no adapter; the weights are not quantised.
    """
    if model.has_adapter:
        model.backbone = model.backbone.merge_and_unload(safe_merge=True)  # pyright: ignore
    model.method = FrozenConfig()


def write_backbone(source: Source, folder: Path) -> None:
    """A merged network as Hugging Face folder: with its output layer if a task is answered with text, and readable by
    sentence-transformers where it would do the same."""
    network = source.model.language_model if source.writing else source.model.backbone
    with quiet():
        network.save_pretrained(str(folder))  # pyright: ignore
    write_surroundings(source, folder)
    if source.model.heads and _reads_alike(source.model):
        _write_sentence_transformers(source, folder)


def write_surroundings(source: Source, folder: Path) -> None:
    """Tokenizer, heads and tasks. The tasks name their own folder as the backbone, so that it can be moved."""
    model = source.model
    model.tokenizer.save_pretrained(str(folder))
    save_heads(model.heads, _stand_alone(source), folder)


def write_lora(source: Source, folder: Path) -> None:
    """An adapter folder with the heads of the wanted tasks.

    Args:
        source: Its method is one of `LORA_KIN`. Of `mtl_lora` one task is wanted: its part is ordinary LoRA.
        folder: Exists and is empty.
    """
    method, saved = source.saved.config.method, source.saved
    if isinstance(method, MtlLoraConfig):
        _write_one_task(source, method, folder)
    else:
        save_model(source.model, folder, saved.config, saved.thresholds, saved.synthetic, step=saved.step)


def _write_one_task(source: Source, method: MtlLoraConfig, folder: Path) -> None:
    (task,) = source.tasks
    peft_config, state = as_lora(source.model.backbone, task)
    peft_config.save_pretrained(str(folder))
    save_file(state, folder / ADAPTER_FILE, metadata={"format": "pt"})
    numbers = method.model_dump(include=set(LoraConfig.model_fields)) | {"name": "lora"}
    config = source.saved.config.model_copy(update={"method": LoraConfig.model_validate(numbers)})
    heads = {task: source.model.head(task)} if task in source.model.heads else {}
    save_heads(nn.ModuleDict(heads), replace(source.saved, config=config), folder)


def _stand_alone(source: Source) -> SavedTasks:
    """The tasks of a folder that holds its own backbone; what was guessed from the backbone's name is written out."""
    config = in_float32(source.saved.config)
    own = {"name": OWN_FOLDER, "revision": None, "quantize": None, "pooling": source.model.architecture.pooling}
    changes = {"backbone": config.backbone.model_copy(update=own), "method": FrozenConfig()}
    return replace(source.saved, config=config.model_copy(update=changes))


def _reads_alike(model: MultiTaskModel) -> bool:
    """Whether the tokenizer alone puts the special tokens where we do, and one stack of layers makes the vector."""
    tokenizer = model.tokenizer
    same = read_template(tokenizer, end_token=False) == model.template and tokenizer.pad_token is not None
    return same and model.architecture.family != "encoder_decoder"


def _write_sentence_transformers(source: Source, folder: Path) -> None:
    """What sentence-transformers needs besides the network: the length limit, and how states become a vector."""
    architecture, limit = source.model.architecture, source.saved.config.max_length
    pooling: dict[str, Any] = {
        "word_embedding_dimension": architecture.hidden_size,
        "pooling_mode_cls_token": architecture.pooling == "cls",
        "pooling_mode_mean_tokens": architecture.pooling == "mean",
        "pooling_mode_lasttoken": architecture.pooling == "last",
    }
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "1_Pooling").mkdir()
    for name, content in (
        ("modules.json", modules),
        ("sentence_bert_config.json", {"max_seq_length": limit, "do_lower_case": False}),
        ("1_Pooling/config.json", pooling),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
