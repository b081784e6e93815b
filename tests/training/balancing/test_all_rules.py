"""What every rule must do: start and stop anywhere, with any tasks, at any point of its trajectory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from manyskills.config import TrainConfig
from manyskills.training.balancing import Combined, Rule
from tests.training.balancing.helpers import NAMES, RULES, make

LOSS_RULES = [name for name in RULES if not make(name, **RULES[name]).on_gradients]
GRADIENT_RULES = [name for name in RULES if name not in LOSS_RULES]
STATELESS = {"uniform", "fixed", "gls", "cagrad", "mgda", "nash_mtl"}


def rule_of(name: str) -> Rule:
    return make(name, **RULES[name])


def step(rule: Rule, losses: dict[str, float], gradients_KP: torch.Tensor) -> Combined:
    """One step with all that the rule asks for."""
    if rule.needs.validation_every:
        rule.validated(losses)
    if rule.on_gradients:
        found = rule.combine(gradients_KP, losses)
    else:
        factors = rule.weigh(losses)
        weights = torch.tensor(list(factors.values()), dtype=gradients_KP.dtype)
        found = Combined(weights @ gradients_KP, factors, factors)
    if rule.needs.repeat_every:
        rule.repeated({name: loss * (0.8 + 0.05 * len(name) + 0.1 * loss) for name, loss in losses.items()})
    return found


def example(number: int, names: list[str] = NAMES) -> tuple[dict[str, float], torch.Tensor]:
    """Losses and gradients of a step."""
    generator = np.random.default_rng(number)
    losses = dict(zip(NAMES, generator.uniform(0.2, 3.0, 3).tolist(), strict=True))
    gradients = dict(zip(NAMES, torch.from_numpy(generator.standard_normal((3, 4))).float(), strict=True))
    return {name: losses[name] for name in names}, torch.stack([gradients[name] for name in names])


def check(found: Combined, names: list[str]) -> None:
    assert list(found.factors) == list(found.head_factors) == names
    assert np.isfinite([*found.factors.values(), *found.head_factors.values()]).all()
    assert torch.isfinite(found.gradient_P).all()
    assert found.gradient_P.shape == (4,)
    assert found.gradient_P.dtype == torch.float32


@pytest.mark.parametrize("name", RULES)
def test_a_rule_that_is_restored_in_the_middle_goes_on_as_if_nothing_had_happened(name):
    straight, resumed = rule_of(name), rule_of(name)
    resumed.restore(load(save(resumed.state())))
    for number in range(10):
        losses, gradients = example(number, NAMES if number % 3 else ["c", "a"])
        one, other = step(straight, losses, gradients), step(resumed, losses, gradients)
        assert one.factors == other.factors
        assert one.head_factors == other.head_factors
        assert torch.equal(one.gradient_P, other.gradient_P)
        bytes_on_disk = save(resumed.state())
        resumed = rule_of(name)
        resumed.restore(load(bytes_on_disk))
    one, other = straight.state(), resumed.state()
    assert one.keys() == other.keys()
    for key, value in one.items():
        np.testing.assert_array_equal(value, other[key])
    assert (not one) == (name in STATELESS)


@pytest.mark.parametrize("name", RULES)
def test_a_state_is_a_copy(name):
    rule = rule_of(name)
    step(rule, *example(0))
    state = rule.state()
    before = {key: value.copy() for key, value in state.items()}
    rule.restore(state)
    for number in range(1, 6):
        step(rule, *example(number))
    for key, value in before.items():
        np.testing.assert_array_equal(value, state[key])


@pytest.mark.parametrize("name", RULES)
def test_tasks_come_and_go_and_their_order_in_the_step_does_not_matter(name):
    rule, twin = rule_of(name), rule_of(name)
    for number, names in enumerate([["a", "b"], ["a", "b", "c"], ["c"], ["b", "c"], ["c"], ["a", "b", "c"]] * 2):
        losses, gradients = example(number, names)
        found = step(rule, losses, gradients)
        check(found, names)
        turned = step(twin, dict(reversed(losses.items())), gradients.flip(0))
        assert turned.factors == pytest.approx(found.factors, rel=1e-4, abs=1e-6)
        torch.testing.assert_close(turned.gradient_P, found.gradient_P, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_one_task_alone_is_trained_along_its_own_gradient(name):
    rule = make(name, ["b"], **({"weights": {"b": 3}} if name == "fixed" else RULES[name]))
    for number in range(4):
        losses, gradients = example(number, ["b"])
        found = step(rule, losses, gradients)
        check(found, ["b"])
        assert found.factors["b"] > 0
        if name != "db_mtl":  # its direction is the average's
            torch.testing.assert_close(found.gradient_P, found.factors["b"] * gradients[0])
        if name not in ("uncertainty", "nash_mtl", "cagrad", "db_mtl"):
            assert found.factors["b"] == pytest.approx(1)


@pytest.mark.parametrize("name", RULES)
def test_gradients_and_losses_of_zero(name):
    rule = rule_of(name)
    for number in range(6):
        losses, gradients = example(number)
        if number % 2:
            losses["b"] = 0.0
        gradients[number % 3] = 0
        check(step(rule, losses, gradients), NAMES)
    found = step(rule, losses, torch.zeros(3, 4))
    check(found, NAMES)
    if name != "db_mtl":  # its averages go on
        assert not found.gradient_P.any()


@pytest.mark.parametrize("name", GRADIENT_RULES)
@pytest.mark.parametrize("other", [2.0, 1.0, -1.0, -3.0])
def test_parallel_and_opposite_gradients(name, other):
    """The matrix of inner products is singular."""
    gradients = torch.tensor([[1.0, 2.0, 0.0, 1.0]]) * torch.tensor([[1.0], [other], [1e-3]])
    check(step(rule_of(name), dict.fromkeys(NAMES, 1.0), gradients), NAMES)


@pytest.mark.parametrize("name", [name for name in LOSS_RULES if name not in ("uncertainty", "gls")])
def test_factors_of_losses_add_up_to_one(name):
    rule = rule_of(name)
    for number in range(8):
        assert sum(step(rule, *example(number)).factors.values()) == pytest.approx(1)


@pytest.mark.parametrize("name", [name for name in RULES if name not in ("fixed", "rlw")])
def test_a_rule_starts_as_uniform_where_the_tasks_are_alike(name):
    gradients = torch.eye(3, 4)
    found = step(rule_of(name), dict.fromkeys(NAMES, 1.0), gradients).gradient_P
    torch.testing.assert_close(found / found.norm(), gradients.sum(dim=0) / 3**0.5, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", RULES)
def test_a_backbone_that_does_not_train_has_no_gradients_to_balance(name):
    settings = {"weights": {"code_search": 1}} if name == "fixed" else RULES[name]
    values = {"tasks": ["code_search"], "method": "frozen", "balancing": {"name": name, **settings}}
    if name in GRADIENT_RULES:
        with pytest.raises(ValueError, match=f"balancing: {name} combines gradients on a shared module, and method"):
            TrainConfig.model_validate(values)
    else:
        TrainConfig.model_validate(values)


@pytest.mark.parametrize("name", GRADIENT_RULES)
def test_rules_on_gradients_see_losses_only_through_them(name):
    """db_mtl divides by them; gradnorm, whose first step is uniform, does so later."""
    losses, gradients = example(1)
    ones = dict.fromkeys(NAMES, 1.0)
    found, plain = step(rule_of(name), losses, gradients), step(rule_of(name), ones, gradients)
    assert torch.allclose(found.gradient_P, plain.gradient_P) == (name != "db_mtl")
