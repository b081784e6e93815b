"""Sequences one behind another give the vectors and gradients of the padded layout, for every family and method."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from transformers.models.bert.modeling_bert import BertSelfAttention

from manyskills.config import BackboneConfig, MethodConfig, TaskConfig, TrainConfig
from manyskills.data.text_set import plan_unpadded_chunks
from manyskills.errors import UserError
from manyskills.model.attention import UNPADDED, choose_attention, first_position
from manyskills.model.backbones import load_backbone
from manyskills.model.chunks import Chunk, PaddedChunk, UnpaddedChunk
from manyskills.model.methods import METHODS
from manyskills.model.multitask import MultiTaskModel, build_model
from manyskills.model.unpadded import ATTENTION, Bounds

# Shape legend: B sequences, T tokens of the longest, N tokens of all, D size of a vector
CPU = torch.device("cpu")
LENGTHS = np.array([3, 9, 9, 24, 40])
"""One group of two; the last two are longer than the local attention of ModernBERT and Mistral here."""

METHOD_NAMES = sorted(name for name, method in METHODS.items() if method.unpadded and name not in ("frozen", "qlora"))
TASKS = ("defect_detection", "flaky_tests", "code_search")


def _model(folder: str, method: str = "lora", **options: Any) -> MultiTaskModel:
    """A model whose shared module does something, without dropout."""
    torch.manual_seed(0)
    config: MethodConfig = TypeAdapter(MethodConfig).validate_python({"name": method, **options})
    model = MultiTaskModel(load_backbone(BackboneConfig(name=folder)), config, {name: TaskConfig() for name in TASKS})
    with torch.no_grad():
        for _, p in model.shared_parameters():
            p.add_(torch.randn_like(p) * 0.1)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


def _chunks(model: MultiTaskModel) -> tuple[PaddedChunk, UnpaddedChunk]:
    mask_BT = torch.arange(int(LENGTHS.max())) < torch.from_numpy(LENGTHS)[:, None]
    ids_BT = torch.randint(3, 300, mask_BT.shape, generator=torch.Generator().manual_seed(1))
    ids_BT = torch.where(mask_BT, ids_BT, model.architecture.pad_id)
    unpadded = UnpaddedChunk(ids_BT[mask_BT][None], Bounds(LENGTHS, CPU), first_position(model.network))
    return PaddedChunk(ids_BT, mask_BT.long()), unpadded


def _routes(chunk: Chunk) -> torch.Tensor:
    """Tasks 0, 1, 2, 0, 1 read the sequences."""
    routes_B = torch.arange(len(LENGTHS)) % len(TASKS)
    return routes_B if isinstance(chunk, PaddedChunk) else routes_B.repeat_interleave(torch.from_numpy(LENGTHS))[None]


def _run(model: MultiTaskModel, chunk: Chunk) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Vectors, and gradients of a sum in which every component counts differently."""
    model.zero_grad()
    with model.routed(_routes(chunk)):
        vectors_BD = model.vectors(chunk)
        (vectors_BD * torch.linspace(-1, 1, vectors_BD.numel()).view_as(vectors_BD)).sum().backward()
    return vectors_BD.detach(), {name: p.grad.clone() for name, p in model.shared_parameters() if p.grad is not None}


def _assert_same(found: tuple[torch.Tensor, dict[str, torch.Tensor]], expected: Any) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert found[1].keys() == expected[1].keys() and found[1]
    for name, gradient in expected[1].items():
        scale = float(gradient.abs().max())
        assert scale > 0, f"{name} has no gradient to compare"
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=1e-5 * max(scale, 1.0), msg=name)


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("family", UNPADDED)
def test_vectors_and_gradients_are_those_of_the_padded_layout(family, method, backbone_folder):
    model = _model(backbone_folder(family), method)
    padded, unpadded = _chunks(model)
    expected = _run(model, padded)
    choose_attention(model, "unpadded")
    assert model.attention == "unpadded"
    _assert_same(_run(model, unpadded), expected)
    _assert_same(_run(model, padded), expected)  # the attention function serves padded chunks too


@pytest.mark.parametrize("family", UNPADDED)
def test_no_sequence_sees_another(family, backbone_folder):
    model = _model(backbone_folder(family))
    choose_attention(model, "unpadded")
    _, unpadded = _chunks(model)
    vectors_BD, _ = _run(model, unpadded)
    changed_1N = unpadded.ids.clone()
    changed_1N[:, 3:12] = 7  # the second sequence
    again_BD, _ = _run(model, UnpaddedChunk(changed_1N, unpadded.bounds, unpadded.first_position))
    same_B = [torch.allclose(a, b, atol=1e-6) for a, b in zip(vectors_BD, again_BD, strict=True)]
    assert same_B == [True, False, True, True, True]


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_every_pooling(pooling, backbone_folder):
    model = _model(backbone_folder("bert"))
    padded, unpadded = _chunks(model)
    states_BTH = torch.randn(*padded.ids.shape, 8)
    rows_NH = padded.rows(states_BTH)
    torch.testing.assert_close(unpadded.pool(rows_NH[None], pooling), padded.pool(states_BTH, pooling))


