"""The optimiser: rates by the step, decay where it belongs, clipping by part, and a state that survives the disk."""

from __future__ import annotations

import math

import pytest
import torch

from manyskills.errors import UserError
from manyskills.training.optimizer import Optimizer, learning_rate_factor
from tests.training.helpers import gradients, small_config, warmed_up


def _factors(total, **changes):
    config = small_config("unused", "unused", **changes)
    return [learning_rate_factor(step, total, config) for step in range(total)]


def test_linear_warm_up_and_decay():
    found = _factors(10, warmup_ratio=0.2)
    assert found == pytest.approx([0.5, 1.0, *(1 - n / 8 for n in range(8))])
    assert _factors(10, warmup_ratio=0.0)[0] == 1.0


def test_cosine_and_constant():
    cosine = _factors(9, warmup_ratio=0.0, lr_scheduler_type="cosine")
    assert cosine == pytest.approx([0.5 * (1 + math.cos(math.pi * n / 9)) for n in range(9)])
    assert _factors(4, warmup_ratio=0.5, lr_scheduler_type="constant") == [0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.06, 1.0])
@pytest.mark.parametrize("total", [1, 2, 7])
def test_no_step_is_wasted(kind, warmup, total):
    assert all(0 < factor <= 1 for factor in _factors(total, warmup_ratio=warmup, lr_scheduler_type=kind))


@pytest.fixture
def trained(backbone_folder, data_dir):
    config = small_config(backbone_folder("bert"), data_dir, head_learning_rate=0.1, weight_decay=0.5)

    def make():
        model, prepared = warmed_up(config)
        optimizer = Optimizer(model, config, 10)

        def steps(first, last):
            for step in range(first, last):
                gradients_of_step(step)
                optimizer.update(step)

        def gradients_of_step(step):
            gradients(model, prepared, config, cached=False, budget=200, seed=step)

        return model, optimizer, steps, gradients_of_step

    return make


def test_saved_and_loaded_it_continues_to_the_same_weights(trained, tmp_path):
    model, optimizer, steps, _ = trained()
    steps(0, 3)
    optimizer.save(tmp_path / "optimizer.safetensors")
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    steps(3, 6)
    again, other, more, _ = trained()
    again.load_state_dict(weights)
    other.load(tmp_path / "optimizer.safetensors")
    more(3, 6)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_without_its_state_it_continues_elsewhere(trained):
    model, _, steps, _ = trained()
    steps(0, 3)
    again, _, more, _ = trained()
    again.load_state_dict(model.state_dict())
    steps(3, 6)
    more(3, 6)
    assert not all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_the_state_of_another_model_is_refused(trained, tmp_path, backbone_folder, data_dir):
    _, optimizer, steps, _ = trained()
    steps(0, 1)
    optimizer.save(tmp_path / "optimizer.safetensors")
    config = small_config(backbone_folder("bert"), data_dir, tasks=["code_search"])
    with pytest.raises(UserError, match=r"holds the state of 'head\."):
        Optimizer(warmed_up(config)[0], config, 10).load(tmp_path / "optimizer.safetensors")


def test_rates_and_decay_by_kind_of_parameter(trained):
    _, optimizer, steps, _ = trained()
    assert steps
    rate = optimizer.update(0)
    groups = optimizer.adamw.param_groups
    assert rate == 1e-2  # 6 % of 10 steps: one step of warm-up
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-2, 0.5), (0.1, 0.5), (0.1, 0.0)]
    assert {p.ndim for p in groups[1]["params"]} == {2}
    assert {p.ndim for p in groups[2]["params"]} <= {0, 1}


def test_clips_the_module_and_the_heads_apart(trained):
    model, optimizer, _, gradients_of_step = trained()
    gradients_of_step(0)
    norms = []
    step = optimizer.adamw.step
    with torch.no_grad():
        for _, p in model.head_parameters():
            p.grad.mul_(1e4)
        for _, p in model.shared_parameters():
            p.grad.div_(1e4)
    small = {name: p.grad.clone() for name, p in model.shared_parameters()}

    def look():
        norms.append(torch.nn.utils.get_total_norm([p.grad for _, p in model.head_parameters()]).item())
        assert all(torch.equal(p.grad, small[name]) for name, p in model.shared_parameters())
        step()

    optimizer.adamw.step = look
    optimizer.update(0)
    assert norms == pytest.approx([1.0], rel=1e-3)
    assert all(p.grad is None for p in model.parameters())
