"""Teachers: runs whose answers a module learns besides the labels. Each answers once, before training.

Shape legend: N texts, D size of a vector, M texts of one task, P size of a teacher's side, E examples, A rows that a
teacher is asked for, K texts an example.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from manyskills.config import DistillationConfig, TrainConfig
from manyskills.data.frames import written
from manyskills.data.preparation import Prepared, prepare
from manyskills.data.prompted import PromptExamples
from manyskills.data.rows import SplitRows
from manyskills.data.sampling import Phase, Sampler
from manyskills.data.text_set import Examples, Teaching, gather
from manyskills.errors import UserError
from manyskills.files import complete_folder
from manyskills.model.checkpoint import load_model
from manyskills.model.encoding import encode_texts
from manyskills.model.heads import BinaryHead, EmbedHead, Head
from manyskills.model.multitask import MultiTaskModel
from manyskills.saved import SavedTasks, read_tasks_file
from manyskills.training.loop import Announce, positive_shares
from manyskills.training.processes import Processes
from manyskills.training.reporting import progress_bar
from manyskills.training.schedule import Schedule

BLOCK = 16_384
"""Rows that a head answers at a time."""


def find_teachers(config: TrainConfig) -> dict[str, Path]:
    """The folder of each task's teacher.

    Raises:
        UserError: One holds no trained module, or one that was not trained on the task.
    """
    found: dict[str, Path] = {}
    for name, given in (config.distillation.teachers if config.distillation else {}).items():
        place = f"distillation.teachers.{name}"
        if not Path(given).is_dir():
            raise UserError(f"{place}: {given} is not a folder", "give a run folder, or a folder such as its best/")
        found[name] = complete_folder(Path(given) / "best") or Path(given)
        known = _saved(found[name], place).config.tasks
        if name not in known:
            what = f"{place}: the run in {given} was not trained on {name}, only on {', '.join(known)}"
            raise UserError(what, f"give a run of {name}, or leave this teacher out")
        if written(name, known[name]):
            what = f"{place}: the run in {given} answers {name} in words, and what heads say is learnt"
            raise UserError(what, f"give a run in which {name} has a head, or leave this teacher out")
    return found


def teach(config: TrainConfig, prepared: Prepared, processes: Processes, announce: Announce) -> Prepared:
    """The same data with the teachers' answers to the training rows that the run may draw.

    A teacher reads the rows as it was trained to: its own backbone, tokenizer and length limit. It is in memory only
    while it answers.

    Args:
        config: The run.
        prepared: Its data.
        processes: Share the encoding.
        announce: Gets sentences for people.

    Raises:
        UserError: As `find_teachers`, or a teacher cannot be loaded or refuses a text.
    """
    teachers = find_teachers(config)
    if config.distillation is None:
        return prepared
    asked = rows_to_ask(config, prepared.all_examples("train"), list(teachers))
    train = dict(prepared.examples["train"])
    for name, folder in teachers.items():
        rows_A, part = asked[name], prepared.rows["train"][name]
        announce(f"{name}: {len(rows_A):,} training rows are answered by the teacher in {folder}")
        answers_A = _ask(config, folder, replace(part, rows=[part.rows[row] for row in rows_A]), processes)
        train[name] = replace(train[name], teaching=_teaching(config.distillation, answers_A, rows_A, len(part.rows)))
    return replace(prepared, examples={**prepared.examples, "train": train})


def rows_to_ask(
    config: TrainConfig, train: Mapping[str, Examples | PromptExamples], names: list[str]
) -> dict[str, np.ndarray]:
    """Numbers of the rows of these tasks that the run may draw, ascending.

    A task draws most if it is left alone at the first validation that can end the others.
    """
    sampler = Sampler(train, config.sampling, config.batch_size, config.seed, positive_shares(config))
    schedule = Schedule.of(config, sum(len(part) for part in train.values()))
    rule = config.early_stopping
    together = schedule.total if rule is None else min(rule.patience * schedule.eval_steps, schedule.total)
    found: dict[str, np.ndarray] = {}
    for name in names:
        drawn_E = np.zeros(len(train[name]), dtype=bool)
        phases = [Phase(0, tuple(config.tasks)), Phase(together, (name,))]
        for step in range(schedule.total):
            drawn_E[sampler.rows_at(step, phases).get(name, [])] = True
            if drawn_E.all():
                break
        found[name] = np.flatnonzero(drawn_E)
    return found


def _teaching(distillation: DistillationConfig, answers_A: np.ndarray, rows_A: np.ndarray, rows: int) -> Teaching:
    rows_E = np.full(rows, -1, dtype=np.int64)
    rows_E[rows_A] = np.arange(len(rows_A))
    return Teaching(answers_A, rows_E, distillation.weight, distillation.temperature)


@torch.no_grad()
def _ask(config: TrainConfig, folder: Path, part: SplitRows, processes: Processes) -> np.ndarray:
    """A teacher's answers to these rows, float32, shape (A,) or (A, 2, P)."""
    name = part.task.name
    saved = _saved(folder, f"distillation.teachers.{name}")
    model = load_model(folder, processes.device, saved)
    prepared = _as_the_teacher_reads(model, saved, part)
    texts = gather(prepared.examples["train"])
    tokens = int(prepared.store.lengths_N[texts.unique_N].sum())
    hidden = not processes.is_main
    with progress_bar(tokens // processes.count, f"teacher of {name}", unit="token", hidden=hidden) as bar:
        vectors_ND = encode_texts(
            model, prepared.store, texts.unique_N, config.token_budget, share=processes.share, report=bar.update
        )
    vectors_MD = processes.sum(vectors_ND)[torch.from_numpy(texts.views[name].members_M)]
    texts_AK = torch.from_numpy(texts.views[name].texts_EK).to(model.device)
    return _answers(model.head(name), vectors_MD.to(model.device), texts_AK).cpu().numpy()


def _as_the_teacher_reads(model: MultiTaskModel, saved: SavedTasks, part: SplitRows) -> Prepared:
    name, config = part.task.name, saved.config
    tasks, positions = {name: config.tasks[name]}, model.architecture.max_positions
    try:
        return prepare(
            {"train": {name: part}}, tasks, config.max_length, model.tokenizer, model.template, positions, model.routes
        )
    except UserError as error:
        raise UserError(f"distillation.teachers.{name}: {error.message}", error.hint) from error


def _answers(head: Head, vectors_MD: torch.Tensor, texts_AK: torch.Tensor) -> torch.Tensor:
    """Log-odds of each row, or its two sides with the scale in the first (see `model.heads.Lesson`)."""
    sides_MP = head.sides(vectors_MD)
    if isinstance(head, EmbedHead):
        return torch.stack([head.scale * sides_MP[texts_AK[:, 0]], sides_MP[texts_AK[:, 1]]], 1)
    assert isinstance(head, BinaryHead)
    return torch.cat([head.log_odds(sides_MP, block_BK) for block_BK in texts_AK.split(BLOCK)])


def _saved(folder: Path, place: str) -> SavedTasks:
    try:
        return read_tasks_file(folder)
    except UserError as error:
        raise UserError(f"{place}: {error.message}", error.hint) from error
