"""ONNX graphs: the same vectors at every batch and length, smaller in 8 bits, nothing of this machine inside."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from manyskills.errors import UserError
from manyskills.export.run import Wish, export
from manyskills.export.source import load_source
from manyskills.inference.graph import Graph
from tests.export.helpers import assert_same_vectors, padded

onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def exported(module, tmp_path_factory):
    """Makes (once a method) a folder with a graph."""
    made = {}

    def make(method):
        if method not in made:
            made[method] = tmp_path_factory.mktemp("graph") / "made"
            export(module(method), made[method], Wish("onnx", check=False))
        return made[method]

    return make


@pytest.mark.parametrize("method", ["lora", "serial_adapter", "prefix_tuning"])
def test_vectors_at_other_sizes_than_the_traced(method, exported, module):
    assert_same_vectors(exported(method), module(method))


def test_padding_does_not_count(exported):
    graph = Graph(exported("lora"), threads=1)
    ids_BT, mask_BT = (array.numpy() for array in padded(4, 30, seed=7))
    together_BD = graph.encode(ids_BT, mask_BT)
    for row, length in enumerate(mask_BT.sum(1)):
        alone_BD = graph.encode(ids_BT[row : row + 1, :length], mask_BT[row : row + 1, :length])
        np.testing.assert_allclose(together_BD[row], alone_BD[0], atol=1e-5)


def test_what_a_program_without_torch_needs(exported, module):
    folder = exported("lora")
    facts = json.loads((folder / "onnx.json").read_text())
    graph = onnx.load(folder / facts["graph"]).graph
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {
        "input_ids": ["batch", "tokens"], "attention_mask": ["batch", "tokens"], "vectors": ["batch", 32]
    }  # fmt: skip
    assert facts["inputs"] == ["input_ids", "attention_mask"]
    assert facts["output"] == "vectors"
    template = load_source(module("lora"), None).model.template
    assert facts["template"] == {"prefix": [0], "middle": [2], "suffix": [2]}
    assert tuple(facts["template"]["prefix"]) == template.prefix
    assert (facts["pad_id"], facts["vector_size"], facts["max_length"], facts["max_positions"]) == (1, 32, 40, 80)
    assert {"tokenizer.json", "heads.safetensors", "tasks.json"} <= {path.name for path in folder.iterdir()}
    assert not list(folder.glob("*model.safetensors"))


def test_a_merged_graph_has_no_update_left(exported):
    """As many products as the backbone alone: LoRA is in the weights."""
    products = {
        method: sum(
            node.op_type in ("MatMul", "Gemm") for node in onnx.load(exported(method) / "model.onnx").graph.node
        )
        for method in ("lora", "serial_adapter")
    }
    assert products == {"lora": 2 * 8, "serial_adapter": 2 * (8 + 4)}


def test_nothing_of_this_machine_is_in_the_graph(exported, backbone_folder):
    data = (exported("lora") / "model.onnx").read_bytes()
    for trace in (b"site-packages", b".py", backbone_folder("bert").encode(), b"stack_trace"):
        assert trace not in data


def test_eight_bits_of_one_task_of_a_routed_module(module, tmp_path, exported):
    summary = export(module("mtl_lora"), tmp_path / "made", Wish("onnx", task="code_search", int8=True))
    assert (summary["precision"], summary["tasks"]) == ("int8", ["code_search"])
    assert json.loads((tmp_path / "made" / "onnx.json").read_text())["graph"] == "model.int8.onnx"
    assert not (tmp_path / "made" / "model.onnx").exists()
    small, large = (tmp_path / "made" / "model.int8.onnx"), exported("lora") / "model.onnx"
    assert onnx.TensorProto.INT8 in {tensor.data_type for tensor in onnx.load(small).graph.initializer}
    assert small.stat().st_size < large.stat().st_size
    float32, int8 = (summary["checks"][name]["vectors"] for name in ("float32", "int8"))
    assert float32["relative_difference"] < 1e-5 < int8["relative_difference"] < 0.1
    assert list(summary["checks"]["int8"]["tasks"]) == ["code_search"]


def test_a_graph_is_no_module_for_torch(exported):
    with pytest.raises(UserError, match="holds an ONNX graph"):
        load_source(exported("lora"), None)


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_what_is_not_installed_is_named_before_anything_is_done(missing, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf'{missing} is not installed(.|\n)*pip install "manyskills\[onnx\]"'):
        export(module("lora"), tmp_path / "made", Wish("onnx"))
    assert not list(tmp_path.iterdir())


def test_a_network_that_cannot_be_traced_is_one_sentence(module, tmp_path, monkeypatch):
    from manyskills.model.multitask import MultiTaskModel

    def depends_on_values(model, ids_BT, mask_BT, routes_B=None):
        return mask_BT.float() if int(ids_BT.sum()) > 3 else ids_BT.float()

    with monkeypatch.context() as patch:
        patch.setattr(MultiTaskModel, "encode", depends_on_values)
        with pytest.raises(UserError, match=r"this network \(bert\) cannot be written as an ONNX graph"):
            export(module("lora"), tmp_path / "made", Wish("onnx", check=False))
    assert not list(tmp_path.iterdir())
