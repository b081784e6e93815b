"""Vectors from states on disk: those of the whole network, but for half precision, and always the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from manyskills.data.tokens import TokenStore
from manyskills.model import activations
from manyskills.model.activations import activations_folder, cached_trunk, training_encoder
from manyskills.model.encoding import WholeBackbone, encode_texts
from tests.training.helpers import small_config, warmed_up

FAMILIES = ("bert", "modernbert", "t5", "qwen2", "gemma3_text")
LAST = {"name": "lora", "r": 2, "lora_dropout": 0.1, "layers": "last 1"}


@pytest.fixture
def warm(backbone_folder, data_dir, tmp_path, monkeypatch):
    """Makes a model with its texts; activations go into a folder of this test."""
    monkeypatch.setattr(activations, "cache_folder", lambda: tmp_path)

    def make(family="bert", **changes):
        return warmed_up(small_config(backbone_folder(family), data_dir, "unused", **({"method": LAST} | changes)))

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_are_the_whole_networks_but_for_half_precision(family, warm):
    model, prepared = warm(family)
    indices_N = prepared.used_texts("train")
    expected_ND = encode_texts(model, prepared.store, indices_N, 160)
    encoder = cached_trunk(model, 1, prepared.store)
    first_ND = encode_texts(model, prepared.store, indices_N, 160, encoder=encoder)
    torch.testing.assert_close(first_ND, expected_ND, rtol=5e-3, atol=5e-3)
    assert not torch.equal(first_ND, expected_ND), "the first time they are half precision too"
    again_ND = encode_texts(model, prepared.store, indices_N, 160, encoder=encoder)
    anew_ND = encode_texts(model, prepared.store, indices_N, 160, encoder=cached_trunk(model, 1, prepared.store))
    assert torch.equal(again_ND, first_ND)
    assert torch.equal(anew_ND, first_ND)


def test_the_lower_part_runs_once_for_each_different_sequence(warm, monkeypatch):
    model, prepared = warm()
    encoder = cached_trunk(model, 1, prepared.store)
    tokens = []
    lower = encoder.trunk.lower
    monkeypatch.setattr(
        encoder.trunk, "lower", lambda ids_BT, mask_BT: tokens.append(int(mask_BT.sum())) or lower(ids_BT, mask_BT)
    )
    for split in ("train", "train", "valid"):
        encode_texts(model, prepared.store, prepared.used_texts(split), 160, encoder=encoder)
    used_N = np.union1d(prepared.used_texts("train"), prepared.used_texts("valid"))
    different = {prepared.store.sequence(index).tobytes() for index in used_N}
    assert sum(tokens) == sum(len(ids) // 4 for ids in different)
    assert len(encoder.activations) == len(different)


def test_texts_with_the_same_tokens_share_states_within_a_chunk(warm):
    model = warm()[0].eval()
    ids = np.array([0, 9, 8, 2, 0, 9, 8, 2, 0, 7, 2], dtype=np.int32)
    store = TokenStore(ids, np.array([0, 4, 8, 11]), np.array([4, 9, 3]), np.zeros(3, dtype=np.int64))
    encoder = cached_trunk(model, 1, store)
    vectors_BD = encoder(np.array([1, 0, 2]))
    assert torch.equal(vectors_BD[0], vectors_BD[1])
    assert len(encoder.activations) == 2
    torch.testing.assert_close(vectors_BD, WholeBackbone(model, store)(np.array([1, 0, 2])), rtol=5e-3, atol=5e-3)


def test_two_processes_share_the_states(warm):
    model, prepared = warm()
    indices_N = prepared.used_texts("train")
    encoders = [cached_trunk(model, 1, prepared.store) for _ in range(2)]
    parts = [
        encode_texts(model, prepared.store, indices_N, 160, share=(rank, 2), encoder=encoder)
        for rank, encoder in enumerate(encoders)
    ]
    alone_ND = encode_texts(model, prepared.store, indices_N, 160, encoder=cached_trunk(model, 1, prepared.store))
    assert torch.equal(parts[0] + parts[1], alone_ND)
    assert torch.equal(encode_texts(model, prepared.store, indices_N, 160, encoder=encoders[0]), alone_ND)


def test_states_beyond_half_precision(warm):
    """A T5 or Gemma may have states that float16 does not hold."""
    model, prepared = warm("qwen2")
    with torch.no_grad():
        model.network.embed_tokens.weight[:, 3] *= 1e7
    encoder = cached_trunk(model, 1, prepared.store)
    indices_B = prepared.used_texts("valid")[:4]
    vectors_BD = encoder(indices_B)
    assert encoder.activations.read(encoder.activations.find(_keys(prepared.store, indices_B))).exponents_B.any()
    torch.testing.assert_close(vectors_BD, WholeBackbone(model, prepared.store)(indices_B), rtol=2e-2, atol=2e-2)


def _keys(store, indices_B):
    return [activations.content_key(store.sequence(index)) for index in indices_B]


def test_a_folder_for_each_trunk(warm, tmp_path):
    model, prepared = warm()
    one = cached_trunk(model, 1, prepared.store).activations.folder
    assert one.parent == activations_folder() == tmp_path / "activations"
    assert json.loads((one / "about.json").read_text())["lower_layers"] == 1
    same, _ = warm(seed=7, method={"name": "ia3", "layers": "last 1"}, tasks=["flaky_tests"])
    assert cached_trunk(same, 1, prepared.store).activations.folder == one
    other, _ = warm("roberta")
    assert cached_trunk(other, 1, prepared.store).activations.folder != one


def test_no_cache_where_there_is_nothing_to_cache(warm, backbone_folder, data_dir):
    said = []
    for changes, sentence in (
        ({"method": "lora"}, None),
        ({"activation_cache": False}, None),
        ({"method": LAST | {"layers": "last 2"}}, "nothing below the last 2"),
    ):
        config = small_config(backbone_folder("bert"), data_dir, "unused", **({"method": LAST} | changes))
        model, prepared = warm(**changes)
        assert training_encoder(config, model, prepared.store, said.append) is None
        assert (sentence is None and not said) or sentence in said.pop()
