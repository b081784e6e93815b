"""ONNX graphs of other families than BERT: their masks, positions and pooling work at every size."""

from __future__ import annotations

import pytest

from manyskills.export.run import Wish, export
from tests.export.helpers import assert_same_vectors

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("family", ["modernbert", "t5", "llama"])
def test_vectors_at_other_sizes_than_the_traced(family, module, tmp_path):
    export(module("lora", family), tmp_path / "made", Wish("onnx", check=False))
    assert_same_vectors(tmp_path / "made", module("lora", family))
