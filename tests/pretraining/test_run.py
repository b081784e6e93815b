"""Whole runs: they learn, resume to the same bytes, load elsewhere, and never write over a finished folder."""

from __future__ import annotations

import json

import pytest
import torch
from pydantic import ValidationError

from manyskills.config import BackboneConfig
from manyskills.config.pretraining import PretrainConfig, TextsConfig
from manyskills.errors import UserError
from manyskills.model.backbones import load_backbone
from manyskills.pretraining.folder import BackboneFolder
from manyskills.pretraining.plan import make_plan
from manyskills.pretraining.run import pretrain
from tests.pretraining.helpers import small_config, write_corpus

FAMILIES = ("qwen2", "llama", "t5")


def silent(_: str) -> None:
    """Says nothing."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    """A finished folder of each architecture."""
    root = tmp_path_factory.mktemp("backbones")
    return {name: pretrain(small_config(data, root / name, name), announce=silent) for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_folder_is_one_of_hugging_face(made, name):
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    auto = AutoModelForSeq2SeqLM if name == "t5" else AutoModelForCausalLM
    network, found = auto.from_pretrained(made[name], output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    backbone = load_backbone(BackboneConfig(name=str(made[name]), part="whole" if name == "t5" else "auto"))
    assert backbone.architecture.family == ("encoder_decoder" if name == "t5" else "decoder")
    assert backbone.architecture.pad_id == backbone.tokenizer.pad_token_id != backbone.tokenizer.eos_token_id
    ids = backbone.tokenizer("def f1(x):", return_tensors="pt")["input_ids"]
    written = network.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    assert written.shape[1] > (1 if name == "t5" else ids.shape[1])
    names = {path.name for path in made[name].iterdir()}
    assert names == {
        "config.json", "config.yaml", "generation_config.json", "metrics.jsonl", "model.safetensors", "README.md",
        "pretraining.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["qwen2", "t5"])
def test_it_learns(data, tmp_path, name):
    config = small_config(
        data, tmp_path / "b", name, max_steps=60, learning_rate=1e-2, logging_steps=5, save_steps=60, warmup_ratio=0.1
    )
    summary = json.loads((pretrain(config, announce=silent) / "pretraining.json").read_text())
    first, last = summary["train"][0]["loss"], summary["train"][-1]["loss"]
    assert last < 0.5 * first
    assert summary["valid"][-1]["loss"] < 0.6 * first
    assert summary["valid"][-1]["perplexity"] == pytest.approx(2.718281828 ** summary["valid"][-1]["loss"])


class Stopped(Exception):
    """A kill."""


@pytest.mark.parametrize("name", ["qwen2", "t5"])
@pytest.mark.parametrize("step", [0, 3, 5])
def test_a_killed_run_resumes_to_the_same_bytes(made, data, tmp_path, monkeypatch, name, step):
    from manyskills.pretraining import loop

    config, whole = small_config(data, tmp_path / "b", name), loop.Optimizer.update

    def update(self, at, tokens):
        if at == step:
            raise Stopped
        return whole(self, at, tokens)

    with monkeypatch.context() as patched:
        patched.setattr(loop.Optimizer, "update", update)
        with pytest.raises(Stopped):
            pretrain(config, announce=silent)
    folder = pretrain(config, resume=True, announce=silent)
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (folder / file).read_bytes() == (made[name] / file).read_bytes(), file
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 2, 4, 4, 6, 6]


def test_a_kill_while_the_folder_is_put_together(made, data, tmp_path, monkeypatch):
    config = small_config(data, tmp_path / "b")
    from manyskills.pretraining import folder as module

    write, count = module.write_atomically, []

    def few(path, content):
        if path.name in ("model.safetensors", "pretraining.json"):
            count.append(path)
            if len(count) == 2:
                raise Stopped
        write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_atomically", few)
        with pytest.raises(Stopped):
            pretrain(config, announce=silent)
    assert not BackboneFolder(config.output_dir).finished
    folder = pretrain(config, resume=True, announce=silent)
    assert (folder / "model.safetensors").read_bytes() == (made["qwen2"] / "model.safetensors").read_bytes()
    assert not (folder / "last").exists()


def test_a_finished_folder_is_kept(made, data):
    config = small_config(data, made["qwen2"])
    before = (made["qwen2"] / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(UserError, match=r"holds a finished backbone\n.*--overwrite"):
        pretrain(config, announce=silent)
    said = []
    pretrain(config, resume=True, announce=said.append)
    assert said == [f"{made['qwen2']} is finished already"]
    with pytest.raises(UserError, match="started with other values of max_steps"):
        pretrain(config.model_copy(update={"max_steps": 7}), resume=True, announce=silent)
    assert (made["qwen2"] / "model.safetensors").stat().st_mtime_ns == before


def test_overwrite_removes_what_was_made_and_nothing_else(data, tmp_path):
    config = small_config(data, tmp_path / "b", max_steps=1)
    folder = pretrain(config, announce=silent)
    changed = config.model_copy(update={"seed": 1})
    before = (folder / "model.safetensors").read_bytes()
    pretrain(changed, overwrite=True, announce=silent)
    assert (folder / "model.safetensors").read_bytes() != before
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"was not made by pretrain: notes\.txt"):
        pretrain(changed, overwrite=True, announce=silent)


def test_bad_input_leaves_nothing_behind(tmp_path):
    empty = tmp_path / "x.py"
    empty.write_text("")
    config = small_config(empty, tmp_path / "b").model_copy(update={"data": [TextsConfig(path=str(empty))]})
    with pytest.raises(UserError, match="found none that is not empty"):
        pretrain(config, announce=silent)
    assert not (tmp_path / "b").exists()


def test_resuming_with_other_texts_is_refused(data, tmp_path, monkeypatch):
    from manyskills.pretraining import loop

    own = write_corpus(tmp_path)
    config, whole = small_config(own, tmp_path / "b"), loop.Optimizer.update

    def update(self, at, tokens):
        if at == 3:
            raise Stopped
        return whole(self, at, tokens)

    with monkeypatch.context() as patched:
        patched.setattr(loop.Optimizer, "update", update)
        with pytest.raises(Stopped):
            pretrain(config, announce=silent)
    write_corpus(tmp_path, count=50)
    with pytest.raises(UserError, match="the data is not what the run was started with"):
        pretrain(config, resume=True, announce=silent)


def test_the_plan_counts_what_the_run_does(made, data, tmp_path):
    for name in FAMILIES:
        plan = make_plan(small_config(data, tmp_path / "b", name))
        summary = json.loads((made[name] / "pretraining.json").read_text())
        assert plan.parameters == summary["parameters"]
        assert (plan.texts, plan.held_out) == (summary["texts"]["train"], summary["texts"]["valid"])
        assert plan.steps == summary["steps"] == 6
        assert plan.vocab_size == summary["vocab_size"]
    assert not (tmp_path / "b").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_half_precision_on_a_gpu(data, tmp_path):
    config = small_config(data, tmp_path / "b", max_steps=40, learning_rate=1e-2)
    folder = pretrain(config, announce=silent)
    records = json.loads((folder / "pretraining.json").read_text())["train"]
    assert records[-1]["loss"] < 0.6 * records[0]["loss"]
    assert load_backbone(BackboneConfig(name=str(folder))).model.dtype in (torch.float32, torch.bfloat16)


def test_a_step_must_hold_a_piece():
    with pytest.raises(ValidationError, match="batch_tokens: 64 is under max_length"):
        PretrainConfig.model_validate({"data": ["x"], "max_length": 256, "batch_tokens": 64})
