"""The lower and the upper layers apart give what the whole network gives, for every family and way of training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import pytest
import torch
from pydantic import TypeAdapter

from manyskills.config import BackboneConfig, MethodConfig, TaskConfig
from manyskills.model.backbones import load_backbone
from manyskills.model.chunks import PaddedChunk
from manyskills.model.methods import METHODS
from manyskills.model.multitask import MultiTaskModel
from manyskills.model.trunk import _STAND_INS, StandIn, Trunk, why_whole
from tests.conftest import ALL_FAMILIES

# Shape legend: B sequences, T tokens, H hidden size, D size of a vector
METHOD_NAMES = sorted(METHODS.keys() - {"frozen", "full", "qlora"})


def _method(name: str = "lora", **options: object) -> MethodConfig:
    return TypeAdapter(MethodConfig).validate_python({"name": name, "layers": "last 1"} | options)


def _model(folder: str, method: MethodConfig | None = None, part: Literal["auto", "whole"] = "auto") -> MultiTaskModel:
    """A model whose adapter does something."""
    torch.manual_seed(0)
    backbone = load_backbone(BackboneConfig(name=folder, part=part))
    model = MultiTaskModel(
        backbone, method or _method(), {"defect_detection": TaskConfig(), "flaky_tests": TaskConfig()}
    )
    with torch.no_grad():
        for _, p in model.shared_parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model.eval()


def _texts() -> tuple[torch.Tensor, torch.Tensor]:
    """Three sequences, of 30, 17 and 5 tokens: longer than any local attention window."""
    mask_BT = (torch.arange(30)[None] < torch.tensor([30, 17, 5])[:, None]).long()
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(3, 300, mask_BT.shape, generator=generator)
    return torch.where(mask_BT.bool(), ids_BT, 1), mask_BT


def _gradients(model: MultiTaskModel, vectors_BD: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (vectors_BD * torch.linspace(-1, 1, vectors_BD.numel()).view_as(vectors_BD)).sum().backward()
    return {name: p.grad.clone() for name, p in model.shared_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_lower_and_upper_are_the_whole(family, backbone_folder):
    model = _model(backbone_folder(family))
    ids_BT, mask_BT = _texts()
    whole_BD = model.encode(ids_BT, mask_BT)
    expected = _gradients(model, whole_BD)
    names = list(model.state_dict())
    trunk = Trunk(model, 1)
    assert trunk.problem() is None
    assert list(model.state_dict()) == names, "nothing is renamed"
    states_BTH = trunk.lower(PaddedChunk(ids_BT, mask_BT))
    assert not states_BTH.requires_grad
    parts_BD = trunk.upper(states_BTH, PaddedChunk(ids_BT, mask_BT))
    assert torch.equal(parts_BD, whole_BD)
    for name, gradient in _gradients(model, parts_BD).items():
        assert torch.equal(gradient, expected[name]), name
    assert torch.equal(model.encode(ids_BT, mask_BT), whole_BD), "the whole network still works"


@pytest.mark.parametrize("family", ["bert", "modernbert", "t5", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("last", [1, 2, 3])
def test_any_border_of_a_deeper_network(family, last, backbone_folder, tmp_path):
    model = _model(_deeper(backbone_folder(family), tmp_path / "deeper"), _method(layers=f"last {last}"))
    assert model.architecture.layers == 4
    ids_BT, mask_BT = _texts()
    whole_BD = model.encode(ids_BT, mask_BT)
    trunk = Trunk(model, last)
    states_BTH = trunk.lower(PaddedChunk(ids_BT, mask_BT))
    assert torch.equal(trunk.upper(states_BTH, PaddedChunk(ids_BT, mask_BT)), whole_BD)
    assert not torch.allclose(
        trunk.upper(states_BTH + 1e-2 * states_BTH.flip(0), PaddedChunk(ids_BT, mask_BT)), whole_BD
    )


def _deeper(folder: str, copy: Path) -> str:
    """The same backbone with four layers instead of two."""
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

    shutil.copytree(folder, copy)
    config = AutoConfig.from_pretrained(folder)
    if kinds := getattr(config, "layer_types", None):
        config.layer_types = [*kinds, *reversed(kinds)]
    config.num_hidden_layers = 4
    auto = AutoModelForTextEncoding if config.model_type == "t5" else AutoModel
    auto.from_config(config).save_pretrained(copy)
    return str(copy)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_the_upper_part_does_not_compute_what_is_below(family, backbone_folder):
    model = _model(backbone_folder(family))
    trunk = Trunk(model, 1)
    ids_BT, mask_BT = _texts()
    states_BTH = trunk.lower(PaddedChunk(ids_BT, mask_BT))
    expected_BD = trunk.upper(states_BTH, PaddedChunk(ids_BT, mask_BT))
    for name, p in trunk._layers[0].named_parameters():
        if "relative_attention_bias" not in name:  # the first block's serves all
            p.data.fill_(torch.nan)
    assert torch.equal(trunk.upper(states_BTH, PaddedChunk(ids_BT, mask_BT)), expected_BD)


@pytest.mark.parametrize("family", ["bert", "modernbert", "t5", "qwen2"])
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_every_method_with_layers(method, family, backbone_folder):
    model = _model(backbone_folder(family), _method(method))
    ids_BT, mask_BT = _texts()
    trunk = Trunk(model, 1)
    states_BTH = trunk.lower(PaddedChunk(ids_BT, mask_BT))
    with model.routed(torch.tensor([0, 1, 1])):
        assert torch.equal(trunk.upper(states_BTH, PaddedChunk(ids_BT, mask_BT)), model.encode(ids_BT, mask_BT))


@pytest.mark.parametrize("family", ["bert", "modernbert", "t5", "llama", "gemma2"])
def test_gradients_are_unchanged_under_gradient_checkpointing(family, backbone_folder):
    """A layer is computed again in the backward pass, when the trunk is set for something else already."""
    model = _model(backbone_folder(family), _method(lora_dropout=0))
    ids_BT, mask_BT = _texts()
    trunk = Trunk(model, 1)
    states_BTH = trunk.lower(PaddedChunk(ids_BT, mask_BT))
    model.train()
    expected = _gradients(model, trunk.upper(states_BTH, PaddedChunk(ids_BT, mask_BT)))
    model.checkpoint_gradients()
    model.train()
    assert any(layer.training for layer in trunk._layers)
    vectors_BD = trunk.upper(states_BTH, PaddedChunk(ids_BT, mask_BT))
    trunk.lower(PaddedChunk(ids_BT.flip(0), mask_BT.flip(0)))
    trunk.upper(states_BTH.flip(0), PaddedChunk(ids_BT.flip(0), mask_BT.flip(0)))
    with trunk._layers.lower_only(1):
        found = _gradients(model, vectors_BD)
    for name, gradient in expected.items():
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-8)


def test_the_fingerprint_is_of_what_decides_the_states(backbone_folder, tmp_path):
    first = Trunk(_model(backbone_folder("bert")), 1).fingerprint()
    copy = shutil.copytree(backbone_folder("bert"), tmp_path / "elsewhere")
    assert Trunk(_model(str(copy)), 1).fingerprint() == first, "the place does not count"
    assert Trunk(_model(str(copy), _method("ia3")), 1).fingerprint() == first, "nor does what is above"
    half = _model(str(copy))
    half.autocast_dtype = torch.bfloat16
    assert Trunk(half, 1).fingerprint() != first
    half = _model(str(copy))
    half.network.bfloat16()
    assert Trunk(half, 1).fingerprint() != first, "so do the backbone's own number format"
    eager = _model(str(copy))
    eager.network.set_attn_implementation("eager")
    assert Trunk(eager, 1).fingerprint() != first, "and the way attention is computed"
    other = Trunk(_model(str(copy)), 1)
    upper, lower = other._layers[1].attention.self.key.weight, other._layers[0].attention.self.key.weight
    upper.data[0, 0] += 1
    assert other.fingerprint() == first
    lower.data[0, 0] += 1e-3
    assert other.fingerprint() != first


def test_a_quantised_backbone_has_states_of_its_own(backbone_folder):
    pytest.importorskip("bitsandbytes")
    folder = backbone_folder("qwen2")
    quantised = MultiTaskModel(load_backbone(BackboneConfig(name=folder, quantize="nf4")), _method(), {})
    trunk = Trunk(quantised, 1)
    assert trunk.problem() is None
    assert trunk.fingerprint() == Trunk(quantised, 1).fingerprint()
    assert trunk.fingerprint() != Trunk(_model(folder), 1).fingerprint()


class _NoBias(StandIn):
    """Loses the first T5 block's position bias, which serves all."""

    def __call__(self, states_BTH, *arguments, **options):
        return super().__call__(states_BTH), None, None