@pytest.mark.parametrize("layout", [0, 1])
def test_rows_and_states_are_inverse(layout, backbone_folder):
    chunk = _chunks(_model(backbone_folder("bert")))[layout]
    rows_NH = torch.randn(int(LENGTHS.sum()), 4)
    states = chunk.states(rows_NH)
    assert states.shape[:2] == chunk.ids.shape
    torch.testing.assert_close(chunk.rows(states), rows_NH)


@pytest.mark.parametrize("family", ["bert", "modernbert", "qwen2"])
def test_layers_that_are_computed_again_know_the_bounds(family, backbone_folder):
    model = _model(backbone_folder(family))
    choose_attention(model, "unpadded")
    _, unpadded = _chunks(model)
    expected = _run(model, unpadded)
    model.checkpoint_gradients()
    model.train()
    _assert_same(_run(model, unpadded), expected)


def test_attention_dropout_works_unpadded(backbone_folder):
    model = _model(backbone_folder("bert"))
    model.trunk_dropout = True
    choose_attention(model, "unpadded")
    model.train()
    for module in model.modules():
        if isinstance(module, BertSelfAttention):
            module.dropout.p = 0.5
    _, unpadded = _chunks(model)
    (first_BD, _), (second_BD, _) = _run(model, unpadded), _run(model, unpadded)
    assert torch.isfinite(first_BD).all() and not torch.allclose(first_BD, second_BD)


@pytest.mark.parametrize("family", ["t5", "gemma2"])
def test_auto_pads_what_is_not_known_to_run_unpadded(family, backbone_folder):
    model = _model(backbone_folder(family))
    choose_attention(model, "auto")
    assert model.attention == "padded"
    with pytest.raises(UserError, match=r"attention=unpadded is not possible.*not known"):
        choose_attention(model, "unpadded")


def test_auto_pads_for_prefixes(backbone_folder):
    model = _model(backbone_folder("bert"), "prefix_tuning")
    choose_attention(model, "auto")
    assert (model.attention, model.network.config._attn_implementation) == ("padded", "sdpa")
    with pytest.raises(UserError, match="prefix_tuning has an attention function of its own"):
        choose_attention(model, "unpadded")


def test_a_network_that_loses_the_bounds_is_noticed(backbone_folder, monkeypatch):
    """As another version of transformers might."""
    model = _model(backbone_folder("bert"))
    original = BertSelfAttention.forward

    def forgetful(self, *states: Any, bounds: Any = None, **options: Any) -> Any:
        return original(self, *states, **options)

    monkeypatch.setattr(BertSelfAttention, "forward", forgetful)
    choose_attention(model, "auto")
    assert (model.attention, model.network.config._attn_implementation) == ("padded", "sdpa")
    with pytest.raises(UserError, match="attention=unpadded is not possible"):
        choose_attention(model, "unpadded")


def test_a_network_that_sees_other_sequences_is_noticed(backbone_folder, monkeypatch):
    model = _model(backbone_folder("bert"))
    monkeypatch.setattr(Bounds, "groups", property(lambda self: [(1, int(self.lengths_S.sum()))]))
    choose_attention(model, "auto")
    assert model.attention == "padded"


@pytest.mark.parametrize(("wanted", "found"), [("auto", "unpadded"), ("unpadded", "unpadded"), ("padded", "padded")])
def test_the_configuration_chooses(wanted, found, backbone_folder, tmp_path):
    config = TrainConfig.model_validate({
        "backbone": backbone_folder("roberta"), "tasks": list(TASKS), "data_dir": str(tmp_path),
        "output_dir": str(tmp_path / "out"), "attention": wanted,
    })  # fmt: skip
    model = build_model(config, CPU)
    assert model.attention == found
    assert (model.network.config._attn_implementation == ATTENTION) == (found == "unpadded")


def test_unpadded_chunks_hold_everything_once_within_the_budget():
    lengths_N = np.random.default_rng(0).integers(1, 120, 300)
    chunks = plan_unpadded_chunks(lengths_N, 500)
    assert sorted(np.concatenate(chunks)) == list(range(300))
    sizes = [int(lengths_N[chunk].sum()) for chunk in chunks]
    assert max(sizes) <= 500
    assert len(chunks) <= -(-sum(sizes) // 500) + 4, "hardly more chunks than there must be"
    joined_N = lengths_N[np.concatenate(chunks)]
    assert (np.diff(joined_N) >= 0).all()


def test_a_sequence_over_the_budget_is_a_chunk_of_its_own():
    assert [chunk.tolist() for chunk in plan_unpadded_chunks(np.array([9, 2, 30]), 10)] == [[1], [0], [2]]
    assert plan_unpadded_chunks(np.array([], dtype=np.int64), 10) == []
