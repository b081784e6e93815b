"""Each task's gradient on the shared module is that of its loss alone, and balancing them is balancing the losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from manyskills.data.text_set import Examples, gather
from manyskills.training.balancing import Combined, Rule, equal
from manyskills.training.forward import Sources
from manyskills.training.measuring import conflict_steps
from manyskills.training.step import accumulate_gradients, repeat_losses
from manyskills.training.task_gradients import TaskGradients
from manyskills.training.vectors import BackboneVectors
from tests.conftest import FAMILIES
from tests.training.helpers import ALONE, TASKS, small_config, warmed_up

NO_DROPOUT = {
    "method": {"name": "lora", "r": 2, "lora_dropout": 0.0},
    "tasks": {name: {"head_dropout": 0.0} for name in TASKS},
}
CLOSE = {"rtol": 1e-3, "atol": 1e-5}


class Weighted(Rule):
    """Different factors, so that a mistaken task shows."""

    def weigh(self, losses):
        return dict(zip(losses, (0.1, 0.2, 0.3, 0.4), strict=False))


class Backwards(Rule):
    """Uses the gradients in a way that no weighted loss could."""

    on_gradients = True

    def combine(self, gradients_KP, losses):
        return Combined(-gradients_KP.sum(0), dict.fromkeys(losses, -1.0), equal(losses))


class Nothing(Rule):
    """Only one of the tasks counts."""

    def __init__(self, task):
        self.task = task

    def weigh(self, losses):
        return {name: float(name == self.task) for name in losses}


def step(model, prepared, rule, *, measure, cached=False, budget=200, batch=None):
    """Gradients of one step, as numbers, and what it measured."""
    model.train()
    model.zero_grad()
    source = BackboneVectors(model, prepared.store, budget, cached=cached, processes=ALONE)
    batch = batch or prepared.examples["train"]
    result = accumulate_gradients(model, Sources(source), batch, rule, 1, measure=measure)
    return result, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def shared_text(prepared):
    """The training rows, with the tests' texts among those of the defects: texts that two tasks use."""
    train = dict(prepared.examples["train"])
    tests = train["flaky_tests"]
    own = train["defect_detection"]
    texts_EK = np.concatenate([own.texts_EK, tests.texts_EK[:5]])
    labels_E = np.concatenate([own.labels_E, 1 - tests.labels_E[:5]])
    return train | {"defect_detection": Examples(own.task, texts_EK, labels_E)}


@pytest.mark.parametrize(
    ("family", "cached"), [*((family, False) for family in FAMILIES), ("bert", True), ("t5", True)]
)
def test_measuring_changes_no_gradient(family, cached, backbone_folder, data_dir):
    config = small_config(backbone_folder(family), data_dir, **NO_DROPOUT)
    model, prepared = warmed_up(config)
    batch = shared_text(prepared)
    one, expected = step(model, prepared, Weighted(), measure=False, batch=batch)
    two, found = step(model, prepared, Weighted(), measure=True, cached=cached, batch=batch)
    assert one.gradients is None
    assert two.losses == pytest.approx(one.losses, rel=1e-4)
    assert two.factors == one.factors
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, **CLOSE)


@pytest.mark.parametrize("changes", [
    {},
    {"method": {"name": "mtl_lora", "r": 2, "lora_dropout": 0.0}},
    {"method": {"name": "full"}},
    {"attention": "padded"},
    {"gradient_checkpointing": True},
    {"tasks": {name: {"head_dropout": 0.0, "long": "window", "max_length": 16} for name in TASKS}},
], ids=["lora", "mtl_lora", "full", "padded", "checkpointing", "windows"])  # fmt: skip
def test_each_row_is_the_gradient_of_that_tasks_loss_alone(changes, backbone_folder, data_dir):
    config = small_config(backbone_folder("bert"), data_dir, **(NO_DROPOUT | changes))
    model, prepared = warmed_up(config)
    batch = shared_text(prepared)
    texts = gather(batch)
    assert len({int(users) for users in texts.users_N()}) == 5  # four tasks alone, and texts of two
    result, _ = step(model, prepared, Weighted(), measure=True, batch=batch)
    assert result.gradients is not None
    names = [name for name, _ in model.shared_parameters()]
    for task, row_P in zip(result.gradients.tasks, result.gradients.values_KP, strict=True):
        _, alone = step(model, prepared, Nothing(task), measure=False, batch=batch)
        sizes = dict(model.shared_parameters())
        expected_P = torch.cat([alone.get(f"backbone.{n}", torch.zeros_like(sizes[n])).flatten() for n in names])
        torch.testing.assert_close(row_P, expected_P, **CLOSE)
        assert result.gradients.norms()[task] == pytest.approx(expected_P.norm().item(), rel=1e-3)


