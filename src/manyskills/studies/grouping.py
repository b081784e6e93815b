"""Which tasks to train together: predicted from one short joint run, and checked by training where asked for.

Every subset is thought of as trained on the same rows of each of its tasks, in the same order, in batches of these rows
alone: all partitions then read the same number of rows, and differ in how many modules there are to keep and to run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from manyskills.config import AlternatingConfig, FixedConfig, FrozenConfig, TrainConfig
from manyskills.data.preparation import read_tasks
from manyskills.data.sampling import task_shares
from manyskills.errors import UserError
from manyskills.files import write_atomically
from manyskills.studies.affinity import Affinity, AffinityRecorder, read_affinity
from manyskills.studies.fit import Fit, fit
from manyskills.studies.grouping_report import Grouping, GroupingCost, Predicted, Verified
from manyskills.studies.partitions import (
    MOST_TASKS,
    Partition,
    Subset,
    advised,
    best_by_groups,
    members,
    ranked,
)
from manyskills.studies.surrogate import predicted_losses
from manyskills.training.loop import Announce
from manyskills.training.processes import Processes
from manyskills.training.run_folder import RunFolder
from manyskills.training.schedule import Schedule

MEASUREMENTS, LOOKAHEADS = 12, 3
"""Of a joint run: steps in which fresh gradients are taken, and in how many of these each task's step is tried out."""

AFFINITY_FILE = "affinity.jsonl"

FORWARD = 0.5
"""What a forward pass costs, a training step of a frozen backbone being 1."""


