"""Packed losses and gradients are those of pieces alone; ours are those of transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from manyskills.pretraining.architectures import build_network
from manyskills.pretraining.pieces import next_token_pieces, span_pieces
from manyskills.pretraining.run import make_objective
from manyskills.pretraining.spans import corrupt
from manyskills.pretraining.tokenizer import train_tokenizer
from tests.pretraining.helpers import corpus, small_config


def built(name: str, **changes):
    config = small_config("x", "y", name, **changes)
    tokenizer = train_tokenizer(config, corpus())
    network = build_network(config, tokenizer)
    cut = span_pieces if name == "t5" else next_token_pieces
    pieces = cut(corpus(), tokenizer, config.max_length)
    return network, pieces, make_objective(config, network, tokenizer, pieces)


def gradients(network) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return found


def summed(objective, pieces) -> tuple[float, int]:
    total, tokens = 0.0, 0
    for loss in objective.losses(pieces, np.random.default_rng(0)):
        loss.total.backward()
        total, tokens = total + float(loss.total.detach()), tokens + loss.tokens
    return total, tokens


@pytest.mark.parametrize("name", ["qwen2", "llama"])
@pytest.mark.parametrize("budget", [100, 8192])
def test_packed_is_each_piece_alone_through_transformers_own_attention(name, budget):
    network, pieces, objective = built(name, token_budget=budget)
    chosen = np.random.default_rng(0).permutation(len(pieces))[:24]
    total, tokens = summed(objective, chosen)
    packed = gradients(network)
    network.config._attn_implementation = "sdpa"
    alone = 0.0
    for index in chosen.tolist():
        start, length = int(pieces.starts_P[index]), int(pieces.lengths_P[index])
        ids = torch.from_numpy(pieces.ids_T[start : start + length + 1].astype(np.int64))
        logits = network(input_ids=ids[None, :-1]).logits[0]
        loss = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")
        loss.backward()
        alone += float(loss.detach())
    assert tokens == pieces.lengths_P[chosen].sum()
    assert total == pytest.approx(alone, rel=1e-5)
    for key, gradient in gradients(network).items():
        torch.testing.assert_close(packed[key], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))


def test_another_text_in_the_pack_changes_nothing():
    _, _, objective = built("qwen2")
    alone = [float(loss.total.detach()) for index in (3, 9) for loss in objective.losses(np.array([index]), None)]
    (together,) = objective.losses(np.array([3, 9]), None)
    assert float(together.total.detach()) == pytest.approx(sum(alone), rel=1e-6)


def test_span_losses_are_those_of_transformers_on_pieces_alone():
    network, pieces, objective = built("t5", token_budget=150)
    chosen = np.arange(20)
    total, tokens = summed(objective, chosen)
    batched, rng = gradients(network), np.random.default_rng(0)
    alone = 0.0
    for index in chosen.tolist():
        one = corrupt(pieces.piece(index), objective.corruption, rng)
        ids, labels = (torch.from_numpy(x.astype(np.int64))[None] for x in (one.inputs, one.targets))
        loss = network(input_ids=ids, labels=labels).loss * labels.numel()
        loss.backward()
        alone, tokens = alone + float(loss.detach()), tokens - labels.numel()
    assert tokens == 0
    assert total == pytest.approx(alone, rel=1e-5)
    for key, gradient in gradients(network).items():
        torch.testing.assert_close(batched[key], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize("tied", [True, False])
def test_weights_depend_on_the_seed_alone(tied):
    config = small_config("x", "y", architecture={"name": "llama", "hidden_size": 32, "tie_word_embeddings": tied})
    tokenizer = train_tokenizer(config, corpus())
    torch.manual_seed(5)
    first = build_network(config, tokenizer)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert after == torch.rand(1)  # nobody else's random numbers are used up
    second, other = build_network(config, tokenizer), build_network(config.model_copy(update={"seed": 1}), tokenizer)
    for (name, p), same, different in zip(
        first.named_parameters(), second.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(p, same)
        assert p.ndim == 1 or not torch.equal(p, different), name
    assert (first.lm_head.weight is first.model.embed_tokens.weight) == tied
