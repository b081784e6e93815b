"""`db_mtl` against its algorithm, worked in loops."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.balancing.helpers import NAMES, combined, direction, make

GENERATOR = np.random.default_rng(0)


def test_it_is_the_algorithm():
    beta, decay, averages = 0.8, 0.5, [None, None, None]
    rule = make("db_mtl", beta=beta, beta_decay=decay)
    for step in range(1, 9):
        gradients, losses = GENERATOR.standard_normal((3, 5)), GENERATOR.uniform(0.2, 3, 3)
        for i in range(3):
            of_log, share = gradients[i] / losses[i], beta / step**decay
            averages[i] = of_log if step == 1 else share * averages[i] + (1 - share) * of_log
        longest = max(np.linalg.norm(average) for average in averages)
        expected = sum(longest * average / np.linalg.norm(average) for average in averages) / 3
        found = combined(rule, gradients, dict(zip(NAMES, losses, strict=True)))
        np.testing.assert_allclose(found.gradient_P, expected, rtol=1e-6)
        assert list(found.head_factors.values()) == pytest.approx((1 / (3 * losses)).tolist())


def test_without_average_the_factors_are_coefficients_of_the_gradients():
    gradients, rule = GENERATOR.standard_normal((3, 5)), make("db_mtl", beta=0)
    found = combined(rule, gradients, {"a": 2.0, "b": 0.1, "c": 1.0})
    np.testing.assert_allclose(found.gradient_P, np.array(list(found.factors.values())) @ gradients)


def test_the_scales_of_the_losses_do_not_matter():
    scales = np.array([100.0, 1.0, 0.001])
    plain, scaled = make("db_mtl"), make("db_mtl")
    for _ in range(4):
        gradients, losses = GENERATOR.standard_normal((3, 5)), GENERATOR.uniform(0.2, 3, 3)
        np.testing.assert_allclose(
            direction(plain, gradients, dict(zip(NAMES, losses, strict=True))),
            direction(scaled, gradients * scales[:, None], dict(zip(NAMES, losses * scales, strict=True))),
            rtol=1e-9,
        )


def test_a_task_that_is_absent_keeps_its_average_and_its_count():
    rule, twin = make("db_mtl"), make("db_mtl")
    first, second, third = GENERATOR.standard_normal((3, 2, 4))
    losses = {"a": 1.0, "b": 2.0}
    direction(rule, first, losses)
    direction(twin, first, losses)
    direction(rule, second[:1], {"a": 1.0})
    direction(twin, second, losses)
    state, whole = rule.state(), twin.state()
    np.testing.assert_allclose(state["average.a"], whole["average.a"])
    np.testing.assert_allclose(state["average.b"], first[1] / 2.0, rtol=1e-6)
    assert (state["count.a"], state["count.b"]) == (2, 1)
    assert np.isfinite(direction(rule, third, losses)).all()