class _Tuple(StandIn):
    """Returns what no layer expects."""

    def __call__(self, states_BTH, *arguments, **options):
        return (super().__call__(states_BTH),)


class _NoGive(StandIn):
    """Passes on what comes, not what was kept."""

    def __call__(self, states_BTH, *arguments, **options):
        super().__call__(states_BTH)
        return states_BTH


@pytest.mark.parametrize(
    ("family", "stand_in", "said"),
    [("t5", _NoBias, "not those of the whole"), ("t5", _Tuple, "Error: "), ("bert", _NoGive, "not those"),
     ("modernbert", _Tuple, "Error: ")],
)  # fmt: skip
def test_a_trunk_that_another_library_walks_differently_says_so(family, stand_in, said, backbone_folder, monkeypatch):
    monkeypatch.setitem(_STAND_INS, family, stand_in)
    model = _model(backbone_folder(family))
    ids_BT, mask_BT = _texts()
    expected_BD = model.encode(ids_BT, mask_BT)
    assert said in (Trunk(model, 1).problem() or "")
    assert torch.equal(model.encode(ids_BT, mask_BT), expected_BD), "the whole network still works"


def test_training_below_is_refused(backbone_folder):
    with pytest.raises(RuntimeError, match=r"layer\.0.*trains"):
        Trunk(_model(backbone_folder("bert"), _method(layers="all")), 1)


def test_what_cannot_be_taken_apart_is_said(backbone_folder):
    assert why_whole(_model(backbone_folder("bert")).architecture, 1) is None
    assert "nothing below the last 2" in (why_whole(_model(backbone_folder("bert")).architecture, 2) or "")
    assert "encoder-decoder" in (why_whole(_model(backbone_folder("t5"), part="whole").architecture, 1) or "")
