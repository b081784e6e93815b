"""Prompts and answers one behind another give the losses and gradients of each alone; none sees another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from manyskills.data.prompted import PromptStore
from manyskills.model import unpadded
from manyskills.model.answers import AnswerStates
from manyskills.model.attention import choose_attention
from manyskills.model.multitask import CPU_TOKENS, MultiTaskModel
from manyskills.model.pairs import cheapest_rows, fill_rows, lay_out
from manyskills.model.token_loss import token_loss
from tests.model.answer_helpers import gradients, loss_alone, prompt_store, writing_model

# Shape legend: B prompts, R rows, H hidden size, T tokens
LENGTHS = [(5, 3), (14, 6), (14, 6), (1, 1), (20, 9), (3, 12)]
"""Of prompts and answers; two are alike, and some are longer than the sliding windows of 8 tokens here."""

UNPADDED, PADDED, PAIRS = ("qwen2", "llama", "mistral"), ("gemma2", "gemma3_text"), ("t5", "codet5")
EVERYTHING = np.arange(len(LENGTHS))


def _loss(model: MultiTaskModel, store: PromptStore, indices_B: np.ndarray = EVERYTHING) -> torch.Tensor:
    """Sum of the losses of the tokens of these answers, read together."""
    states = AnswerStates(model, store)
    targets_R = torch.from_numpy(states.targets(indices_B)).to(model.device)
    return token_loss(model, states(indices_B), targets_R)


def _assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys() and found
    for name, gradient in expected.items():
        bound = 1e-5 * max(float(gradient.abs().max()), 1.0)
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=bound, msg=name)


@pytest.mark.parametrize(
    ("family", "method"),
    [
        *((family, method) for family in (*UNPADDED, *PADDED, *PAIRS) for method in ("lora", "full")),
        *((family, method) for family in ("qwen2", "t5") for method in ("dora", "ia3", "serial_adapter")),
        *((family, method) for family in ("qwen2", "gemma2", "t5") for method in ("prefix_tuning", "mtl_lora")),
    ],
)
def test_losses_and_gradients_are_those_of_each_example_alone(family, method, backbone_folder):
    model = writing_model(backbone_folder(family), method)
    store = prompt_store(LENGTHS, model)
    together = _loss(model, store)
    with model.routed(None):
        together.backward()
    found = gradients(model)
    alone = torch.stack([loss_alone(model, store, index) for index in range(len(LENGTHS))]).sum()
    alone.backward()
    torch.testing.assert_close(together.detach(), alone.detach(), rtol=1e-5, atol=0)
    _assert_same_gradients(found, gradients(model))
    if family in UNPADDED:
        assert model.attention == ("padded" if method == "prefix_tuning" else "unpadded")


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_prompts_that_are_learnt_too(family, backbone_folder):
    model = writing_model(backbone_folder(family))
    store = prompt_store(LENGTHS, learnt=True)
    alone = torch.stack([loss_alone(model, store, index) for index in range(len(LENGTHS))]).sum()
    torch.testing.assert_close(_loss(model, store), alone, rtol=1e-5, atol=0)
    assert AnswerStates(model, store).counts(EVERYTHING).tolist() == [p + a - 1 for p, a in LENGTHS]


@pytest.mark.parametrize(
    ("family", "method"),
    [
        *(("qwen2", "lora"), ("mistral", "mtl_lora"), ("gemma2", "lora")),
        *(("t5", "lora"), ("t5", "mtl_lora"), ("t5", "prefix_tuning")),
    ],
)
def test_layers_that_are_computed_again_give_the_same(family, method, backbone_folder):
    model = writing_model(backbone_folder(family), method)
    store = prompt_store(LENGTHS, model)
    states = AnswerStates(model, store)
    _loss(model, store).backward()
    expected = gradients(model)
    model.checkpoint_gradients()
    model.train()
    loss = _loss(model, store)
    with states.routed(EVERYTHING):
        loss.backward()
    _assert_same_gradients(gradients(model), expected)


class _Embeddings:
    """What the network reads in place of ids, with its gradient."""

    def __init__(self, model: MultiTaskModel) -> None:
        self.read: list[torch.Tensor] = []
        network: Any = model.network
        stacks = [network.encoder, network.decoder] if hasattr(network, "encoder") else [network]
        for embedding in {id(stack.embed_tokens): stack.embed_tokens for stack in stacks}.values():
            embedding.register_forward_hook(self._keep)

    def _keep(self, module: Any, inputs: Any, out: torch.Tensor) -> torch.Tensor:
        out = out.detach().requires_grad_(True)
        self.read.append(out)
        return out

    def forget(self) -> None:
        self.read.clear()


def _owners(model: MultiTaskModel, store: PromptStore) -> list[torch.Tensor]:
    """Which example each position that is read belongs to, -1 for padding, in the order of `_Embeddings.read`."""
    states = AnswerStates(model, store)
    lengths_B = torch.from_numpy(states.lengths(EVERYTHING))
    if model.architecture.family == "encoder_decoder":
        prompts, answers = ([read(index) for index in range(len(LENGTHS))] for read in (store.prompt, store.answer))
        pairs = lay_out(prompts, answers, 0, model.device, hidden_size=states._packed_size)
        assert (len(pairs.encoder_ids_RE) < len(EVERYTHING)) == (states._packed_size is not None), "several pairs a row"
        return [pairs.encoder_owners_RE, pairs.decoder_owners_RD]
    examples_B = torch.arange(len(EVERYTHING))
    if model.attention == "unpadded":
        return [examples_B.repeat_interleave(lengths_B)[None]]
    return [torch.where(torch.arange(int(lengths_B.max())) < lengths_B[:, None], examples_B[:, None], -1)]


ISOLATED = [("qwen2", "lora"), ("llama", "lora"), ("mistral", "lora"), ("t5", "lora"), ("gemma2", "lora"),
            ("qwen2", "mtl_lora"), ("t5", "mtl_lora"), ("qwen2", "prefix_tuning"), ("t5", "prefix_tuning")]  # fmt: skip
"""With mtl_lora, neighbours are of different tasks."""


@pytest.mark.parametrize(("family", "method"), ISOLATED)
def test_no_gradient_crosses_examples(family, method, backbone_folder):
    model = writing_model(backbone_folder(family), method)
    store = prompt_store(LENGTHS, model)
    owners, embeddings = _owners(model, store), _Embeddings(model)
    states = AnswerStates(model, store)
    mine, counts = 2, states.counts(EVERYTHING)
    start = int(counts[:mine].sum())
    rows_RH = states(EVERYTHING)[start : start + counts[mine]]
    with states.routed(EVERYTHING):
        found = torch.autograd.grad(rows_RH.pow(2).sum(), embeddings.read)
    for gradient, owner in zip(found, owners, strict=True):
        of_positions = gradient.abs().amax(-1)
        assert (of_positions[owner == mine] > 0).all()
        assert (of_positions[owner != mine] == 0).all(), "nothing, not even a little"


@pytest.mark.parametrize(("family", "method"), ISOLATED)
def test_what_others_hold_changes_nothing(family, method, backbone_folder):
    model = writing_model(backbone_folder(family), method)
    store, other = prompt_store(LENGTHS, model), prompt_store(LENGTHS, model)
    changed = 1
    other.prompt(changed)[:] = 7
    other.answer(changed)[:] = 9
    embeddings, owners = _Embeddings(model), _owners(model, store)
    results = []
    for one in (store, other):
        embeddings.forget()
        states = AnswerStates(model, one)
        rows_RH = states(EVERYTHING)
        with states.routed(EVERYTHING):
            results.append((rows_RH.detach(), torch.autograd.grad(rows_RH.pow(2).sum(), embeddings.read)))
    of_B = np.repeat(EVERYTHING, AnswerStates(model, store).counts(EVERYTHING))
    (before_RH, gradients_before), (after_RH, gradients_after) = results
    same_R = torch.from_numpy(of_B != changed)
    torch.testing.assert_close(after_RH[same_R], before_RH[same_R], rtol=0, atol=1e-6)
    assert not torch.allclose(after_RH[~same_R], before_RH[~same_R], atol=1e-3)
    for before, after, owner in zip(gradients_before, gradients_after, owners, strict=True):
        kept = (owner != changed) & (owner >= 0)
        torch.testing.assert_close(after[kept], before[kept], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "t5"])
def test_rows_come_in_the_order_asked_for(family, backbone_folder):
    model = writing_model(backbone_folder(family))
    states = AnswerStates(model, prompt_store(LENGTHS))
    order = np.array([4, 0, 3])
    rows_RH = states(order)
    assert len(rows_RH) == states.counts(order).sum() == len(states.targets(order))
    expected_RH = torch.cat([states(order[[n]]) for n in range(3)])
    torch.testing.assert_close(rows_RH, expected_RH, rtol=1e-5, atol=1e-5)


def test_the_same_prompt_may_have_several_answers(backbone_folder):
    model = writing_model(backbone_folder("qwen2"))
    states = AnswerStates(model, prompt_store(LENGTHS))
    rows_RH = states(np.array([1, 1]))
    torch.testing.assert_close(rows_RH[:6], rows_RH[6:])


def test_without_gradients_there_is_no_graph(backbone_folder):
    model = writing_model(backbone_folder("t5"))
    with torch.no_grad():
        assert not AnswerStates(model, prompt_store(LENGTHS))(EVERYTHING).requires_grad


@pytest.mark.parametrize(
    ("family", "method"), [("qwen2", "lora"), ("gemma2", "lora"), ("t5", "lora"), ("t5", "mtl_lora")]
)
def test_plans_hold_everything_once_within_the_budget(family, method, backbone_folder):
    model = writing_model(backbone_folder(family), method)
    generator = np.random.default_rng(0)
    sizes = list(zip(generator.integers(2, 60, 80).tolist(), generator.integers(1, 30, 80).tolist(), strict=True))
    states = AnswerStates(model, prompt_store(sizes, model))
    indices_N = np.arange(10, 80)
    plan = states.plan(indices_N, 300)
    assert sorted(np.concatenate(plan)) == list(range(70))
    for chunk in plan:
        assert _cost(states, indices_N[chunk]) <= 300
    longest = [int(states.lengths(indices_N[chunk]).max()) for chunk in plan]
    assert longest == sorted(longest)


def _cost(states: AnswerStates, indices_B: np.ndarray) -> int:
    """Tokens that the network is given, padding included."""
    if not states._pairs:
        lengths_B = states.lengths(indices_B)
        return int(lengths_B.sum() if states.model.attention == "unpadded" else len(lengths_B) * lengths_B.max())
    prompts, answers = ([read(index) for index in indices_B] for read in (states.store.prompt, states.store.answer))
    pairs = lay_out(prompts, answers, 0, states.model.device, hidden_size=states._packed_size)
    return pairs.encoder_ids_RE.numel() + pairs.decoder_ids_RD.numel()


@pytest.mark.parametrize("method", ["lora", "mtl_lora"])
def test_pairs_that_are_long_on_one_side_only_are_within_the_budget_too(method, backbone_folder):
    """In one chunk, both sides of every row would be as long as the longest."""
    generator = np.random.default_rng(0)
    ends = [(int(length), 10) for length in generator.integers(300, 390, 5)]
    middles = [(20, int(length)) for length in generator.integers(300, 390, 5)]
    model = writing_model(backbone_folder("t5"), method)
    states = AnswerStates(model, prompt_store([*ends, *middles], model))
    assert states.lengths(np.arange(10)).sum() < 3900 < _cost(states, np.arange(10))
    assert states.chunk_tokens(np.arange(10)) == _cost(states, np.arange(10))
    plan = states.plan(np.arange(10), 3900, "cuda")
    assert sorted(np.concatenate(plan)) == list(range(10))
    assert max(_cost(states, chunk) for chunk in plan) <= 3900


def test_a_chunk_on_a_cpu_stays_small(backbone_folder):
    for family in ("qwen2", "t5"):
        states = AnswerStates(writing_model(backbone_folder(family)), prompt_store([(40, 20)] * 100))
        sizes = [int(states.lengths(chunk).sum()) for chunk in states.plan(np.arange(100), 10**6)]
        assert max(sizes) <= CPU_TOKENS


@pytest.mark.parametrize("room", [1, 128, 256])
def test_pairs_fill_rows_on_both_sides(room):
    lengths_2B = np.random.default_rng(0).integers(1, 120, (2, 60))
    lengths_2B[0, 7] = 700
    rows_B = fill_rows(lengths_2B, room)
    for side in lengths_2B:
        assert np.bincount(rows_B, side).max() <= max(side.max(), room)
    assert sorted(set(rows_B)) == list(range(rows_B.max() + 1)), "no row is empty"


def test_rows_are_wide_where_that_saves_padding():
    wasteful_2B = np.array([[100] + [9] * 40, [100] + [9] * 40])
    assert len(set(cheapest_rows(wasteful_2B, 512))) < 10
    alike_2B = np.full((2, 8), 200)
    assert len(set(cheapest_rows(alike_2B, 512))) == 8


def test_autocast_reaches_the_states(backbone_folder):
    model = writing_model(backbone_folder("llama"))
    store = prompt_store(LENGTHS)
    exact = _loss(model, store)
    model.autocast_dtype = torch.bfloat16
    half = _loss(model, store)
    assert half != exact
    torch.testing.assert_close(half, exact, rtol=0.02, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", UNPADDED)
def test_attention_by_bounds_gives_what_groups_give(family, backbone_folder, monkeypatch):
    model = writing_model(backbone_folder(family)).cuda().bfloat16()
    choose_attention(model, "unpadded")
    store, found = prompt_store(LENGTHS), []
    for has_varlen in (unpadded.has_varlen, lambda *_: False):
        monkeypatch.setattr(unpadded, "has_varlen", has_varlen)
        loss = _loss(model, store)
        loss.backward()
        found.append((loss.detach(), gradients(model)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0.01, atol=0)
    for name, gradient in found[1][1].items():
        torch.testing.assert_close(
            found[0][1][name], gradient, rtol=0, atol=0.1 * float(gradient.abs().max()), msg=name
        )
