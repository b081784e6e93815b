"""Backbones: what is read off each architecture, and one clear sentence for everything that can be wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from manyskills.cli.app import run
from manyskills.config import BackboneConfig
from manyskills.errors import UserError
from manyskills.model.backbones import ALIASES, load_backbone, load_tokenizer, resolve
from tests.conftest import FAMILIES

POOLING = {"bert": "mean", "roberta": "cls", "modernbert": "mean", "t5": "mean", "llama": "last", "qwen2": "last"}
KIND = {"t5": "t5_encoder", "llama": "decoder", "qwen2": "decoder"}
POSITIONS = {"t5": None}


@pytest.mark.parametrize("family", FAMILIES)
def test_facts_of_each_family(family, backbone_folder):
    backbone = load_backbone(BackboneConfig(name=backbone_folder(family)))
    found = backbone.architecture
    assert (found.model_type, found.hidden_size, found.layers) == (family, 32, 2)
    assert found.pooling == POOLING[family]
    assert found.family == KIND.get(family, "encoder")
    assert found.max_positions == POSITIONS.get(family, 80)
    assert {p.dtype for p in backbone.model.parameters()} == {torch.float32}
    assert "decoder" not in "".join(name for name, _ in backbone.model.named_parameters())
    if found.pooling == "last":
        assert backbone.template.suffix == (2,)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_longest_text_can_be_read(family, backbone_folder):
    backbone = load_backbone(BackboneConfig(name=backbone_folder(family)))
    longest = backbone.architecture.max_positions or 200
    ids = torch.full((1, longest), 5)
    with torch.no_grad():
        states = backbone.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    assert states.shape == (1, longest, 32)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_without_weights_has_the_same_shape(family, backbone_folder):
    config = BackboneConfig(name=backbone_folder(family))
    real, meta = load_backbone(config), load_backbone(config, weights=False)
    shapes = {name: p.shape for name, p in real.model.named_parameters()}
    assert shapes == {name: p.shape for name, p in meta.model.named_parameters()}
    assert {p.device.type for p in meta.model.parameters()} == {"meta"}
    assert real.architecture == meta.architecture


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_tokenizer_alone_has_the_same_template(family, backbone_folder):
    config = BackboneConfig(name=backbone_folder(family))
    tokenizer, template = load_tokenizer(config)
    assert template == load_backbone(config).template
    assert tokenizer.is_fast


def test_weights_are_those_of_the_folder(backbone_folder):
    from safetensors.torch import load_file

    folder = backbone_folder("bert")
    saved = load_file(Path(folder) / "model.safetensors")
    for name, p in load_backbone(BackboneConfig(name=folder)).model.named_parameters():
        assert torch.equal(p, saved[name])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_number_format(dtype, backbone_folder):
    backbone = load_backbone(BackboneConfig(name=backbone_folder("qwen2"), dtype=dtype))
    assert {p.dtype for p in backbone.model.parameters()} == {getattr(torch, dtype)}


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
    ],
)
def test_a_sentence_transformers_folder_knows_its_pooling(chosen, expected, backbone_folder, tmp_path):
    folder = shutil.copytree(backbone_folder("roberta"), tmp_path / "model")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(chosen))
    assert load_backbone(BackboneConfig(name=str(folder)), weights=False).architecture.pooling == expected
    asked = BackboneConfig(name=str(folder), pooling="mean")
    assert load_backbone(asked, weights=False).architecture.pooling == "mean"


def test_a_unixcoder_is_averaged(backbone_folder, tmp_path):
    folder = shutil.copytree(backbone_folder("roberta"), tmp_path / "unixcoder-base")
    assert load_backbone(BackboneConfig(name=str(folder)), weights=False).architecture.pooling == "mean"


def test_last_pooling_of_an_encoder_still_ends_in_its_end_token(backbone_folder):
    backbone = load_backbone(BackboneConfig(name=backbone_folder("bert"), pooling="last"), weights=False)
    assert backbone.template.suffix == (2,)


def test_names():
    assert resolve("unixcoder") == ALIASES["unixcoder"]
    assert resolve("some/where") == "some/where"
    with pytest.raises(UserError, match=r"'unixcodr' is neither(.|\n)*did you mean 'unixcoder'"):
        resolve("unixcodr")


def _break(folder, what):
    match what:
        case "no config":
            (folder / "config.json").unlink()
        case "broken config":
            (folder / "config.json").write_text("{")
        case "unknown type":
            (folder / "config.json").write_text('{"model_type": "quokka"}')
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
            (folder / "tokenizer_config.json").unlink()
        case "broken tokenizer":
            (folder / "tokenizer.json").write_text("{}")
        case "no weights":
            (folder / "model.safetensors").unlink()
        case "broken weights":
            (folder / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0nonsense")
        case "missing weights":
            from safetensors.torch import load_file, save_file

            weights = load_file(folder / "model.safetensors")
            weights.pop("encoder.layer.1.output.dense.weight")
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        case "other size":
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
        case "pickled weights":
            (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    "what",
    ["no config", "broken config", "unknown type", "no tokenizer", "broken tokenizer", "no weights", "broken weights",
     "missing weights", "other size", "pickled weights"],
)  # fmt: skip
def test_a_broken_folder_is_one_sentence(what, backbone_folder, data_dir, tmp_path, capsys):
    folder = shutil.copytree(backbone_folder("bert"), tmp_path / "model")
    _break(folder, what)
    assert _train(tmp_path, folder, data_dir) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"manyskills: backbone {str(folder)!r} ")
    assert "hint: " in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["nobody/has-this-model", "no-such-alias", "./no/such/folder"])
def test_a_wrong_name_is_one_sentence(name, data_dir, tmp_path, capsys):
    assert _train(tmp_path, name, data_dir) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"manyskills: backbone {name!r} ")
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def _train(tmp_path, backbone, data_dir):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"tasks: [defect_detection]\nmax_length: 40\ndata_dir: {data_dir}\noutput_dir: {tmp_path / 'run'}\n"
    )
    return run(["train", str(config), f"backbone={backbone}"])


def test_a_text_longer_than_the_backbone_reads_is_an_error(backbone_folder, data_dir, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"tasks: [defect_detection]\nmax_length: 81\ndata_dir: {data_dir}\noutput_dir: {tmp_path / 'run'}\n"
    )
    assert run(["train", str(config), f"backbone={backbone_folder('bert')}"]) == 2
    assert "max_length: 81 tokens wanted, the backbone reads 80 at most" in capsys.readouterr().err
