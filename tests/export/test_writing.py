"""Exports of modules that write: the output layer goes along, or it is refused."""

from __future__ import annotations

import json

import pytest
import torch

import manyskills
from manyskills.errors import UserError
from manyskills.export import run
from manyskills.export.run import Wish, export
from manyskills.export.source import load_source

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ROWS = [{"java": f"int get{n}() {{ return a; }}"} for n in range(4)]
CODE = [{"code": f"int f{n}(int *p) {{ }}"} for n in range(4)]


def answers(folder):
    model = manyskills.load(folder)
    return model.generate("code_translation", ROWS, variant="java_csharp"), [
        round(p, 4) for p in model.predict_proba("defect_detection", CODE).tolist()
    ]


@pytest.mark.parametrize(
    ("method", "family", "format"),
    [("lora", "qwen2", "merged"), ("full", "llama", "merged"), ("lora", "t5", "merged"), ("lora", "qwen2", "lora"),
     ("ia3", "gemma2", "merged"), ("full", "t5", "merged")],
)  # fmt: skip
def test_an_export_writes_as_its_module(method, family, format, writing_module, seven_dir, tmp_path):
    module = writing_module(method, family)
    summary = export(module, tmp_path / "made", Wish(format))
    assert answers(tmp_path / "made") == answers(module)
    check = summary["checks"]["float32"]
    assert check["logits"]["relative_difference"] < 1e-4
    assert check["tasks"]["code_translation"]["metric"] == "token_probability"
    assert check["tasks"]["code_search"]["metric"] == "mrr"
    for entry in check["tasks"].values():
        assert entry["module"] == pytest.approx(entry["exported"], abs=1e-5)


@pytest.mark.parametrize("family", ["qwen2", "t5"])
def test_one_task_alone(family, writing_module, tmp_path):
    module = manyskills.load(writing_module("lora", family))
    export(writing_module("lora", family), tmp_path / "search", Wish(task="code_search"))
    search = manyskills.load(tmp_path / "search")
    assert list(search.tasks) == ["code_search"]
    wanted = module.encode(["a", "b"], task="code_search")
    torch.testing.assert_close(search.encode(["a", "b"], task="code_search"), wanted, rtol=1e-3, atol=1e-4)
    export(writing_module("lora", family), tmp_path / "one", Wish(task="code_translation"))
    one = manyskills.load(tmp_path / "one")
    assert one.generate("code_translation", ROWS, variant="java_csharp") == answers(writing_module("lora", family))[0]
    assert set(json.loads((tmp_path / "one" / "tasks.json").read_text())["prompts"]) == {"code_translation"}


@pytest.mark.parametrize("format", ["merged", "lora"])
def test_one_task_of_a_routed_module(format, writing_module, tmp_path):
    module = writing_module("mtl_lora")
    export(module, tmp_path / "made", Wish(format, task="code_translation"))
    found = manyskills.load(tmp_path / "made").generate("code_translation", ROWS, variant="java_csharp")
    assert found == answers(module)[0]


def test_a_folder_that_others_can_load(writing_module, tmp_path):
    from transformers import AutoModelForCausalLM

    export(writing_module("lora"), tmp_path / "made", Wish(check=False))
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    ids = torch.tensor([[5, 6, 7]])
    ours = load_source(writing_module("lora"), None).model
    assert ours.language_model is not None
    with torch.no_grad():
        torch.testing.assert_close(network(ids).logits, ours.language_model(ids).logits, rtol=1e-3, atol=1e-4)


def test_an_export_that_lost_its_output_layer_is_not_handed_out(writing_module, tmp_path, monkeypatch):
    def spoil(source, folder):
        write(source, folder)
        from safetensors.torch import load_file, save_file

        state = load_file(folder / "model.safetensors")
        name = next(name for name in state if name.startswith("lm_head"))
        save_file(state | {name: state[name] * 2}, folder / "model.safetensors", metadata={"format": "pt"})

    write = run.write_backbone
    monkeypatch.setattr(run, "write_backbone", spoil)
    with pytest.raises(UserError, match="does not answer as the module: logits differ by"):
        export(writing_module("full", "llama"), tmp_path / "made", Wish())
    assert not list(tmp_path.iterdir())


def test_a_graph_cannot_write(writing_module, tmp_path):
    with pytest.raises(UserError, match=r"a graph cannot write, and code_translation, code_summarization, defect_det"):
        export(writing_module("lora"), tmp_path / "made", Wish("onnx"))
    with pytest.raises(UserError, match="--format merged"):
        export(writing_module("lora"), tmp_path / "made", Wish("onnx", task="code_translation"))
    export(writing_module("lora"), tmp_path / "made", Wish("onnx", task="code_search"))
    graph = manyskills.load(tmp_path / "made")
    wanted = manyskills.load(writing_module("lora")).encode(["a"], task="code_search")
    torch.testing.assert_close(graph.encode(["a"], task="code_search"), wanted, rtol=1e-3, atol=1e-4)
    with pytest.raises(UserError, match="was not trained on"):
        graph.generate("code_translation", ROWS)
