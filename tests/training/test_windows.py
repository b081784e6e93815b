"""Texts in windows: the same losses and gradients whichever way they are chunked, cached or shared, and the same
answers at prediction as in training."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

import manyskills
from manyskills.data.text_set import gather
from manyskills.errors import UserError
from manyskills.model.encoding import encode_texts
from manyskills.training import baselines
from manyskills.training.forward import task_losses
from manyskills.training.plan import make_plan
from manyskills.training.processes import Processes
from manyskills.training.run import train
from manyskills.training.vectors import BackboneVectors
from tests.conftest import FAMILIES
from tests.training.helpers import ALONE, CPU, gradients, small_config, warmed_up

LIMIT = 16
WINDOW = {"long": "window", "max_length": LIMIT, "head_dropout": 0.0}
MIXED = {
    "defect_detection": WINDOW,
    "flaky_tests": {"max_length": LIMIT, "head_dropout": 0.0},
    "code_search": WINDOW | {"window_overlap": 0.5},
    "clone_detection": WINDOW | {"window_overlap": 0.0},
}
OVERLAPS = {"defect_detection": 0.25, "flaky_tests": None, "code_search": 0.5, "clone_detection": 0.0}
LORA = {"name": "lora", "r": 2, "lora_dropout": 0.0}


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def inputs(backbone, data_dir, **changes):
    values: dict[str, Any] = {"tasks": MIXED, "method": LORA} | changes
    config = small_config(backbone, data_dir, "unused", **values)
    return config, *warmed_up(config)


def by_hand(model, text, overlap):
    """A text's vector: each piece encoded alone, and their mean by the tokens that each brings."""
    prefix, suffix = list(model.template.prefix), list(model.template.suffix)
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    room = LIMIT - len(prefix) - len(suffix)
    if overlap is None:
        ids = ids[:room]
    total, start, held = torch.zeros(model.architecture.hidden_size), 0, 0
    while held < len(ids):
        start = max(min(start, len(ids) - room), 0)
        piece = torch.tensor([[*prefix, *ids[start : start + room], *suffix]])
        end = min(start + room, len(ids))
        total = total + model.encode(piece, torch.ones_like(piece))[0] * ((end - held) / len(ids))
        start, held = start + room - round(room * (overlap or 0)), end
    return total


def texts_by_index(prepared, split):
    """Each text of a split with its task's overlap, by its index in the store."""
    found = {}
    for name, part in prepared.examples[split].items():
        for texts_K, row in zip(part.texts_EK.tolist(), prepared.rows[split][name].rows, strict=True):
            for index, column in zip(texts_K, part.task.inputs, strict=True):
                found[index] = (row[column], OVERLAPS[name])
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_that_of_encoding_each_piece_alone_and_averaging(family, backbone_folder, data_dir):
    config, model, prepared = inputs(backbone_folder(family), data_dir)
    assert prepared.store.sequences_N.max() >= 4 and prepared.store.sequences_N.min() == 1
    result, found = gradients(model, prepared, config, cached=False, budget=200)

    model.train()
    model.zero_grad()
    texts, strings = gather(prepared.examples["train"]), texts_by_index(prepared, "train")
    vectors_ND = torch.stack([by_hand(model, *strings[index]) for index in texts.unique_N.tolist()])
    losses = task_losses(model, texts, vectors_ND)
    torch.stack([loss.scaled for loss in losses.values()]).mean().backward()
    assert result.losses == pytest.approx({name: loss.value.item() for name, loss in losses.items()}, rel=1e-4)
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("cached", "budget"), [(True, 16), (True, 10**9), (False, 10**9)])
def test_chunks_and_caching_do_not_change_the_step(cached, budget, backbone_folder, data_dir):
    config, model, prepared = inputs(backbone_folder("bert"), data_dir)
    one, expected = gradients(model, prepared, config, cached=False, budget=200)
    two, found = gradients(model, prepared, config, cached=cached, budget=budget)
    assert one.losses == pytest.approx(two.losses, rel=1e-4)
    for name, gradient in expected.items():
        close(found[name], gradient)


def test_a_cached_piece_is_encoded_again_with_the_same_dropout(backbone_folder, data_dir):
    config, model, prepared = inputs(backbone_folder("bert"), data_dir, method=LORA | {"lora_dropout": 0.3})
    one, expected = gradients(model, prepared, config, cached=False, budget=100)
    two, found = gradients(model, prepared, config, cached=True, budget=100)
    assert one.losses == pytest.approx(two.losses, rel=1e-6)
    for name, gradient in expected.items():
        close(found[name], gradient)


class Part(Processes):
    """One of two processes, without the other: its sums are its own part."""

    def sum(self, tensor):
        return tensor

    def sum_gradients(self, parameters):
        pass


