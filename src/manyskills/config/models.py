"""The configuration of a training run: pydantic models whose field descriptions are the documentation.

Key names are Hugging Face's where it has one. Reading from YAML, overrides on the command line and messages for people
are in `manyskills.config.file`.
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

from manyskills.config.balancing import ON_GRADIENTS, BalancingConfig, FixedConfig, UniformConfig
from manyskills.config.distillation import DistillationConfig
from manyskills.config.methods import FrozenConfig, FullConfig, LoraConfig, MethodConfig, last_layers
from manyskills.config.sampling import AlternatingConfig, RoundRobinConfig, SamplingConfig
from manyskills.config.section import Fraction, Section


class BackboneConfig(Section):
    """The pre-trained transformer."""

    name: str = Field(
        default="minilm", description="Alias (minilm, unixcoder, codet5p-770m …), hub id or local folder."
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit of a hub id.")
    pooling: Literal["auto", "cls", "mean", "last"] = Field(
        default="auto", description="How token states become one vector."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Of the frozen weights: auto is bfloat16 on a GPU that has it, float32 elsewhere."
    )
    quantize: Literal["nf4"] | None = Field(
        default=None,
        description="nf4: keep the frozen linear layers in 4-bit NormalFloat with double quantisation (qlora does).",
    )
    part: Literal["auto", "encoder", "whole"] = Field(
        default="auto",
        description="Of an encoder-decoder: encoder (auto) takes vectors from the encoder alone; whole feeds the text "
        "to both and takes the decoder's last state.",
    )


class Limit(Section):
    """At most so many rows of a split, drawn at random (stratified by label), never a prefix of the file."""

    train: PositiveInt | None = None
    valid: PositiveInt | None = None
    test: PositiveInt | None = None


class TaskConfig(Section):
    """Choices for one task."""

    data: str | None = Field(
        default=None, description="Folder, file pattern or hub id; default: <data_dir>/<task name>."
    )
    columns: dict[str, str] = Field(default={}, description="Our column name -> the name in your files.")
    limit: Limit = Field(default=Limit(), description="Rows per split; a single number means all three.")
    max_length: PositiveInt | None = Field(default=None, description="Tokens per text; default: the run's max_length.")
    long: Literal["truncate", "window", "error"] = Field(
        default="truncate",
        description="Texts over max_length: cut (truncate), read in overlapping pieces whose vectors are averaged "
        "(window), or refused (error).",
    )
    window_overlap: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.25, description="Share of each piece that the next one repeats; for long=window."
    )
    read: Literal["separate", "joint"] = Field(
        default="separate", description="Pairs: each text once (separate), or both in one sequence (joint, far slower)."
    )
    head_hidden: NonNegativeInt = Field(
        default=0, description="Width inside the head; 0 for none (pairs: 128; searches: that of the vectors)."
    )
    head_dropout: Fraction = Field(default=0.1, description="Dropout before the head.")
    positive_weight: PositiveFloat | Literal["balanced"] | None = Field(
        default=None, description="Weight of positive rows in the cross-entropy; balanced: negatives / positives."
    )
    focal_gamma: NonNegativeFloat = Field(
        default=0.0, description="Focal loss exponent (Lin et al. 2017); 0 is cross-entropy."
    )
    rename_identifiers: Fraction = Field(
        default=0.0,
        description="Share of training rows whose function, parameter and variable names become placeholders, as in "
        "AdvTest's test split; Python only, rows that do not parse stay as they are.",
    )
    positive_share: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Share of positive rows among those drawn; probabilities are corrected back afterwards.",
    )
    answer: Literal["head", "text"] = Field(
        default="head",
        description="Of a yes/no task: from a head on the vector (head), or as a word that the language model writes "
        "(text; needs a backbone that writes).",
    )
    variants: list[str] | None = Field(
        default=None, description="Languages or directions of a generating task; default: all that its data has."
    )
    prompt: str | dict[str, str] | None = Field(
        default=None,
        description="The instruction instead of the task's own, for all variants or by variant; {source} stands where "
        "the text is put.",
    )
    max_new_tokens: PositiveInt = Field(
        default=128, description="Tokens of a written answer, in training and afterwards; longer ones are cut."
    )
    loss_on: Literal["answer", "all"] = Field(
        default="answer", description="Tokens that a generating task learns: those of the answer, or the prompt's too."
    )
    select_by: Literal["generation", "likelihood"] = Field(
        default="generation",
        description="What validation measures of a generating task: the primary metric of generated answers, or the "
        "mean probability of a token of the right ones (far faster).",
    )
    num_beams: PositiveInt = Field(default=1, description="Beams of the search for an answer; 1 is greedy.")

    @field_validator("limit", mode="before")
    @classmethod
    def _one_number(cls, value: Any) -> Any:
        return {"train": value, "valid": value, "test": value} if isinstance(value, int) else value


class EarlyStoppingConfig(Section):
    """Looks at each task: one that has peaked leaves the sampling; the run ends when none improves."""

    patience: PositiveInt = Field(
        default=4, description="Evaluations without a better validation metric until a task stops."
    )
    min_delta: NonNegativeFloat = Field(default=0.0, description="What counts as better.")
    keep_task_best: bool = Field(default=False, description="Keep each task's own best weights under best_by_task/.")


class TrainConfig(Section):
    """One training run."""

    backbone: BackboneConfig = Field(default=BackboneConfig(), description="A name, or a section with more choices.")
    method: MethodConfig = Field(default=LoraConfig(), description="How the backbone is adapted.")
    tasks: dict[str, TaskConfig] = Field(min_length=1, description="Task names, as a list or with choices for each.")
    data_dir: str = Field(default="data", description="Holds one folder a task.")
    output_dir: str = Field(default="runs/run", description="The run folder.")

    max_length: PositiveInt = Field(
        default=256, description="Tokens per text; tasks.<name>.long says what happens to longer ones."
    )
    heads_first: bool = Field(
        default=False,
        description="Train the heads on the frozen backbone first, then everything: the module does not learn from "
        "random heads (Kumar et al. 2022, arXiv 2202.10054). Costs one encoding of the training texts.",
    )
    learning_rate: PositiveFloat = Field(default=5e-4, description="Of the shared module.")
    head_learning_rate: PositiveFloat | None = Field(default=None, description="Of the heads; default: learning_rate.")
    optim: Literal["adamw_torch", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit"] = Field(
        default="adamw_torch",
        description="bnb: moments in 8 bits; paged: moments move to the CPU while a GPU's memory is full (both need a "
        "GPU and bitsandbytes).",
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: Fraction = 0.06
    weight_decay: NonNegativeFloat = 0.01
    max_grad_norm: NonNegativeFloat = Field(
        default=1.0, description="Clips the shared module's gradient; 0 never clips."
    )
    num_train_epochs: PositiveFloat = Field(
        default=3, description="Passes over as many rows as all tasks have together."
    )
    max_steps: PositiveInt | None = Field(default=None, description="Overrides num_train_epochs.")
    batch_size: PositiveInt = Field(default=64, description="Examples a step, over all tasks and all processes.")
    token_budget: PositiveInt = Field(
        default=8192,
        description="Tokens in one chunk, padding included where there is any; bounds memory. On a CPU "
        "unpadded chunks hold 2,048 at most.",
    )
    attention: Literal["auto", "padded", "unpadded"] = Field(
        default="auto",
        description="unpadded: the texts of a chunk one behind another, attention within each; auto: where the "
        "backbone, the method and the device allow it. The answers are the same up to rounding.",
    )
    step_memory: Literal["single_pass", "cached"] = Field(
        default="single_pass", description="cached: memory of one chunk whatever the batch, at one more forward pass."
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Keep only each layer's input and compute the rest again: less memory, more time."
    )
    activation_cache: bool = Field(
        default=True,
        description="With method.layers=last K: compute the layers below once for each text and read them back from "
        "disk in half precision.",
    )
    vector_cache: bool = Field(
        default=True, description="Keep vectors for evaluations on disk, by content and weights."
    )
    trunk_dropout: bool = Field(default=False, description="Keep the pre-trained network's own dropout while training.")
    sampling: SamplingConfig = RoundRobinConfig()
    balancing: BalancingConfig = UniformConfig()
    distillation: DistillationConfig | None = Field(
        default=None, description="Teachers for some tasks: runs whose answers are learnt besides the labels."
    )

    eval_steps: PositiveInt | None = Field(
        default=None, description="Steps between validations; default: ten in a run."
    )
    save_steps: PositiveInt | None = Field(default=None, description="Steps between checkpoints; default: eval_steps.")
    logging_steps: PositiveInt = 10
    conflict_steps: NonNegativeInt | None = Field(
        default=None,
        description="Steps between measurements of the tasks' gradients on the shared module (norms, cosines); "
        "default: logging_steps; 0: never.",
    )
    early_stopping: EarlyStoppingConfig | None = EarlyStoppingConfig()

    baselines: list[Literal["floor", "untrained", "frozen"]] = Field(
        default=["floor", "untrained"],
        description="Beside the module in the table: TF-IDF floor, untrained backbone, heads on the frozen backbone.",
    )
    floor_rows: Literal["all", "same"] = Field(
        default="all", description="The floor is trained on the whole training split, or on the run's limited rows."
    )
    bootstrap_samples: PositiveInt = Field(default=1000, description="For the confidence intervals.")
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95

    seed: NonNegativeInt = 0
    bf16: bool | Literal["auto"] = Field(
        default="auto", description="Autocast to bfloat16; auto: on a GPU that has it."
    )
    report_to: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] | Literal["none"] = Field(
        default="none", description="Trackers beside metrics.jsonl."
    )
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private: bool = True

    @field_validator("backbone", "method", "sampling", "balancing", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("tasks", mode="before")
    @classmethod
    def _list_of_names(cls, value: Any) -> Any:
        if isinstance(value, list):
            return {name: {} for name in value}
        return {name: options or {} for name, options in value.items()} if isinstance(value, dict) else value

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_tracker(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) and value != "none" else value

    @field_validator("early_stopping", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return None if value is False else value

    @model_validator(mode="after")
    def _every_task_has_a_weight(self) -> TrainConfig:
        if isinstance(self.balancing, FixedConfig):
            missing = [name for name in self.tasks if name not in self.balancing.weights]
            unknown = [name for name in self.balancing.weights if name not in self.tasks]
            if missing or unknown:
                wrong = f"no weight for {', '.join(missing)}" if missing else f"{unknown[0]} is no task of this run"
                raise ValueError(f"balancing.weights: {wrong}")
            if not any(self.balancing.weights.values()):
                raise ValueError("balancing.weights: all weights are 0")
        return self

    @model_validator(mode="after")
    def _something_to_balance(self) -> TrainConfig:
        if isinstance(self.sampling, AlternatingConfig) and not isinstance(self.balancing, UniformConfig):
            problem = f"balancing: an alternating step holds one task, so {self.balancing.name} has nothing to balance"
            raise ValueError(f"{problem}; sampling.temperature decides how often each task comes")
        if isinstance(self.method, FrozenConfig) and isinstance(self.balancing, ON_GRADIENTS):
            problem = f"{self.balancing.name} combines gradients on a shared module, and method frozen trains none"
            raise ValueError(f"balancing: {problem}")
        return self

    @model_validator(mode="after")
    def _teachers_have_tasks(self) -> TrainConfig:
        unknown = [name for name in self.distillation.teachers if name not in self.tasks] if self.distillation else []
        if unknown:
            raise ValueError(f"distillation.teachers: {', '.join(unknown)} is no task of this run")
        return self

    @model_validator(mode="after")
    def _method_fits(self) -> TrainConfig:
        if isinstance(self.method, FullConfig) and self.backbone.quantize:
            raise ValueError("backbone.quantize: method full trains every weight, and 4-bit weights cannot train")
        given = self.method.model_dump(exclude_defaults=True)
        chosen = next((key for key in ("target", "where") if key in given), None)
        if "targets" in given and chosen:
            raise ValueError(f"method.{chosen}: method.targets names the modules already; leave one of them out")
        if last_layers(self.method) and self.activation_cache and self.trunk_dropout:
            problem = "trunk_dropout: with method.layers=last K the states below are kept, without dropout"
            raise ValueError(f"{problem}; set activation_cache=false")
        return self

    @model_validator(mode="after")
    def _hub_needs_a_name(self) -> TrainConfig:
        if self.push_to_hub and self.hub_model_id is None:
            raise ValueError("push_to_hub needs hub_model_id (organisation/name)")
        return self
