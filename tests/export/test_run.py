"""What an export refuses, what it compares, and that nothing half-made stays."""

from __future__ import annotations

import json

import pytest

from manyskills.errors import UserError
from manyskills.export import checking, run
from manyskills.export.run import Wish, export


@pytest.mark.parametrize(
    ("method", "wish", "said"),
    [
        ("serial_adapter", Wish(), r"serial_adapter cannot be merged(.|\n)*--format onnx(.|\n)*lora, dora, ia3, qlora"),
        ("prefix_tuning", Wish(), "prefix_tuning cannot be merged"),
        ("mtl_lora", Wish(), r"update of its own(.|\n)*--task: clone_detection, defect"),
        ("mtl_lora", Wish("onnx"), "update of its own"),
        ("ia3", Wish("lora"), "ia3 is no kind of LoRA"),
        ("full", Wish("lora"), "full is no kind of LoRA"),
        ("lora", Wish(task="flaky"), r"not trained on 'flaky'(.|\n)*'flaky_tests'"),
        ("lora", Wish("merge"), r"unknown format 'merge'(.|\n)*'merged'"),  # pyright: ignore[reportArgumentType]
        ("lora", Wish(int8=True), "--int8 is for ONNX graphs"),
    ],
)
def test_what_cannot_be(method, wish, said, module, tmp_path):
    with pytest.raises(UserError, match=said):
        export(module(method), tmp_path / "made", wish)
    assert not list(tmp_path.iterdir())


def test_no_check_with_data(module, tmp_path):
    with pytest.raises(UserError, match="contradict"):
        export(module("lora"), tmp_path / "made", Wish(check=False, data=tmp_path))


def test_only_an_earlier_export_is_replaced(module, tmp_path):
    target = tmp_path / "made"
    export(module("lora"), target, Wish(check=False))
    with pytest.raises(UserError, match="is not empty"):
        export(module("lora"), target, Wish("lora", check=False))
    export(module("lora"), target, Wish("lora", check=False), overwrite=True)
    assert (target / "adapter_model.safetensors").is_file()
    assert not (target / "model.safetensors").exists()
    (target / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"no export wrote: notes\.txt"):
        export(module("lora"), target, Wish(check=False), overwrite=True)
    foreign = tmp_path / "other"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError):
            export(module("lora"), foreign, Wish(check=False), overwrite=overwrite)
    with pytest.raises(UserError, match="is a file"):
        export(module("lora"), foreign / "thesis.txt", Wish(check=False), overwrite=True)
    assert (foreign / "thesis.txt").read_text() == "mine"


def test_an_export_that_answers_otherwise_is_not_handed_out(module, tmp_path, monkeypatch):
    def lose_the_update(model):
        model.backbone = model.backbone.unload()
        model.method = type("Method", (), {"name": "frozen"})()

    monkeypatch.setattr(run, "merge", lose_the_update)
    with pytest.raises(UserError, match="does not answer as the module: vectors differ by"):
        export(module("lora"), tmp_path / "made", Wish())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [2e-3, float("nan")])
def test_more_than_rounding(value):
    with pytest.raises(UserError, match="does not answer as the module"):
        checking.refuse_difference({"vectors": {"relative_difference": value}})


def test_the_comparison_has_every_task_and_is_written_down(trained_run, tmp_path):
    summary = export(trained_run.path, tmp_path / "made", Wish(limit=6))
    assert summary == json.loads((tmp_path / "made" / "export.json").read_text())
    tasks = summary["checks"]["float32"]["tasks"]
    assert list(tasks) == ["clone_detection", "defect_detection", "flaky_tests", "code_search"]
    for entry in tasks.values():
        assert entry["rows"] == 6
        assert entry["module"] == pytest.approx(entry["exported"], abs=1e-6)
    whole = export(trained_run.path, tmp_path / "whole", Wish())["checks"]["float32"]["tasks"]
    for name, entry in whole.items():
        expected = trained_run.results["tasks"][name]["systems"]["module"]["valid"]["metrics"][entry["metric"]]
        assert entry["module"] == pytest.approx(expected["value"], abs=1e-5)


def test_without_data_vectors_are_compared_all_the_same(module, tmp_path, data_dir):
    folder = tmp_path / "best"
    folder.mkdir()
    for file in module("lora").iterdir():
        (folder / file.name).write_bytes(file.read_bytes().replace(str(data_dir).encode(), b"/nowhere"))
    said: list[str] = []
    check = export(folder, tmp_path / "made", Wish(), announce=said.append)["checks"]["float32"]
    assert check["tasks"] == {}
    assert len(check["not_measured"]) == 4
    assert check["vectors"]["texts"] == len(checking.PROBES)
    assert any("flaky_tests: only vectors are compared" in sentence for sentence in said)
    given = export(folder, tmp_path / "given", Wish(data=data_dir))["checks"]["float32"]
    assert len(given["tasks"]) == 4
    assert given["not_measured"] == {}
    with pytest.raises(UserError, match="there is no folder"):
        export(folder, tmp_path / "none", Wish(data=tmp_path / "absent"))
    with pytest.raises(UserError):
        export(folder, tmp_path / "none", Wish(data=tmp_path / "made"))
    assert not (tmp_path / "none").exists()
