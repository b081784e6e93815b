"""Finished runs as a study reads them: their results, measurements and answers, and whether they may be compared.

Shapes: N test rows, F parts of a row (see `manyskills.evaluation.paired`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from manyskills.errors import UserError
from manyskills.evaluation.bootstrap import Floats
from manyskills.evaluation.paired import decision_parts, rank_parts, run_values
from manyskills.evaluation.results import METRIC_LABELS
from manyskills.tasks import SPLITS, Kind
from manyskills.training.run_folder import RunFolder

RESTORE = "restore the file, or train again"
NO_MATTER = frozenset({
    "seed", "output_dir", "report_to", "push_to_hub", "hub_model_id", "hub_private", "data_dir", "tasks",
    "baselines", "floor_rows", "bootstrap_samples", "confidence", "logging_steps", "conflict_steps", "save_steps",
    "token_budget", "attention", "step_memory", "gradient_checkpointing", "activation_cache", "vector_cache",
})  # fmt: skip
"""Settings that do not change what is learnt, or that are compared otherwise: the data by their content."""

BETWEEN_TASKS = frozenset({"sampling", "balancing"})
"""Settings that mean nothing where there is one task."""


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run folder with results.

    Attributes:
        path: The folder.
        results: Content of results.json.
        records: Lines of metrics.jsonl; none if it is gone.
    """

    path: Path
    results: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration, as plain data."""
        return self.results["config"]

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.config["seed"]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names, in the run's order."""
        return tuple(self.results["tasks"])

    def metric(self, task: str) -> str:
        """Key of the task's primary metric."""
        return self.results["tasks"][task]["primary_metric"]

    def digest(self, split: str, task: str) -> str:
        """Content hash of the rows that were used."""
        return self.results["data"][split][task]


@dataclass(frozen=True, slots=True)
class RowAnswers:
    """What a run answered for the test rows of a task.

    Attributes:
        path: The file.
        ids: Of the rows, in the file's order.
        labels: 0 or 1 of each row; None for a search.
        parts_NF: What each row adds to the primary metric.
    """

    path: Path
    ids: tuple[Any, ...]
    labels: tuple[int, ...] | None
    parts_NF: Floats

    def in_order_of(self, other: RowAnswers) -> Floats:
        """The parts of these answers in the order of the other run's rows.

        Raises:
            UserError: The rows or their labels are not the same.
        """
        places = {id_: place for place, id_ in enumerate(self.ids)}
        missing = next((id_ for id_ in other.ids if id_ not in places), None)
        if missing is not None or len(self.ids) != len(other.ids):
            what = f"{self.path} and {other.path} answer different rows"
            found = f"{len(self.ids)} and {len(other.ids)}" if missing is None else f"{missing} is only in the latter"
            raise UserError(f"{what}: {found}", "compare runs that were tested on the same rows")
        order_N = np.array([places[id_] for id_ in other.ids])
        if self.labels is not None and other.labels is not None:
            moved = [self.labels[place] for place in order_N]
            if wrong := [id_ for id_, mine, its in zip(other.ids, moved, other.labels, strict=True) if mine != its]:
                what = f"{self.path} and {other.path} have different labels for row {wrong[0]}"
                raise UserError(what, "compare runs that were tested on the same rows")
        return self.parts_NF[order_N]


def read_run(path: Path) -> FinishedRun:
    """A finished run.

    Raises:
        UserError: The folder is absent, its run is not finished, or results.json is broken.
    """
    folder = RunFolder(path)
    if not path.is_dir():
        raise UserError(f"{path} is not a folder", "give a run folder: the output_dir of `manyskills train`")
    if not folder.finished:
        hint = "finish the run with `manyskills train CONFIG --resume`, or give another folder"
        raise UserError(f"{path} holds no finished run: results.json is missing", hint)
    try:
        run = FinishedRun(path, json.loads(folder.results_file.read_text(encoding="utf-8")), folder.read_metrics())
        _touch(run)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder.results_file} is not what manyskills writes: {error}", RESTORE) from error
    return run


