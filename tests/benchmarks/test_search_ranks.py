"""Counting in blocks gives the ranks of a full sort."""

from __future__ import annotations

import json

import numpy as np

import search_ranks
from tests.benchmarks.helpers import in_this_process


def test_ranks_are_those_of_a_full_sort(tmp_path, monkeypatch):
    monkeypatch.setattr(search_ranks, "peak_memory_of", in_this_process(search_ranks.main))
    search_ranks.main(["--quick", "--rounds", "1", "--threads", "1", "--sizes", "32", "64", "--output", str(tmp_path)])
    found = json.loads((tmp_path / "search_ranks.json").read_text())
    assert set(found["sizes"]) == {"32", "64"}
    for size in found["sizes"].values():
        assert size["different_ranks"] == 0
        assert size["tied_answers"] > 0, "without ties the rule for them is not looked at"
        assert 0 < size["metrics"]["mrr"] < 1


def test_the_full_sort_shares_places_among_equals():
    candidates_C1 = np.array([[0.5], [1.0], [0.5], [0.25]], np.float32)
    ranks_Q = search_ranks.sorted_ranks(np.ones((3, 1), np.float32), candidates_C1, np.array([1, 2, 3]))
    assert ranks_Q.tolist() == [1, 2.5, 4]
