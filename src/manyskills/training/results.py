"""The content of results.json, enough to make every table and plot again, and the plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from manyskills import __version__
from manyskills.config import TrainConfig
from manyskills.data.preparation import Prepared, synthetic_tasks
from manyskills.evaluation.conflict import conflict_summary
from manyskills.evaluation.conflict_plots import plot_conflict
from manyskills.evaluation.plots import plot_results, plot_training
from manyskills.model.multitask import MultiTaskModel
from manyskills.tasks import SPLITS, get_task
from manyskills.training.progress import Progress
from manyskills.training.run_folder import RunFolder, data_digests, environment
from manyskills.training.systems import SplitScores


def build_results(
    config: TrainConfig,
    prepared: Prepared,
    progress: Progress,
    parameters: Mapping[str, int],
    systems: Mapping[str, SplitScores],
    records: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What was measured, on what data, with what, at what cost; `records` are the lines of metrics.jsonl."""
    return {
        "format": 1,
        "manyskills": __version__,
        "tasks": {name: _task_entry(name, prepared, systems) for name in config.tasks},
        "training": {
            "steps": progress.step,
            "best_step": progress.best_step,
            "tokens": progress.tokens,
            "seconds": round(progress.seconds, 1),
            "task_best_steps": {name: progress.tasks[name].best_step for name in config.tasks},
            "stopped": {name: progress.tasks[name].best_step for name in config.tasks if name not in progress.active},
            **parameters,
        },
        "conflict": conflict_summary(records, [asdict(warning) for warning in progress.watch.warnings]),
        "floor_rows": config.floor_rows,
        "data": data_digests(prepared.rows),
        "environment": environment(),
        "config": config.model_dump(mode="json"),
    }


def _task_entry(name: str, prepared: Prepared, systems: Mapping[str, SplitScores]) -> dict[str, Any]:
    return {
        "kind": str(get_task(name).kind),
        "primary_metric": get_task(name).primary_metric,
        "synthetic": synthetic_tasks(prepared.rows).get(name),
        "rows": {split: len(prepared.rows[split][name].rows) for split in SPLITS},
        "rows_in_source": {split: prepared.rows[split][name].total for split in SPLITS},
        "truncation": asdict(prepared.truncation[name]),
        **({"answers_cut": asdict(prepared.answers_cut[name])} if name in prepared.answers_cut else {}),
        "systems": {
            system: {split: scores[split][name].to_dict() for split in ("valid", "test")}
            for system, scores in systems.items()
            if name in scores["test"]
        },
    }


def count_parameters(model: MultiTaskModel) -> dict[str, int]:
    """Trainable ones of the shared module and of the heads, and the backbone's own."""
    return {
        "trainable_shared": sum(p.numel() for _, p in model.shared_parameters()),
        "trainable_heads": sum(p.numel() for _, p in model.head_parameters()),
        "backbone_parameters": model.backbone_parameters,
    }


def write_plots(folder: RunFolder, results: dict[str, Any]) -> None:
    """plots/training.png, plots/results.png and, of several tasks, plots/conflict.png."""
    folder.plots.mkdir(exist_ok=True)
    metrics = {name: entry["primary_metric"] for name, entry in results["tasks"].items()}
    records = folder.read_metrics()
    plot_training(records, folder.plots / "training.png", metrics=metrics)
    plot_conflict(records, results["conflict"], folder.plots / "conflict.png")
    plot_results(results, folder.plots / "results.png")
