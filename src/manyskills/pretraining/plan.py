"""What a pre-training would cost, for `--dry-run`: texts are read and tokenised, nothing is trained or written."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from manyskills.config.pretraining import PretrainConfig
from manyskills.model.cross_entropy import BLOCK_BYTES
from manyskills.pretraining.architectures import build_network
from manyskills.pretraining.folder import BackboneFolder
from manyskills.pretraining.objectives import chunk_tokens
from manyskills.pretraining.run import prepare
from manyskills.pretraining.texts import read_texts
from manyskills.training.plan_text import size

KEPT_HIDDEN, KEPT_WIDE = 12, 4
"""Values that a layer keeps of a token for the backward pass, in hidden sizes and in feed-forward widths: counted with
hooks on saved tensors for a decoder of transformers 5."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Counts of a run.

    Attributes:
        parameters: Of the network.
        vocab_size: Tokens of the tokenizer.
        texts: To learn from.
        held_out: Texts for the perplexity.
        duplicates: Exact repetitions that are left out.
        tokens: Of the texts to learn from, in one epoch.
        characters_per_token: Of the texts to learn from.
        pieces: That they are cut into.
        steps: Updates in all.
        steps_per_epoch: Of one pass.
        weights_bytes: Weights, gradients and both moments, in float32.
        activations_bytes: What one chunk keeps, and a block of logits; an estimate.
    """

    parameters: int
    vocab_size: int
    texts: int
    held_out: int
    duplicates: int
    tokens: int
    characters_per_token: float
    pieces: int
    steps: int
    steps_per_epoch: int
    weights_bytes: int
    activations_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def text(self) -> str:
        """In lines for people."""
        left_out = f", {self.duplicates:,} duplicates left out" if self.duplicates else ""
        return "\n".join(
            [
                f"{self.parameters:,} parameters; {self.vocab_size:,} tokens in the vocabulary",
                f"{self.texts:,} texts and {self.held_out:,} held out{left_out}",
                f"{self.tokens:,} tokens in {self.pieces:,} pieces, {self.characters_per_token:.2f} characters a token",
                f"{self.steps:,} steps; {self.steps_per_epoch:,} are one pass over the texts",
                f"about {size(self.weights_bytes + self.activations_bytes)} of memory: weights, gradients and moments "
                f"{size(self.weights_bytes)}, activations {size(self.activations_bytes)}",
            ]
        )


def make_plan(config: PretrainConfig) -> Plan:
    """Count what a run would hold.

    Raises:
        UserError: As the run would.
    """
    BackboneFolder(config.output_dir).check_is_folder()
    texts = read_texts(config)
    prepared = prepare(config, texts)
    with torch.device("meta"):
        network = build_network(config, prepared.tokenizer)
    parameters = sum(p.numel() for p in network.parameters())
    return Plan(
        parameters=parameters,
        vocab_size=len(prepared.tokenizer),
        texts=len(texts.train),
        held_out=len(texts.valid),
        duplicates=texts.duplicates,
        tokens=prepared.train.tokens,
        characters_per_token=sum(map(len, texts.train)) / prepared.train.tokens,
        pieces=len(prepared.train),
        steps=prepared.steps,
        steps_per_epoch=prepared.batches.steps_per_epoch,
        weights_bytes=16 * parameters,
        activations_bytes=_activations(config, prepared.train.tokens, len(prepared.tokenizer)),
    )


def _activations(config: PretrainConfig, tokens: int, vocabulary: int) -> int:
    architecture = config.architecture
    layers = architecture.num_hidden_layers * (2 if architecture.encoder_decoder else 1)
    held = min(chunk_tokens(config, torch.accelerator.is_available()), config.batch_tokens, tokens)
    kept = KEPT_HIDDEN * architecture.hidden_size + KEPT_WIDE * architecture.width
    if architecture.encoder_decoder:  # a score for each pair of tokens, and the bias of distances
        kept += 2 * architecture.num_attention_heads * config.max_length
    return 4 * held * layers * kept + min(4 * held * vocabulary, max(BLOCK_BYTES.values()))
