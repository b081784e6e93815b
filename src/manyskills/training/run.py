"""A whole run: read, train, reload the best, compare, write the results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from manyskills.config import TrainConfig
from manyskills.data.frames import Frames
from manyskills.data.options import refuse_useless_options, refuse_what_cannot_write
from manyskills.data.preparation import (
    Prepared,
    positive_rates,
    prepare,
    read_tasks,
    refuse_one_label,
)
from manyskills.data.renaming import rename_some
from manyskills.errors import UserError, require_extra
from manyskills.files import complete_folder, replace_folder_atomically, write_atomically
from manyskills.model.activations import training_encoder
from manyskills.model.answers import AnswerStates
from manyskills.model.methods import METHODS
from manyskills.model.multitask import MultiTaskModel, build_model, set_class_balance, stored_as
from manyskills.model.vector_cache import published_vector_cache
from manyskills.saved import HEADS_FILE, read_tasks_file, saved_step
from manyskills.tasks import SPLITS, SplitName
from manyskills.training import baselines
from manyskills.training.answer_rows import AnswerRows
from manyskills.training.card import write_card
from manyskills.training.forward import Sources
from manyskills.training.loop import Announce, Trainer
from manyskills.training.measuring import Watcher
from manyskills.training.optimizer import require_optimizer
from manyskills.training.predictions import write_predictions
from manyskills.training.processes import Processes
from manyskills.training.progress import Progress
from manyskills.training.reporting import announcer, progress_bar
from manyskills.training.results import build_results, count_parameters, write_plots
from manyskills.training.run_folder import RunFolder, data_digests
from manyskills.training.systems import SplitScores, baseline_scores, module_scores, task_best_scores
from manyskills.training.teachers import find_teachers, teach
from manyskills.training.tracking import Tracker, build_tracker, require_trackers
from manyskills.training.validation import names_with_heads
from manyskills.training.vectors import BackboneVectors, PrecomputedVectors

VECTORS_FILE = "vectors.safetensors"


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run.

    Attributes:
        path: The run folder.
        results: The content of results.json; empty in the helper processes of a launch with several.
    """

    path: Path
    results: dict[str, Any]


def train(
    config: TrainConfig, *, resume: bool = False, overwrite: bool = False, announce: Announce | None = None
) -> Run:
    """Train one module for all tasks of a configuration and measure it.

    Args:
        config: The run.
        resume: Continue what is in output_dir; a finished run is only read.
        overwrite: Remove a former run in output_dir first.
        announce: Gets sentences for people; default: stderr.

    Raises:
        UserError: Something is wrong with configuration, data, backbone or output_dir, or a resource ran out.
    """
    processes = Processes.current()
    announce = announce or announcer(quiet=not processes.is_main)
    folder = RunFolder(config.output_dir)
    if resume and folder.finished and not overwrite:
        folder.refuse_changes(config)
        announce(f"{folder.path} is finished already")
        content = folder.results_file.read_text(encoding="utf-8") if processes.is_main else "{}"
        return Run(folder.path, json.loads(content))
    require_trackers(config)
    require_optimizer(config, processes.device)
    if stored_as(config).quantize:
        require_extra("bitsandbytes", "quant")
    folder.check(config, resume=resume, overwrite=overwrite)
    saved_frames = _frames_so_far(folder) if resume else None
    model, prepared = load_inputs(config, processes.device, saved_frames=saved_frames)
    for name, truncation in prepared.truncation.items():
        announce(f"{name}: {truncation.sentence()}")
    for name, truncation in prepared.answers_cut.items():
        announce(f"{name}, answers: {truncation.sentence()}")
    taught = teach(config, prepared, processes, announce)
    _open(folder, config, prepared, processes, resume=resume, overwrite=overwrite)
    base = begin(config, model, prepared, folder, processes, announce)
    progress = _train(config, model, taught, folder, processes, base, announce)
    parameters = count_parameters(model)
    del model
    results: dict[str, Any] = {}
    if processes.is_main:
        results = _finish(config, prepared, folder, processes.device, progress, parameters, base, announce)
    return Run(folder.path, results)


