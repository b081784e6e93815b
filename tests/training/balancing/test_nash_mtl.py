"""`nash_mtl` against its equation and a search over directions."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.balancing.helpers import combined, cosine, direction, make

CASES = [np.random.default_rng(case).standard_normal((3, 8)) for case in range(8)]


@pytest.mark.parametrize("gradients", CASES)
def test_the_residual_of_the_equation_is_zero(gradients):
    found = combined(make("nash_mtl"), gradients)
    alpha = np.array(list(found.factors.values()))
    assert (alpha > 0).all()
    np.testing.assert_allclose(gradients @ gradients.T @ alpha, 1 / alpha, rtol=1e-6)
    assert np.linalg.norm(found.gradient_P.numpy()) == pytest.approx(np.sqrt(3))


def test_it_is_the_direction_of_the_greatest_product_of_improvements():
    angles = np.linspace(0, 2 * np.pi, 20001)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for case in range(6):
        gradients = np.random.default_rng(case).standard_normal((2, 2))
        improvements = circle @ gradients.T
        products = np.where((improvements > 0).all(axis=1), improvements.prod(axis=1), -1)
        assert cosine(direction(make("nash_mtl"), gradients), circle[products.argmax()]) > 1 - 1e-6


@pytest.mark.parametrize("scales", [(1, 100, 0.01), (1e-6, 1, 1e3)])
def test_the_scales_of_the_losses_do_not_matter(scales):
    for gradients in CASES:
        scaled = gradients * np.array(scales)[:, None]
        np.testing.assert_allclose(
            direction(make("nash_mtl"), scaled), direction(make("nash_mtl"), gradients), rtol=1e-5, atol=1e-7
        )


def test_orthogonal_gradients_are_brought_to_one_length():
    found = combined(make("nash_mtl"), [[4.0, 0.0], [0.0, 0.1]])
    np.testing.assert_allclose(found.gradient_P, [1, 1], rtol=1e-6)
    assert found.factors == pytest.approx({"a": 0.25, "b": 10})


def test_the_update_vanishes_at_a_pareto_stationary_point():
    for gradients in ([[1.0, 2.0], [-3.0, -6.0]], [[1.0, 0.0], [-0.5, 0.5], [-0.5, -0.5]]):
        assert np.linalg.norm(direction(make("nash_mtl"), gradients)) < 1e-2


def test_a_task_without_gradient_has_no_say():
    with_zero = combined(make("nash_mtl"), [[1.0, 2.0], [0.0, 0.0], [2.0, 0.5]])
    np.testing.assert_allclose(with_zero.gradient_P, direction(make("nash_mtl"), [[1.0, 2.0], [2.0, 0.5]]), rtol=1e-9)
    assert with_zero.factors["b"] == 0
