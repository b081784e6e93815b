"""MTL-LoRA as a tuner of peft: its formula in a mixed batch, its routes, and each task's part as ordinary LoRA."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from manyskills.config import BackboneConfig, LoraConfig, MtlLoraConfig
from manyskills.errors import UserError
from manyskills.model.backbones import load_backbone
from manyskills.model.methods import METHODS, adapt
from manyskills.model.methods.mtl_lora import as_lora
from manyskills.model.methods.mtl_lora_tuner import MtlLoraLinear, MtlLoraTunerConfig, Routes
from tests.conftest import FAMILIES

TASKS = ["clones", "defects", "search"]
ROUTES_B = torch.tensor([2, 0, 1, 1, 2])
INPUT, OUTPUT = 6, 5

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


class _Network(nn.Module):
    """One linear layer."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(INPUT, OUTPUT)

    def forward(self, x):
        return self.linear(x)


def _network(seed=0):
    torch.manual_seed(seed)
    return _Network()


def _config(**changes):
    values = {"r": 3, "lora_alpha": 12, "experts": 4, "temperature": 0.7, "tasks": TASKS, "target_modules": ["linear"]}
    return MtlLoraTunerConfig(**(values | changes))


def _adapted(network, **changes):
    """With an adapter that does something."""
    return _warmed_up(peft.PeftModel(network, _config(**changes)).eval())


def _warmed_up(model, scale=0.3):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_((torch.randn(p.shape, generator=generator) * scale).to(p.device, p.dtype))
    return model


def _by_hand(layer, x_BTI, routes, alpha=12, name="default"):
    """The paper's formula, row by row."""
    A, B, diagonal, logits = (
        getattr(layer, f"mtllora_{part}")[name].detach().double().numpy() for part in ("A", "B", "diagonal", "logits")
    )
    W, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
    rows = []
    for row, task in zip(x_BTI.double().numpy(), routes, strict=True):
        weights = np.exp(logits[task] / 0.7) / np.exp(logits[task] / 0.7).sum()
        update = sum(w * b @ np.diag(diagonal[task]) @ A for w, b in zip(weights, B, strict=True))
        rows.append(row @ (W + alpha / len(A) * update).T + bias)
    return np.stack(rows)


def _close(found, expected, atol=1e-6):
    np.testing.assert_allclose(found.detach().float().numpy(), expected, atol=atol, rtol=atol)


def test_each_row_of_a_mixed_batch_follows_its_tasks_formula():
    model = _adapted(_network())
    x_BTI = torch.randn(5, 7, INPUT)
    expected = _by_hand(model.base_model.model.linear, x_BTI, ROUTES_B.tolist())
    with model.base_model.routed(ROUTES_B):
        _close(model(x_BTI), expected)
        _close(model(x_BTI[:, 0]), expected[:, 0])
        _close(model(x_BTI[:, None]), expected[:, None])
    assert np.abs(expected[2] - _by_hand(model.base_model.model.linear, x_BTI[2:3], [0])[0]).max() > 0.1


def test_gradients_of_a_mixed_batch_are_the_sum_of_those_of_its_rows():
    model = _adapted(_network())
    x_BTI, weight_BTO = torch.randn(5, 7, INPUT), torch.randn(5, 7, OUTPUT)

    def gradients(rows):
        model.zero_grad()
        for row in rows:
            with model.base_model.routed(ROUTES_B[row]):
                (model(x_BTI[row]) * weight_BTO[row]).sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    together, alone = gradients([slice(0, 5)]), gradients([slice(i, i + 1) for i in range(5)])
    assert len(together) == 4
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, alone[name], rtol=1e-5, atol=1e-5)
        assert (gradient.flatten(1).abs().sum(1) > 0).all(), name
    first = gradients([slice(1, 2)])["base_model.model.linear.mtllora_diagonal.default"]
    assert first[0].abs().sum() > 0
    assert not first[1:].any(), "a row teaches its own task's diagonal"


def test_it_starts_as_the_network_was_and_its_pool_does_not_stay_equal():
    network = _network()
    x_BTI = torch.randn(5, 7, INPUT)
    expected = network(x_BTI).detach()
    model = peft.PeftModel(network, _config())
    adamw = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    with model.base_model.routed(ROUTES_B):
        assert torch.equal(model(x_BTI), expected)
        for _ in range(3):
            (model(x_BTI) - torch.arange(5.0)[:, None, None]).square().mean().backward()
            adamw.step()
            adamw.zero_grad()
    layer = model.base_model.model.linear
    B_EOR, mixed_SOR = layer.mtllora_B["default"], layer.mixed("default")
    for parts in (B_EOR, mixed_SOR):
        assert all((parts[i] - parts[j]).abs().max() > 1e-4 for i in range(3) for j in range(i))


