"""What a joint run measures about its tasks, and what is made of it."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from manyskills.errors import UserError
from manyskills.studies.affinity import Affinity, AffinityRecorder, Sketch, read_affinity
from manyskills.studies.partitions import members, subsets
from manyskills.studies.surrogate import effective_steps, predicted_losses, speeds
from manyskills.training.loop import Moment
from manyskills.training.task_gradients import TaskGradients

TASKS = ("a", "b")


def test_projections_keep_inner_products():
    generator = torch.Generator().manual_seed(0)
    values_KP = torch.randn(3, 50_000, generator=generator)
    values_KP[1] = values_KP[0] * 0.5 + values_KP[1] * 0.5
    kept = Sketch(50_000)(values_KP)
    assert kept.shape == (3, 4096)
    exact_KK, found_KK = values_KP @ values_KP.T, kept @ kept.T
    assert torch.allclose(found_KK, exact_KK, atol=0.06 * exact_KK.diagonal().max().item())
    assert torch.equal(kept, Sketch(50_000)(values_KP))
    small_KP = values_KP[:, :100]
    assert torch.equal(Sketch(100)(small_KP), small_KP)


def write(folder, step, *, own, fresh, scale, rate=0.1, losses=(1.0, 2.0), **more):
    folder.mkdir(exist_ok=True)
    arrays = {"own": own, "own_steps": own / scale, "fresh": fresh, "fresh_steps": fresh / scale}
    record = {
        "step": step, "tasks": TASKS, "losses": dict(zip(TASKS, losses, strict=True)), "rate": rate,
        "energies": (own**2).sum(1).tolist(), **more,
    }  # fmt: skip
    save_file({name: values.astype(np.float32) for name, values in arrays.items()},
              folder / f"{step:08d}.safetensors", metadata={"record": json.dumps(record)})  # fmt: skip


def test_transfer_is_the_progress_on_examples_that_the_step_has_not_seen(tmp_path):
    generator = np.random.default_rng(0)
    own, fresh, scale = generator.normal(size=(3, 2, 7))
    scale = abs(scale) + 1
    write(tmp_path / "a", 1, own=own * 100, fresh=fresh, scale=scale)  # the first step counts for nothing
    write(tmp_path / "a", 5, own=own, fresh=fresh, scale=scale, lookahead=[[0.5, 0.1], [0.2, 0.3]])
    found = read_affinity(tmp_path / "a")
    assert found.steps == (5,)
    expected = np.zeros((2, 2))
    for k, j in product(range(2), range(2)):
        ways = [fresh[j] @ (own[k] / scale[k]), own[j] @ (fresh[k] / scale[k])]
        if k != j:
            ways += [own[j] @ (own[k] / scale[k]), fresh[j] @ (fresh[k] / scale[k])]
        expected[k, j] = 0.1 * np.mean(ways) / (1.0, 2.0)[j]
    np.testing.assert_allclose(found.transfer_MKK[0], expected, rtol=1e-5)
    cosine = own[0] @ own[1] / np.linalg.norm(own[0]) / np.linalg.norm(own[1])
    np.testing.assert_allclose(found.cosines_KK, [[1, cosine], [cosine, 1]], rtol=1e-5)
    np.testing.assert_allclose(found.energies_K, (own**2).sum(1), rtol=1e-6)
    np.testing.assert_allclose(found.lookahead_KK, [[0.5, 0.1], [0.2, 0.3]])


def test_noise_does_not_pass_for_progress(tmp_path):
    """Gradients without any signal: a step lowers its own examples' loss, and nobody else's."""
    generator = np.random.default_rng(1)
    for step in range(2, 202):
        own, fresh = generator.normal(size=(2, 2, 50))
        write(tmp_path / "a", step, own=own, fresh=fresh, scale=np.ones((2, 50)), losses=(1.0, 1.0))
    found = read_affinity(tmp_path / "a")
    means = found.transfer_MKK.mean(axis=0)
    assert abs(means).max() < 0.2  # on its own examples it would be 0.1 * 50


def test_folders_that_hold_nothing_or_something_else(tmp_path):
    with pytest.raises(UserError, match="holds no measured step"):
        read_affinity(tmp_path)
    (tmp_path / "00000002.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cannot be read"):
        read_affinity(tmp_path)


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
        return Moment(step, self.losses(), self.gradients(), rate, self.gradients, self.losses)


def test_trying_out_a_small_step_agrees_with_its_first_order_and_leaves_the_weights(tmp_path):
    problem, recorder = Quadratic(), AffinityRecorder(tmp_path, lookahead_every=2)
    before = problem.x.detach().clone()
    for step in (3, 7):
        recorder(problem.moment(step, 1e-4))
    assert torch.equal(problem.x.detach(), before)
    found = read_affinity(tmp_path)
    assert found.steps == (4, 8)
    assert found.lookahead_KK is not None  # of the second step
    gradients = 2 * (before - problem.centres)
    for k, j in product(range(2), range(2)):
        expected = 1e-4 * float(gradients[j] @ gradients[k].sign()) / problem.losses()[TASKS[j]]
        assert found.transfer_MKK[1][k, j] == pytest.approx(expected, rel=1e-3, abs=1e-9)
        assert found.lookahead_KK[k, j] == pytest.approx(expected, rel=1e-2, abs=1e-6)


def affinity(transfer, energies, tasks=TASKS):
    return Affinity(tasks, (1,), np.eye(len(tasks)), np.array([transfer]), None, np.array(energies))


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
    found = Affinity(TASKS, tuple(range(21)), np.eye(2), values, None, np.ones(2))
    assert speeds(found, 0b01)[0] == pytest.approx(1, abs=0.1)