def test_a_rule_on_gradients_has_the_last_word_on_the_module_and_not_on_the_heads(backbone_folder, data_dir):
    config = small_config(backbone_folder("bert"), data_dir, **NO_DROPOUT)
    model, prepared = warmed_up(config)
    mean, expected = step(model, prepared, Weighted(), measure=True)
    result, found = step(model, prepared, Backwards(), measure=False)
    assert result.gradients is not None
    total_P = mean.gradients.values_KP.sum(0)
    parts = total_P.split([p.numel() for _, p in model.shared_parameters()])
    for (name, p), part in zip(model.shared_parameters(), parts, strict=True):
        torch.testing.assert_close(found[f"backbone.{name}"], -part.view_as(p), **CLOSE)
    for name, gradient in expected.items():
        if name.startswith("heads."):
            factor = mean.factors[name.split(".")[1]]
            torch.testing.assert_close(found[name], gradient / factor / 4, **CLOSE)


def test_parameters_that_no_task_reaches_keep_no_gradient(backbone_folder, data_dir):
    config = small_config(backbone_folder("bert"), data_dir, method={"name": "mtl_lora", "r": 2})
    model, prepared = warmed_up(config)
    two = {name: prepared.examples["train"][name] for name in ("flaky_tests", "code_search")}
    _, expected = step(model, prepared, Weighted(), measure=False, batch=two)
    _, found = step(model, prepared, Weighted(), measure=True, batch=two)
    assert found.keys() == expected.keys()


def test_repeated_losses_are_the_steps_own_until_weights_change(backbone_folder, data_dir):
    config = small_config(backbone_folder("bert"), data_dir)  # with dropout: the same random numbers
    model, prepared = warmed_up(config)
    batch = prepared.examples["train"]
    for measure in (False, True):
        result, _ = step(model, prepared, Weighted(), measure=measure)
        source = BackboneVectors(model, prepared.store, 200, cached=False, processes=ALONE)
        again = repeat_losses(model, Sources(source), batch, Weighted(), 1, apart=measure)
        assert {name: loss.value.item() for name, loss in again.items()} == pytest.approx(result.losses, rel=1e-4)
        assert not any(loss.value.requires_grad for loss in again.values())
    with torch.no_grad():
        for _, p in model.head_parameters():
            p.mul_(2)
    changed = repeat_losses(model, Sources(source), batch, Weighted(), 1, apart=True)
    assert changed["flaky_tests"].value.item() != pytest.approx(result.losses["flaky_tests"], rel=1e-3)


def test_cosines_and_norms():
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
    found = TaskGradients(["a", "b", "c"], parameters)
    found.values_KP[:] = torch.tensor([[3.0, 4.0, 0.0], [-4.0, 3.0, 0.0], [-6.0, -8.0, 0.0]])
    assert found.norms() == pytest.approx({"a": 5.0, "b": 5.0, "c": 10.0})
    cosines = found.cosines()
    assert cosines == {
        "a": {"b": pytest.approx(0, abs=1e-6), "c": pytest.approx(-1)},
        "b": {"c": pytest.approx(0, abs=1e-6)},
    }
    found.values_KP[1] = 0
    assert found.cosines()["a"]["b"] == 0


def test_when_gradients_are_measured(backbone_folder, data_dir, monkeypatch):
    config = small_config(backbone_folder("bert"), data_dir, logging_steps=7)
    model, _ = warmed_up(config)
    assert conflict_steps(config, model) == 7
    assert conflict_steps(config.model_copy(update={"conflict_steps": 0}), model) == 0
    monkeypatch.setattr("manyskills.training.measuring.MEASURED", 10)
    assert conflict_steps(config, model) == 0
    assert conflict_steps(config.model_copy(update={"conflict_steps": 3}), model) == 3
    one = small_config(backbone_folder("bert"), data_dir, tasks=["flaky_tests"])
    assert conflict_steps(one, warmed_up(one)[0]) == 0
