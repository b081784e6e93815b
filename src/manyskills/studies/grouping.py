"""Which tasks to train together: predicted from one short joint run, and checked by training where asked for.

Every subset is thought of as trained on the same rows of each of its tasks, in the same order, in batches of these rows
alone: all partitions then read the same number of rows, and differ in how many modules there are to keep and to run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
    subsets,
)
from manyskills.studies.surrogate import predicted_losses
from manyskills.training.loop import Announce
from manyskills.training.run_folder import RunFolder
from manyskills.training.schedule import Schedule

MEASUREMENTS, LOOKAHEADS = 12, 3
"""Of a joint run: steps in which fresh gradients are taken, and in how many of these each task's step is tried out."""

FORWARD = 0.5
"""What a forward pass costs, a training step of a frozen backbone being 1."""


def grouping(
    config: TrainConfig, announce: Announce, *, share: float = 0.4, verify: int = 0, tolerance: float = 0.0
) -> Grouping:
    """Measure task affinity in one joint run and say which tasks to train together.

    Args:
        config: The training that is to be grouped; its output_dir holds all that the study writes.
        announce: Gets sentences for people.
        share: Length of the joint run, as a share of the whole training.
        verify: How many of the best partitions are trained whole, and compared with what was predicted.
        tolerance: The advice is the partition with the fewest groups whose predicted loss is within this share of the
            best.

    Raises:
        UserError: The configuration cannot be grouped, or something is wrong with data or backbone.
    """
    _refuse(config)
    folder = Path(config.output_dir)
    steps = total_steps(config)
    joint = joint_config(config, folder / "joint", max(2, round(steps * share)), steps)
    every = joint.conflict_steps or 1
    recorder = AffinityRecorder(folder / "affinity", max(1, (joint.max_steps or 1) // every // LOOKAHEADS))
    announce(
        f"one joint run of {joint.max_steps} of {steps} steps measures how {len(config.tasks)} tasks affect each other"
    )
    measured = fit(joint, announce, recorder)
    affinity = read_affinity(folder / "affinity")
    start, end = validation_losses(joint)
    losses = predicted_losses(affinity, start, end)
    relative = relative_to_all(losses)
    found = ranked(len(affinity.tasks), relative)
    verified = _verify(config, folder, steps, found[:verify], affinity.tasks, announce) if verify else ()
    result = Grouping(
        tasks=affinity.tasks,
        steps=affinity.steps,
        cosines=affinity.cosines_KK.tolist(),
        transfer=np.median(affinity.transfer_MKK, axis=0).tolist(),
        lookahead=None if affinity.lookahead_KK is None else affinity.lookahead_KK.tolist(),
        predicted=tuple(Predicted(_names(affinity.tasks, subset), tuple(losses[subset])) for subset in losses),
        partitions=tuple(_groups(affinity.tasks, partition) for partition in best_by_groups(found)),
        advised=_groups(affinity.tasks, advised(found, tolerance)),
        cost=_cost(affinity, measured, len(list((folder / "affinity").glob("*.safetensors"))), steps),
        verified=verified,
    )
    write_atomically(folder / "grouping.json", json.dumps(result.to_dict(), indent=2) + "\n")
    return result


def _refuse(config: TrainConfig) -> None:
    if not 2 <= len(config.tasks) <= MOST_TASKS:
        raise UserError(f"{len(config.tasks)} tasks cannot be grouped", f"choose 2 to {MOST_TASKS} tasks")
    if isinstance(config.method, FrozenConfig):
        raise UserError("method frozen shares nothing between tasks: there is nothing to group", "choose method=lora")
    if isinstance(config.sampling, AlternatingConfig):
        hint = "set sampling=round_robin for the study"
        raise UserError("sampling alternating has one task a step: steps of subsets cannot be compared", hint)


def total_steps(config: TrainConfig) -> int:
    """Steps of the whole training."""
    if config.max_steps:
        return config.max_steps
    rows = read_tasks(config, ["train"])["train"]
    return Schedule.of(config, sum(len(part.rows) for part in rows.values())).total


def joint_config(config: TrainConfig, folder: Path, steps: int, total: int) -> TrainConfig:
    """The run that is measured: all tasks, shorter, validated before the first and after the last step.

    Its learning rate follows a schedule of its own length, so that its end is comparable with the end of a training.
    """
    return config.model_copy(
        update={
            "output_dir": str(folder),
            "max_steps": steps,
            "eval_steps": total,
            "save_steps": None,
            "conflict_steps": max(1, steps // MEASUREMENTS),
            "early_stopping": None,
        }
    )


def subset_config(config: TrainConfig, tasks: Sequence[str], folder: Path, steps: int) -> TrainConfig:
    """The training of some of the tasks: for each the rows that the training of all gives it."""
    sizes = {name: len(part.rows) for name, part in read_tasks(config, ["train"])["train"].items()}
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
        changes["balancing"] = FixedConfig(weights={name: config.balancing.weights[name] for name in tasks})
    if config.distillation is not None:
        teachers = {name: run for name, run in config.distillation.teachers.items() if name in tasks}
        changes["distillation"] = config.distillation.model_copy(update={"teachers": teachers}) if teachers else None
    return config.model_copy(update=changes)


def validation_losses(config: TrainConfig) -> tuple[dict[str, float], dict[str, float]]:
    """Each task's validation loss before the first and after the last step of a training."""
    valid = [record for record in RunFolder(config.output_dir).read_metrics() if record["kind"] == "valid"]
    return valid[0]["valid_loss"], valid[-1]["valid_loss"]


def relative_to_all(losses: Mapping[Subset, Sequence[float]]) -> dict[Subset, list[float]]:
    """Losses divided by those of the training of all tasks: tasks whose losses differ in size count alike."""
    together = losses[max(losses)]
    return {
        subset: [loss / together[task] for loss, task in zip(values, members(subset), strict=True)]
        for subset, values in losses.items()
    }


def _verify(
    config: TrainConfig,
    folder: Path,
    steps: int,
    partitions: Sequence[Partition],
    tasks: Sequence[str],
    announce: Announce,
) -> tuple[Verified, ...]:
    """Train the groups of these partitions, all tasks together and each alone, whole."""
    everything = (1 << len(tasks)) - 1
    baselines = [Partition((everything,), 1.0), Partition(tuple(1 << k for k in range(len(tasks))), np.nan)]
    wanted = [*partitions, *(one for one in baselines if one.groups not in {p.groups for p in partitions})]
    trained = train_subsets(config, {g for one in wanted for g in one.groups}, folder, steps, tasks, announce)
    real = relative_to_all({subset: [found[1][tasks[k]] for k in members(subset)] for subset, found in trained.items()})
    predicted = {one.groups: one.loss for one in partitions}
    return tuple(
        Verified(
            groups=tuple(_names(tasks, group) for group in one.groups),
            predicted=predicted.get(one.groups),
            real=sum(sum(real[group]) for group in one.groups) / len(tasks),
            metric=float(np.mean([trained[g][0].primary[tasks[k]] for g in one.groups for k in members(g)])),
        )
        for one in wanted
    )


def train_subsets(
    config: TrainConfig, wanted: set[Subset], folder: Path, steps: int, tasks: Sequence[str], announce: Announce
) -> dict[Subset, tuple[Fit, dict[str, float]]]:
    """Train subsets of the tasks whole, each once: what came of it, and the validation losses after the last step."""
    found: dict[Subset, tuple[Fit, dict[str, float]]] = {}
    for subset in sorted(wanted | {(1 << len(tasks)) - 1}, key=subsets(len(tasks)).index):
        names = _names(tasks, subset)
        one = subset_config(config, names, folder / "subsets" / "+".join(names), steps)
        announce(f"training {', '.join(names)}")
        found[subset] = fit(one, lambda _: None), validation_losses(one)[1]
    return found


def _names(tasks: Sequence[str], subset: Subset) -> tuple[str, ...]:
    return tuple(tasks[k] for k in members(subset))


def _groups(tasks: Sequence[str], partition: Partition) -> Verified:
    groups = tuple(_names(tasks, group) for group in partition.groups)
    return Verified(groups=groups, predicted=partition.loss, real=None, metric=None)


def _cost(affinity: Affinity, measured: Fit, moments: int, steps: int) -> GroupingCost:
    """In joint steps: each subset's training costs, of every task it holds, that task's part of a joint step."""
    tasks = len(affinity.tasks)
    tried = 0 if affinity.lookahead_KK is None else LOOKAHEADS * (tasks + 1)
    spent = measured.steps + moments + FORWARD * tried
    return GroupingCost(
        steps=spent,
        all_subsets=float(2 ** (tasks - 1) * steps),
        tokens=measured.tokens,
        seconds=measured.seconds,
    )