def read_answers(run: FinishedRun, task: str) -> RowAnswers:
    """Answers for the test rows, decided at the run's own threshold.

    Raises:
        UserError: The task's answers are texts, or the file is missing or broken, names a row twice, or does not give
            the value of results.json.
    """
    if run.results["tasks"][task].get("kind") == Kind.GENERATE:
        what = (
            f"{run.path}: {task} is answered with texts, and decisions and ranks are what is compared here row by row"
        )
        raise UserError(what, "compare runs without it; results.json has its metrics with intervals")
    path = RunFolder(run.path).predictions / f"{task}.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        ids = tuple(line["id"] for line in lines)
        if lines and "rank" in lines[0]:
            answers = RowAnswers(path, ids, None, rank_parts([line["rank"] for line in lines], run.metric(task)))
        else:
            labels = tuple(int(line["label"]) for line in lines)
            answers = RowAnswers(path, ids, labels, decision_parts(labels, [line["prediction"] for line in lines]))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing", RESTORE) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not what manyskills writes: {error}", RESTORE) from error
    if len(set(ids)) < len(ids):
        raise UserError(f"{path} names a row twice", RESTORE)
    _refuse_other_value(run, task, answers)
    return answers


def _touch(run: FinishedRun) -> None:
    """Fail now if something that every results.json holds is not there."""
    if not isinstance(run.seed, int) or not run.tasks:
        raise TypeError("wanted a seed and at least one task")
    for task in run.tasks:
        run.metric(task)
        for split in SPLITS:
            run.digest(split, task)


def _refuse_other_value(run: FinishedRun, task: str, answers: RowAnswers) -> None:
    metric = run.metric(task)
    found = float(run_values(answers.parts_NF[None], metric)[0])
    scores = run.results["tasks"][task].get("systems", {}).get("module", {}).get("test")
    noted = None if scores is None else scores["metrics"][metric]["value"]
    if noted is not None and not abs(found - noted) < 1e-6:
        name = METRIC_LABELS.get(metric, metric)
        what = f"{answers.path} gives {name} {found:.4f}, and results.json says {noted:.4f}"
        raise UserError(what, "the files are not of one run: restore them, or train again")


def changed_settings(one: FinishedRun, other: FinishedRun, *, but: Iterable[str] = ()) -> list[str]:
    """Settings in which two runs differ, among those that change what is learnt and that both have.

    Args:
        one: A run.
        other: Another.
        but: Settings that may differ.

    Returns:
        Names, with both values where they are plain; `tasks.<name>` stands for the choices of a task that both have.
    """
    before, now = _learnt_from(one), _learnt_from(other)
    names = [name for name in before if name in now and name not in set(but) and before[name] != now[name]]
    return [f"{name}{_values(before[name], now[name])}" for name in names]


def _learnt_from(run: FinishedRun) -> dict[str, Any]:
    settings = {name: value for name, value in run.config.items() if name not in NO_MATTER}
    if isinstance(distillation := settings.get("distillation"), dict):  # each seed has teachers of its own
        settings["distillation"] = distillation | {"teachers": sorted(distillation.get("teachers", ()))}
    tasks = run.config.get("tasks", {})
    return settings | {f"tasks.{name}": choices for name, choices in tasks.items()}


def _values(one: Any, other: Any) -> str:
    plain = all(value is None or isinstance(value, int | float | str) for value in (one, other))
    return f" ({one} against {other})" if plain else ""


def refuse_other_data(runs: Sequence[FinishedRun], task: str) -> None:
    """Make sure that runs used the same rows of a task; train and validation rows that a limit draws by seed may differ
    between seeds.

    Raises:
        UserError: They did not.
    """
    for one, other in combinations(runs, 2):
        for split in SPLITS:
            by_seed = one.seed != other.seed and (_limited(one, split, task) or _limited(other, split, task))
            if one.digest(split, task) == other.digest(split, task) or (by_seed and split != "test"):
                continue
            same = "compare runs on the same data"
            hint = f"give both the same tasks.{task}.limit.test" if split == "test" and by_seed else same
            raise UserError(f"the {split} rows of {task} differ between {one.path} and {other.path}", hint)


def _limited(run: FinishedRun, split: str, task: str) -> bool:
    choices = run.config.get("tasks", {}).get(task, {})
    return (choices.get("limit") or {}).get(split) is not None
