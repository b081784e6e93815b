"""Vectors from states on disk: those of the whole network, but for half precision, and always the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from manyskills.data.activation_store import STATE_BYTES, ActivationStore
from manyskills.data.tokens import TokenStore
from manyskills.errors import UserError
from manyskills.model import activations
from manyskills.model.activations import (
    CachedTrunk,
    RoundedTrunk,
    activations_folder,
    cached_trunk,
    rounded_trunk,
    training_encoder,
)
from manyskills.model.encoding import WholeBackbone, encode_texts
from manyskills.model.trunk import Trunk
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


def _cached(model, store) -> CachedTrunk:
    return cached_trunk(Trunk(model, 1), store)


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_are_the_whole_networks_but_for_half_precision(family, warm):
    model, prepared = warm(family)
    indices_N = prepared.used_texts("train")
    expected_ND = encode_texts(model, prepared.store, indices_N, 160)
    encoder = _cached(model, prepared.store)
    first_ND = encode_texts(model, prepared.store, indices_N, 160, encoder=encoder)
    torch.testing.assert_close(first_ND, expected_ND, rtol=5e-3, atol=5e-3)
    assert not torch.equal(first_ND, expected_ND), "the first time they are half precision too"
    again_ND = encode_texts(model, prepared.store, indices_N, 160, encoder=encoder)
    anew_ND = encode_texts(model, prepared.store, indices_N, 160, encoder=_cached(model, prepared.store))
    assert torch.equal(again_ND, first_ND)
    assert torch.equal(anew_ND, first_ND)
    without_disk_ND = encode_texts(
        model, prepared.store, indices_N, 160, encoder=RoundedTrunk(encoder.trunk, prepared.store)
    )
    assert (without_disk_ND - first_ND).abs().max() < 0.1 * (first_ND - expected_ND).abs().max()


def test_the_lower_part_runs_once_for_each_different_sequence(warm, monkeypatch):
    model, prepared = warm()
    encoder = _cached(model, prepared.store)
    tokens = []
    lower = encoder.trunk.lower
    monkeypatch.setattr(
        encoder.trunk, "lower", lambda chunk: tokens.append(int(chunk.bounds.lengths_S.sum())) or lower(chunk)
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
    encoder = _cached(model, store)
    vectors_BD = encoder(np.array([1, 0, 2]))
    assert torch.equal(vectors_BD[0], vectors_BD[1])
    assert len(encoder.activations) == 2
    torch.testing.assert_close(vectors_BD, WholeBackbone(model, store)(np.array([1, 0, 2])), rtol=5e-3, atol=5e-3)


def test_two_processes_share_the_states(warm):
    model, prepared = warm()
    indices_N = prepared.used_texts("train")
    encoders = [_cached(model, prepared.store) for _ in range(2)]
    parts = [
        encode_texts(model, prepared.store, indices_N, 160, share=(rank, 2), encoder=encoder)
        for rank, encoder in enumerate(encoders)
    ]
    alone_ND = encode_texts(model, prepared.store, indices_N, 160, encoder=_cached(model, prepared.store))
    assert torch.equal(parts[0] + parts[1], alone_ND)
    assert torch.equal(encode_texts(model, prepared.store, indices_N, 160, encoder=encoders[0]), alone_ND)


def test_states_beyond_half_precision(warm):
    """A T5 or Gemma may have states that float16 does not hold."""
    model, prepared = warm("qwen2")
    with torch.no_grad():
        model.network.embed_tokens.weight[:, 3] *= 1e7
    encoder = _cached(model, prepared.store)
    indices_B = prepared.used_texts("valid")[:4]
    vectors_BD = encoder(indices_B)
    assert encoder.activations.read(encoder.activations.find(_keys(prepared.store, indices_B))).exponents_B.any()
    torch.testing.assert_close(RoundedTrunk(encoder.trunk, prepared.store)(indices_B), vectors_BD)
    torch.testing.assert_close(vectors_BD, WholeBackbone(model, prepared.store)(indices_B), rtol=2e-2, atol=2e-2)


def _keys(store, indices_B):
    return [activations.content_key(store.sequence(index)) for index in indices_B]


def test_a_folder_for_each_trunk(warm, tmp_path):
    model, prepared = warm()
    one = _cached(model, prepared.store).activations.folder
    assert one.parent == activations_folder() == tmp_path / "activations"
    assert json.loads((one / "about.json").read_text())["lower_layers"] == 1
    same, _ = warm(seed=7, method={"name": "ia3", "layers": "last 1"}, tasks=["flaky_tests"])
    assert _cached(same, prepared.store).activations.folder == one
    other, _ = warm("roberta")
    assert _cached(other, prepared.store).activations.folder != one


@pytest.fixture
def built(warm, backbone_folder, data_dir):
    """Makes a run's encoders, and gives the sentences that were said."""

    def make(**changes):
        said: list[str] = []
        config = small_config(backbone_folder("bert"), data_dir, "unused", **({"method": LAST} | changes))
        model, prepared = warm(**changes)
        encoder = training_encoder(config, model, prepared.store, said.append)
        assert (rounded_trunk(config, model, prepared.store) is None) == (encoder is None)
        return encoder, said

    return make


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        ({"method": "lora"}, []),
        ({"activation_cache": False}, []),
        ({"method": LAST | {"layers": "last 2"}}, ["nothing below the last 2"]),
    ],
)
def test_no_cache_where_there_is_nothing_to_cache(changes, sentences, built, tmp_path):
    encoder, said = built(**changes)
    assert encoder is None
    assert [wanted in found for wanted, found in zip(sentences, said, strict=True)] == [True] * len(said)
    assert not (tmp_path / "activations").exists()


def test_every_layer_runs_where_the_parts_are_not_the_whole(built, monkeypatch):
    monkeypatch.setattr(Trunk, "problem", lambda self: "they differ")
    encoder, (said,) = built()
    assert encoder is None
    assert "every layer runs each time" in said
    assert said.endswith("(they differ)")


def test_every_layer_runs_where_files_cannot_be_locked(built, monkeypatch):
    monkeypatch.setattr(activations, "SUPPORTED", False)
    encoder, (said,) = built()
    assert encoder is None
    assert "every layer runs each time: this system has no locks" in said


def test_what_the_disk_has_no_room_for_is_refused_before_the_first_step(built, monkeypatch):
    encoder, (said,) = built()
    missing, store = encoder.missing_bytes(), encoder.store
    assert "need up to 0." in said
    assert str(encoder.activations.folder) in said
    different = {store.sequence(n).tobytes() for n in range(len(store))}
    assert missing == sum(len(ids) // 4 for ids in different) * 32 * STATE_BYTES
    encoder(np.arange(3))
    left = encoder.missing_bytes()
    assert 0 < left < missing
    free = left
    monkeypatch.setattr(ActivationStore, "free_bytes", property(lambda self: free))
    assert built()[0] is not None
    free = left - 1
    with pytest.raises(UserError, match="wanted for the states") as caught:
        built()
    for way_out in ("activation_cache=false", "MANYSKILLS_CACHE", str(activations_folder())):
        assert way_out in (caught.value.hint or "")
