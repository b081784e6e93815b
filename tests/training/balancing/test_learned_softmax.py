"""`learned_softmax` against its formula, and its collapse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from manyskills.training.balancing import collapsed
from tests.training.balancing.helpers import NAMES, make

VALUES = np.array([0.9, 2.0, 0.2])


def test_it_is_the_formula_under_adam():
    """The reference lets torch differentiate the weighted loss and step."""
    rule = make("learned_softmax", learning_rate=0.1)
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    generator = np.random.default_rng(0)
    for _ in range(20):
        values = VALUES + generator.normal(0, 0.1, 3)
        weights = torch.softmax(logits, dim=0)
        assert list(rule.weigh(dict(zip(NAMES, values, strict=True))).values()) == pytest.approx(weights.tolist())
        optimizer.zero_grad()
        (weights * torch.from_numpy(values)).sum().backward()
        optimizer.step()


def test_absent_tasks_leave_the_softmax_and_keep_their_logits():
    rule, twin = make("learned_softmax"), make("learned_softmax", ["a", "c"])
    for _ in range(5):
        assert rule.weigh({"a": 0.9, "c": 0.2}) == pytest.approx(twin.weigh({"a": 0.9, "c": 0.2}))
    assert rule.state()["values"][1] == 0
    weights = rule.weigh({"a": 0.9, "b": 2.0, "c": 0.2})
    assert weights["a"] < weights["b"] < weights["c"]


def test_it_collapses_onto_the_task_of_least_loss_and_uniform_does_not():
    """Three quadratics that are learnt equally well but cannot fall under 0.1, 0.5 and 0.9."""
    floors, final = np.array([0.5, 0.1, 0.9]), {}
    for name, settings in (("learned_softmax", {"learning_rate": 0.1}), ("uniform", {})):
        rule, x = make(name, **settings), np.ones(3)
        for _ in range(300):
            final[name] = rule.weigh(dict(zip(NAMES, (x**2 + floors).tolist(), strict=True)))
            x -= 0.1 * np.array(list(final[name].values())) * 2 * x
    assert final["learned_softmax"]["b"] > 0.98
    assert collapsed(final["learned_softmax"]) == ["a", "c"]
    assert collapsed(final["uniform"]) == []
