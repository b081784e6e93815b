"""The benchmark of the chunked loss runs, and says how many times as much memory the other way takes."""

from __future__ import annotations

import json

import cross_entropy_memory
from tests.benchmarks.helpers import in_this_process


def test_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(cross_entropy_memory, "peak_memory_of", in_this_process(cross_entropy_memory.main))
    cross_entropy_memory.main(["--quick", "--threads", "1", "--output", str(tmp_path)])
    found = json.loads((tmp_path / "cross_entropy_memory.json").read_text())
    assert [(one["way"], one["hidden_size"], one["output_layer"]) for one in found["passes"]] == [
        ("whole logits", 896, "frozen"),
        ("blocks", 896, "frozen"),
        ("whole logits", 1536, "frozen"),
        ("blocks", 1536, "frozen"),
        ("whole logits", 896, "trained"),
        ("blocks", 896, "trained"),
    ]
    assert 0 <= found["about"]["gradient_difference"] < 1e-4


def test_the_table_compares_peaks():
    one = {"hidden_size": 8, "output_layer": "frozen", "bytes_before": 100, "cpu": 1.0, "wall": 2.0}
    passes = [one | {"way": "whole logits", "peak_bytes": 900}, one | {"way": "blocks", "peak_bytes": 300}]
    about = {"tokens": 4, "vocabulary": 9, "gradient_difference": 0.0}
    rows = cross_entropy_memory.table({"passes": passes, "about": about}).rows
    assert [row[3:5] for row in rows] == [["1.0x", "1.0x"], ["3.0x", "4.0x"]]
