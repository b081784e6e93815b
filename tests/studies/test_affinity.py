"""What a joint run measures about its tasks, and what is made of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from manyskills.errors import UserError
from manyskills.studies.affinity import Affinity, AffinityRecorder, read_affinity
from manyskills.studies.partitions import members, subsets
from manyskills.studies.surrogate import effective_steps, predicted_losses, settled_transfer, speeds
from manyskills.training.measuring import Moment
from manyskills.training.task_gradients import TaskGradients

TASKS = ("a", "b")


class Gradients:
    """Stands in a training: what a step measured, in numbers."""

    def __init__(self, own, fresh, tasks=TASKS, fresh_tasks=TASKS):
        parameter = torch.nn.Parameter(torch.zeros(own.shape[1]))
        self.own, self.fresh = TaskGradients(tasks, [parameter]), TaskGradients(fresh_tasks, [parameter])
        self.own.values_KP[:] = torch.from_numpy(own)
        self.fresh.values_KP[:] = torch.from_numpy(fresh)

    def moment(self, step, losses=(1.0, 2.0), factors=(0.5, 0.25)):
        tasks = self.own.tasks
        return Moment(
            step=step, losses=dict(zip(tasks, losses, strict=False)), factors=dict(zip(tasks, factors, strict=False)),
            gradients=self.own, rate=0.1, fresh_gradients=lambda: self.fresh, fresh_losses=dict,
        )  # fmt: skip


def test_transfer_is_the_progress_on_examples_that_the_step_has_not_seen(tmp_path):
    generator = np.random.default_rng(0)
    recorder = AffinityRecorder(tmp_path / "a.jsonl", TASKS, lookahead_every=0)
    squares = []
    for step in (0, 4, 9):
        own, fresh = generator.normal(size=(2, 2, 7))
        recorder(Gradients(own, fresh).moment(step))
        squares.append(own**2)
    found = read_affinity(tmp_path / "a.jsonl")
    assert found.steps == (1, 5, 10)
    scale, expected = np.sqrt(np.mean(squares, axis=0)), np.zeros((2, 2))
    for k, j in product(range(2), range(2)):
        ways = [fresh[j] @ (own[k] / scale[k]), own[j] @ (fresh[k] / scale[k])]
        if k != j:
            ways += [own[j] @ (own[k] / scale[k]), fresh[j] @ (fresh[k] / scale[k])]
        expected[k, j] = 0.1 * np.mean(ways) / (1.0, 2.0)[j]
    np.testing.assert_allclose(found.transfer_MKK[2], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.energies_MK[2], (own**2).sum(1) * np.array([0.25, 0.0625]), rtol=1e-5)
    assert found.cosines_KK[0, 0] == pytest.approx(1)
    assert found.cosines_KK[0, 1] == found.cosines_KK[1, 0]
    assert not len(found.lookahead_MKK)


def test_noise_does_not_pass_for_progress(tmp_path):
    """Gradients without any signal: a step lowers its own examples' loss, and nobody else's."""
    generator = np.random.default_rng(1)
    recorder = AffinityRecorder(tmp_path / "a.jsonl", TASKS, lookahead_every=0)
    for step in range(200):
        own, fresh = generator.normal(size=(2, 2, 50))
        recorder(Gradients(own, fresh).moment(step, losses=(1.0, 1.0)))
    found = read_affinity(tmp_path / "a.jsonl")
    assert abs(found.transfer_MKK.mean(axis=0)).max() < 0.3  # on its own examples it would be 0.1 * 50


def test_steps_that_lack_a_task_are_passed_over(tmp_path):
    generator = np.random.default_rng(2)
    recorder = AffinityRecorder(tmp_path / "a.jsonl", TASKS, lookahead_every=0)
    own, fresh = generator.normal(size=(2, 2, 5))
    recorder(Gradients(own, fresh).moment(0))
    recorder(Gradients(own[:1], fresh, tasks=("a",)).moment(1))
    recorder(Gradients(own, fresh, tasks=("b", "a")).moment(2))
    recorder(Gradients(own, fresh[:1], fresh_tasks=("b",)).moment(3))
    recorder(Gradients(own * [[1.0], [0.0]], fresh).moment(4))
    recorder(Gradients(own, fresh).moment(5))
    assert read_affinity(tmp_path / "a.jsonl").steps == (1, 6)


def test_a_run_that_starts_anew_forgets_the_former(tmp_path):
    own, fresh = np.random.default_rng(3).normal(size=(2, 2, 5))
    for steps in ((0, 3, 6), (0, 2)):
        recorder = AffinityRecorder(tmp_path / "a.jsonl", TASKS, lookahead_every=0)
        for step in steps:
            recorder(Gradients(own, fresh).moment(step))
    assert read_affinity(tmp_path / "a.jsonl").steps == (1, 3)


def test_files_that_hold_nothing_or_something_else(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_affinity(tmp_path / "none")
    (tmp_path / "empty").touch()
    with pytest.raises(UserError, match="holds no measured step"):
        read_affinity(tmp_path / "empty")
    (tmp_path / "other").write_text("nonsense\n")
    with pytest.raises(UserError, match="cannot be read"):
        read_affinity(tmp_path / "other")


def test_modules_whose_gradients_would_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("manyskills.studies.affinity.MEASURED", 9)
    with pytest.raises(UserError, match="10 numbers"):
        AffinityRecorder(tmp_path / "a", TASKS, 0)(Gradients(np.ones((2, 5)), np.ones((2, 5))).moment(0))


class Quadratic:
    """Two tasks with losses |x - c|^2 + 1 on one parameter vector."""

    def __init__(self):
        self.x = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
        self.centres = torch.tensor([[0.0, 0.0, 0.0], [2.0, -2.0, 0.0]])

    def losses(self):
        x = self.x.detach()
        return {task: float(((x - c) ** 2).sum() + 1) for task, c in zip(TASKS, self.centres, strict=True)}

    def gradients(self):
        found = TaskGradients(TASKS, [self.x])
        found.values_KP[:] = 2 * (self.x.detach() - self.centres)
        return found

    def moment(self, step, rate):
        factors = dict.fromkeys(TASKS, 0.5)
        return Moment(step, self.losses(), factors, self.gradients(), rate, self.gradients, self.losses)


def test_trying_out_a_small_step_agrees_with_its_first_order_and_leaves_the_weights(tmp_path):
    problem, recorder = Quadratic(), AffinityRecorder(tmp_path / "a.jsonl", TASKS, lookahead_every=2)
    before = problem.x.detach().clone()
    for step in (0, 7):
        recorder(problem.moment(step, 1e-4))
    assert torch.equal(problem.x.detach(), before)
    found = read_affinity(tmp_path / "a.jsonl")
    assert found.steps == (1, 8)
    assert len(found.lookahead_MKK) == 1
    gradients = 2 * (before - problem.centres)
    for k, j in product(range(2), range(2)):
        expected = 1e-4 * float(gradients[j] @ gradients[k].sign()) / problem.losses()[TASKS[j]]
        assert found.transfer_MKK[1][k, j] == pytest.approx(expected, rel=1e-3, abs=1e-9)
        assert found.lookahead_MKK[0][k, j] == pytest.approx(expected, rel=1e-2, abs=1e-6)


def affinity(transfer, energies, tasks=TASKS):
    none = np.empty((0, len(tasks), len(tasks)))
    return Affinity(tasks, (1,), np.eye(len(tasks)), np.array([transfer]), none, np.array([energies]))


def test_speeds_are_transfers_in_the_parts_that_tasks_have_in_a_step():
    found = affinity([[0.4, 0.1], [-0.2, 0.3]], [9.0, 16.0])
    assert speeds(found, 0b01) == pytest.approx({0: 0.4})
    assert speeds(found, 0b11) == pytest.approx({0: 0.6 * 0.4 + 0.8 * -0.2, 1: 0.6 * 0.1 + 0.8 * 0.3})


def test_predicted_losses_are_the_joint_runs_own_where_all_train_and_move_with_the_speed_elsewhere():
    found = replace(affinity([[0.4, 0.1], [0.0, 0.3]], [1.0, 1.0]), steps=(50,))
    start, end = {"a": 1.0, "b": 0.9}, {"a": 0.5, "b": 0.8}
    losses = predicted_losses(found, start, end)
    assert losses[0b11] == pytest.approx([0.5, 0.8])
    together = {0: 0.4 / np.sqrt(2), 1: 0.4 / np.sqrt(2)}
    steps = {0: np.log(1.0 / 0.5) / together[0], 1: np.log(0.9 / 0.8) / together[1]}
    assert losses[0b01] == pytest.approx([0.5 * np.exp(-steps[0] * (0.4 - together[0]))])
    assert losses[0b10] == pytest.approx([0.8 * np.exp(-steps[1] * (0.3 - together[1]))])


def test_steps_of_tasks_that_tell_nothing():
    names = tuple("abc")
    found = replace(affinity(np.diag([0.1, 0.2, -0.3]), [1.0, 1.0, 1.0], names), steps=(9,))
    start, end = {"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 0.9, "b": 0.9, "c": 0.8}
    steps = effective_steps(found, start, end)
    part = 1 / np.sqrt(3)
    assert steps[0] == pytest.approx(np.log(1 / 0.9) / (0.1 * part))
    assert steps[1] == pytest.approx(np.log(1 / 0.9) / (0.2 * part))
    assert steps[2] == pytest.approx((steps[0] + steps[1]) / 2)  # its speed is negative
    short = replace(found, steps=(1,))
    assert max(effective_steps(short, start, end).values()) == 1
    worse = effective_steps(found, start, {"a": 1.1, "b": 1.1, "c": 1.1})
    assert worse == {0: 0.0, 1: 0.0, 2: 0.0}


def test_transfer_between_tasks_counts_by_as_much_as_it_stands_out_of_its_noise():
    generator = np.random.default_rng(4)
    values = generator.normal(0, 0.1, size=(400, 3, 3))
    values[:, 0, 1] += 1.0  # certain
    values[:, 1, 2] += 0.005  # less than its standard error
    values[:, 2, 2] -= 0.004  # a task's own progress is taken as it is
    found = Affinity(tuple("abc"), tuple(range(400)), np.eye(3), values, np.empty((0, 3, 3)), np.ones((400, 3)))
    settled = settled_transfer(found)
    median = np.median(values, axis=0)
    assert settled[0, 1] == pytest.approx(median[0, 1], rel=1e-3)
    assert settled[1, 2] == 0
    np.testing.assert_allclose(np.diag(settled), np.diag(median))
    deviation = np.median(abs(values[:, 2, 0] - median[2, 0])) * 1.4826
    t = median[2, 0] / (1.2533 * deviation / 20)
    assert settled[2, 0] == pytest.approx(median[2, 0] * max(0, 1 - 4 / t**2))


def test_a_speed_near_zero_does_not_decide_alone():
    found = replace(affinity([[0.05, 0.0], [-0.0499, 0.05]], [1.0, 1.0]), steps=(400,))
    losses = predicted_losses(found, {"a": 1.0, "b": 1.0}, {"a": 0.9, "b": 0.8})
    assert losses[0b01] == pytest.approx([0.9 * 0.9**2])


def test_tasks_that_do_not_touch_are_predicted_to_be_best_alone():
    generator = np.random.default_rng(2)
    names = tuple("abcd")
    found = affinity(np.diag(generator.uniform(0.1, 1, 4)), generator.uniform(0.1, 1, 4), names)
    losses = predicted_losses(found, dict.fromkeys(names, 1.0), dict.fromkeys(names, 0.7))
    for subset in subsets(4):
        for place, task in enumerate(members(subset)):
            assert losses[subset][place] >= losses[1 << task][0] - 1e-12


def test_single_odd_steps_hardly_count():
    generator = np.random.default_rng(3)
    values = generator.normal(1.0, 0.1, size=(21, 2, 2))
    values[4] = 1000.0
    found = Affinity(TASKS, tuple(range(21)), np.eye(2), values, np.empty((0, 2, 2)), np.ones((21, 2)))
    assert speeds(found, 0b01)[0] == pytest.approx(1, abs=0.1)
