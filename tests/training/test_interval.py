"""What a record says of several steps."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from manyskills.training.interval import Interval


def test_losses_are_means_over_the_steps_with_the_task_and_weights_over_all():
    interval = Interval()
    interval.add({"a": 2.0}, {"a": 1.0}, {"a": 1.0})
    interval.add({"b": 3.0}, {"b": 0.5}, {"b": 1.0})
    interval = Interval(**json.loads(json.dumps(asdict(interval))))
    interval.add({"a": 4.0, "b": 1.0}, {"a": 2.0, "b": 0.1}, {"a": 0.25, "b": 0.75})
    assert interval.means() == {
        "steps": 3,
        "loss": {"a": 3.0, "b": 2.0},
        "scaled_loss": {"a": 1.5, "b": 0.3},
        "weights": {"a": pytest.approx(1.25 / 3), "b": pytest.approx(1.75 / 3)},
    }
