"""Run folders written by hand: the files that a study reads, without a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from manyskills.evaluation.classification import classification_metrics
from manyskills.evaluation.ranking import ranking_metrics

METRICS = {"flaky_tests": "f1", "defect_detection": "accuracy", "code_search": "mrr"}


def write_run(
    folder: Path,
    answers: dict[str, list[int] | list[float]],
    *,
    seed: int = 0,
    labels: list[int] | None = None,
    config: dict[str, Any] | None = None,
    results: dict[str, Any] | None = None,
    records: list[dict[str, Any]] | None = None,
) -> Path:
    """A finished run: decisions of each classifying task, ranks of `code_search`.

    Args:
        folder: Where.
        answers: Decisions or ranks by task.
        seed: Of the run.
        labels: Of all classifying tasks; default: every third row is positive.
        config: Changes of the configuration.
        results: More of results.json.
        records: Lines of metrics.jsonl.
    """
    (folder / "predictions").mkdir(parents=True)
    entries = {}
    for task, given in answers.items():
        truth = labels or [int(n % 3 == 0) for n in range(len(given))]
        if METRICS[task] == "mrr":
            lines = [{"id": f"q{n}", "rank": rank} for n, rank in enumerate(given)]
            value = ranking_metrics(given)["mrr"]
        else:
            lines = [
                {"id": f"r{n}", "label": label, "probability": 0.1 + 0.8 * answer, "prediction": answer}
                for n, (label, answer) in enumerate(zip(truth, given, strict=True))
            ]
            value = classification_metrics(truth, np.array(given), 0.5)[METRICS[task]]
        write_lines(folder / "predictions" / f"{task}.jsonl", lines)
        scores = {"metrics": {METRICS[task]: {"value": value if np.isfinite(value) else None}}}
        entries[task] = {
            "primary_metric": METRICS[task], "synthetic": None, "rows": {"train": 100},
            "systems": {"module": {"test": scores}},
        }  # fmt: skip
    settings = {
        "seed": seed, "batch_size": 8, "sampling": {"name": "round_robin"}, "balancing": {"name": "uniform"},
        "early_stopping": None, "learning_rate": 0.001, "output_dir": str(folder),
        "tasks": {task: {"limit": {"train": None, "valid": None, "test": None}} for task in answers},
    } | (config or {})  # fmt: skip
    digests = {split: {task: f"{split} of {task}" for task in answers} for split in ("train", "valid", "test")}
    content = {"tasks": entries, "data": digests, "config": settings} | (results or {})
    (folder / "results.json").write_text(json.dumps(content))
    write_lines(folder / "metrics.jsonl", records or [])
    return folder


def change_json(path: Path, *place: str, value: Any) -> None:
    """Set one entry of a JSON file."""
    content = json.loads(path.read_text())
    found = content
    for key in place[:-1]:
        found = found[key]
    found[place[-1]] = value
    path.write_text(json.dumps(content))


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
