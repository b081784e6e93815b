"""What a run will cost, before it is started: steps, tokens, parameters, memory, truncation.

Nothing is trained and no weights are read; the network is built on the meta device, so a plan at real size needs only a
backbone's configuration and tokenizer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from manyskills.config import TrainConfig, last_layers
from manyskills.data.activation_store import STATE_BYTES, different_tokens
from manyskills.data.options import refuse_useless_options, refuse_what_cannot_write
from manyskills.data.preparation import (
    Prepared,
    Truncation,
    prepare,
    read_tasks,
    refuse_one_label,
    synthetic_tasks,
)
from manyskills.data.prompted import PromptExamples
from manyskills.data.sampling import Phase, Sampler
from manyskills.data.text_set import Examples, gather
from manyskills.model.answers import AnswerStates
from manyskills.model.attention import choose_attention
from manyskills.model.backbones import load_backbone
from manyskills.model.methods.overview import MethodFacts, facts
from manyskills.model.multitask import MultiTaskModel, stored_as, writes
from manyskills.model.quantization import saved_bytes
from manyskills.model.trunk import why_whole
from manyskills.tasks import SPLITS, SplitName
from manyskills.training.loop import positive_shares
from manyskills.training.memory import Held, Memory, MemoryEstimate, Place
from manyskills.training.schedule import Schedule
from manyskills.training.teachers import find_teachers

SAMPLED_STEPS = 50
"""Steps whose texts are looked at to estimate tokens; the sampler makes any step without the ones before it."""


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """One task of a plan."""

    rows: dict[SplitName, int]
    rows_a_step: float
    texts_a_step: float
    truncation: Truncation
    synthetic: str | None
    answers_cut: Truncation | None = None


@dataclass(frozen=True, slots=True)
class LowerLayers:
    """Layers that run once for each text, because nothing in or below them trains.

    Attributes:
        count: How many.
        tokens: Of the different texts for training and validation.
        disk: Bytes that the states behind these layers take.
    """

    count: int
    tokens: int
    disk: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A run before it is started."""

    tasks: dict[str, TaskPlan]
    steps: int
    eval_steps: int
    tokens_a_step: float
    padded_tokens_a_step: float
    tokens: int
    tokens_to_validate: int
    method: MethodFacts
    trainable_heads: int
    place: Place
    memory: dict[str, Memory]
    step_memory: str
    lower_layers: LowerLayers | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {
            "method": self.method.to_dict(),
            "estimated_memory": {how: memory.total for how, memory in self.memory.items()},
        }


def make_plan(config: TrainConfig) -> Plan:
    """Read and check all data, build the network without weights, and estimate.

    Raises:
        UserError: Whatever would stop the run.
    """
    refuse_useless_options(config)
    refuse_what_cannot_write(config)
    place = Place.of(config)
    backbone = load_backbone(stored_as(config), weights=False, language_head=writes(config))
    (backbone.language_model or backbone.model).to(dtype=place.stored(backbone.config))  # pyright: ignore[reportCallIssue]
    saved = saved_bytes(backbone.model) if backbone.config.quantize else 0
    model = MultiTaskModel(backbone, config.method, config.tasks)
    choose_attention(model, config.attention)
    estimate = MemoryEstimate(model, config, place, saved)
    if config.gradient_checkpointing:
        model.checkpoint_gradients()
    positions = model.architecture.max_positions
    find_teachers(config)
    rows = read_tasks(config, SPLITS)
    prepared = prepare(
        rows, config.tasks, config.max_length, model.tokenizer, model.template, positions, model.routes,
        family=model.architecture.family,
    )  # fmt: skip
    refuse_one_label(prepared.all_examples("train"))
    schedule = Schedule.of(config, sum(len(part) for part in prepared.all_examples("train").values()))
    steps = _look_at_steps(config, model, prepared, schedule.total, place)
    method = _method_facts(config, model)
    shared = method.trainable
    heads = sum(p.numel() for _, p in model.head_parameters())
    synthetic = synthetic_tasks(rows)
    return Plan(
        tasks={
            name: TaskPlan(
                {split: len(rows[split][name].rows) for split in SPLITS},
                steps.rows[name],
                steps.texts[name],
                prepared.truncation[name],
                synthetic.get(name),
                prepared.answers_cut.get(name),
            )
            for name in config.tasks
        },
        steps=schedule.total,
        eval_steps=schedule.eval_steps,
        tokens_a_step=steps.tokens,
        padded_tokens_a_step=steps.padded,
        tokens=int(steps.tokens * schedule.total) if shared else 0,
        tokens_to_validate=_tokens_to_validate(prepared),
        method=method,
        trainable_heads=heads,
        place=place,
        memory={"single_pass": estimate.of(steps.whole), "cached": estimate.of(steps.one_chunk)},
        step_memory=config.step_memory,
        lower_layers=_lower_layers(config, model, prepared),
    )


