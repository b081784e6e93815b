"""Merged folders and single LoRA adapters: they answer as the module, alone and wherever they are."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

import manyskills
from manyskills.export.run import Wish, export
from manyskills.model.checkpoint import load_model

ROWS = {
    "clone_detection": [{"code1": "def a(): return 1", "code2": "def b(x): return x"}],
    "defect_detection": [{"code": "if (a = b) c();"}, {"code": "x " * 90}],
    "flaky_tests": [{"code": "def test(): time.sleep(1)"}],
}
TASKS = [*ROWS, "code_search"]


def _answers(folder, tasks):
    model = manyskills.load(folder, device="cpu")
    found = {task: model.predict_proba(task, ROWS[task]) for task in tasks if task in ROWS}
    if "code_search" in tasks:
        found["code_search"] = model.encode(["add 3", "def add(a): return a"], task="code_search")
    return found


def _assert_same(one, other, tolerance=1e-5):
    assert one.keys() == other.keys()
    for task, found in one.items():
        np.testing.assert_allclose(found, other[task], atol=tolerance, err_msg=task)


@pytest.mark.parametrize("method", ["frozen", "full", "lora", "dora", "ia3"])
def test_a_merged_folder_answers_alone_and_where_it_was_moved_to(method, module, tmp_path):
    summary = export(module(method), tmp_path / "made", Wish())
    shutil.move(tmp_path / "made", tmp_path / "moved")
    assert {"config.json", "model.safetensors", "tokenizer.json", "heads.safetensors", "tasks.json"} <= set(
        summary["files"]
    )
    assert not [name for name in summary["files"] if "adapter" in name]
    assert manyskills.load(tmp_path / "moved").config.method.name == "frozen"
    _assert_same(_answers(tmp_path / "moved", TASKS), _answers(module(method), TASKS))
    loaded, original = manyskills.load(tmp_path / "moved"), manyskills.load(module(method))
    assert loaded.thresholds == original.thresholds
    assert summary["source"]["method"]["name"] == method
    assert summary["source"]["step"] == 3


@pytest.mark.parametrize(
    ("family", "part"),
    [("roberta", "auto"), ("modernbert", "auto"), ("t5", "encoder"), ("t5", "whole"), ("llama", "auto"),
     ("qwen2", "auto")],
)  # fmt: skip
def test_every_family_merges(family, part, module, tmp_path):
    export(module("lora", family, part), tmp_path / "made", Wish(check=False))
    _assert_same(_answers(tmp_path / "made", TASKS), _answers(module("lora", family, part), TASKS))


def test_quantised_weights_are_merged_as_the_numbers_that_their_codes_stand_for(module, tmp_path):
    pytest.importorskip("bitsandbytes")
    export(module("qlora"), tmp_path / "made", Wish())
    _assert_same(_answers(tmp_path / "made", TASKS), _answers(module("qlora"), TASKS))


@pytest.mark.parametrize("format", ["merged", "lora", "onnx"])
@pytest.mark.parametrize("attention", ["auto", "padded"])
def test_the_layout_stays_the_runs(attention, format, module, tmp_path):
    if format == "onnx":
        pytest.importorskip("onnxscript")
    run = shutil.copytree(module("lora"), tmp_path / "best")
    content = json.loads((run / "tasks.json").read_text())
    content["config"]["attention"] = attention
    (run / "tasks.json").write_text(json.dumps(content))
    export(run, tmp_path / "made", Wish(format, check=False))
    assert json.loads((tmp_path / "made" / "tasks.json").read_text())["config"]["attention"] == attention
    if format != "onnx":
        expected = "padded" if attention == "padded" else "unpadded"
        assert load_model(tmp_path / "made", torch.device("cpu")).attention == expected
        assert load_model(run, torch.device("cpu")).attention == expected


@pytest.mark.parametrize("format", ["lora", "merged"])
def test_one_task_of_a_routed_module(format, module, tmp_path):
    for task in ("defect_detection", "code_search"):
        export(module("mtl_lora"), tmp_path / task, Wish(format, task=task))
        loaded = manyskills.load(tmp_path / task)
        assert list(loaded.tasks) == [task]
        assert loaded.config.method.name == ("lora" if format == "lora" else "frozen")
        _assert_same(_answers(tmp_path / task, [task]), _answers(module("mtl_lora"), [task]))


def test_a_single_adapter_is_one_for_peft_alone(module, backbone_folder, tmp_path):
    from peft import PeftModel
    from transformers import AutoModel

    export(module("mtl_lora"), tmp_path / "made", Wish("lora", task="flaky_tests", check=False))
    config = json.loads((tmp_path / "made" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    base = AutoModel.from_pretrained(backbone_folder("bert"), add_pooling_layer=False)
    ids_BT = torch.tensor([[0, 40, 50, 60, 2]])
    with torch.no_grad():
        before = base(ids_BT).last_hidden_state.mean(1)
        after = PeftModel.from_pretrained(base, str(tmp_path / "made")).eval()(ids_BT).last_hidden_state.mean(1)
    assert not torch.allclose(before, after, atol=1e-3)


def test_some_heads_of_a_shared_module(module, tmp_path):
    for format in ("lora", "merged"):
        summary = export(module("lora"), tmp_path / format, Wish(format, task="flaky_tests"))
        assert summary["tasks"] == ["flaky_tests"]
        assert list(summary["checks"]["float32"]["tasks"]) == ["flaky_tests"]
        assert list(manyskills.load(tmp_path / format).thresholds) == ["flaky_tests"]
        _assert_same(_answers(tmp_path / format, ["flaky_tests"]), _answers(module("lora"), ["flaky_tests"]))


def test_an_export_can_be_exported(module, tmp_path):
    export(module("lora"), tmp_path / "one", Wish(check=False))
    export(tmp_path / "one", tmp_path / "two", Wish())
    shutil.rmtree(tmp_path / "one")
    _assert_same(_answers(tmp_path / "two", TASKS), _answers(module("lora"), TASKS))


def test_sentence_transformers_is_served_only_where_it_would_do_the_same(module, tmp_path):
    export(module("lora"), tmp_path / "bert", Wish(check=False))
    pooling = json.loads((tmp_path / "bert" / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode_mean_tokens"]
    assert not pooling["pooling_mode_lasttoken"]
    assert json.loads((tmp_path / "bert" / "sentence_bert_config.json").read_text())["max_seq_length"] == 40
    export(module("lora", "llama"), tmp_path / "llama", Wish(check=False))
    assert not (tmp_path / "llama" / "modules.json").exists(), "its tokenizer puts no end token"


def test_a_backbone_called_dot_stays_the_current_folder_where_there_is_no_other(module, tmp_path):
    folder = shutil.copytree(module("lora"), tmp_path / "best")
    content = json.loads((folder / "tasks.json").read_text())
    content["config"]["backbone"]["name"] = "."
    (folder / "tasks.json").write_text(json.dumps(content))
    from manyskills.saved import read_tasks_file

    assert read_tasks_file(folder).config.backbone.name == "."