def grouping(
    config: TrainConfig, announce: Announce, *, share: float = 0.4, verify: int = 0, tolerance: float = 0.0
) -> Grouping:
    """Measure task affinity in one joint run and say which tasks to train together.

    Args:
        config: The training that is to be grouped; the study writes into its output_dir with `-grouping` behind it.
        announce: Gets sentences for people.
        share: Length of the joint run, as a share of the whole training.
        verify: How many of the best partitions are trained whole, and compared with what was predicted.
        tolerance: The advice is the partition with the fewest groups whose predicted loss is within this share of the
            best.

    Raises:
        UserError: The configuration cannot be grouped, or something is wrong with data or backbone.
    """
    _refuse(config)
    folder = study_folder(config)
    sizes = {name: len(part.rows) for name, part in read_tasks(config, ["train"])["train"].items()}
    steps = config.max_steps or Schedule.of(config, sum(sizes.values())).total
    length = max(2, round(steps * share))
    joint = joint_config(config, folder / f"joint-{length}", length)
    path = Path(joint.output_dir) / AFFINITY_FILE
    measurements = (joint.max_steps or 0) // (joint.conflict_steps or 1)
    recorder = AffinityRecorder(path, list(config.tasks), max(1, measurements // LOOKAHEADS))
    announce(f"one joint run of {joint.max_steps} steps measures what {len(config.tasks)} tasks do to each other")
    measured = fit(joint, announce, recorder)
    affinity = read_affinity(path)
    losses = predicted_losses(affinity, *(values["valid_loss"] for values in ends(joint)))
    found = ranked(len(affinity.tasks), relative_to_all(losses))
    verified: tuple[Verified, ...] = ()
    if verify:
        trained = _Trained(config, folder, steps, sizes, affinity.tasks, announce)
        verified = trained.compare(found, verify)
    result = Grouping(
        tasks=affinity.tasks,
        steps=affinity.steps,
        cosines=affinity.cosines_KK.tolist(),
        transfer=np.median(affinity.transfer_MKK, axis=0).tolist(),
        lookahead=affinity.lookahead_MKK.mean(axis=0).tolist() if len(affinity.lookahead_MKK) else None,
        predicted=tuple(Predicted(names_of(affinity.tasks, subset), tuple(losses[subset])) for subset in losses),
        partitions=tuple(_unverified(affinity.tasks, partition) for partition in best_by_groups(found)),
        advised=_unverified(affinity.tasks, advised(found, tolerance)),
        cost=_cost(affinity, measured, steps),
        verified=verified,
    )
    write_atomically(folder / "grouping.json", json.dumps(result.to_dict(), indent=2) + "\n")
    return result


def study_folder(config: TrainConfig) -> Path:
    """Where the study writes: beside the training's own folder, which stays free for it."""
    return Path(config.output_dir + "-grouping")


def _refuse(config: TrainConfig) -> None:
    if not 2 <= len(config.tasks) <= MOST_TASKS:
        raise UserError(f"{len(config.tasks)} tasks cannot be grouped", f"choose 2 to {MOST_TASKS} tasks")
    if isinstance(config.method, FrozenConfig):
        raise UserError("method frozen shares nothing between tasks: there is nothing to group", "choose method=lora")
    if isinstance(config.sampling, AlternatingConfig):
        hint = "set sampling=round_robin for the study"
        raise UserError("sampling alternating has one task a step: steps of subsets cannot be compared", hint)
    if Processes.current().count > 1:
        raise UserError("study grouping runs in one process", "start it without a launcher")


def joint_config(config: TrainConfig, folder: Path, steps: int) -> TrainConfig:
    """The run that is measured: all tasks, shorter, validated before the first and after the last step.

    Its learning rate follows a schedule of its own length, so that its end is comparable with the end of a training.
    """
    return config.model_copy(
        update={
            "output_dir": str(folder),
            "max_steps": steps,
            "eval_steps": steps,
            "save_steps": None,
            "conflict_steps": max(1, steps // MEASUREMENTS),
            "early_stopping": None,
        }
    )


def subset_config(
    config: TrainConfig, tasks: Sequence[str], folder: Path, steps: int, sizes: Mapping[str, int]
) -> TrainConfig:
    """The training of some of the tasks: for each the rows that the training of all gives it.

    Args:
        config: The training of all tasks.
        tasks: Which ones.
        folder: The output_dir.
        steps: Of the whole training.
        sizes: Training rows of all tasks.
    """
    shares = task_shares(sizes, config.sampling)
    changes: dict[str, Any] = {
        "output_dir": str(folder),
        "tasks": {name: config.tasks[name] for name in tasks},
        "batch_size": max(1, round(config.batch_size * sum(shares[name] for name in tasks))),
        "max_steps": steps,
        "conflict_steps": 0,
        "early_stopping": None,
    }
    if isinstance(config.balancing, FixedConfig):
        weights = {name: config.balancing.weights[name] for name in tasks}
        weights = weights if any(weights.values()) else dict.fromkeys(tasks, 1.0)
        changes["balancing"] = config.balancing.model_copy(update={"weights": weights})
    if config.distillation is not None:
        teachers = {name: run for name, run in config.distillation.teachers.items() if name in tasks}
        changes["distillation"] = config.distillation.model_copy(update={"teachers": teachers}) if teachers else None
    return config.model_copy(update=changes)


def ends(config: TrainConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first and the last validation of a training: before the first and after the last step."""
    valid = [record for record in RunFolder(config.output_dir).read_metrics() if record["kind"] == "valid"]
    return valid[0], valid[-1]


def relative_to_all(losses: Mapping[Subset, Sequence[float]]) -> dict[Subset, list[float]]:
    """Losses divided by those of the training of all tasks: tasks whose losses differ in size count alike."""
    together = losses[max(losses)]
    return {
        subset: [loss / together[task] for loss, task in zip(values, members(subset), strict=True)]
        for subset, values in losses.items()
    }


@dataclass(slots=True)
class _Trained:
    """Subsets of the tasks that are trained whole, each once."""

    config: TrainConfig
    folder: Path
    steps: int
    sizes: Mapping[str, int]
    tasks: Sequence[str]
    announce: Announce
    last: dict[Subset, dict[str, Any]] = field(default_factory=dict)

    def compare(self, found: Sequence[Partition], best: int) -> tuple[Verified, ...]:
        """The best partitions, all tasks together and each alone: predicted and real.

        Args:
            found: All partitions, the best first.
            best: How many of them are trained.
        """
        alone = tuple(1 << k for k in range(len(self.tasks)))
        everything = ((1 << len(self.tasks)) - 1,)
        wanted = [*found[:best], *(one for one in found[best:] if one.groups in (alone, everything))]
        for subset in sorted({*everything, *(group for one in wanted for group in one.groups)}, key=_by_size):
            self.last[subset] = self._train(subset)
        losses = {subset: self._values(subset, "valid_loss") for subset in self.last}
        real = relative_to_all(losses)
        return tuple(
            Verified(
                groups=tuple(names_of(self.tasks, group) for group in one.groups),
                predicted=one.loss,
                real=sum(sum(real[group]) for group in one.groups) / len(self.tasks),
                metric=sum(sum(self._values(group, "primary")) for group in one.groups) / len(self.tasks),
            )
            for one in wanted
        )

    def _train(self, subset: Subset) -> dict[str, Any]:
        names = names_of(self.tasks, subset)
        path = self.folder / "subsets" / "+".join(names)
        config = subset_config(self.config, names, path, self.steps, self.sizes)
        self.announce(f"training {', '.join(names)}")
        fit(config, lambda _: None)
        return ends(config)[1]

    def _values(self, subset: Subset, kind: str) -> list[float]:
        return [self.last[subset][kind][name] for name in names_of(self.tasks, subset)]


def _by_size(subset: Subset) -> tuple[int, int]:
    return subset.bit_count(), subset


def names_of(tasks: Sequence[str], subset: Subset) -> tuple[str, ...]:
    """The tasks of a subset."""
    return tuple(tasks[k] for k in members(subset))


def _unverified(tasks: Sequence[str], partition: Partition) -> Verified:
    groups = tuple(names_of(tasks, group) for group in partition.groups)
    return Verified(groups=groups, predicted=partition.loss, real=None, metric=None)


def _cost(affinity: Affinity, measured: Fit, steps: int) -> GroupingCost:
    """In joint steps: each subset's training costs, of every task it holds, that task's part of a joint step."""
    tasks = len(affinity.tasks)
    tried = len(affinity.lookahead_MKK) * (tasks + 1)
    return GroupingCost(
        steps=measured.steps + len(affinity.steps) + FORWARD * tried,
        all_subsets=float(2 ** (tasks - 1) * steps),
        tokens=measured.tokens,
        seconds=measured.seconds,
    )
