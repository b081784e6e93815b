"""Negative transfer: for every task, runs that learn all tasks together against runs that learn it alone.

Both are compared row by row on the same test rows, with the primary metric at each run's own threshold. What is said
about a task then lists what the joint runs measured of it while they trained: facts that accompany a difference, not
proofs of its cause.

Shapes: S runs, N rows, F parts of a row, R resamples (see `manyskills.evaluation.paired`).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from manyskills.errors import UserError
from manyskills.evaluation.bootstrap import Floats, estimates
from manyskills.evaluation.paired import Comparison, compare, holm, paired_replicates, run_values
from manyskills.evaluation.scores import Estimate, defined
from manyskills.studies.runs import (
    BETWEEN_TASKS,
    FinishedRun,
    changed_settings,
    read_answers,
    read_run,
    refuse_other_data,
)
from manyskills.studies.training_facts import batch_share, training_facts
from manyskills.studies.transfer_report import TaskTransfer, Transfer

RESAMPLES, PERMUTATIONS, CONFIDENCE = 2_000, 10_000, 0.95


def transfer(multi: Sequence[Path], single: Sequence[Path]) -> Transfer:
    """Compare multi-task with single-task runs, task by task.

    Args:
        multi: Folders of finished runs of several tasks that differ only in their seed.
        single: Folders of finished runs of one task each; those of a task differ only in their seed.

    Raises:
        UserError: A run is not finished or its files are broken; the runs are not of these kinds; a task has no
            single-task run; test rows, labels or data differ; a primary metric cannot be compared row by row.
    """
    together = _multi_runs(multi)
    alone = _single_runs(single, together[0])
    parts: dict[str, tuple[Floats, Floats]] = {}
    replicates: dict[str, Floats] = {}
    compared: dict[str, Comparison] = {}
    for task, runs in alone.items():
        refuse_other_data([*together, *runs], task)
        metric, reference = together[0].metric(task), together[0]
        parts[task] = multi_SNF, single_SNF = _parts(together, task, reference), _parts(runs, task, reference)
        # tasks have rows of their own: with equal seeds the draws of equally large tasks would go together
        seed = zlib.crc32(task.encode())
        replicates[task] = paired_replicates(multi_SNF, single_SNF, metric, samples=RESAMPLES, seed=seed)
        compared[task] = compare(
            multi_SNF, single_SNF, metric, replicates[task],
            confidence=CONFIDENCE, permutations=PERMUTATIONS, seed=seed,
        )  # fmt: skip
    corrected = holm({task: found.p_value for task, found in compared.items()})
    tasks = tuple(
        _task_transfer(task, compared[task], corrected[task], parts[task], together, runs)
        for task, runs in alone.items()
    )
    return Transfer(
        tasks,
        _relative_gain(compared, replicates),
        tuple(str(run.path) for run in together),
        tuple(str(run.path) for runs in alone.values() for run in runs),
        CONFIDENCE,
        RESAMPLES,
        PERMUTATIONS,
        tuple(_notes(together, alone)),
    )


def _multi_runs(folders: Sequence[Path]) -> list[FinishedRun]:
    if not folders:
        raise UserError("there is no multi-task run", "give at least one run folder")
    runs = _read_all(folders)
    for run in runs:
        if len(run.tasks) < 2:
            what = f"{run.path} holds one task ({', '.join(run.tasks)}): wanted a run of several"
            raise UserError(what, "single-task runs come after --single")
        if run.tasks != runs[0].tasks:
            what = f"{run.path} holds {', '.join(run.tasks)}, and {runs[0].path} {', '.join(runs[0].tasks)}"
            raise UserError(what, "multi-task runs may differ only in their seed")
    _refuse_more_than_seeds(runs)
    return _by_seed(runs)


def _single_runs(folders: Sequence[Path], together: FinishedRun) -> dict[str, list[FinishedRun]]:
    """By task, in the order of the multi-task runs."""
    found: dict[str, list[FinishedRun]] = {task: [] for task in together.tasks}
    for run in _read_all(folders):
        if len(run.tasks) != 1:
            what = f"{run.path} holds {len(run.tasks)} tasks ({', '.join(run.tasks)}): wanted one with --single"
            raise UserError(what, "multi-task runs come first, before --single")
        if run.tasks[0] not in found:
            what = f"{run.path} holds {run.tasks[0]}, which {together.path} does not"
            raise UserError(what, f"wanted runs of: {', '.join(together.tasks)}")
        found[run.tasks[0]].append(run)
    if missing := [task for task, runs in found.items() if not runs]:
        hint = f"train one with tasks=[{missing[0]}], and give its folder with --single"
        raise UserError(f"there is no single-task run of {', '.join(missing)}", hint)
    for task, runs in found.items():
        _refuse_more_than_seeds(runs)
        if runs[0].metric(task) != together.metric(task):
            what = f"{runs[0].path} measures {task} by {runs[0].metric(task)}, and {together.path} by"
            raise UserError(f"{what} {together.metric(task)}", "compare runs with the same primary metric")
    return {task: _by_seed(runs) for task, runs in found.items()}


def _by_seed(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """The test lets runs change answers pair by pair: the pairs are of one seed then, in whatever order they came."""
    return sorted(runs, key=lambda run: run.seed)


def _read_all(folders: Sequence[Path]) -> list[FinishedRun]:
    known: set[Path] = set()
    for folder in folders:
        if folder.resolve() in known:
            raise UserError(f"{folder} is given twice", "give each run once")
        known.add(folder.resolve())
    return [read_run(folder) for folder in folders]


def _refuse_more_than_seeds(runs: Sequence[FinishedRun]) -> None:
    seeds: dict[int, FinishedRun] = {}
    for run in runs:
        if run.seed in seeds:
            what = f"{run.path} and {seeds[run.seed].path} have the same tasks and the same seed, {run.seed}"
            raise UserError(what, "give one of them: runs of one kind differ in their seed")
        seeds[run.seed] = run
        if changed := changed_settings(runs[0], run):
            what = f"{runs[0].path} and {run.path} differ in {', '.join(changed)}"
            raise UserError(what, "runs of one kind may differ only in their seed")


def _parts(runs: Sequence[FinishedRun], task: str, reference: FinishedRun) -> Floats:
    """Parts of all runs, shape (S, N, F), in the order of the reference's rows."""
    order = read_answers(reference, task)
    return np.stack([read_answers(run, task).in_order_of(order) for run in runs])


