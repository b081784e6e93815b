"""All encoders give the same vectors, int8 nearly."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch

import encoding

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own


def test_vectors_are_the_same(backbone_folder, data_dir, tmp_path):
    encoding.main(["--quick", "--rounds", "1", "--threads", "1", "--backbone", backbone_folder("bert"),
                   "--max-length", "64", "--data", str(data_dir), "--output", str(tmp_path)])  # fmt: skip
    found = json.loads((tmp_path / "encoding.json").read_text())
    exact = {name: alike["min"] for name, alike in found["cosines"].items() if name != encoding.INT8}
    assert {encoding.PADDED, encoding.UNPADDED, encoding.ONNX} <= exact.keys()
    assert min(exact.values()) > 1 - 1e-5
    assert found["cosines"][encoding.INT8]["mean"] > 0.9
    assert set(found["quality"]) == set(encoding.QUALITY)
    assert found["start"][encoding.INT8]["cpu"] > 0


def test_texts_are_runs_of_neighbours_with_the_lengths_of_the_whole(monkeypatch):
    monkeypatch.setattr(encoding, "RUN", 10)
    found = encoding.length_sorted_runs(["x" * size for size in range(1, 1001)] * 2, 100)
    lengths = sorted(map(len, found))
    assert len(set(lengths)) == 100
    assert sum(after - before == 1 for before, after in pairwise(lengths)) == 90
    assert abs(sum(lengths) / 100 - 500) < 25
    assert lengths != [len(text) for text in found]


def test_a_turn_with_other_threads_leaves_the_number_as_it_was():
    before, seen = torch.get_num_threads(), []
    encoding._with_threads(lambda texts: seen.append(torch.get_num_threads()), before + 1, ["x"])()
    assert seen == [before + 1]
    assert torch.get_num_threads() == before
