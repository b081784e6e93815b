"""Each text once gives the scores that encoding both sides of every pair gives."""

from __future__ import annotations

import json

import pair_scoring
from tests.benchmarks.helpers import in_this_process


def test_scores_are_the_same_and_vectors_come_back_from_disk(backbone_folder, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(pair_scoring, "peak_memory_of", in_this_process(pair_scoring.main))
    pair_scoring.main(["--quick", "--rounds", "1", "--threads", "1", "--backbone", backbone_folder("bert"),
                       "--max-length", "64", "--data", str(data_dir), "--output", str(tmp_path)])  # fmt: skip
    found = json.loads((tmp_path / "pair_scoring.json").read_text())
    assert found["largest_difference_of_scores"] < 1e-5
    assert found["distinct_texts"] == 200
    assert found["memory"]["scored_pairs"] == found["sizes"]["pairs"] == 3_000
    assert found["times_as_long"][pair_scoring.OURS]["cpu"] == 1
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md", ".png"}


def test_a_folder_of_pairs_has_no_pair_of_a_function_with_itself(data_dir, tmp_path):
    pair_scoring.write_pairs(data_dir, tmp_path, functions=5, pairs=200, seed=0)
    lines = (tmp_path / "clone_detection" / "pairs_test.jsonl").read_text().splitlines()
    pairs = [json.loads(line) for line in lines]
    assert len(pairs) == 200
    assert all(pair["id1"] != pair["id2"] for pair in pairs)
    assert len({pair["id1"] for pair in pairs}) == 5
