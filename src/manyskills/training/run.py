"""A whole run: read, train, reload the best, compare, write the results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from manyskills import __version__
from manyskills.config import TrainConfig
from manyskills.data.preparation import Prepared, positive_rates, prepare, read_tasks, synthetic_tasks
from manyskills.data.rows import SplitRows
from manyskills.evaluation.outputs import Outputs, choose_thresholds, score
from manyskills.evaluation.scores import TaskScores
from manyskills.files import replace_folder_atomically, write_atomically
from manyskills.model.checkpoint import load_model, read_tasks_file
from manyskills.model.multitask import MultiTaskModel, build_model, set_class_balance
from manyskills.tasks import SPLITS, get_task
from manyskills.training import baselines
from manyskills.training.card import write_card
from manyskills.training.loop import Announce, Trainer
from manyskills.training.predictions import write_predictions
from manyskills.training.processes import Processes
from manyskills.training.progress import Progress
from manyskills.training.reporting import announcer, progress_bar
from manyskills.training.run_folder import RunFolder, data_digests, environment
from manyskills.training.tracking import build_tracker
from manyskills.training.vectors import BackboneVectors, VectorSource

SAME = 1e-3
"""How far a reloaded checkpoint's validation metric may be from the one it was chosen by."""


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run.

    Attributes:
        path: The run folder.
        results: The content of results.json.
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
    if resume and folder.finished:
        announce(f"{folder.path} is finished already")
        return Run(folder.path, json.loads(folder.results_file.read_text(encoding="utf-8")))
    model, prepared = load_inputs(config, processes.device)
    for name, truncation in prepared.truncation.items():
        announce(f"{name}: {truncation.sentence()}")
    if processes.is_main:
        folder.open(config, resume=resume, overwrite=overwrite)
    processes.wait()
    progress = _train(config, model, prepared, folder, processes, announce)
    parameters = _parameters(model)
    del model
    results: dict[str, Any] = {}
    if processes.is_main:
        results = _finish(config, prepared, folder, processes.device, progress, parameters, announce)
    return Run(folder.path, results)


def load_inputs(config: TrainConfig, device: torch.device) -> tuple[MultiTaskModel, Prepared]:
    """The model at step 0 and all data: whatever is wrong with them is found here, before a file is written."""
    rows = read_tasks(config, SPLITS)
    model = build_model(config, device)
    positions = model.architecture.max_positions
    prepared = prepare(rows, config.tasks, config.max_length, model.tokenizer, model.template, positions)
    set_class_balance(model, positive_rates(prepared.examples["train"]))
    return model, prepared


def _train(
    config: TrainConfig,
    model: MultiTaskModel,
    prepared: Prepared,
    folder: RunFolder,
    processes: Processes,
    announce: Announce,
) -> Progress:
    tracker = build_tracker(config, folder.path / "trackers")
    source = _vector_source(config, model, prepared, processes)
    trainer = Trainer(config, model, prepared, source, folder, processes, tracker, announce)
    with progress_bar(trainer.schedule.total, "training") as bar:
        if not processes.is_main:
            bar.disable = True
        progress = trainer.run(bar)
    tracker.close()
    return progress


def _vector_source(
    config: TrainConfig, model: MultiTaskModel, prepared: Prepared, processes: Processes
) -> VectorSource:
    if not model.trains_backbone:
        return baselines.base_vectors(model, config, prepared, ["train", "valid"])
    cached = config.step_memory == "cached"
    return BackboneVectors(model, prepared.store, config.token_budget, cached=cached, processes=processes)


def _finish(
    config: TrainConfig,
    prepared: Prepared,
    folder: RunFolder,
    device: torch.device,
    progress: Progress,
    parameters: dict[str, int],
    announce: Announce,
) -> dict[str, Any]:
    """Measure the reloaded best checkpoint and what it is compared with; write everything."""
    systems: dict[str, dict[str, dict[str, TaskScores]]] = {}
    systems["module"], outputs, thresholds = _module_scores(config, prepared, folder, device, progress, announce)
    systems |= _baseline_scores(config, prepared, folder, device, announce)
    write = {name: prepared.rows["test"][name] for name in config.tasks}
    replace_folder_atomically(lambda target: write_predictions(target, write, outputs, thresholds), folder.predictions)
    results = _results(config, prepared, progress, parameters, systems)
    _write_plots(folder, results)
    write_card(folder, config, results)
    write_atomically(folder.results_file, json.dumps(results, indent=2) + "\n")  # last: this is what finished means
    return results


def _module_scores(
    config: TrainConfig,
    prepared: Prepared,
    folder: RunFolder,
    device: torch.device,
    progress: Progress,
    announce: Announce,
) -> tuple[dict[str, dict[str, TaskScores]], dict[str, Outputs], dict[str, float]]:
    """The best checkpoint, loaded from disk as a user would, on validation and test."""
    announce(f"evaluating the checkpoint of step {progress.best_step} on the test split")
    model = load_model(folder.best, device)
    thresholds = read_tasks_file(folder.best).thresholds
    source = baselines.base_vectors(model, config, prepared, ["valid", "test"])
    valid = baselines.split_outputs(model, prepared, source, "valid")
    test = baselines.split_outputs(model, prepared, source, "test")
    scores = {"valid": _score(config, valid, thresholds), "test": _score(config, test, thresholds)}
    _check_reload(scores["valid"], folder, progress.best_step)
    return scores, test, thresholds


