"""Each balancing rule against its formula, worked in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from manyskills.config import FixedConfig, LearnedSoftmaxConfig, TrainConfig, UniformConfig
from manyskills.training.balancing import TaskLoss, build_balancing, collapsed
from tests.training.helpers import CPU

NAMES = ["a", "b", "c"]
VALUES, CHANCES = np.array([0.9, 2.0, 0.2]), np.array([0.69, 4.1, 0.3])


def losses(names=NAMES, values=VALUES):
    """Losses that are linear in one parameter each, so that a gradient with respect to it is the effective weight."""
    parameters = torch.tensor(values, dtype=torch.float32, requires_grad=True)
    found = {n: TaskLoss(parameters[i], CHANCES[NAMES.index(n)]) for i, n in enumerate(names)}
    return parameters, found


def test_uniform_is_the_mean_of_chance_scaled_losses():
    rule = build_balancing(UniformConfig(), NAMES, CPU)
    parameters, found = losses()
    total = rule.combine(found)
    assert total.item() == pytest.approx((VALUES / CHANCES).mean())
    total.backward()
    np.testing.assert_allclose(parameters.grad, 1 / CHANCES / 3, rtol=1e-5)
    assert rule.weights() == pytest.approx(dict.fromkeys(NAMES, 1 / 3))
    rule.update()
    rule.restore(rule.state())


def test_uniform_over_the_tasks_that_are_there():
    rule = build_balancing(UniformConfig(), NAMES, CPU)
    total = rule.combine(losses(["c", "a"], VALUES[[2, 0]])[1])
    assert total.item() == pytest.approx((VALUES / CHANCES)[[0, 2]].mean())
    assert rule.weights() == {"c": 0.5, "a": 0.5}


def test_fixed_weights_are_normalised_over_the_tasks_that_are_there():
    rule = build_balancing(FixedConfig(weights={"a": 2, "b": 0, "c": 6}), NAMES, CPU)
    scaled = VALUES / CHANCES
    assert rule.combine(losses()[1]).item() == pytest.approx(0.25 * scaled[0] + 0.75 * scaled[2])
    assert rule.weights() == {"a": 0.25, "b": 0.0, "c": 0.75}
    assert rule.combine(losses(["a"], VALUES[:1])[1]).item() == pytest.approx(scaled[0])
    assert rule.combine(losses(["b"], VALUES[1:2])[1]).item() == 0


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"flaky_tests": 1, "code_search": 1, "clones": 1}, "clones is no task of this run"),
        ({"flaky_tests": 1}, "no weight for code_search"),
        ({"flaky_tests": 0, "code_search": 0}, "all weights are 0"),
    ],
)
def test_wrong_weights_are_found_in_the_configuration(weights, said):
    with pytest.raises(ValidationError, match=said):
        TrainConfig.model_validate(
            {"tasks": ["flaky_tests", "code_search"], "balancing": {"name": "fixed", "weights": weights}}
        )


def softmax(z):
    return np.exp(z) / np.exp(z).sum()


class Reference:
    """Softmax of logits under Adam, in numpy."""

    def __init__(self, rate):
        self.rate, self.z, self.m, self.v, self.t = rate, np.zeros(3), np.zeros(3), np.zeros(3), 0

    def step(self, values):
        w = softmax(self.z)
        gradient = w * (values - (w * values).sum())
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.999 * self.v + 0.001 * gradient**2
        self.z = self.z - self.rate * (self.m / (1 - 0.9**self.t)) / (np.sqrt(self.v / (1 - 0.999**self.t)) + 1e-8)
        return w, gradient


def test_learned_softmax_is_the_formula():
    rule, reference = build_balancing(LearnedSoftmaxConfig(learning_rate=0.1), NAMES, CPU), Reference(0.1)
    generator = np.random.default_rng(0)
    for _ in range(20):
        values = VALUES + generator.normal(0, 0.1, 3)
        parameters, found = losses(values=values)
        rule.combine(found).backward()
        weights, gradient = reference.step(values)
        np.testing.assert_allclose(parameters.grad, weights, rtol=1e-3)  # raw losses, not chance-scaled
        np.testing.assert_allclose(rule._logits.grad, gradient, rtol=1e-2, atol=1e-5)
        assert list(rule.weights().values()) == pytest.approx(weights.tolist(), rel=1e-3)
        rule.update()


def test_absent_tasks_leave_the_softmax_and_get_no_gradient():
    rule = build_balancing(LearnedSoftmaxConfig(), NAMES, CPU)
    rule.combine(losses(["a", "c"], VALUES[[0, 2]])[1]).backward()
    assert rule.weights() == pytest.approx({"a": 0.5, "c": 0.5})
    assert rule._logits.grad[1] == 0


def test_state_round_trip_gives_the_same_trajectory():
    import json

    config = LearnedSoftmaxConfig(learning_rate=0.05)
    straight = build_balancing(config, NAMES, CPU)
    resumed = build_balancing(config, NAMES, CPU)
    resumed.restore(json.loads(json.dumps(resumed.state())))
    for number in range(12):
        values = VALUES * (1 + 0.1 * np.sin(number + np.arange(3)))
        weights = []
        for rule in (straight, resumed):
            rule.combine(losses(values=values)[1]).backward()
            weights.append(rule.weights())
            rule.update()
        assert weights[0] == weights[1]
        state = json.loads(json.dumps(resumed.state()))
        resumed = build_balancing(config, NAMES, CPU)
        resumed.restore(state)
    assert straight.state() == resumed.state()


def test_learned_softmax_collapses_onto_the_easiest_task_and_uniform_does_not():
    """Three quadratics that are learned equally well but cannot fall under 0.1, 0.5 and 0.9."""
    floors = torch.tensor([0.5, 0.1, 0.9])
    final = {}
    for config in (LearnedSoftmaxConfig(learning_rate=0.1), UniformConfig()):
        rule = build_balancing(config, NAMES, CPU)
        x = torch.ones(3, requires_grad=True)
        optimizer = torch.optim.SGD([x], lr=0.1)
        for _ in range(300):
            values = x**2 + floors
            rule.combine({n: TaskLoss(values[i], 1.0) for i, n in enumerate(NAMES)}).backward()
            optimizer.step()
            optimizer.zero_grad()
            rule.update()
        final[config.name] = rule.weights()
    assert final["learned_softmax"]["b"] > 0.98
    assert collapsed(final["learned_softmax"]) == ["a", "c"]
    assert collapsed(final["uniform"]) == []
    assert collapsed({"a": 0.01, "b": 0.0099}) == ["b"]
