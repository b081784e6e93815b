"""Scores of the trained module and of everything it is compared with, on validation and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from manyskills.config import TrainConfig
from manyskills.data.preparation import Prepared, positive_rates, read_tasks
from manyskills.data.rows import SplitRows
from manyskills.evaluation.answers import Outputs, choose_thresholds, plain_metrics, score
from manyskills.evaluation.floors import FloorScores, tfidf_floor
from manyskills.evaluation.outputs import task_outputs
from manyskills.evaluation.retrieval import can_be_copied, copy_floor
from manyskills.evaluation.scores import TaskScores, defined
from manyskills.evaluation.written import likelihood_metrics
from manyskills.model.activations import RoundedTrunk, rounded_trunk
from manyskills.model.checkpoint import load_model
from manyskills.model.encoding import encode_texts
from manyskills.model.methods import METHODS
from manyskills.model.multitask import MultiTaskModel
from manyskills.saved import read_tasks_file
from manyskills.tasks import Kind, SplitName, get_task
from manyskills.training import baselines
from manyskills.training.loop import Announce
from manyskills.training.run_folder import RunFolder
from manyskills.training.validation import answers_in_words, by_likelihood, valid_token_losses, validation_metric
from manyskills.training.vectors import PrecomputedVectors

SplitScores = dict[str, dict[str, TaskScores]]
"""Scores by split, then by task."""

SAME = 1e-3
"""How far a reloaded checkpoint's validation metric may be from the one it was chosen by."""

SAME_WRITTEN = 0.02
"""The same for generated texts: a token that is nearly as probable as another may turn on the last digit, and the rest
of the text with it."""

SAME_ROUNDED = 0.05
"""The same where training read states from disk: those of a text that an earlier run computed, among other texts, may
differ in the last digit and turn answers at the threshold."""


def module_scores(
    config: TrainConfig,
    prepared: Prepared,
    folder: RunFolder,
    device: torch.device,
    step: int,
    base: PrecomputedVectors | None,
) -> tuple[SplitScores, dict[str, Outputs], dict[str, float]]:
    """The best checkpoint, loaded from disk as a user would.

    Args:
        config: The run.
        prepared: Its data.
        folder: Holds the checkpoint.
        device: Where it answers.
        step: Whose checkpoint it is.
        base: Vectors of the backbone as published, where the run had any.

    Returns:
        Scores, answers on the test split, thresholds.

    Raises:
        RuntimeError: It does not do on validation what it did when it was saved.
    """
    model = load_model(folder.best, device)
    thresholds = read_tasks_file(folder.best).thresholds
    valid, test = _answers(config, model, prepared)
    scores = {"valid": _score(config, valid, thresholds), "test": _score(config, test, thresholds)}
    encoder = rounded_trunk(config, model, prepared.store)
    metrics = plain_metrics(valid | _as_validated(config, model, prepared, encoder, base, step), thresholds)
    likely = [name for name, task in config.tasks.items() if by_likelihood(name, task)]
    if likely:
        metrics |= likelihood_metrics(valid_token_losses(config, model, prepared), likely)
    _check_reload(config, metrics, SAME_ROUNDED if encoder else SAME, folder, step)
    return scores, test, thresholds


def _answers(
    config: TrainConfig, model: MultiTaskModel, prepared: Prepared
) -> tuple[dict[str, Outputs], dict[str, Outputs]]:
    """A model's answers on validation and test, of the tasks that `prepared` has."""
    source = None
    if prepared.examples["valid"]:
        source = baselines.base_vectors(model, config, prepared, ["test", "valid"])
    return tuple(_split_answers(config, model, prepared, source, split) for split in ("valid", "test"))  # pyright: ignore


def _split_answers(
    config: TrainConfig,
    model: MultiTaskModel,
    prepared: Prepared,
    source: PrecomputedVectors | None,
    split: SplitName,
) -> dict[str, Outputs]:
    found = {} if source is None else baselines.split_outputs(model, prepared, source, split)
    return found | answers_in_words(config, model, prepared, prepared.prompted.get(split, {}))


def task_best_scores(
    config: TrainConfig, prepared: Prepared, folder: RunFolder, device: torch.device, module: SplitScores, step: int
) -> SplitScores | None:
    """Every task answered by the weights of its own best step, loaded from best_by_task/<task>.

    Args:
        config: The run.
        prepared: Its data.
        folder: Holds the checkpoints.
        device: Where they answer.
        module: Scores of the checkpoint that is the best for all tasks together.
        step: Whose checkpoint that is.

    Returns:
        Scores; None if the run did not keep these weights.
    """
    if config.early_stopping is None or not config.early_stopping.keep_task_best:
        return None
    at: dict[int, list[str]] = {}
    for name in config.tasks:
        at.setdefault(read_tasks_file(folder.best_by_task / name).step, []).append(name)
    found = {
        own: module if own == step else _scores_of(config, prepared, folder.best_by_task / names[0], names, device)
        for own, names in at.items()
    }
    own_step = {name: own for own, names in at.items() for name in names}
    return {split: {name: found[own_step[name]][split][name] for name in config.tasks} for split in ("valid", "test")}


