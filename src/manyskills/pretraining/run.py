"""A whole pre-training: texts, tokenizer, network, loop, and the folder that comes of it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from manyskills.config.pretraining import SENTINELS, PretrainConfig
from manyskills.errors import UserError
from manyskills.files import complete_folder
from manyskills.model.backbones import quiet
from manyskills.pretraining.architectures import build_network
from manyskills.pretraining.card import card
from manyskills.pretraining.folder import BackboneFolder, State
from manyskills.pretraining.loop import Held, Trainer
from manyskills.pretraining.objectives import NextToken, Objective, SpanCorruption, chunk_tokens
from manyskills.pretraining.pieces import Batches, Pieces, next_token_pieces, span_pieces
from manyskills.pretraining.spans import Corruption
from manyskills.pretraining.texts import Texts, read_texts
from manyskills.pretraining.tokenizer import check_reloads, get_tokenizer, load_saved, sentinel
from manyskills.training.reporting import announcer

Announce = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run trains on.

    Attributes:
        texts: Read and divided.
        tokenizer: Of transformers.
        train: Pieces to learn from.
        valid: Pieces held out.
        batches: Which pieces each step holds.
        steps: Updates in all.
    """

    texts: Texts
    tokenizer: Any
    train: Pieces
    valid: Pieces
    batches: Batches
    steps: int


def pretrain(
    config: PretrainConfig, *, resume: bool = False, overwrite: bool = False, announce: Announce | None = None
) -> Path:
    """Train a backbone from random weights and write it as a Hugging Face folder.

    Args:
        config: The run.
        resume: Continue what is in output_dir; a finished backbone is left as it is.
        overwrite: Remove a former backbone in output_dir first.
        announce: Gets sentences for people; default: stderr, with a progress bar.

    Returns:
        The folder.

    Raises:
        UserError: Something is wrong with configuration, data, tokenizer or output_dir.
    """
    hidden, announce = announce is not None, announce or announcer()
    folder = BackboneFolder(config.output_dir)
    folder.check(config, resume=resume, overwrite=overwrite)
    if resume and folder.finished:
        announce(f"{folder.path} is finished already")
        folder.remove_working()
        return folder.path
    texts = read_texts(config)
    saved = complete_folder(folder.tokenizer) if resume else None
    prepared = prepare(config, texts, load_saved(saved) if saved else None)
    network = build_network(config, prepared.tokenizer)
    check_reloads(prepared.tokenizer, network.config, texts.train)
    folder.open(config, overwrite=overwrite)
    folder.save_tokenizer(prepared.tokenizer)
    network.to(torch.accelerator.current_accelerator() or "cpu")
    announce(_sentence(network, prepared))
    trainer = _trainer(config, network, prepared, folder, announce)
    state = trainer.run(texts.digest, hide_bar=hidden)
    _finish(config, network, prepared, folder, state)
    return folder.path


def prepare(config: PretrainConfig, texts: Texts, tokenizer: Any = None) -> Prepared:
    """Tokenise texts and plan the steps.

    Args:
        config: The run.
        texts: Of the configuration.
        tokenizer: Of a run that is continued; default: as the configuration says.

    Raises:
        UserError: An existing tokenizer does not fit, or the texts are too short to learn from.
    """
    tokenizer = tokenizer or get_tokenizer(config, texts.train)
    cut = span_pieces if config.architecture.encoder_decoder else next_token_pieces
    train, valid = (cut(part, tokenizer, config.max_length) for part in (texts.train, texts.valid))
    if not len(train):
        raise UserError("data: the texts are too short to learn from", "give more of them")
    batches = Batches(train.lengths_P, config.batch_tokens, config.seed)
    steps = config.max_steps or max(1, math.ceil(config.num_train_epochs * batches.steps_per_epoch))
    return Prepared(texts, tokenizer, train, valid, batches, steps)


def _trainer(
    config: PretrainConfig, network: Any, prepared: Prepared, folder: BackboneFolder, announce: Announce
) -> Trainer:
    objective, held = (make_objective(config, network, prepared.tokenizer, p) for p in (prepared.train, prepared.valid))
    pieces = len(prepared.valid)
    return Trainer(
        config, network, objective, prepared.batches, prepared.steps, Held(held, pieces) if pieces else None, folder,
        announce,
    )  # fmt: skip


def make_objective(config: PretrainConfig, network: Any, tokenizer: Any, pieces: Pieces) -> Objective:
    """What the network is to learn from these pieces."""
    budget = chunk_tokens(config, network.device.type != "cpu")
    if not config.architecture.encoder_decoder:
        return NextToken(network, pieces, budget)
    known = tokenizer.get_vocab()
    sentinels = [known[sentinel(n)] for n in range(SENTINELS) if sentinel(n) in known]
    corruption = Corruption(config.noise_density, config.mean_span_length, np.array(sentinels), tokenizer.eos_token_id)
    return SpanCorruption(network, pieces, budget, corruption)


def _sentence(network: Any, prepared: Prepared) -> str:
    count, texts = sum(p.numel() for p in network.parameters()), prepared.texts
    left_out = f", {texts.duplicates:,} duplicates left out" if texts.duplicates else ""
    return (
        f"{count:,} parameters; {len(texts.train):,} texts and {len(texts.valid):,} held out{left_out}; "
        f"{prepared.train.tokens:,} tokens, {prepared.steps:,} steps"
    )


def _finish(config: PretrainConfig, network: Any, prepared: Prepared, folder: BackboneFolder, state: State) -> None:
    records = folder.records()
    summary = {
        "architecture": config.architecture.name,
        "parameters": sum(p.numel() for p in network.parameters()),
        "vocab_size": len(prepared.tokenizer),
        "texts": {"train": len(prepared.texts.train), "valid": len(prepared.texts.valid),
                  "duplicates": prepared.texts.duplicates, "digest": prepared.texts.digest},
        "steps": state.step,
        "tokens": state.tokens,
        "seconds": round(state.seconds, 1),
        "train": [_without_kind(record) for record in records if record["kind"] == "train"],
        "valid": [_without_kind(record) for record in records if record["kind"] == "valid"],
    }  # fmt: skip
    network.to("cpu")
    network.config._attn_implementation = "sdpa"
    network.config.use_cache = True
    with tempfile.TemporaryDirectory() as temporary, quiet():
        files = Path(temporary)
        network.save_pretrained(files)
        prepared.tokenizer.save_pretrained(files)
        (files / "README.md").write_text(card(config, folder.path, summary), encoding="utf-8")
        folder.finish(files, summary)


def _without_kind(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "kind"}
