"""Written answers: those of the plain definition, whatever is beside them, however the work is cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from manyskills.errors import UserError
from manyskills.model import generation
from manyskills.model.attention import choose_attention
from manyskills.model.decoding.prompts import continuation
from manyskills.model.decoding.text import end_ids
from manyskills.model.generation import Decoding, answer_probabilities, generate
from tests.model.decoding.helpers import greedy, next_logits, prompts, store, text, writer

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

METHODS = [
    "frozen",
    "full",
    {"name": "lora", "r": 2},
    {"name": "dora", "r": 2},
    "ia3",
    {"name": "serial_adapter", "bottleneck": 4},
    {"name": "parallel_adapter", "bottleneck": 4},
    {"name": "prefix_tuning", "length": 3},
    {"name": "mtl_lora", "r": 2},
]
WRITERS = ["qwen2", "llama", "gemma2", "t5", "codet5"]
LENGTH = 7
BUDGET = 200


@pytest.mark.parametrize("family", WRITERS)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method if isinstance(method, str) else method["name"])
@torch.no_grad()
def test_going_on_is_reading_everything_again(method, family, backbone_folder):
    model = writer(backbone_folder(family), method)
    routes = [0, 1, 1, 0] if model.routes["code_summarization"] else [0] * 4
    texts, forced = prompts(4), torch.randint(4, 300, (4, 12), generator=torch.Generator().manual_seed(1))
    source = continuation(model, texts, torch.tensor(routes))
    logits, rows = source.read(), list(range(4))
    for place in range(12):
        expected = torch.stack(
            [next_logits(model, texts[row], forced[row, :place].tolist(), routes[row]) for row in rows]
        )
        assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()
        if place == 4:
            source.keep(torch.tensor([2, 0, 2]))
            rows = [2, 0, 2]
        logits = source.write(forced[rows, place])


@pytest.mark.parametrize("family", WRITERS)
def test_greedy(family, backbone_folder):
    model = writer(backbone_folder(family))
    texts = prompts(5)
    expected = [[text(model, greedy(model, prompt, LENGTH))] for prompt in texts]
    assert generate(model, store(texts), np.arange(5), Decoding(LENGTH), token_budget=BUDGET) == expected


@pytest.mark.parametrize("family", ["qwen3", "mistral", "gemma", "gemma3_text", "starcoder2"])
def test_sliding_windows_hold_behind_the_prompt(family, backbone_folder):
    model = writer(backbone_folder(family))
    texts = prompts(4, longest=16)
    expected = [[text(model, greedy(model, prompt, 14))] for prompt in texts]
    assert generate(model, store(texts), np.arange(4), Decoding(14), token_budget=BUDGET) == expected


@pytest.mark.parametrize("family", ["qwen2", "mistral"])
def test_the_layout_of_training_does_not_matter(family, backbone_folder):
    model = writer(backbone_folder(family))
    texts = store(prompts(6))
    before = generate(model, texts, np.arange(6), Decoding(12), token_budget=BUDGET)
    choose_attention(model, "unpadded")
    assert generate(model, texts, np.arange(6), Decoding(12), token_budget=BUDGET) == before


@pytest.mark.parametrize("decoding", [Decoding(9), Decoding(9, num_beams=3), Decoding(9, temperature=0.9, samples=2)])
@pytest.mark.parametrize("family", ["qwen2", "t5"])
def test_order_and_company_do_not_matter(family, decoding, backbone_folder):
    model = writer(backbone_folder(family), {"name": "mtl_lora", "r": 2})
    texts = store(prompts(7), [0, 1, 0, 1, 1, 0, 0])
    found = generate(model, texts, np.arange(7), decoding, token_budget=BUDGET)
    order = np.array([3, 6, 0, 2, 5, 1, 4])
    shuffled = generate(model, texts, order, decoding, token_budget=40)
    assert [found[index] for index in order] == shuffled
    assert generate(model, texts, np.array([5]), decoding, token_budget=10_000) == [found[5]]


def test_samples_differ_and_follow_the_seed(backbone_folder):
    model = writer(backbone_folder("qwen2"))
    texts = prompts(2)
    first = Decoding(8, temperature=1.0, samples=6, seed=1)
    found = generate(model, store([*texts, texts[0]]), np.arange(3), first, token_budget=BUDGET)
    assert [len(set(answers)) for answers in found] == [6, 6, 6]
    assert found[0] == found[2], "the same prompt gets the same draws"
    other = generate(model, store(texts), np.arange(2), Decoding(8, temperature=1.0, samples=6, seed=2),
                     token_budget=BUDGET)  # fmt: skip
    assert not set(other[0]) & set(found[0])
    fewer = generate(model, store(texts), np.arange(2), Decoding(5, temperature=1.0, samples=2, seed=1),
                     token_budget=BUDGET)  # fmt: skip
    for some, all_ in zip(fewer[0], found[0][:2], strict=True):
        assert all_.startswith(some), "a longer limit goes on where a shorter one stops"


def test_samples_over_the_budget_are_drawn_in_parts(backbone_folder):
    model = writer(backbone_folder("qwen2"))
    texts, decoding = store(prompts(2)), Decoding(4, temperature=1.0, samples=9)
    whole = generate(model, texts, np.arange(2), decoding, token_budget=10_000)
    told, counted = {}, []
    parts = generate(
        model, texts, np.arange(2), decoding, token_budget=60, report=counted.append, done=told.__setitem__
    )
    assert parts == whole
    assert told == dict(enumerate(whole))
    assert sum(counted) == 2


def test_draws_follow_the_distribution(backbone_folder):
    model = writer(backbone_folder("qwen2"))
    prompt = prompts(1)[0]
    probabilities = (next_logits(model, prompt, []).double() / 1.5).softmax(0)
    likeliest = int(probabilities.argmax())
    decoding = Decoding(1, temperature=1.5, samples=2000)
    answers = generate(model, store([prompt]), np.arange(1), decoding, token_budget=100_000)[0]
    share = np.mean([answer == text(model, [likeliest]) for answer in answers])
    assert share == pytest.approx(float(probabilities[likeliest]), abs=0.04)
    only = generate(model, store([prompt]), np.arange(1), Decoding(1, temperature=1.5, samples=50, top_k=1),
                    token_budget=100_000)[0]  # fmt: skip
    assert set(only) == {text(model, [likeliest])}


@pytest.mark.parametrize("family", ["qwen2", "t5"])
def test_shares_join_to_the_whole(family, backbone_folder):
    model = writer(backbone_folder(family))
    texts = store(prompts(9))
    whole = generate(model, texts, np.arange(9), Decoding(5), token_budget=60)
    shares = [generate(model, texts, np.arange(9), Decoding(5), token_budget=60, share=(rank, 3)) for rank in range(3)]
    assert [[answer for part in parts for answer in part] for parts in zip(*shares, strict=True)] == whole
    assert all(sum(map(bool, part)) < 9 for part in shares)


def test_all_samples_of_a_prompt_are_with_one_process(backbone_folder):
    model = writer(backbone_folder("qwen2"))
    texts, decoding = store(prompts(3)), Decoding(4, temperature=1.0, samples=9)
    whole = generate(model, texts, np.arange(3), decoding, token_budget=10_000)
    told: dict[int, list[str]] = {}
    shares = [
        generate(model, texts, np.arange(3), decoding, token_budget=60, share=(rank, 2), done=told.__setitem__)
        for rank in range(2)
    ]
    assert {len(answers) for part in shares for answers in part} == {0, 9}
    assert [[answer for part in parts for answer in part] for parts in zip(*shares, strict=True)] == whole
    assert told == dict(enumerate(whole))


@pytest.mark.parametrize("family", ["qwen2", "t5"])
def test_beams_are_those_of_transformers(family, backbone_folder):
    model = writer(backbone_folder(family), "frozen")
    prompt = prompts(1)[0]
    network: Any = model.language_model
    out = network.generate(
        torch.from_numpy(prompt)[None],
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        generation_config=GenerationConfig(num_beams=4, max_new_tokens=8, eos_token_id=2, pad_token_id=1,
                                           decoder_start_token_id=1),
    )  # fmt: skip
    behind = 1 if family == "t5" else len(prompt)
    found = generate(model, store([prompt]), np.arange(1), Decoding(8, num_beams=4), token_budget=BUDGET)
    assert found == [[text(model, out[0, behind:].tolist())]]


@pytest.mark.parametrize("beams", [1, 2])
def test_habits_of_the_backbones_authors_do_not_count(beams, backbone_folder):
    model = writer(backbone_folder("qwen2"))
    texts = store(prompts(3))
    before = generate(model, texts, np.arange(3), Decoding(6, num_beams=beams), token_budget=BUDGET)
    theirs = GenerationConfig(temperature=0.3, do_sample=True, repetition_penalty=9.0, max_length=3, min_new_tokens=30,
                              eos_token_id=[2, 77])  # fmt: skip
    network: Any = model.language_model
    network.generation_config = theirs
    assert end_ids(model) == {2, 77}
    theirs.eos_token_id = None
    assert generate(model, texts, np.arange(3), Decoding(6, num_beams=beams), token_budget=BUDGET) == before
    assert network.generation_config is theirs


@pytest.mark.parametrize("choices", [[(40,), (41,)], [(40, 50), (41, 51, 52)], [(40,), (40, 50)]])
@pytest.mark.parametrize("family", ["qwen2", "gemma2", "t5"])
def test_probabilities_of_choices(family, choices, backbone_folder):
    model = writer(backbone_folder(family), {"name": "mtl_lora", "r": 2})
    texts, routes = prompts(5), [0, 1, 1, 0, 0]
    expected = []
    for prompt, route in zip(texts, routes, strict=True):
        logs = [0.0, 0.0]
        for number, choice in enumerate(choices):
            for place, token in enumerate(choice):
                logits = next_logits(model, prompt, list(choice[:place]), route).double()
                logs[number] += float(logits.log_softmax(0)[token])
        expected.append(1 / (1 + np.exp(logs[0] - logs[1])))
    found = answer_probabilities(model, store(texts, routes), np.arange(5), choices, token_budget=50)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.dtype == np.float64
    halves = [answer_probabilities(model, store(texts, routes), np.arange(5), choices, token_budget=50, share=(r, 2))
              for r in range(2)]  # fmt: skip
    np.testing.assert_allclose(sum(halves), found, atol=1e-6)


def test_positions_end(backbone_folder):
    model = writer(backbone_folder("qwen2"))
    texts = prompts(1, shortest=78, longest=78) + prompts(1)
    found = generate(model, store(texts), np.arange(2), Decoding(12), token_budget=BUDGET)
    assert found[0] == [text(model, greedy(model, texts[0], 2))]
    assert found[1] == [text(model, greedy(model, texts[1], 12))]
    with pytest.raises(UserError, match="a prompt has 80 tokens, and with its answer the backbone reads 80 at most"):
        generate(model, store(prompts(1, shortest=80, longest=80)), np.arange(1), Decoding(12), token_budget=BUDGET)


def test_memory_that_is_full_halves_the_batch(backbone_folder, monkeypatch):
    model = writer(backbone_folder("qwen2"))
    texts = store(prompts(8))
    expected = generate(model, texts, np.arange(8), Decoding(5), token_budget=BUDGET)
    tried = []

    def write(model, prompts, *rest):
        tried.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(model, prompts, *rest)

    whole = generation._write
    monkeypatch.setattr(generation, "_write", write)
    assert generate(model, texts, np.arange(8), Decoding(5), token_budget=10_000) == expected
    assert tried == [8, 4, 2, 2, 2, 2]
    monkeypatch.setattr(generation, "_write", lambda *_: write(model, [0] * 3))
    with pytest.raises(UserError, match="memory does not hold one prompt with its answer"):
        generate(model, texts, np.arange(8), Decoding(5), token_budget=10_000)


def test_nothing_asked_and_nobody_to_ask(backbone_folder):
    model = writer(backbone_folder("qwen2"))
    assert generate(model, store(prompts(1)), np.arange(0), Decoding(5), token_budget=9) == []
    vars(model)["language_model"] = None
    with pytest.raises(UserError, match="cannot write"):
        generate(model, store(prompts(1)), np.arange(1), Decoding(5), token_budget=9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", ["qwen2", "t5"])
def test_a_gpu_writes_what_the_cpu_writes(family, backbone_folder):
    texts = prompts(6)
    on_cpu, on_gpu = writer(backbone_folder(family)), writer(backbone_folder(family)).cuda()
    for decoding in (Decoding(9), Decoding(9, num_beams=3), Decoding(9, temperature=0.9, samples=2)):
        expected = generate(on_cpu, store(texts), np.arange(6), decoding, token_budget=BUDGET)
        assert generate(on_gpu, store(texts), np.arange(6), decoding, token_budget=BUDGET) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("family", "layout"), [("qwen2", "unpadded"), ("t5", "padded")])
def test_half_precision_writes_what_is_likeliest_but_for_rounding(family, layout, backbone_folder, monkeypatch):
    texts, written = prompts(6), []
    on_cpu, on_gpu = writer(backbone_folder(family)), writer(backbone_folder(family)).cuda().bfloat16()
    choose_attention(on_gpu, layout)
    whole = generation._write

    def write(model, prompts, *rest):
        answers = whole(model, prompts, *rest)
        written.extend(zip(prompts, answers, strict=True))
        return answers

    monkeypatch.setattr(generation, "_write", write)
    generate(on_gpu, store(texts), np.arange(6), Decoding(9), token_budget=BUDGET)
    assert len(written) == 6 and any(len(answer) == 9 for _, answer in written)
    for prompt, answer in written:
        for place, token in enumerate(answer):
            logits_V = next_logits(on_cpu, prompt, answer[:place])
            assert logits_V.max() - logits_V[token] < 0.05 * logits_V.abs().max()
