"""The configuration of `manyskills pretrain`: a small backbone from scratch.

Keys of the optimiser are named as in `TrainConfig`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from manyskills.config.section import Fraction, Section

SENTINELS = 100
"""Masked spans of one piece at most, as in T5's vocabulary."""

LEAST_VOCABULARY = 256
"""Byte-level tokens that every vocabulary holds besides the special ones."""

Objective = Literal["next_token", "span_corruption"]


class TextsConfig(Section):
    """Where texts come from."""

    path: str = Field(
        description="A file, a folder (everything in it, sub-folders included) or a pattern such as src/**/*.py. "
        ".jsonl, .parquet and .csv hold rows; every other file is one text."
    )
    columns: list[str] = Field(default=[], description="Columns of rows that hold texts; each cell is one text.")
    join: str | None = Field(
        default=None, description="What stands between the columns where a row is one text; default: each cell is one."
    )
    limit: PositiveInt | None = Field(default=None, description="Rows or files at most, drawn at random.")


class ArchitectureConfig(Section):
    """The network's form and size."""

    name: Literal["qwen2", "llama", "t5"] = Field(
        default="qwen2", description="qwen2, llama: decoders; t5: encoder-decoder (version 1.1, gated GELU)."
    )
    hidden_size: PositiveInt = 256
    num_hidden_layers: PositiveInt = Field(default=4, description="t5: of the encoder and of the decoder.")
    num_attention_heads: PositiveInt = 4
    num_key_value_heads: PositiveInt | None = Field(
        default=None, description="Decoders: heads that share keys and values; default: as many as heads."
    )
    intermediate_size: PositiveInt | None = Field(
        default=None, description="Width of the feed-forward layers; default: 8/3 of hidden_size, a multiple of 32."
    )
    max_position_embeddings: PositiveInt = Field(default=2048, description="Decoders: longest sequence ever.")
    tie_word_embeddings: bool = Field(default=True, description="One matrix for input and output.")

    @property
    def encoder_decoder(self) -> bool:
        """Whether it has two halves."""
        return self.name == "t5"

    @property
    def width(self) -> int:
        """Of the feed-forward layers: given, or about as many parameters as an ungated one of 4 h (Shazeer 2020)."""
        return self.intermediate_size or -(-8 * self.hidden_size // 3 // 32) * 32

    @model_validator(mode="after")
    def _sizes_fit(self) -> ArchitectureConfig:
        size, heads = self.hidden_size, self.num_attention_heads
        if size % heads or (not self.encoder_decoder and size // heads % 2):
            raise ValueError(f"hidden_size {size} does not divide into {heads} heads of an even size")
        shared = self.num_key_value_heads
        if shared is not None and (self.encoder_decoder or heads % shared):
            problem = "t5 has none" if self.encoder_decoder else f"{heads} heads cannot share {shared} evenly"
            raise ValueError(f"num_key_value_heads: {problem}")
        if self.encoder_decoder and not self.tie_word_embeddings:
            raise ValueError("tie_word_embeddings: t5 shares one matrix between input and output here")
        return self


class TokenizerConfig(Section):
    """The tokenizer: trained on the texts, or one that exists."""

    name: str | None = Field(default=None, description="Folder or hub id of a tokenizer to reuse; default: train one.")
    vocab_size: Annotated[int, Field(gt=LEAST_VOCABULARY)] = Field(
        default=4096, description="Tokens of a trained one, special ones included."
    )
    chat: bool = Field(default=False, description="A chat template, with role markers as special tokens.")

    @model_validator(mode="after")
    def _room_for_special_tokens(self) -> TokenizerConfig:
        least = LEAST_VOCABULARY + 2 + 3 * self.chat
        if self.name is None and self.vocab_size < least:
            raise ValueError(f"vocab_size: wanted {least} or more (bytes and special tokens), found {self.vocab_size}")
        if self.name is not None and self.chat:
            raise ValueError("chat: a tokenizer that exists keeps its own template; leave chat or name out")
        return self


class PretrainConfig(Section):
    """One pre-training."""

    data: list[TextsConfig] = Field(min_length=1, description="Where texts come from; a path alone may stand for one.")
    data_dir: str = Field(default=".", description="Relative paths in data start here.")
    output_dir: str = Field(default="backbones/backbone", description="The folder to make.")
    architecture: ArchitectureConfig = Field(default=ArchitectureConfig(), description="A name, or a section.")
    tokenizer: TokenizerConfig = Field(default=TokenizerConfig(), description="A section, or a name to reuse.")
    objective: Objective | None = Field(
        default=None,
        description="next_token for decoders; span_corruption (Raffel et al. 2020) for t5: the default is the one that "
        "fits.",
    )
    noise_density: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.15, description="Share of tokens in spans.")
    mean_span_length: Annotated[float, Field(ge=1)] = Field(default=3.0, description="Tokens of a span.")

    max_length: Annotated[int, Field(ge=8)] = Field(default=256, description="Longer texts are cut into pieces.")
    batch_tokens: PositiveInt = Field(default=4096, description="Tokens a step.")
    token_budget: PositiveInt = Field(default=8192, description="Tokens in one chunk; bounds memory.")
    num_train_epochs: PositiveFloat = Field(default=1, description="Passes over the texts.")
    max_steps: PositiveInt | None = Field(default=None, description="Overrides num_train_epochs.")
    learning_rate: PositiveFloat = 1e-3
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "cosine"
    warmup_ratio: Fraction = 0.05
    weight_decay: NonNegativeFloat = 0.1
    max_grad_norm: NonNegativeFloat = Field(default=1.0, description="Clips the gradient; 0 never clips.")
    validation: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.02, description="Share of the texts held out for the perplexity; no text is on both sides."
    )
    logging_steps: PositiveInt = 10
    save_steps: PositiveInt | None = Field(
        default=None, description="Steps between saved states, with a validation each; default: five in a run."
    )
    seed: NonNegativeInt = 0
    bf16: bool | Literal["auto"] = Field(
        default="auto", description="Autocast to bfloat16; auto: on a GPU that has it."
    )

    @field_validator("architecture", "tokenizer", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("data", mode="before")
    @classmethod
    def _paths_alone(cls, value: Any) -> Any:
        items = value if isinstance(value, list) else [value]
        return [{"path": item} if isinstance(item, str) else item for item in items]

    @model_validator(mode="after")
    def _fits(self) -> PretrainConfig:
        fitting = "span_corruption" if self.architecture.encoder_decoder else "next_token"
        if self.objective not in (None, fitting):
            raise ValueError(f"objective: {self.architecture.name} trains by {fitting}, found {self.objective}")
        longest = self.architecture.max_position_embeddings
        if not self.architecture.encoder_decoder and self.max_length > longest:
            problem = f"max_length: {self.max_length} is over architecture.max_position_embeddings ({longest})"
            raise ValueError(problem)
        if self.batch_tokens < self.max_length:
            problem = f"batch_tokens: {self.batch_tokens} is under max_length ({self.max_length})"
            raise ValueError(f"{problem}, so a step would not hold one piece")
        least = LEAST_VOCABULARY + 2 + SENTINELS + 3 * self.tokenizer.chat
        if self.architecture.encoder_decoder and not self.tokenizer.name and self.tokenizer.vocab_size < least:
            problem = f"wanted {least} or more (bytes, sentinels and other special tokens)"
            raise ValueError(f"tokenizer.vocab_size: {problem}, found {self.tokenizer.vocab_size}")
        return self