def test_a_batch_needs_routes_of_its_own_size():
    model = _adapted(_network())
    x_BTI = torch.randn(5, 7, INPUT)
    with pytest.raises(RuntimeError, match=r"set the route of each sequence first.*clones, defects, search"):
        model(x_BTI)
    with model.base_model.routed(ROUTES_B):
        for wrong in (x_BTI[:4], x_BTI[:1], x_BTI.transpose(0, 1)):
            with pytest.raises(
                RuntimeError, match=rf"input is of shape \({len(wrong)}, .*, the routes are of shape \(5,\)"
            ):
                model(wrong)
        with model.base_model.routed(ROUTES_B[:1]):
            model(x_BTI[:1])
        model(x_BTI)
    with pytest.raises(ZeroDivisionError), model.base_model.routed(ROUTES_B):
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="set the route"):
        model(x_BTI)


def test_one_task_needs_no_routes():
    model = _adapted(_network(), tasks=["clones"])
    x_BTI = torch.randn(4, 7, INPUT)
    expected = _by_hand(model.base_model.model.linear, x_BTI, [0] * 4)
    _close(model(x_BTI), expected)
    with model.base_model.routed(torch.zeros(4, dtype=torch.long)):
        _close(model(x_BTI), expected)


@pytest.mark.parametrize("tasks", [[], ["clones", "clones"]])
def test_tasks_are_named_once(tasks):
    with pytest.raises(ValueError, match="each once"):
        _config(tasks=tasks)


def test_only_linear_layers():
    network = nn.Sequential(nn.Embedding(5, 4))
    with pytest.raises(TypeError, match="Embedding is none"):
        peft.PeftModel(network, _config(target_modules=["0"]))


