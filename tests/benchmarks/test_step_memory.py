"""A cached step has the gradients of a single pass."""

from __future__ import annotations

import json

import step_memory
from tests.benchmarks.helpers import in_this_process


def test_gradients_are_the_same(backbone_folder, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(step_memory, "peak_memory_of", in_this_process(step_memory.main))
    step_memory.main(["--quick", "--threads", "1", "--backbone", backbone_folder("roberta"), "--max-length", "64",
                      "--token-budget", "128", "--data", str(data_dir), "--output", str(tmp_path)])  # fmt: skip
    found = json.loads((tmp_path / "step_memory.json").read_text())
    assert found["gradient_difference"] < 1e-4
    measured = [(step["step_memory"], step["candidates"], step["max_length"]) for step in found["steps"]]
    assert measured == [
        ("single_pass", 8, 64), ("single_pass", 16, 64), ("cached", 16, 72), ("cached", 16, 64), ("cached", 24, 64),
    ]  # fmt: skip
    assert found["steps"][-1]["tokens"] > found["steps"][0]["tokens"] > 0


def test_memory_is_extrapolated_by_tokens():
    steps = [
        {"step_memory": "single_pass", "candidates": n, "tokens": 10 * n, "peak_bytes": 100 + 20 * n} for n in (1, 2)
    ]
    steps.append({"step_memory": "cached", "candidates": 50, "tokens": 500, "peak_bytes": 1})
    assert round(step_memory.extrapolated(steps, 50)) == 1100
