"""`gradnorm` against its equations, with the gradient of the weights worked by differences."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.balancing.helpers import NAMES, combined, make

GENERATOR = np.random.default_rng(0)


class Reference:
    """Equations 1 and 2 under Adam."""

    def __init__(self, alpha, rate, first):
        self.alpha, self.rate, self.first = alpha, rate, first
        self.w, self.m, self.v, self.t = np.ones(3), np.zeros(3), np.zeros(3), 0

    def step(self, gradients, losses):
        before, lengths = self.w.copy(), np.array([np.sqrt((g**2).sum()) for g in gradients])
        self.first = losses if self.first is None else self.first
        rates = (losses / self.first) / np.mean(losses / self.first)
        target = np.mean(self.w * lengths) * rates**self.alpha  # held constant

        def loss(w):
            return np.abs(w * lengths - target).sum()

        steps = 1e-7 * np.eye(3)
        slopes = np.array([(loss(self.w + h) - loss(self.w - h)) / 2e-7 for h in steps])
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * slopes
        self.v = 0.999 * self.v + 0.001 * slopes**2
        self.w -= self.rate * (self.m / (1 - 0.9**self.t)) / (np.sqrt(self.v / (1 - 0.999**self.t)) + 1e-8)
        self.w *= 3 / self.w.sum()
        return before


@pytest.mark.parametrize(("losses", "first"), [("scaled", np.ones(3)), ("raw", None)])
def test_it_is_the_equations(losses, first):
    """Scaled losses start from chance level, raw ones from the first that are seen."""
    rule, reference = make("gradnorm", alpha=1.5, learning_rate=0.02, losses=losses), Reference(1.5, 0.02, first)
    for _ in range(15):
        gradients, losses = GENERATOR.standard_normal((3, 5)) * [[3.0], [1.0], [0.2]], GENERATOR.uniform(0.2, 3, 3)
        found = combined(rule, gradients, dict(zip(NAMES, losses.tolist(), strict=True)))
        weights = reference.step(gradients, losses)
        np.testing.assert_allclose(list(found.factors.values()), weights / 3, rtol=1e-5)
        np.testing.assert_allclose(found.gradient_P, weights / 3 @ gradients, rtol=1e-5)
        assert found.head_factors == found.factors


def after(steps, alpha, gradients, losses_of):
    rule = make("gradnorm", ["a", "b"], alpha=alpha)
    for step in range(steps):
        found = combined(rule, gradients, dict(zip("ab", losses_of(step), strict=True)))
    return found.factors


def test_it_measures_norms_and_with_alpha_0_nothing_else():
    unequal, equal = [[3.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.6, 0.8]]
    assert after(20, 0, equal, lambda step: (1.0, 5.0 * 0.5**step)) == pytest.approx({"a": 0.5, "b": 0.5})
    falling = after(20, 0, unequal, lambda step: (1.0, 5.0 * 0.5**step))
    assert falling == after(20, 0, unequal, lambda step: (2.0, 2.0))
    assert falling["a"] < 0.5
    assert after(20, 1.5, equal, lambda step: (1.0, 0.9**step))["a"] > 0.5  # the slow one


def test_weighted_norms_become_equal():
    factors = after(300, 0, [[3.0, 0.0], [0.0, 1.0]], lambda step: (1.0, 1.0))
    assert factors["a"] * 3 == pytest.approx(factors["b"], rel=0.1)


def test_weights_stay_positive_and_their_sum_stays():
    rule = make("gradnorm", learning_rate=0.5)
    for _ in range(100):
        found = combined(rule, [[100.0, 0.0], [1e-4, 0.0], [0.0, 1.0]])
        assert min(found.factors.values()) > 0
        assert sum(found.factors.values()) == pytest.approx(1)
    assert rule.state()["values"].sum() == pytest.approx(3)
