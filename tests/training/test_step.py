"""The set-of-texts step: every way of computing it gives the same losses and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from manyskills.data.text_set import gather
from manyskills.model.encoding import encode_texts
from manyskills.training.balancing import build_balancing
from manyskills.training.forward import Sources
from manyskills.training.step import accumulate_gradients
from tests.conftest import FAMILIES
from tests.training.helpers import ALONE, CPU, gradients, small_config, warmed_up

NO_DROPOUT = {name: {"head_dropout": 0.0} for name in ("code_search", "clone_detection")}
CLOSE = {"rtol": 1e-4, "atol": 2e-6}


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_and_single_pass_give_the_same_gradients(family, backbone_folder, data_dir):
    config = small_config(backbone_folder(family), data_dir)
    model, prepared = warmed_up(config)
    one, expected = gradients(model, prepared, config, cached=False, budget=200)
    two, found = gradients(model, prepared, config, cached=True, budget=200)
    assert one.losses == pytest.approx(two.losses, rel=1e-5)
    assert found.keys() == expected.keys()
    assert any("lora_A" in name for name in found)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, **CLOSE)
        assert gradient.abs().sum() > 0, name


@pytest.mark.parametrize("family", FAMILIES)
def test_chunking_does_not_change_the_step(family, backbone_folder, data_dir):
    config = small_config(
        backbone_folder(family), data_dir, method={"name": "lora", "r": 2, "lora_dropout": 0.0}, tasks=NO_DROPOUT
    )
    model, prepared = warmed_up(config)
    one, expected = gradients(model, prepared, config, cached=False, budget=10**9)
    two, found = gradients(model, prepared, config, cached=True, budget=64)
    assert one.losses == pytest.approx(two.losses, rel=1e-4)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_unique_texts_give_the_loss_of_encoding_every_occurrence(family, backbone_folder, data_dir):
    config = small_config(backbone_folder(family), data_dir, method="full", tasks=NO_DROPOUT)
    model, prepared = warmed_up(config)
    examples = prepared.examples["train"]
    occurrences = sum(part.texts_EK.size for part in examples.values())
    assert len(gather(examples).unique_N) < occurrences, "the data must repeat texts for this test to say anything"
    result, expected = gradients(model, prepared, config, cached=False, budget=200)

    model.train()
    model.zero_grad()
    losses, scaled = {}, []
    for name, part in examples.items():
        vectors_ED = torch.cat([_encode_alone(model, prepared.store, i) for i in part.texts_EK.ravel()])
        identity_EK = torch.from_numpy(part.texts_EK)
        every_EK = torch.arange(part.texts_EK.size).view(part.texts_EK.shape)
        labels_E = None if part.labels_E is None else torch.from_numpy(part.labels_E)
        head = model.head(name)
        if name == "code_search":  # the mask of repeated answers needs identities, which separate encodings lack
            first = {int(t): int(p) for t, p in reversed(list(zip(identity_EK.ravel(), every_EK.ravel(), strict=True)))}
            every_EK = torch.tensor([[first[int(t)] for t in row] for row in identity_EK])
        loss, chance = head.loss(vectors_ED, every_EK, labels_E)
        losses[name] = loss.item()
        scaled.append(loss / chance)
    torch.stack(scaled).mean().backward()
    assert result.losses == pytest.approx(losses, rel=1e-4)
    for name, p in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(expected[name], p.grad, rtol=1e-3, atol=1e-5)


def _encode_alone(model, store, index):
    return model.vectors(model.chunk(store, np.array([index])))


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_does_not_change_a_vector(family, backbone_folder, data_dir):
    config = small_config(backbone_folder(family), data_dir)
    model, prepared = warmed_up(config)
    texts_N = prepared.used_texts("train")
    together_ND = encode_texts(model, prepared.store, texts_N, 10**9)
    assert len(set(prepared.store.lengths_N[texts_N].tolist())) > 3
    alone_ND = encode_texts(model, prepared.store, texts_N, 1)
    torch.testing.assert_close(together_ND, alone_ND, rtol=1e-4, atol=1e-5)


def test_each_text_of_a_step_is_encoded_once(backbone_folder, data_dir, monkeypatch):
    config = small_config(backbone_folder("bert"), data_dir)
    model, prepared = warmed_up(config)
    seen = []
    read = model.chunk
    monkeypatch.setattr(model, "chunk", lambda store, indices_B: seen.extend(indices_B) or read(store, indices_B))
    gradients(model, prepared, config, cached=False, budget=10**9)
    assert sorted(seen) == gather(prepared.examples["train"]).unique_N.tolist()


def test_a_loss_that_is_not_finite_stops_with_the_task(backbone_folder, data_dir):
    from manyskills.errors import UserError
    from manyskills.training.vectors import PrecomputedVectors

    config = small_config(backbone_folder("bert"), data_dir, method="frozen")
    model, prepared = warmed_up(config)
    with torch.no_grad():
        model.head("flaky_tests").out.weight.fill_(float("nan"))
    texts_N = prepared.used_texts("train")
    source = PrecomputedVectors(torch.ones(len(texts_N), 32), texts_N, CPU)
    with pytest.raises(UserError, match="flaky_tests is not a finite number"):
        balancing = build_balancing(config.balancing, list(config.tasks), config.seed)
        accumulate_gradients(model, Sources(source), prepared.examples["train"], balancing, 0)


def test_one_process_sums_to_itself():
    tensor = torch.ones(2)
    assert ALONE.sum(tensor) is tensor
