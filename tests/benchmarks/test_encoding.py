"""All encoders give the same vectors, int8 nearly."""

from __future__ import annotations

import json

import pytest

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