def _open(
    folder: RunFolder, config: TrainConfig, prepared: Prepared, processes: Processes, *, resume: bool, overwrite: bool
) -> None:
    """The main process opens the folder; if that fails, all stop instead of waiting for it."""
    problem: list[str | None] = []
    if processes.is_main:
        try:
            folder.open(config, data_digests(prepared.rows), resume=resume, overwrite=overwrite)
        except UserError as error:
            problem = [error.message, error.hint]
    problem = processes.agree(problem)
    if problem and not processes.is_main:
        raise SystemExit(2)  # the main process says why
    if problem:
        raise UserError(problem[0] or "", problem[1])


def _frames_so_far(folder: RunFolder) -> Frames | None:
    """What stands around sources and answers in a run that is continued: as it was, whatever a template says by now."""
    last = complete_folder(folder.last)
    return None if last is None or saved_step(last) is None else read_tasks_file(last).prompts


def load_inputs(
    config: TrainConfig,
    device: torch.device,
    splits: Sequence[SplitName] = SPLITS,
    *,
    saved_frames: Frames | None = None,
) -> tuple[MultiTaskModel, Prepared]:
    """The model at step 0 and all data: whatever is wrong with them is found here, before a file is written.

    Args:
        config: The run.
        device: Where it will train.
        splits: Which to read.
        saved_frames: Of the run that is continued; None: made from the tasks' instructions.
    """
    refuse_useless_options(config)
    refuse_what_cannot_write(config)
    find_teachers(config)
    rows = read_tasks(config, splits)
    for name, task in config.tasks.items():
        part = rows["train"][name]
        if task.rename_identifiers:
            rows["train"][name] = rename_some(part, task.rename_identifiers, config.seed)
    model = build_model(config, device)
    prepared = prepare(
        rows, config.tasks, config.max_length, model.tokenizer, model.template, model.architecture.max_positions,
        model.routes, family=model.architecture.family, saved_frames=saved_frames,
    )  # fmt: skip
    model.frames = prepared.frames
    refuse_one_label(prepared.all_examples("train"))
    set_class_balance(model, positive_rates(prepared.examples["train"]))
    return model, prepared


def begin(
    config: TrainConfig,
    model: MultiTaskModel,
    prepared: Prepared,
    folder: RunFolder,
    processes: Processes,
    announce: Announce,
) -> PrecomputedVectors | None:
    """What comes before the first step: vectors of the backbone as published, where they are needed, and the heads on
    them, which the model gets if `heads_first` says so."""
    seen = baselines.rows_of_the_run(config, prepared) if _trains_frozen_heads(config) else prepared
    base = _base_vectors(config, model, seen, folder, processes, announce)
    if base is not None and _trains_frozen_heads(config):
        rates = positive_rates(prepared.examples["train"])
        heads = baselines.train_frozen(config, seen, rates, base, processes, announce)
        if config.heads_first:
            model.heads.load_state_dict(load_file(heads / HEADS_FILE))
    return base


def _trains_frozen_heads(config: TrainConfig) -> bool:
    wanted = config.method.name != "frozen" and (config.heads_first or "frozen" in config.baselines)
    return wanted and bool(names_with_heads(config))


