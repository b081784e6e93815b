"""The optimiser: rates by the step, decay where it belongs, clipping by part, and a state that survives the disk."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from manyskills.errors import UserError
from manyskills.model.multitask import build_model
from manyskills.training.optimizer import Optimizer, require_optimizer, training_bytes
from manyskills.training.run import train
from manyskills.training.schedule import rate_factor
from tests.training.helpers import CPU, gradients, small_config, warmed_up


def _factors(total, **changes):
    config = small_config("unused", "unused", **changes)
    return [rate_factor(step, total, config) for step in range(total)]


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


class _Module(nn.Module):
    """What an optimiser sees of a model: one parameter large enough for moments in 8 bits, and small ones."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.shared = nn.Parameter(torch.randn(80, 70, generator=generator))
        self.head = nn.Linear(3, 2)

    def shared_parameters(self):
        return iter([("weight", self.shared)])

    def head_parameters(self):
        return self.head.named_parameters()

    def undecayed(self, name, parameter):
        return False

    def pretend(self, step):
        for number, p in enumerate(self.parameters()):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * step + number))


def _updated(optim, steps):
    config = small_config("unused", "unused", optim=optim, warmup_ratio=0.0)
    model = _Module()
    for p in model.head.parameters():
        nn.init.ones_(p)
    optimizer = Optimizer(model, config, 10)
    for step in steps:
        model.pretend(step)
        optimizer.update(step)
    return model, optimizer


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit"])
def test_every_kind_of_state_survives_the_disk(optim, tmp_path):
    if optim != "adamw_torch":
        pytest.importorskip("bitsandbytes")
    model, optimizer = _updated(optim, range(3))
    optimizer.save(tmp_path / "optimizer.safetensors")
    other, again = _updated(optim, [])
    other.load_state_dict(model.state_dict())
    again.load(tmp_path / "optimizer.safetensors")
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        state, restored = optimizer.adamw.state[p], again.adamw.state[q]
        assert state.keys() == restored.keys()
        for key, value in state.items():
            assert type(value) is type(restored[key])
            same = torch.equal(value, restored[key]) if isinstance(value, torch.Tensor) else value == restored[key]
            assert same, key
            assert not isinstance(value, torch.Tensor) or value.dtype == restored[key].dtype
    for step in range(3, 5):
        for module, adamw in ((model, optimizer), (other, again)):
            module.pretend(step)
            adamw.update(step)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("optim", ["adamw_bnb_8bit", "paged_adamw_8bit"])
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_8_bit_moments_update_nearly_as_torch_does(optim):
    pytest.importorskip("bitsandbytes")
    model, optimizer = _updated(optim, range(4))
    exact, _ = _updated("adamw_torch", range(4))
    assert optimizer.adamw.state[model.shared]["state1"].dtype == torch.uint8
    assert optimizer.adamw.state[model.head.weight]["state1"].dtype == torch.float32
    torch.testing.assert_close(model.head.weight, exact.head.weight)
    start, _ = _updated("adamw_torch", [])
    moved = (exact.shared - start.shared).norm()
    assert 0 < (model.shared - exact.shared).norm() < 0.1 * moved


def test_the_state_of_another_optimizer_is_refused(tmp_path):
    pytest.importorskip("bitsandbytes")
    _, optimizer = _updated("adamw_torch", range(1))
    optimizer.save(tmp_path / "optimizer.safetensors")
    with pytest.raises(UserError, match="was not written with optim=adamw_bnb_8bit"):
        _updated("adamw_bnb_8bit", [])[1].load(tmp_path / "optimizer.safetensors")


def test_a_broken_state_is_refused(tmp_path):
    (tmp_path / "optimizer.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be read"):
        _updated("adamw_torch", [])[1].load(tmp_path / "optimizer.safetensors")


@pytest.mark.parametrize("optim", ["adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit"])
def test_without_a_gpu_a_run_is_refused_before_anything_is_read(optim, tmp_path):
    config = small_config("no/such-backbone", tmp_path / "no-data", tmp_path / "run", optim=optim)
    with pytest.raises(UserError, match=rf"optim: {optim} needs a GPU(.|\n)*optim=adamw_torch"):
        require_optimizer(config, CPU)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=f"optim: {optim} needs a GPU"):
            train(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_bnb_8bit", "paged_adamw_32bit"])
def test_planned_bytes_are_those_of_the_state(optim):
    if optim != "adamw_torch":
        pytest.importorskip("bitsandbytes")
    model, optimizer = _updated(optim, range(1))
    keys = {"exp_avg", "exp_avg_sq", "state1", "state2", "absmax1", "absmax2"}
    states = [optimizer.adamw.state[p] for p in model.parameters()]
    held = sum(value.nbytes for state in states for key, value in state.items() if key in keys)
    assert training_bytes(model.parameters(), optim) == held + sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize(
    ("method", "spared"),
    [
        ("lora", ()),
        ("ia3", ("ia3_l",)),
        ("mtl_lora", ("mtllora_diagonal", "mtllora_logits")),
        ("full", ("bias", "LayerNorm")),
        ("serial_adapter", ("bias",)),
    ],
)
def test_decay_spares_what_is_not_meant_to_be_near_zero(method, spared, backbone_folder, data_dir):
    config = small_config(backbone_folder("bert"), data_dir, method=method, weight_decay=0.5)
    model = build_model(config, CPU)
    groups = Optimizer(model, config, 10).adamw.param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    found = {name for name, p in model.shared_parameters() if id(p) not in decayed}
    assert found == {name for name, _ in model.shared_parameters() if any(part in name for part in spared)}