def test_two_processes_share_the_pieces(backbone_folder, data_dir):
    """Both the vectors and the gradients of two processes sum to those of one, also where they part a text's pieces."""
    _, model, prepared = inputs(backbone_folder("bert"), data_dir)
    texts_N = prepared.used_texts("train")
    generator = torch.Generator().manual_seed(0)
    gradient_ND = torch.randn(len(texts_N), 32, generator=generator)

    def go(processes):
        model.train()
        model.zero_grad()
        source = BackboneVectors(model, prepared.store, 64, cached=True, processes=processes)
        vectors_ND = source.forward(texts_N, 0)
        source.backward(gradient_ND)
        return vectors_ND, [
            torch.zeros_like(p) if p.grad is None else p.grad.clone() for _, p in model.shared_parameters()
        ]

    vectors_ND, whole = go(ALONE)
    (first_ND, one), (second_ND, two) = go(Part(0, 2, CPU)), go(Part(1, 2, CPU))
    close(first_ND + second_ND, vectors_ND)
    for a, b, together in zip(one, two, whole, strict=True):
        close(a + b, together)
    halves = [encode_texts(model, prepared.store, texts_N, 64, share=(rank, 2)) for rank in range(2)]
    close(sum(halves), encode_texts(model, prepared.store, texts_N, 64))


def test_encoding_without_gradients_gives_the_same_vectors(backbone_folder, data_dir):
    config, model, prepared = inputs(backbone_folder("modernbert"), data_dir)
    texts_N, strings = prepared.used_texts("valid"), texts_by_index(prepared, "valid")
    reported = []
    found_ND = encode_texts(model, prepared.store, texts_N, 100, report=reported.append)
    with torch.no_grad():
        expected_ND = torch.stack([by_hand(model, *strings[index]) for index in texts_N.tolist()])
    torch.testing.assert_close(found_ND, expected_ND, rtol=1e-4, atol=1e-5)
    assert sum(reported) == prepared.store.lengths_N[texts_N].sum()
    kept = baselines.base_vectors(model, config, prepared, ["train", "valid"])
    torch.testing.assert_close(kept.forward(texts_N, 0), found_ND, rtol=1e-4, atol=1e-5)


def test_texts_within_the_limit_are_as_before_to_the_last_bit(backbone_folder, data_dir):
    plain, windowed = (
        inputs(backbone_folder("bert"), data_dir, max_length=80, tasks={"defect_detection": {"long": long}})
        for long in ("truncate", "window")
    )
    assert windowed[2].store.windows is not None
    one, expected = gradients(plain[1], plain[2], plain[0], cached=False, budget=200)
    two, found = gradients(windowed[1], windowed[2], windowed[0], cached=False, budget=200)
    assert one.losses == two.losses
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


@pytest.fixture(scope="module")
def run(backbone_folder, data_dir, tmp_path_factory):
    """A run with windows, and one that refuses long texts."""
    tasks = MIXED | {"flaky_tests": {"long": "error", "max_length": 60}}
    config = small_config(
        backbone_folder("bert"), data_dir, tmp_path_factory.mktemp("windows") / "run", tasks=tasks, max_steps=4,
        eval_steps=2, step_memory="cached", baselines=["untrained"],
    )  # fmt: skip
    return train(config, announce=lambda _: None)


def test_results_tell_what_became_of_long_texts(run):
    found = {name: entry["truncation"] for name, entry in run.results["tasks"].items()}
    assert found["defect_detection"]["long"] == "window"
    assert found["defect_detection"]["windows"] > found["defect_detection"]["windowed"] > 0
    assert found["defect_detection"]["cut"] == found["defect_detection"]["lost"] == 0
    assert (found["flaky_tests"]["long"], found["flaky_tests"]["cut"]) == ("error", 0)
    card = (run.path / "README.md").read_text()
    windowed, texts = (found["defect_detection"][key] for key in ("windowed", "texts"))
    assert f"| defect_detection | 24 | 10 | 10 | {windowed} of {texts} in windows (limit 16) |" in card


def test_a_plan_counts_every_piece(run):
    plan = make_plan(manyskills.load(run.path).config)
    assert plan.tokens == run.results["training"]["tokens"]
    assert plan.padded_tokens_a_step >= plan.tokens_a_step
    assert plan.tasks["code_search"].truncation.windowed > 0


@pytest.mark.parametrize("task", ["defect_detection", "flaky_tests"])
def test_prediction_reads_as_training_did(task, run, data_dir):
    model = manyskills.load(run.path)
    rows = [json.loads(line) for line in (data_dir / task / "test.jsonl").read_text().splitlines()]
    written = [json.loads(line) for line in (run.path / "predictions" / f"{task}.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(model.predict_proba(task, rows), [line["probability"] for line in written], atol=2e-6)


def test_the_end_of_a_long_text_counts_only_in_windows(run):
    model = manyskills.load(run.path)
    start = "int f(int *p) { return *p + 1; } " * 3
    both = model.predict_proba("defect_detection", [{"code": start}, {"code": start + "if (!p) return 0;"}])
    assert both[0] != both[1]
    units = model.encode([start, start + "x y z"], task="code_search")
    assert not np.allclose(units[0], units[1])
    cut = model.encode([start, start + "x y z"])
    np.testing.assert_array_equal(cut[0], cut[1], "the tasks do not read alike, so without one the end is cut")


def test_a_refused_row_is_named(run):
    model = manyskills.load(run.path)
    long = "x = 1\n" * 60
    with pytest.raises(UserError, match=r"^row 2: wanted at most 60 tokens in column 'code', found 362\n.*long=error"):
        model.predict("flaky_tests", [{"code": "x = 1"}, {"code": long}])
    with pytest.raises(UserError, match=r"^mine: wanted at most 60 tokens"):
        model.predict("flaky_tests", [{"code": "x = 1"}, {"code": long, "id": "mine"}])
    assert len(model.predict("defect_detection", [{"code": long}])) == 1
