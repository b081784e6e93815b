"""A module and the floor are joined by what validation says; test is only scored."""

from __future__ import annotations

import json
import shutil

import pytest

import floor_ensemble


def test_the_mixture_is_chosen_on_validation_alone(trained_run, data_dir, tmp_path, monkeypatch):
    """With the labels of the test split turned round, every probability that is scored stays the same."""
    turned = tmp_path / "turned"
    shutil.copytree(data_dir, turned)
    for path in [turned / "defect_detection" / "test.jsonl", turned / "flaky_tests" / "test.jsonl",
                 turned / "clone_detection" / "pairs_test.jsonl"]:  # fmt: skip
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(_turned(row)) + "\n" for row in rows))
    seen: list[list[tuple[list[float], float]]] = []
    scored = floor_ensemble.score_classification

    def score(labels_E, probabilities_E, threshold, *, samples, confidence, seed):
        if samples:
            seen[-1].append((probabilities_E.tolist(), threshold))
        return scored(labels_E, probabilities_E, threshold, samples=5, confidence=confidence, seed=seed)

    monkeypatch.setattr(floor_ensemble, "score_classification", score)
    values = []
    for data in (data_dir, turned):
        seen.append([])
        floor_ensemble.main([str(trained_run.path), "--data", str(data), "--output", str(tmp_path / data.name)])
        (found,) = json.loads((tmp_path / data.name / "floor_ensemble.json").read_text()).values()
        values.append(found)
    assert len(seen[0]) == 3 * len(floor_ensemble.SYSTEMS)
    for first, second in zip(*seen, strict=True):
        assert first[0] == pytest.approx(second[0])
        assert first[1] == pytest.approx(second[1])
    for task in ("defect_detection", "flaky_tests"):
        assert values[0][task]["floor"] != values[1][task]["floor"], "the turned labels were not read"
    assert values[0]["code_search"] == values[1]["code_search"]


def _turned(row: dict) -> dict:
    return row | {"label": 1 - row["label"]}