def test_several_adapters_disabling_deleting_unloading():
    network = _network()
    x_BTI = torch.randn(2, 7, INPUT)
    bare = network(x_BTI).detach()
    model = _adapted(network, lora_dropout=0.3)
    model.add_adapter("other", _config(tasks=["flaky", "clones"], r=2, lora_alpha=4))
    layer, tuner = model.base_model.model.linear, model.base_model
    model.set_adapter("other")
    _warmed_up(model)
    routes_B = torch.tensor([1, 0])
    with tuner.routed(routes_B):
        model.set_adapter("default")
        _close(model(x_BTI), _by_hand(layer, x_BTI, [1, 0]))
        model.set_adapter("other")
        second = _by_hand(layer, x_BTI, [1, 0], alpha=4, name="other")
        _close(model(x_BTI), second)
        assert np.abs(second - bare.numpy()).max() > 0.1
        with pytest.raises(UserError, match="export one task"):
            model.merge_adapter()
        model.delete_adapter("default")
        _close(model(x_BTI), second)
    assert not [name for name, _ in layer.named_modules() if "default" in name]
    assert list(layer.mtllora_config) == ["other"]
    with model.disable_adapter():
        assert torch.equal(model(x_BTI), bare), "the bare network asks for no routes"
    assert torch.equal(model.unload()(x_BTI), bare)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_saved_and_loaded_by_peft(low_cpu_mem_usage, tmp_path):
    model = _adapted(_network())
    x_BTI = torch.randn(5, 7, INPUT)
    with model.base_model.routed(ROUTES_B):
        expected = model(x_BTI)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(_network(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert loaded.peft_config["default"].tasks == TASKS
    assert not [name for name, p in loaded.named_parameters() if p.requires_grad]
    with loaded.base_model.routed(ROUTES_B):
        assert torch.equal(loaded(x_BTI), expected)
    loaded.load_adapter(tmp_path, "again")
    loaded.set_adapter("again")
    with loaded.base_model.routed(ROUTES_B):
        assert torch.equal(loaded(x_BTI), expected)


def test_a_copy_has_routes_of_its_own():
    model = _adapted(_network())
    copied = copy.deepcopy(model)
    x_BTI = torch.randn(5, 7, INPUT)
    with copied.base_model.routed(ROUTES_B):
        copied(x_BTI)
        with pytest.raises(RuntimeError, match="set the route"):
            model(x_BTI)


def test_a_base_in_half_precision():
    model = _adapted(_network().bfloat16())
    layer = model.base_model.model.linear
    x_BTI = torch.randn(5, 7, INPUT).bfloat16()
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    with model.base_model.routed(ROUTES_B):
        found = model(x_BTI)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            _close(model(x_BTI.float()), _by_hand(layer, x_BTI, ROUTES_B.tolist()), atol=0.05)
    assert found.dtype == torch.bfloat16
    _close(found, _by_hand(layer, x_BTI, ROUTES_B.tolist()), atol=0.05)


def test_a_base_in_four_bits():
    bnb = pytest.importorskip("bitsandbytes")
    network = nn.Module()
    network.linear = bnb.nn.Linear4bit(64, 32, quant_type="nf4", compute_dtype=torch.float32)
    network.forward = lambda x: network.linear(x)
    network.to("cpu")
    x_BTI = torch.randn(5, 7, 64)
    model = _adapted(network)
    layer = model.base_model.model.linear
    with model.disable_adapter():
        bare = layer(x_BTI).detach()
    assert isinstance(layer, MtlLoraLinear)
    update = nn.Linear(64, 32)
    with torch.no_grad():
        update.weight.zero_()
        update.bias.zero_()
    plain = MtlLoraLinear(update, layer.routes, "default", layer.mtllora_config["default"])
    plain.load_state_dict(
        {name: value for name, value in layer.state_dict().items() if "mtllora" in name}, strict=False
    )
    with model.base_model.routed(ROUTES_B):
        expected = bare + plain(x_BTI).detach()
        torch.testing.assert_close(layer(x_BTI), expected, rtol=1e-4, atol=1e-4)
        layer(x_BTI).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert network.linear is layer
    assert isinstance(model.unload().linear, bnb.nn.Linear4bit)


def test_dropout_is_its_own():
    model = _adapted(_network(), lora_dropout=0.5)
    x_BTI = torch.randn(5, 7, INPUT)
    with model.base_model.routed(ROUTES_B):
        assert torch.equal(model(x_BTI), model(x_BTI))
        model.train()
        assert not torch.equal(model(x_BTI), model(x_BTI))


def _backbone(folder):
    return load_backbone(BackboneConfig(name=folder))


def _ids(backbone):
    return torch.randint(4, 300, (5, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tasks_part_as_ordinary_lora_answers_as_the_routed_module(family, backbone_folder, tmp_path):
    backbone = _backbone(backbone_folder(family))
    ids_BT = _ids(backbone)
    config = MtlLoraConfig(r=3, lora_alpha=5, experts=2, target="all-linear", lora_dropout=0.1)
    routed = _warmed_up(adapt(backbone, config, TASKS), 0.05).eval()
    answers = []
    for number, task in enumerate(TASKS):
        lora, state = as_lora(routed, task)
        (tmp_path / task).mkdir()
        lora.save_pretrained(str(tmp_path / task))
        save_file(state, tmp_path / task / "adapter_model.safetensors")
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # peft only warns of weights that it did not find
            plain = peft.PeftModel.from_pretrained(_backbone(backbone_folder(family)).model, tmp_path / task).eval()
        assert plain.peft_config["default"].peft_type == peft.PeftType.LORA
        with torch.no_grad(), routed.base_model.routed(torch.full((5,), number)):
            expected = routed(input_ids=ids_BT).last_hidden_state
            torch.testing.assert_close(plain(input_ids=ids_BT).last_hidden_state, expected, rtol=1e-5, atol=1e-6)
        answers.append(expected)
    assert (answers[0] - answers[1]).abs().max() > 1e-2


def test_the_part_is_of_the_active_adapter():
    model = _adapted(_network())
    model.add_adapter("other", _config(tasks=["flaky"]))
    assert as_lora(model, "search")[0].r == 3
    model.set_adapter("other")
    with pytest.raises(UserError, match="was not trained on 'search'"):
        as_lora(model, "search")
    assert not as_lora(model, "flaky")[1]["base_model.model.linear.lora_B.weight"].any()


def test_only_its_own_tasks_have_a_part(backbone_folder):
    routed = adapt(_backbone(backbone_folder("bert")), MtlLoraConfig(), TASKS)
    with pytest.raises(UserError, match="was not trained on 'defect'") as error:
        as_lora(routed, "defect")
    assert "'defects'" in str(error.value.hint)
    lora = adapt(_backbone(backbone_folder("bert")), LoraConfig(), TASKS)
    for other in (lora, nn.Linear(2, 2)):
        with pytest.raises(UserError, match="is not one of mtl_lora"):
            as_lora(other, "defects")


def test_it_says_what_tasks_share():
    method = METHODS["mtl_lora"]
    assert method.routed
    assert method.shared(MtlLoraConfig(experts=5)) == (
        "A and the 5 matrices B; each task has a diagonal and a mixture of its own"
    )


@pytest.mark.parametrize(
    ("name", "sizes", "layers", "base", "published"),
    [
        ("UniXcoder", [(768, 768)] * 4, 12, 125_929_728, 4.480),
        ("ModernBERT", [(768, 2304), (768, 768), (1152, 768)], 22, 149_014_272, 7.860),
        ("DeepSeek-Coder 1.3B", [(2048, 2048)] * 4, 24, 1_280_411_648, 2.400),
        ("Qwen2.5-Coder 1.5B", [(1536, 1536), (1536, 256), (1536, 256), (1536, 1536)], 28, 1_543_714_304, 1.180),
    ],
)
def test_the_published_trainable_shares_are_those_of_a_diagonal(name, sizes, layers, base, published):
    """Rank 32, 4 matrices B, 4 tasks, on q, k, v and o (on ModernBERT also on mlp.Wo, which the name Wo matches)."""
    config = _config(r=32, experts=4, tasks=list("abcd"))
    with torch.device("meta"):
        sites = [MtlLoraLinear(nn.Linear(i, o, bias=False), Routes(), "default", config) for i, o in sizes]
    own = layers * sum(p.numel() for site in sites for n, p in site.named_parameters() if "mtllora" in n)
    assert own == layers * sum(32 * (i + 4 * o) + 4 * (32 + 4) for i, o in sizes)
    assert 100 * own / (base + own) == pytest.approx(published, abs=0.006), name