def _method_facts(config: TrainConfig, model: MultiTaskModel) -> MethodFacts:
    """Of all that the tasks share; an output layer of its own trains with the backbone's weights."""
    found = facts(model.backbone, config.method, model.backbone_parameters)
    trained = [p for _, p in model.shared_parameters()]
    return replace(
        found,
        trainable=sum(p.numel() for p in trained),
        storage=sum(p.numel() * p.element_size() for p in trained),
    )


def _lower_layers(config: TrainConfig, model: MultiTaskModel, prepared: Prepared) -> LowerLayers | None:
    last = last_layers(config.method)
    if last is None or not config.activation_cache or why_whole(model.architecture, last):
        return None
    indices_N = np.union1d(prepared.used_texts("train"), prepared.used_texts("valid"))
    tokens = different_tokens(prepared.store, indices_N)
    width = model.architecture.hidden_size
    return LowerLayers(model.architecture.layers - last, tokens, tokens * width * STATE_BYTES)


def _tokens_to_validate(prepared: Prepared) -> int:
    """Of texts, prompts and right answers; generated tokens are not known before."""
    written = 0
    if prepared.prompts is not None:
        lengths_S = prepared.prompts.lengths_S
        written = sum(int(lengths_S[part.prompts_E].sum()) for part in prepared.prompted.get("valid", {}).values())
    return int(prepared.store.lengths_N[prepared.used_texts("valid")].sum()) + written


@dataclass(frozen=True, slots=True)
class _Steps:
    rows: dict[str, float]
    texts: dict[str, float]
    tokens: float
    padded: float
    whole: Held
    one_chunk: Held


def _look_at_steps(config: TrainConfig, model: MultiTaskModel, prepared: Prepared, total: int, place: Place) -> _Steps:
    """Averages and maxima over steps spread evenly over the run."""
    train = prepared.all_examples("train")
    states = None if prepared.prompts is None else AnswerStates(model, prepared.prompts)
    sampler = Sampler(train, config.sampling, config.batch_size, config.seed, positive_shares(config))
    phases = [Phase(0, tuple(config.tasks))]
    rows: dict[str, list[int]] = {name: [] for name in config.tasks}
    texts: dict[str, list[int]] = {name: [] for name in config.tasks}
    tokens, padded, longest, chunks, predicted = [], [], [], [], [0]
    for step in np.unique(np.linspace(0, total - 1, min(SAMPLED_STEPS, total)).astype(int)).tolist():
        batch = sampler.at(step, phases)
        with_heads = {name: part for name, part in batch.items() if isinstance(part, Examples)}
        lengths_S = prepared.store.lengths_S[prepared.store.pieces(gather(with_heads).unique_N).sequences_S]
        plan = model.plan(lengths_S, config.token_budget, place.device) if len(lengths_S) else []
        sizes = [model.chunk_tokens(lengths_S[chunk]) for chunk in plan]
        prompts = [part.prompts_E for part in batch.values() if isinstance(part, PromptExamples)]
        if states is not None and prompts:
            prompts_S = np.concatenate(prompts)
            written = states.plan(prompts_S, config.token_budget, place.device)
            sizes += [states.chunk_tokens(prompts_S[chunk]) for chunk in written]
            tokens.append(int(lengths_S.sum()) + int(states.lengths(prompts_S).sum()))
            predicted.append(int(states.counts(prompts_S).sum()))
        else:
            tokens.append(int(lengths_S.sum()))
        padded.append(sum(sizes))
        longest.append(max(sizes))
        chunks.append(len(sizes))
        for name in config.tasks:
            rows[name].append(len(batch[name]) if name in batch else 0)
            texts[name].append(_texts(batch[name]) if name in batch else 0)
    return _Steps(
        {name: float(np.mean(values)) for name, values in rows.items()},
        {name: float(np.mean(values)) for name, values in texts.items()},
        float(np.mean(tokens)),
        float(np.mean(padded)),
        Held(max(padded), max(chunks), max(longest), max(predicted)),
        Held(max(longest), 1, max(longest), max(predicted)),
    )


def _texts(part: Examples | PromptExamples) -> int:
    """How many different texts or prompts these examples have."""
    return len(part) if isinstance(part, PromptExamples) else len(np.unique(part.texts_EK))
