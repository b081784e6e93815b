"""`coba` against its formulas, worked in loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.training.balancing.helpers import NAMES, make, softmax

HISTORY, WARMUP, TAU = 4, 3, 2.0


def reference(measured: list[list[float]]) -> list[float]:
    """The factors after these measurements of all tasks."""
    if len(measured) < WARMUP:
        return [1 / 3] * 3
    slopes = []
    for end in range(WARMUP, len(measured) + 1):
        part = range(max(0, end - HISTORY), end)
        slopes.append([np.polyfit(part, [measured[s][i] / measured[0][i] for s in part], 1)[0] for i in range(3)])
    now, recent, worst = slopes[-1], slopes[-HISTORY:], [max(of_tasks) for of_tasks in slopes]
    rcs = softmax([3 * slope / sum(abs(other) for other in now) for slope in now])
    acs = softmax([-len(recent) * now[i] / sum(abs(past[i]) for past in recent) for i in range(3)])
    t, total = len(worst), sum(abs(slope) for slope in worst)
    powers = [math.exp(-TAU * t * slope / total) for slope in worst]
    df = min(t * powers[-1] / sum(powers), 1)
    return [df * r + (1 - df) * a for r, a in zip(rcs, acs, strict=True)]


def falling(rates, step, noise=0.0):
    """Losses that fall exponentially (or rise, where a rate is negative)."""
    return [2.0 * math.exp(-rate * step) + noise * math.sin(7 * step + 3 * rate) for rate in rates]


@pytest.mark.parametrize("rates", [(0.3, 0.1, 0.02), (0.3, 0.1, -0.05)])
def test_it_is_the_formulas(rates):
    rule, measured = make("coba", history=HISTORY, warmup=WARMUP, tau=TAU), []
    for step in range(12):
        measured.append(falling(rates, step, noise=0.1))
        rule.validated(dict(zip(NAMES, measured[-1], strict=True)))
        found = rule.weigh(dict.fromkeys(NAMES, 1.0))
        assert list(found.values()) == pytest.approx(reference(measured), rel=1e-6)
        assert sum(found.values()) == pytest.approx(1)


def weights_after(*rows, **settings):
    rule = make("coba", **({"history": 3, "warmup": 2} | settings))
    for row in rows:
        rule.validated(dict(zip(NAMES, row, strict=True)))
    return rule.weigh(dict.fromkeys(NAMES, 1.0))


def test_while_all_fall_the_slowest_weighs_most_and_a_task_that_turns_weighs_least():
    fine = [falling((0.4, 0.2, 0.05), step) for step in range(6)]
    slow_first = weights_after(*fine)
    assert slow_first["a"] < slow_first["b"] < slow_first["c"]
    turned = [[*row[:2], 1.5 + 0.2 * step] for step, row in enumerate(fine[2:], 1)]
    weights = weights_after(*fine, *turned, history=5)
    assert weights["c"] < weights["b"] < weights["a"]


def test_slopes_are_relative_to_the_first_loss_and_training_losses_do_not_matter():
    plain = [falling((0.4, 0.2, 0.05), step) for step in range(6)]
    scaled = [[100 * row[0], row[1], 0.01 * row[2]] for row in plain]
    assert weights_after(*plain) == pytest.approx(weights_after(*scaled))
    rule = make("coba", history=3, warmup=2)
    for row in plain:
        rule.validated(dict(zip(NAMES, row, strict=True)))
    assert rule.weigh({"a": 9.0, "b": 1.0, "c": 0.1}) == rule.weigh(dict.fromkeys(NAMES, 1.0))


def test_losses_that_stand_still_give_equal_weights():
    assert weights_after(*[[1.0, 2.0, 3.0]] * 5) == pytest.approx(dict.fromkeys(NAMES, 1 / 3))
    assert weights_after(*[[0.0, 0.0, 0.0]] * 5) == pytest.approx(dict.fromkeys(NAMES, 1 / 3))


def test_equal_weights_during_warm_up_and_measurements_as_configured():
    rule = make("coba", warmup=4, every=7, rows=9)
    assert (rule.needs.validation_every, rule.needs.validation_rows) == (7, 9)
    for step in range(3):
        rule.validated(dict(zip(NAMES, falling((0.4, 0.2, 0.05), step), strict=True)))
        assert rule.weigh(dict.fromkeys(NAMES, 1.0)) == dict.fromkeys(NAMES, 1 / 3)


def test_a_task_that_has_stopped_does_not_count_as_one_that_stands_still():
    """The divergence factor would see a slope near 0 and take it for the end of convergence."""
    rule, twin = make("coba", history=3, warmup=2), make("coba", ["a", "b"], history=3, warmup=2)
    for step in range(8):
        row = dict(zip(NAMES, falling((0.2, 0.1, 0.1), step), strict=True))
        rule.validated(row if step < 3 else {name: row[name] for name in "ab"})
        twin.validated({name: row[name] for name in "ab"})
    assert rule.weigh({"a": 1.0, "b": 1.0}) == pytest.approx(twin.weigh({"a": 1.0, "b": 1.0}))
