"""What early stopping and selection know: which task still improves, and which checkpoint is the best for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from manyskills.config import EarlyStoppingConfig
from manyskills.data.sampling import Phase
from manyskills.training.conflict import Watch
from manyskills.training.interval import Interval

LEAST_SHORTFALL = 0.05


@dataclass(slots=True)
class TaskProgress:
    """One task's best validation value, when it was, and for how many evaluations there was none better."""

    best: float
    best_step: int
    waited: int = 0


@dataclass(slots=True)
class Progress:
    """The state of a run between two steps; with weights, moments and the balancing rule's state it is all there is.

    Attributes:
        step: Updates done.
        tokens: Tokens that these updates encoded.
        seconds: Time they took, validations left out.
        phases: Which tasks were drawn from since when.
        baseline: Primary metric of each task before the first step.
        tasks: Each task's own best.
        best_selection: The selection score of `best/`.
        best_step: Where it was.
        thresholds: Of the last validation.
        watch: What was seen of conflicts between the tasks, and which warnings were given.
        interval: What the steps since the last train record measured.
        turns: How many steps held each task.
    """

    phases: list[Phase]
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    baseline: dict[str, float] = field(default_factory=dict)
    tasks: dict[str, TaskProgress] = field(default_factory=dict)
    best_selection: float = float("-inf")
    best_step: int = -1
    thresholds: dict[str, float] = field(default_factory=dict)
    watch: Watch = field(default_factory=Watch)
    interval: Interval = field(default_factory=Interval)
    turns: dict[str, int] = field(default_factory=dict)

    @property
    def active(self) -> tuple[str, ...]:
        """Tasks that are still drawn from."""
        return self.phases[-1].active

    def start(self, primary: Mapping[str, float]) -> None:
        """Note the metrics before the first step: what selection measures against."""
        self.baseline = dict(primary)
        self.tasks = {name: TaskProgress(value, 0) for name, value in primary.items()}

    def observe(self, primary: Mapping[str, float], rule: EarlyStoppingConfig | None) -> list[str]:
        """Note a validation; a task that has not improved for `patience` of them leaves the sampling.

        Returns:
            The tasks that improved.
        """
        min_delta = rule.min_delta if rule else 0.0
        improved = [name for name, value in primary.items() if value > self.tasks[name].best + min_delta]
        for name in self.tasks:
            if name in improved:
                self.tasks[name] = TaskProgress(primary[name], self.step)
            else:
                self.tasks[name].waited += 1
        if rule is not None:
            still = tuple(name for name in self.active if self.tasks[name].waited < rule.patience)
            if still != self.active:
                self.phases.append(Phase(self.step, still))
        return improved

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Progress:
        """The inverse of `to_dict`."""
        phases = [Phase(phase["start"], tuple(phase["active"])) for phase in data["phases"]]
        tasks = {name: TaskProgress(**entry) for name, entry in data["tasks"].items()}
        watch, interval = Watch.from_dict(data["watch"]), Interval(**data["interval"])
        return cls(**{**data, "phases": phases, "tasks": tasks, "watch": watch, "interval": interval})


def selection_score(primary: Mapping[str, float], baseline: Mapping[str, float]) -> float:
    """Mean over tasks of the share of the baseline's shortfall from 1 that was made up.

    Metrics of different tasks are not comparable in points; relative to what was left to gain they are. All primary
    metrics have 1 as their best value. A shortfall counts as `LEAST_SHORTFALL` at least: else a task that was perfect
    before the first step would decide alone.
    """
    gains = [(primary[name] - base) / max(1 - base, LEAST_SHORTFALL) for name, base in baseline.items()]
    return sum(gains) / len(gains)
