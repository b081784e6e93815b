"""Two tasks whose trade-off is known: where each rule ends on their Pareto front.

L_1 = 0.1 + 9 x^2 / 2 + y^2 / 2 and L_2 = 0.1 + (x - 1)^2 / 2 + 9 (y - 1)^2 / 2. The minimum of w L_1 + (1 - w) L_2 is
x = (1 - w) / (9 w + 1 - w), y = 9 (1 - w) / (w + 9 (1 - w)); these points are the Pareto front.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.balancing.helpers import Quadratics, descend, make, quadratics

PROBLEM = quadratics(centres=[[0, 0], [1, 1]], curvatures=[[9, 1], [1, 9]])
SCALED = quadratics(centres=[[0, 0], [1, 1]], curvatures=[[9, 1], [1, 9]], scales=[1, 20])
LOW_FLOOR = quadratics(centres=[[0, 0], [1, 1]], curvatures=[[9, 1], [1, 9]], floors=[0.6, 0.1])
START = (1.5, -0.5)


def front(weight):
    """The minimum of weight L_1 + (1 - weight) L_2."""
    w, v = weight, 1 - weight
    return np.array([v / (9 * w + v), 9 * v / (w + 9 * v)])


def weight_at(problem: Quadratics, point):
    """The weight of the first task's gradient that makes the weighted sum shortest, and that sum's length."""
    u, v = problem.gradients(point)
    weight = float(np.clip((v - u) @ v / ((u - v) @ (u - v)), 0, 1))
    return weight, float(np.linalg.norm(weight * u + (1 - weight) * v))


def end(name, problem=PROBLEM, start=START, steps=400, rate=0.05, last=1e-3, **settings):
    return descend(make(name, ["a", "b"], **settings), problem, start, steps, rate, last)[-1]


@pytest.mark.parametrize("weight", [0.5, 0.2, 0.9])
def test_fixed_ends_at_its_weighted_minimum(weight):
    found = end("fixed", weights={"a": weight, "b": 1 - weight}, last=0.1)
    np.testing.assert_allclose(found, front(weight), atol=1e-3)


@pytest.mark.parametrize("name", ["uniform", "dwa", "cagrad"])
def test_these_end_at_the_minimum_of_the_mean(name):
    """dwa's ratios go to 1, and cagrad with c < 1 converges to a minimum of the mean, as its paper proves."""
    np.testing.assert_allclose(end(name, last=0.1), front(0.5), atol=1e-2)


def test_coba_ends_on_the_front_between_the_two():
    """Not at the mean's minimum: it divides slopes by their sum, so they count however small they have become."""
    weight, length = weight_at(PROBLEM, end("coba", steps=800, every=1))
    assert length < 0.05
    assert 0.1 < weight < 0.9


def test_random_weights_move_about_the_minimum_of_the_mean():
    path = descend(make("rlw", ["a", "b"]), PROBLEM, START, 1000, 0.02)
    np.testing.assert_allclose(path[200:].mean(axis=0), front(0.5), atol=0.05)


@pytest.mark.parametrize(("name", "settings"), [("gls", {}), ("uncertainty", {"learning_rate": 0.2})])
def test_these_end_at_the_minimum_of_the_product(name, settings):
    """uncertainty's weights go to 1 / (2 L_i): it is stationary where sum_i log L_i is."""
    for problem in (PROBLEM, LOW_FLOOR):
        points = np.array([front(w) for w in np.linspace(0, 1, 4001)])
        best = points[np.argmin([np.log(problem.losses(point)).sum() for point in points])]
        np.testing.assert_allclose(end(name, problem, steps=1500, last=0.1, **settings), best, atol=0.01)


def test_famo_ends_on_the_front():
    """Where depends on the way: every point of the front is stationary, and its logits only decay to 0 (which would be
    the product's minimum) as fast as Adam forgets the slopes of the way there."""
    for problem, start in ((PROBLEM, START), (LOW_FLOOR, START), (LOW_FLOOR, (2.0, 2.0))):
        weight, length = weight_at(problem, end("famo", problem, start, every=1))
        assert length < 0.01
        assert 0.02 < weight < 0.98


@pytest.mark.parametrize("name", ["mgda", "nash_mtl", "db_mtl", "pcgrad", "cagrad", "gradnorm"])
@pytest.mark.parametrize("start", [START, (2.0, 2.0)])
def test_rules_on_gradients_reach_the_front(name, start):
    weight, length = weight_at(PROBLEM, end(name, start=start))
    assert length < 0.05
    assert 0.0 <= weight <= 1.0


@pytest.mark.parametrize("name", ["mgda", "nash_mtl"])
def test_no_task_loses_on_the_way(name):
    path = descend(make(name, ["a", "b"]), PROBLEM, START, 300, 0.01)
    losses = np.array([PROBLEM.losses(point) for point in path])
    assert np.diff(losses, axis=0).max() < 2e-3
    uniform = descend(make("uniform", ["a", "b"]), PROBLEM, (0.0, 0.0), 300, 0.01)
    assert PROBLEM.losses(uniform[-1])[0] > PROBLEM.losses(uniform[0])[0] + 0.1


@pytest.mark.parametrize("name", ["nash_mtl", "db_mtl", "gls"])
def test_the_way_does_not_depend_on_the_scales_of_the_losses(name):
    """gls in its direction only: its length is the geometric mean's."""
    rates = (0.01, 0.01 / 20**0.5) if name == "gls" else (0.01, 0.01)
    paths = [descend(make(name, ["a", "b"]), problem, START, 100, rate)
             for problem, rate in zip((PROBLEM, SCALED), rates, strict=True)]  # fmt: skip
    np.testing.assert_allclose(paths[0], paths[1], atol=1e-4)


@pytest.mark.parametrize(("name", "moved"), [("uniform", True), ("cagrad", True), ("mgda", True), ("nash_mtl", False)])
def test_of_a_task_with_twenty_times_the_loss_only_some_rules_take_no_notice(name, moved):
    plain, scaled = end(name, PROBLEM, steps=300), end(name, SCALED, steps=300, rate=0.01 if moved else 0.05)
    assert (np.abs(plain - scaled).max() > 0.02) == moved


def test_learned_softmax_ends_at_the_minimum_of_the_task_of_least_loss():
    rule = make("learned_softmax", ["a", "b"], learning_rate=0.05)
    path = descend(rule, LOW_FLOOR, START, 1000, 0.05)
    np.testing.assert_allclose(path[-1], [1, 1], atol=0.01)
    assert rule.weigh({"a": 1.0, "b": 1.0})["a"] < 0.01


APART = quadratics(centres=[[0, 0], [0, 0]], curvatures=[[1, 0], [0, 0.1]], floors=[0.01, 0.01])
"""Without conflict, but the second task learns ten times as slowly."""


def final(name, **settings):
    rule = make(name, ["a", "b"], **settings)
    path = descend(rule, APART, (1.0, 1.0), 100, 0.1)
    return APART.losses(path[-1]) / APART.losses(path[0])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("famo", {"every": 1}),
        ("dwa", {"window": 5, "temperature": 0.2}),
        ("gradnorm", {"alpha": 1.5}),
        ("coba", {"every": 1, "history": 5}),
        ("nash_mtl", {}),
        ("db_mtl", {}),
    ],
)
def test_the_slow_task_is_pulled_up(name, settings):
    """By their own measure (relative progress, rates, norms, slopes) these bring the tasks' progress closer."""
    uniform, found = final("uniform"), final(name, **settings)
    assert found[1] < uniform[1]
    assert np.log(found[1] / found[0]) < np.log(uniform[1] / uniform[0])