def _base_vectors(
    config: TrainConfig,
    model: MultiTaskModel,
    prepared: Prepared,
    folder: RunFolder,
    processes: Processes,
    announce: Announce,
) -> PrecomputedVectors | None:
    """Vectors of the backbone as published, for the splits that need them; most methods give just these at step 0."""
    splits: list[SplitName] = []
    if config.method.name == "frozen" or _trains_frozen_heads(config):
        splits = ["train", "valid"]
    if "untrained" in config.baselines or "frozen" in config.baselines:
        splits = ["test", *splits] if splits else ["test", "valid"]
    if not splits or not names_with_heads(config):
        return None
    tokens = sum(int(prepared.store.lengths_N[prepared.used_texts(split)].sum()) for split in splits)
    announce(f"encoding {tokens:,} tokens ({', '.join(splits)}) with the backbone as it is, for comparison")
    if not METHODS[config.method.name].equal_at_start:
        model = baselines.frozen_model(config, positive_rates(prepared.examples["train"]), processes.device)
    cache = published_vector_cache(model, tokens) if config.vector_cache else None
    if cache is not None and cache.usable:
        announce(f"its vectors are kept in {cache.folder}; those that are there are read")
    keep = folder.baselines / VECTORS_FILE
    vectors = baselines.base_vectors(model, config, prepared, splits, processes=processes, keep=keep, cache=cache)
    processes.wait()
    return vectors


def _train(
    config: TrainConfig,
    model: MultiTaskModel,
    prepared: Prepared,
    folder: RunFolder,
    processes: Processes,
    base: PrecomputedVectors | None,
    announce: Announce,
) -> Progress:
    tracker = build_tracker(config, folder.path / "trackers")
    trainer = build_trainer(config, model, prepared, folder, processes, base, announce, tracker=tracker)
    with progress_bar(trainer.schedule.total, "training", hidden=not processes.is_main) as bar:
        progress = trainer.run(bar)
    tracker.close()
    return progress


def build_trainer(
    config: TrainConfig,
    model: MultiTaskModel,
    prepared: Prepared,
    folder: RunFolder,
    processes: Processes,
    base: PrecomputedVectors | None,
    announce: Announce,
    *,
    tracker: Tracker,
    watcher: Watcher | None = None,
) -> Trainer:
    """The loop of a run, with the vectors it needs."""
    cached = config.step_memory == "cached"
    source, encoder = base, None
    if model.trains_backbone or source is None:
        encoder = training_encoder(config, model, prepared.store, announce)
        source = BackboneVectors(
            model, prepared.store, config.token_budget, cached=cached, processes=processes, encoder=encoder
        )
    answers = None
    if prepared.prompts is not None:
        states = AnswerStates(model, prepared.prompts)
        answers = AnswerRows(states, config.token_budget, cached=cached, processes=processes)
    start = base if METHODS[config.method.name].equal_at_start else None
    return Trainer(
        config, model, prepared, Sources(source, answers, processes), folder, processes, tracker, announce,
        start=start, encoder=encoder, watcher=watcher,
    )  # fmt: skip


def _finish(
    config: TrainConfig,
    prepared: Prepared,
    folder: RunFolder,
    device: torch.device,
    progress: Progress,
    parameters: dict[str, int],
    base: PrecomputedVectors | None,
    announce: Announce,
) -> dict[str, Any]:
    """Measure the reloaded best checkpoint and what it is compared with; write everything."""
    announce(f"evaluating the checkpoint of step {progress.best_step} on the test split")
    systems: dict[str, SplitScores] = {}
    systems["module"], outputs, thresholds = module_scores(config, prepared, folder, device, progress.best_step, base)
    own = task_best_scores(config, prepared, folder, device, systems["module"], progress.best_step)
    systems |= {} if own is None else {"task_best": own}
    systems |= baseline_scores(config, prepared, folder, device, base, announce)
    rows = {name: prepared.rows["test"][name] for name in config.tasks}
    replace_folder_atomically(lambda target: write_predictions(target, rows, outputs, thresholds), folder.predictions)
    results = build_results(config, prepared, progress, parameters, systems, folder.read_metrics())
    write_plots(folder, results)
    write_card(folder, config, results)
    if config.push_to_hub and config.hub_model_id:
        from manyskills.hub import upload

        announce(f"uploaded to {upload(folder.best, config.hub_model_id, private=config.hub_private)}")
    (folder.baselines / VECTORS_FILE).unlink(missing_ok=True)
    write_atomically(folder.results_file, json.dumps(results, indent=2) + "\n")  # last: this is what finished means
    return results