def _scores_of(
    config: TrainConfig, prepared: Prepared, folder: Path, names: Sequence[str], device: torch.device
) -> SplitScores:
    """Scores of a checkpoint on some tasks, with its own thresholds."""
    part = prepared.only(names)
    model, thresholds = load_model(folder, device), read_tasks_file(folder).thresholds
    valid, test = _answers(config, model, part)
    return {"valid": _score(config, valid, thresholds), "test": _score(config, test, thresholds)}


def _as_validated(
    config: TrainConfig,
    model: MultiTaskModel,
    prepared: Prepared,
    encoder: RoundedTrunk | None,
    base: PrecomputedVectors | None,
    step: int,
) -> dict[str, Outputs]:
    """Answers on validation from the very vectors that the checkpoint was chosen by; none: those of the whole network.

    The backbone's own may come from the disk and so from other company. States in half precision are computed again,
    so that neither a full disk nor a removed folder costs a finished run its results.
    """
    if encoder is None:
        unchanged = step == 0 or not model.trains_backbone
        if base is None or not unchanged or not METHODS[config.method.name].equal_at_start:
            return {}
        return baselines.split_outputs(model, prepared, base, "valid")
    indices_N = prepared.used_texts("valid")
    vectors_ND = encode_texts(model, prepared.store, indices_N, config.token_budget, encoder=encoder)
    return task_outputs(model, prepared.examples["valid"], vectors_ND)


def _check_reload(
    config: TrainConfig, valid: Mapping[str, Mapping[str, float]], tolerance: float, folder: RunFolder, step: int
) -> None:
    """What was saved must be what was chosen; a head that is lost on the way to disk shows here."""
    records = [r for r in folder.read_metrics() if r["kind"] == "valid" and r["step"] == step]
    for name, value in records[-1]["primary"].items() if records else ():
        found = defined(valid[name][validation_metric(name, config.tasks[name])]) or 0.0
        bound = max(tolerance, SAME_WRITTEN) if get_task(name).kind is Kind.GENERATE else tolerance
        if abs(found - value) > bound:
            what = f"{name}: {value:.4f} on validation when it was saved, {found:.4f} after loading"
            raise RuntimeError(f"{folder.best} does not hold what was trained: {what}")


def baseline_scores(
    config: TrainConfig,
    prepared: Prepared,
    folder: RunFolder,
    device: torch.device,
    base: PrecomputedVectors | None,
    announce: Announce,
) -> dict[str, SplitScores]:
    """Scores of what `baselines` asks for.

    Args:
        base: Vectors of the frozen backbone for validation and test; needed for untrained and frozen.
        folder: Holds the trained frozen heads if those are asked for.
    """
    found: dict[str, SplitScores] = {}
    if "untrained" in config.baselines:
        announce("answering with the backbone as it is, for comparison")
        untrained = baselines.frozen_model(config, positive_rates(prepared.examples["train"]), device)
        found["untrained"] = _both_splits(config, untrained, prepared, base)
    frozen = RunFolder(baselines.frozen_config(config).output_dir).best
    if base is not None and "frozen" in config.baselines and frozen.is_dir():
        alone, part = baselines.heads_alone(config, prepared)
        found["frozen"] = _both_splits(alone, load_model(frozen, device), part, base)
    if "floor" in config.baselines:
        announce("computing the classical floors")
        found |= _floor_scores(config, prepared)
    return found


def _both_splits(
    config: TrainConfig, model: MultiTaskModel, prepared: Prepared, source: PrecomputedVectors | None
) -> SplitScores:
    """Scores with thresholds chosen on this model's own validation answers."""
    valid = _split_answers(config, model, prepared, source, "valid")
    thresholds = choose_thresholds(valid, {name: get_task(name).primary_metric for name in config.tasks})
    test = _split_answers(config, model, prepared, source, "test")
    return {"valid": _score(config, valid, thresholds), "test": _score(config, test, thresholds)}


def _floor_scores(config: TrainConfig, prepared: Prepared) -> dict[str, SplitScores]:
    """The floor of each task, and the copied source of those whose answer is of the source's kind."""
    whole: Mapping[str, SplitRows] = prepared.rows["train"]
    if config.floor_rows == "all":
        whole = read_tasks(config, ["train"], limited=False)["train"]
    floor: SplitScores = {"valid": {}, "test": {}}
    copy: SplitScores = {"valid": {}, "test": {}}
    for name in config.tasks:
        valid, test = prepared.rows["valid"][name], prepared.rows["test"][name]
        _enter(floor, name, tfidf_floor(whole[name], valid, test, **_bootstrap(config)))
        if can_be_copied(valid.task):
            _enter(copy, name, copy_floor(valid, test, **_bootstrap(config)))
    return {"floor": floor} | ({"copy": copy} if copy["test"] else {})


def _enter(scores: SplitScores, name: str, floor: FloorScores) -> None:
    assert floor.test is not None
    scores["valid"][name], scores["test"][name] = floor.valid, floor.test


def _bootstrap(config: TrainConfig) -> dict[str, Any]:
    return {"samples": config.bootstrap_samples, "confidence": config.confidence, "seed": config.seed}


def _score(
    config: TrainConfig, outputs: Mapping[str, Outputs], thresholds: Mapping[str, float]
) -> dict[str, TaskScores]:
    return score(outputs, thresholds, **_bootstrap(config))