def _check_reload(valid: Mapping[str, TaskScores], folder: RunFolder, step: int) -> None:
    """What was saved must be what was chosen; a head that is lost on the way to disk shows here."""
    records = [r for r in folder.read_metrics() if r["kind"] == "valid" and r["step"] == step]
    for name, value in records[-1]["primary"].items() if records else ():
        found = valid[name].metrics[get_task(name).primary_metric].value or 0.0
        if abs(found - value) > SAME:
            what = f"{name}: {value:.4f} on validation when it was saved, {found:.4f} after loading"
            raise RuntimeError(f"{folder.best} does not hold what was trained: {what}")


def _baseline_scores(
    config: TrainConfig, prepared: Prepared, folder: RunFolder, device: torch.device, announce: Announce
) -> dict[str, dict[str, dict[str, TaskScores]]]:
    found: dict[str, dict[str, dict[str, TaskScores]]] = {}
    wants_frozen = "frozen" in config.baselines and config.method.name != "frozen"
    if "untrained" in config.baselines or wants_frozen:
        model = baselines.frozen_model(config, prepared, device)
        splits = ["train", "valid", "test"] if wants_frozen else ["valid", "test"]
        source = baselines.base_vectors(model, config, prepared, splits)
        if "untrained" in config.baselines:
            found["untrained"] = _both_splits(config, model, prepared, source)
        if wants_frozen:
            announce("training heads on the frozen backbone, for comparison")
            best = baselines.train_frozen(config, prepared, source, model, lambda _: None)
            found["frozen"] = _both_splits(config, load_model(best, device), prepared, source)
    if "floor" in config.baselines:
        announce("computing the TF-IDF floors")
        found["floor"] = _floor_scores(config, prepared)
    return found


def _both_splits(
    config: TrainConfig, model: MultiTaskModel, prepared: Prepared, source: Any
) -> dict[str, dict[str, TaskScores]]:
    """Scores with thresholds chosen on this model's own validation answers."""
    valid = baselines.split_outputs(model, prepared, source, "valid")
    thresholds = choose_thresholds(valid, {name: get_task(name).primary_metric for name in config.tasks})
    test = baselines.split_outputs(model, prepared, source, "test")
    return {"valid": _score(config, valid, thresholds), "test": _score(config, test, thresholds)}


def _floor_scores(config: TrainConfig, prepared: Prepared) -> dict[str, dict[str, TaskScores]]:
    from manyskills.evaluation.floors import tfidf_floor

    whole: Mapping[str, SplitRows] = prepared.rows["train"]
    if config.floor_rows == "all":
        whole = read_tasks(config, ["train"], limited=False)["train"]
    scores: dict[str, dict[str, TaskScores]] = {"valid": {}, "test": {}}
    for name in config.tasks:
        valid, test = prepared.rows["valid"][name], prepared.rows["test"][name]
        floor = tfidf_floor(whole[name], valid, test, **_bootstrap(config))
        assert floor.test is not None
        scores["valid"][name], scores["test"][name] = floor.valid, floor.test
    return scores


def _bootstrap(config: TrainConfig) -> dict[str, Any]:
    return {"samples": config.bootstrap_samples, "confidence": config.confidence, "seed": config.seed}


def _score(
    config: TrainConfig, outputs: Mapping[str, Outputs], thresholds: Mapping[str, float]
) -> dict[str, TaskScores]:
    return score(outputs, thresholds, **_bootstrap(config))


def _results(
    config: TrainConfig,
    prepared: Prepared,
    progress: Progress,
    parameters: dict[str, int],
    systems: Mapping[str, Mapping[str, Mapping[str, TaskScores]]],
) -> dict[str, Any]:
    """The content of results.json: enough to make every table and plot again."""
    synthetic = synthetic_tasks(prepared.rows)
    return {
        "format": 1,
        "manyskills": __version__,
        "tasks": {
            name: {
                "kind": str(get_task(name).kind),
                "primary_metric": get_task(name).primary_metric,
                "synthetic": synthetic.get(name),
                "rows": {split: len(prepared.rows[split][name].rows) for split in SPLITS},
                "rows_in_source": {split: prepared.rows[split][name].total for split in SPLITS},
                "truncation": {
                    "texts": prepared.truncation[name].texts,
                    "cut": prepared.truncation[name].cut,
                    "tokens": prepared.truncation[name].tokens,
                    "lost": prepared.truncation[name].lost,
                    "max_length": prepared.truncation[name].max_length,
                },
                "systems": {
                    system: {split: scores[split][name].to_dict() for split in ("valid", "test")}
                    for system, scores in systems.items()
                },
            }
            for name in config.tasks
        },
        "training": {
            "steps": progress.step,
            "best_step": progress.best_step,
            "tokens": progress.tokens,
            "seconds": round(progress.seconds, 1),
            "stopped": {name: progress.tasks[name].best_step for name in config.tasks if name not in progress.active},
            **parameters,
        },
        "floor_rows": config.floor_rows,
        "data": data_digests(prepared.rows),
        "environment": environment(),
        "config": config.model_dump(mode="json"),
    }


def _parameters(model: MultiTaskModel) -> dict[str, int]:
    return {
        "trainable_shared": sum(p.numel() for _, p in model.shared_parameters()),
        "trainable_heads": sum(p.numel() for _, p in model.head_parameters()),
        "backbone_parameters": sum(p.numel() for n, p in model.backbone.named_parameters() if "lora_" not in n),
    }


def _write_plots(folder: RunFolder, results: dict[str, Any]) -> None:
    from manyskills.evaluation.plots import plot_results, plot_training

    folder.plots.mkdir(exist_ok=True)
    metrics = {name: entry["primary_metric"] for name, entry in results["tasks"].items()}
    plot_training(folder.read_metrics(), folder.plots / "training.png", metrics=metrics)
    plot_results(results, folder.plots / "results.png")
