"""The rules on losses against their formulas: uncertainty, dwa, rlw, gls, famo."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.training.balancing.helpers import NAMES, make, softmax

GENERATOR = np.random.default_rng(0)
LOSSES = GENERATOR.uniform(0.2, 3.0, (12, 3)).tolist()


def named(values):
    return dict(zip(NAMES, values, strict=True))


def factors(rule, values):
    return list(rule.weigh(named(values)).values())


def test_uncertainty_is_the_formula_under_adam():
    """The reference lets torch differentiate sum exp(-s) L + s / 2; the losses' gradients are the factors."""
    rule = make("uncertainty", learning_rate=0.1)
    s = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([s], lr=0.1)
    for values in LOSSES:
        losses = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        optimizer.zero_grad()
        (torch.exp(-s) * losses + s / 2).sum().backward()
        assert factors(rule, values) == pytest.approx((losses.grad / 3).tolist())
        optimizer.step()


def test_uncertainty_ends_at_weights_of_half_the_reciprocal_losses():
    rule = make("uncertainty", learning_rate=0.05)
    for _ in range(400):
        found = factors(rule, [0.5, 1.0, 2.0])
    assert found == pytest.approx([1 / 3, 1 / 6, 1 / 12], rel=1e-2)


def test_dwa_is_the_softmax_of_ratios_of_window_means():
    window, temperature = 3, 1.5
    rule = make("dwa", window=window, temperature=temperature)
    for step, values in enumerate(LOSSES):
        full = step // window
        rates = [1.0, 1.0, 1.0]
        if full >= 2:
            for task in range(3):
                last = sum(LOSSES[i][task] for i in range((full - 1) * window, full * window)) / window
                before = sum(LOSSES[i][task] for i in range((full - 2) * window, (full - 1) * window)) / window
                rates[task] = last / before
        total = sum(math.exp(rate / temperature) for rate in rates)
        assert factors(rule, values) == pytest.approx([math.exp(rate / temperature) / total for rate in rates])


def test_dwa_weighs_the_task_that_stands_still_and_not_the_one_whose_loss_is_high():
    rule = make("dwa", window=1)
    for step in range(3):
        weights = rule.weigh({"a": 10 * 0.5**step, "b": 0.1})
    assert weights["b"] > weights["a"]
    assert rule.weigh({"a": 10.0, "b": 0.2})["a"] < 0.5


def test_dwa_skips_the_windows_that_a_task_is_missing_from():
    rule, twin = make("dwa", window=1), make("dwa", window=1)
    for losses in ({"a": 1.0, "b": 4.0}, {"a": 0.9, "b": 2.0}):
        rule.weigh(losses)
        twin.weigh(losses)
    rule.weigh({"a": 0.9})
    twin.weigh({"a": 0.9, "b": 2.0})
    assert rule.weigh({"a": 1.0, "b": 1.0}) == pytest.approx(dict(zip("ab", softmax([0.5, 0.25]), strict=True)))
    assert twin.weigh({"a": 1.0, "b": 1.0}) == pytest.approx(dict(zip("ab", softmax([0.5, 0.5]), strict=True)))


def test_rlw_draws_softmaxes_of_normal_numbers_that_only_the_seed_and_the_step_decide():
    first, again, other = make("rlw", seed=3), make("rlw", seed=3), make("rlw", seed=4)
    drawn = np.array([factors(first, [1.0, 1.0, 1.0]) for _ in range(4000)])
    assert [factors(again, values) for values in LOSSES] == drawn[: len(LOSSES)].tolist()
    assert factors(other, LOSSES[0]) != drawn[0].tolist()
    np.testing.assert_allclose(drawn.sum(axis=1), 1)
    # logs of softmaxed normals differ by normal numbers of variance 2
    differences = np.log(drawn[:, 0] / drawn[:, 1])
    assert differences.mean() == pytest.approx(0, abs=0.1)
    assert differences.var() == pytest.approx(2, rel=0.1)
    np.testing.assert_allclose(drawn.mean(axis=0), 1 / 3, atol=0.02)


def test_rlw_renormalises_over_the_tasks_that_are_there():
    whole, part = make("rlw"), make("rlw")
    weights = whole.weigh(named(LOSSES[0]))
    both = weights["a"] + weights["c"]
    assert part.weigh({"c": 1.0, "a": 1.0}) == pytest.approx({"c": weights["c"] / both, "a": weights["a"] / both})


@pytest.mark.parametrize("values", LOSSES[:4])
def test_gls_is_the_gradient_of_the_geometric_mean(values):
    losses = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    torch.prod(losses).pow(1 / 3).backward()
    assert factors(make("gls"), values) == pytest.approx(losses.grad.tolist())


def test_gls_weighs_relative_improvements_alike_whatever_the_scales():
    weights = make("gls").weigh({"a": 100.0, "b": 0.01})
    assert weights["a"] * 100.0 == pytest.approx(weights["b"] * 0.01)


def test_famo_is_algorithm_1_under_adam():
    """The reference lets torch differentiate sum_i softmax(xi)_i (log L_i - log L'_i); its Adam decays as the authors'
    code does."""
    xi = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([xi], lr=0.3, weight_decay=0.05)
    rule = make("famo", every=1, learning_rate=0.3, weight_decay=0.05)
    for values in LOSSES:
        after = GENERATOR.uniform(0.5, 1.2, 3) * values
        z = softmax(xi.detach().numpy())
        expected = [z[i] / values[i] / sum(z[j] / values[j] for j in range(3)) for i in range(3)]
        assert factors(rule, values) == pytest.approx(expected, rel=1e-4)
        rule.repeated(named(after.tolist()))
        adam.zero_grad()
        (torch.softmax(xi, 0) @ torch.tensor(np.log(values) - np.log(after))).backward()
        adam.step()
        np.testing.assert_allclose(rule.state()["values"], xi.detach().numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"every": 16}, {"every": 1}])
def test_famo_leaves_equal_weights_within_400_steps(settings):
    """With the settings that it has by default, where b falls a tenth as fast as a."""
    rule, losses = make("famo", ["a", "b"], **settings), np.array([2.0, 0.5])
    for step in range(400):
        factor = rule.weigh(dict(zip("ab", losses.tolist(), strict=True)))
        before, losses = losses, losses * (0.997, 0.9997)
        if step % rule.needs.repeat_every == 0:
            rule.repeated(dict(zip("ab", losses.tolist(), strict=True)))
    z_a, z_b = factor["a"] * before[0], factor["b"] * before[1]
    assert z_b / (z_a + z_b) > 0.7


def test_famo_reacts_to_relative_progress_and_not_to_the_losses_themselves():
    moved = []
    for scales in (np.ones(3), np.array([100.0, 1.0, 0.01])):
        rule = make("famo", every=1, weight_decay=0.0)
        before, after = np.array([2.0, 1.0, 0.5]) * scales, np.array([1.0, 0.9, 0.5]) * scales
        rule.weigh(named(before.tolist()))
        rule.repeated(named(after.tolist()))
        moved.append(rule.state()["first_moments"])
    np.testing.assert_allclose(moved[0], moved[1])
    assert moved[0][0] > moved[0][1] > moved[0][2]  # the one that fell least gains most


def test_famo_asks_for_the_losses_after_the_step_as_often_as_configured():
    assert make("famo", every=16).needs.repeat_every == 16
    assert make("uniform").needs.repeat_every == 0
