"""What a run measured about one of its tasks while it trained: conflict, weight, rows, and its own best step.

Nothing is recomputed that needs the model: all of it stands in results.json and metrics.jsonl, and what a run did not
write is None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from manyskills.config import AlternatingConfig, EarlyStoppingConfig, SamplingConfig
from manyskills.data.sampling import Phase, task_shares
from manyskills.evaluation.conflict import conflict_summary
from manyskills.studies.runs import FinishedRun
from manyskills.training.progress import Progress


@dataclass(frozen=True, slots=True)
class TrainingFacts:
    """One task in one run.

    Attributes:
        seed: Of the run.
        best_step: Step of the checkpoint that was kept, which all tasks of the run share.
        own_best_step: Step at which this task's validation metric was highest.
        own_best_value: That value.
        shared_value: The metric at `best_step`.
        stopped: Whether the task left the sampling before the run ended.
        rows_seen: Rows drawn up to `best_step`.
        tokens: Tokens that the run encoded up to then, of all its tasks.
        measured_steps: Steps in which the tasks' gradients on the shared module were measured.
        cosines: Mean cosine with each other task's gradient.
        negative: Share of the measured steps in which it was below 0.
        weight: Mean effective weight, of 1 for all tasks.
        gradient_share: Mean length of its gradient times its weight, of 1 for all tasks.
    """

    seed: int
    best_step: int | None
    own_best_step: int | None
    own_best_value: float | None
    shared_value: float | None
    stopped: bool
    rows_seen: int | None
    tokens: int | None
    measured_steps: int
    cosines: dict[str, float]
    negative: dict[str, float]
    weight: float | None
    gradient_share: float | None

    @property
    def lost_by_sharing(self) -> float | None:
        """How much higher the task's own best stands than the shared checkpoint, on validation."""
        if self.own_best_value is None or self.shared_value is None:
            return None
        return self.own_best_value - self.shared_value

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"lost_by_sharing": self.lost_by_sharing}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainingFacts:
        """The inverse of `to_dict`."""
        return cls(**{name: value for name, value in data.items() if name != "lost_by_sharing"})


def training_facts(run: FinishedRun, task: str) -> TrainingFacts:
    """Everything that a run wrote about this task."""
    training = run.results.get("training", {})
    best_step = training.get("best_step")
    validated = {record["step"]: record["primary"][task] for record in _validations(run)}
    own_best_step = max(validated, key=validated.__getitem__, default=None)
    conflict = run.results.get("conflict") or conflict_summary(run.records, [])
    weights, norms = conflict.get("weights") or {}, conflict.get("norms") or {}
    return TrainingFacts(
        seed=run.seed,
        best_step=best_step,
        own_best_step=own_best_step,
        own_best_value=None if own_best_step is None else validated[own_best_step],
        shared_value=validated.get(best_step),
        stopped=task in training.get("stopped", {}),
        rows_seen=_rows_seen(run, task, best_step),
        tokens=_tokens(run, best_step),
        measured_steps=conflict.get("steps", 0),
        cosines=_with_others(conflict.get("cosines") or {}, task),
        negative=_with_others(conflict.get("negative") or {}, task),
        weight=weights.get(task),
        gradient_share=_share({name: weights[name] * norms[name] for name in weights if name in norms}, task),
    )


def batch_share(run: FinishedRun, task: str) -> float | None:
    """Rows of the task in a step that holds all tasks; None where each step is of one task, or it is not known."""
    try:
        one_task = isinstance(_sampling(run), AlternatingConfig)
        return None if one_task else _rows_a_step(run, run.tasks)[task]
    except (KeyError, ValidationError):  # written by another version
        return None


def _validations(run: FinishedRun) -> list[Mapping[str, Any]]:
    return [record for record in run.records if record.get("kind") == "valid" and "primary" in record]


def _with_others(pairs: Mapping[str, Mapping[str, float]], task: str) -> dict[str, float]:
    """A pair stands under the name of either of its tasks."""
    found = {other: value for other, value in pairs.get(task, {}).items() if other != task}
    return found | {other: row[task] for other, row in pairs.items() if other != task and task in row}


def _share(values: Mapping[str, float], task: str) -> float | None:
    total = sum(values.values())
    return values[task] / total if task in values and total else None


def _tokens(run: FinishedRun, step: int | None) -> int | None:
    """Tokens up to a step, between two logged steps in proportion."""
    known = {0: 0} | {
        record["step"]: record["tokens"]
        for record in run.records
        if record.get("kind") == "train" and "tokens" in record
    }
    training = run.results.get("training", {})
    if "steps" in training and "tokens" in training:
        known[training["steps"]] = training["tokens"]
    before = max((at for at in known if step is not None and at <= step), default=None)
    after = min((at for at in known if step is not None and at >= step), default=None)
    if step is None or before is None or after is None:
        return None
    share = (step - before) / (after - before) if after > before else 0.0
    return round(known[before] + share * (known[after] - known[before]))


def _rows_seen(run: FinishedRun, task: str, step: int | None) -> int | None:
    """Rows drawn up to a step: each phase of the run has its tasks' shares of the batch."""
    try:
        phases = _phases(run)
        rows = [_rows_a_step(run, phase.active).get(task, 0.0) for phase in phases]
    except (KeyError, ValidationError):  # written by another version
        return None
    if step is None:
        return None
    ends = [*(following.start for following in phases[1:]), step]
    spans = [max(0, min(end, step) - phase.start) for phase, end in zip(phases, ends, strict=True)]
    return round(sum(steps * drawn for steps, drawn in zip(spans, rows, strict=True)))


def _rows_a_step(run: FinishedRun, active: Sequence[str]) -> dict[str, float]:
    """Rows of each of these tasks in a step, on average, while they are drawn from."""
    sizes = {name: run.results["tasks"][name]["rows"]["train"] for name in active}
    shares = task_shares(sizes, _sampling(run))
    return {name: run.config["batch_size"] * share for name, share in shares.items()}


def _sampling(run: FinishedRun) -> SamplingConfig:
    return TypeAdapter(SamplingConfig).validate_python(run.config["sampling"])


def _phases(run: FinishedRun) -> list[Phase]:
    """Which tasks were drawn from since when: the validations, judged as the run itself did."""
    written = run.config.get("early_stopping")
    rule = None if written is None else EarlyStoppingConfig.model_validate(written)
    progress = Progress([Phase(0, run.tasks)])
    for number, record in enumerate(_validations(run)):
        progress.step = record["step"]
        if number:
            progress.observe(record["primary"], rule)
        else:
            progress.start(record["primary"])
    return progress.phases