def _task_transfer(
    task: str,
    comparison: Comparison,
    corrected_p: float,
    parts: tuple[Floats, Floats],
    together: Sequence[FinishedRun],
    alone: Sequence[FinishedRun],
) -> TaskTransfer:
    return TaskTransfer(
        task,
        together[0].results["tasks"][task].get("synthetic"),
        comparison,
        corrected_p,
        _values(parts[0], comparison.metric),
        _values(parts[1], comparison.metric),
        tuple(training_facts(run, task) for run in together),
        tuple(training_facts(run, task) for run in alone),
    )


def _values(parts_SNF: Floats, metric: str) -> tuple[float | None, ...]:
    return tuple(defined(value) for value in run_values(parts_SNF, metric))


def _relative_gain(compared: Mapping[str, Comparison], replicates: Mapping[str, Floats]) -> Estimate:
    """Mean over tasks; the tasks' rows are drawn independently."""
    values = np.array([[found.first.value, found.second.value] for found in compared.values()], dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.mean(values[:, 0] / values[:, 1] - 1)
        gains_R = np.mean([multi_R / single_R - 1 for multi_R, single_R in replicates.values()], axis=0)
    return estimates({"gain": float(gain)}, {"gain": gains_R}, CONFIDENCE)["gain"]


def _notes(together: Sequence[FinishedRun], alone: Mapping[str, Sequence[FinishedRun]]) -> list[str]:
    found = []
    for task, runs in alone.items():
        but = BETWEEN_TASKS | ({"batch_size"} if _same_part_of_batch(together[0], runs[0], task) else frozenset())
        if changed := changed_settings(together[0], runs[0], but=but):
            found.append(f"{task}: the multi-task and the single-task runs also differ in {', '.join(changed)}")
    few = [task for task, runs in alone.items() if len(runs) == 1]
    if len(together) == 1 or few:
        who = ["the multi-task runs"] if len(together) == 1 else []
        who += [f"{', '.join(few)} alone"] if few else []
        found.append(f"one seed only for {' and '.join(who)}: how far results move with the seed is not known")
    return found


def _same_part_of_batch(together: FinishedRun, alone: FinishedRun, task: str) -> bool:
    """Whether a step holds as many rows of the task alone as among all; a part that is no whole number may be rounded
    either way."""
    share = batch_share(together, task)
    return share is not None and abs(share - alone.config["batch_size"]) < 1
