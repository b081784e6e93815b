"""The output layer of every family that writes, however its network is adapted, moved, quantised and saved."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file

from manyskills.config import BackboneConfig, LoraConfig, TaskConfig
from manyskills.errors import UserError
from manyskills.model import language_head
from manyskills.model.answers import AnswerStates
from manyskills.model.backbones import load_backbone
from manyskills.model.checkpoint import load_model, save_model
from manyskills.model.language_head import OutputLayer, untied_head
from manyskills.model.multitask import MultiTaskModel, build_model
from manyskills.model.token_loss import token_loss
from manyskills.model.trunk import Trunk
from tests.model.answer_helpers import prompt_store, writing_model
from tests.training.helpers import CPU, small_config

# Shape legend: B sequences, T tokens, V vocabulary
WRITE = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "starcoder2", "t5", "codet5")
IDS_BT = torch.randint(3, 300, (2, 7), generator=torch.Generator().manual_seed(0))
WRITTEN = ["code_translation", "code_summarization"]


@pytest.fixture(scope="session")
def retied(backbone_folder, tmp_path_factory):
    """The folder of a family with its output layer tied to the input embeddings, or not."""

    def make(family: str, *, tied: bool) -> str:
        config = transformers.AutoConfig.from_pretrained(backbone_folder(family))
        config.tie_word_embeddings = tied
        if family == "t5":
            config.scale_decoder_outputs = tied
        folder = Path(shutil.copytree(backbone_folder(family), tmp_path_factory.mktemp(family) / f"{family}-{tied}"))
        auto = transformers.AutoModelForSeq2SeqLM if family == "t5" else transformers.AutoModelForCausalLM
        auto.from_config(config).save_pretrained(folder)
        return str(folder)

    return make


def _logits(model: MultiTaskModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the language model, and of the output layer on the network's states."""
    assert model.language_model is not None and model.output is not None
    inputs = {"input_ids": IDS_BT}
    if model.architecture.family == "encoder_decoder":
        inputs["decoder_input_ids"] = IDS_BT.flip(1)
    return model.language_model(**inputs).logits, model.output.logits(model.backbone(**inputs).last_hidden_state)


@pytest.mark.parametrize("family", WRITE)
def test_the_output_layer_makes_the_language_models_logits(family, backbone_folder):
    own, mine = _logits(writing_model(backbone_folder(family)).eval())
    torch.testing.assert_close(mine, own, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["qwen2", "t5"])
def test_tied_and_untied(family, tied, retied):
    model = writing_model(retied(family, tied=tied)).eval()
    own, mine = _logits(model)
    torch.testing.assert_close(mine, own, rtol=1e-5, atol=1e-6)
    assert (model.output_head is None) == tied
    if family == "t5":
        assert model.output is not None
        assert model.output.scale == pytest.approx(32**-0.5 if tied else 1.0)


def test_the_last_logits_of_gemma2_are_bounded(backbone_folder):
    output = writing_model(backbone_folder("gemma2")).output
    assert output is not None and output.softcap == 30.0
    assert float(output.logits(torch.randn(4, 32) * 1e4).abs().max()) <= 30.0


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "serial_adapter", "parallel_adapter", "prefix_tuning"])
@pytest.mark.parametrize("family", ["qwen2", "t5"])
def test_adapters_are_in_the_language_model(family, method, backbone_folder):
    bare = load_backbone(BackboneConfig(name=backbone_folder(family)), language_head=True)
    model = writing_model(backbone_folder(family), method).eval()
    own, mine = _logits(model)
    torch.testing.assert_close(mine, own, rtol=1e-5, atol=1e-6)
    inputs = {"input_ids": IDS_BT} | ({"decoder_input_ids": IDS_BT.flip(1)} if family == "t5" else {})
    assert bare.language_model is not None
    assert not torch.allclose(bare.language_model.eval()(**inputs).logits, own, atol=1e-3)


@pytest.mark.parametrize("family", WRITE)
def test_vectors_and_names_of_weights_are_those_without_an_output_layer(family, backbone_folder):
    part = "whole" if family in ("t5", "codet5") else "auto"
    plain = load_backbone(BackboneConfig(name=backbone_folder(family), part=part))
    writing = load_backbone(BackboneConfig(name=backbone_folder(family)), language_head=True)
    assert writing.architecture == plain.architecture and writing.template == plain.template
    assert [name for name, _ in writing.model.named_parameters()] == [n for n, _ in plain.model.named_parameters()]
    tasks = {"defect_detection": TaskConfig()}
    method = LoraConfig(name="lora")
    plain, writing = (MultiTaskModel(one, method, tasks).eval() for one in (plain, writing))
    mask_BT = torch.ones_like(IDS_BT)
    torch.testing.assert_close(writing.encode(IDS_BT, mask_BT), plain.encode(IDS_BT, mask_BT), rtol=0, atol=0)
    assert writing.language_model is None, "no task of these writes"


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "t5"])
def test_without_weights_there_is_the_same_on_no_device(family, backbone_folder):
    folder = backbone_folder(family)
    real = load_backbone(BackboneConfig(name=folder), language_head=True)
    planned = load_backbone(BackboneConfig(name=folder), weights=False, language_head=True)
    assert planned.language_model is not None and real.language_model is not None
    assert all(p.device.type == "meta" for p in planned.language_model.parameters())
    sizes = [{name: p.shape for name, p in one.language_model.named_parameters()} for one in (real, planned)]  # pyright: ignore[reportOptionalMemberAccess]
    assert sizes[0] == sizes[1]
    assert (untied_head(real.language_model) is None) == (untied_head(planned.language_model) is None)


@pytest.mark.parametrize(
    ("family", "part", "message"),
    [("bert", "auto", "is an encoder and cannot write"), ("t5", "encoder", "backbone.part: encoder cannot write")],
)
def test_encoders_cannot_write(family, part, message, backbone_folder):
    with pytest.raises(UserError, match=message):
        load_backbone(BackboneConfig(name=backbone_folder(family), part=part), language_head=True)


def test_tasks_that_write_need_a_language_model(backbone_folder):
    with pytest.raises(ValueError, match="language_head=True"):
        backbone = load_backbone(BackboneConfig(name=backbone_folder("qwen2")))
        MultiTaskModel(backbone, LoraConfig(name="lora"), {"code_translation": TaskConfig()})


def test_another_type_is_tried_out(backbone_folder, monkeypatch):
    monkeypatch.setattr(language_head, "TESTED", {"llama"})
    config = BackboneConfig(name=backbone_folder("qwen2"))
    assert load_backbone(config, language_head=True).language_model is not None
    wrong = OutputLayer(torch.randn(300, 32), None)
    monkeypatch.setattr(language_head, "output_layer", lambda _: wrong)
    with pytest.raises(UserError, match="it is not known how a network of type 'qwen2' makes words"):
        load_backbone(config, language_head=True)


def test_what_cannot_be_tried_out_is_said(backbone_folder, monkeypatch):
    """Nothing is missing in its folder."""

    def forward(*_, **__):
        raise RuntimeError("sizes of tensors must match\nat a place")

    monkeypatch.setattr(language_head, "TESTED", {"llama"})
    monkeypatch.setattr(transformers.Qwen2Model, "forward", forward)
    config = BackboneConfig(name=backbone_folder("qwen2"))
    with pytest.raises(
        UserError, match=r"'qwen2' cannot be tried out as one that writes: sizes .* match\n  hint: known"
    ):
        load_backbone(config, language_head=True)


@pytest.mark.parametrize(
    ("config", "writes"),
    [
        (transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2, n_positions=80), True),
        (transformers.MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=4), False),
    ],
    ids=["gpt2", "mamba"],
)
def test_another_type_must_go_on_behind_padded_prompts(config, writes, backbone_folder, tmp_path):
    """Mamba keeps its state elsewhere: token by token it would write as if nothing had been read."""
    load_backbone(BackboneConfig(name=backbone_folder("llama"))).tokenizer.save_pretrained(tmp_path)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    if writes:
        assert load_backbone(BackboneConfig(name=str(tmp_path)), language_head=True).language_model is not None
    else:
        with pytest.raises(UserError, match="a network of type 'mamba' writes other tokens one by one"):
            load_backbone(BackboneConfig(name=str(tmp_path)), language_head=True)


def test_heads_are_for_tasks_with_heads_and_routes_for_all(backbone_folder):
    model = writing_model(backbone_folder("llama"), "mtl_lora")
    assert list(model.heads) == ["defect_detection"]
    assert model.routes == {"code_translation": 0, "defect_detection": 1, "code_summarization": 2}
    assert model.frames == {}


def test_a_yes_no_task_may_be_answered_by_a_word(backbone_folder):
    backbone = load_backbone(BackboneConfig(name=backbone_folder("llama")), language_head=True)
    model = MultiTaskModel(backbone, LoraConfig(name="lora"), {"defect_detection": TaskConfig(answer="text")})
    assert not model.heads and model.output is not None


@pytest.mark.parametrize(("tied", "family"), [(True, "qwen2"), (False, "qwen2"), (False, "t5")])
def test_the_output_layer_moves_with_the_model(tied, family, retied):
    model = writing_model(retied(family, tied=tied)).double()
    assert model.output is not None and model.language_model is not None
    assert model.output.weight_VH.dtype == torch.float64
    shared = model.output.weight_VH is model.language_model.get_input_embeddings().weight
    assert shared == tied
    assert model.output.weight_VH.dtype == next(model.parameters()).dtype


@pytest.mark.parametrize(("method", "trains"), [("full", True), ("lora", False), ("frozen", False)])
def test_an_untied_output_layer_trains_where_everything_does(method, trains, retied):
    model = writing_model(retied("qwen2", tied=False), method)
    names = [name for name, _ in model.shared_parameters()]
    assert ("lm_head.weight" in names) == trains
    assert model.output is not None and model.output.weight_VH.requires_grad == trains
    assert len(names) == len(set(names))
    plain = load_backbone(BackboneConfig(name=retied("qwen2", tied=False)), language_head=True).language_model
    assert plain is not None and model.backbone_parameters == plain.num_parameters()


def _config(folder: str, data_dir: Path, method: str, **changes):
    tasks = {name: {} for name in (*WRITTEN, "defect_detection")}
    return small_config(folder, data_dir, method=method, tasks=tasks, **changes)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(("family", "tied"), [("qwen2", False), ("qwen2", True), ("t5", False)])
def test_what_is_saved_comes_back(family, tied, method, retied, data_dir, tmp_path):
    config = _config(retied(family, tied=tied), data_dir, method)
    model = build_model(config, CPU)
    torch.manual_seed(1)
    with torch.no_grad():
        for _, p in model.shared_parameters():
            p.add_(torch.randn_like(p) * 0.1)
    save_model(model, tmp_path, config)
    expected, found = _logits(model.eval()), _logits(load_model(tmp_path, CPU))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-6)
    file = tmp_path / ("model.safetensors" if method == "full" else "adapter_model.safetensors")
    assert ("lm_head.weight" in load_file(file)) == (method == "full" and not tied)


def test_the_peft_library_loads_what_was_trained_to_write(retied, data_dir, tmp_path):
    folder = retied("qwen2", tied=False)
    config = _config(folder, data_dir, "lora")
    model = build_model(config, CPU)
    torch.manual_seed(1)
    with torch.no_grad():
        for _, p in model.shared_parameters():
            p.add_(torch.randn_like(p) * 0.1)
    save_model(model, tmp_path, config)
    language_model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    language_model.model = peft.PeftModel.from_pretrained(language_model.model, str(tmp_path)).get_base_model()
    torch.testing.assert_close(language_model.eval()(IDS_BT).logits, _logits(model.eval())[0], rtol=1e-5, atol=1e-6)


def test_only_tasks_that_write(retied, data_dir, tmp_path):
    config = small_config(retied("qwen2", tied=True), data_dir, tasks={name: {} for name in WRITTEN})
    model = build_model(config, CPU)
    save_model(model, tmp_path, config)
    assert not load_model(tmp_path, CPU).heads


@pytest.mark.parametrize(("family", "tied"), [("qwen2", True), ("qwen2", False), ("t5", True)])
def test_4_bit_backbones_write_through_an_output_layer_in_full(family, tied, retied, data_dir):
    bnb = pytest.importorskip("bitsandbytes")
    config = _config(retied(family, tied=tied), data_dir, "qlora")
    model = build_model(config, CPU)
    assert model.output is not None and model.language_model is not None
    assert type(model.output.weight_VH) is torch.nn.Parameter and model.output.weight_VH.is_floating_point()
    assert type(model.language_model.get_output_embeddings()) is torch.nn.Linear
    layers = [module for module in model.network.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert len(layers) == 2 * (7 if family == "qwen2" else 6 + 10)
    store = prompt_store([(5, 3), (9, 4)])
    states = AnswerStates(model.train(), store)
    loss = token_loss(model, states(np.arange(2)), torch.from_numpy(states.targets(np.arange(2))))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for _, p in model.shared_parameters())


def test_the_last_layers_alone(backbone_folder):
    model = writing_model(backbone_folder("qwen2"), "lora", layers="last 1").eval()
    states = AnswerStates(model, prompt_store([(5, 3), (9, 4)]))
    before_RH = states(np.arange(2))
    trunk = Trunk(model, 1)
    assert trunk.problem() is None
    torch.testing.assert_close(states(np.arange(2)), before_RH)
    torch.testing.assert_close(*_logits(model), rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("family", ["qwen2", "t5"])
def test_a_4_bit_backbone_learns_to_write_on_a_gpu(family, retied, data_dir):
    pytest.importorskip("bitsandbytes")
    config = _config(retied(family, tied=True), data_dir, "qlora")
    chosen, losses = np.arange(2), {}
    for place in ("cpu", "cuda"):
        model = build_model(config, torch.device(place)).train()
        states = AnswerStates(model, prompt_store([(5, 3), (9, 4)]))
        targets_R = torch.from_numpy(states.targets(chosen)).to(model.device)
        trained = [p for _, p in model.shared_parameters()]
        optimizer = torch.optim.AdamW(trained, lr=0.02)
        losses[place] = []
        for _ in range(5):
            optimizer.zero_grad()
            loss = token_loss(model, states(chosen), targets_R)
            loss.backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
            optimizer.step()
            losses[place].append(float(loss.detach()))
        assert losses[place][-1] < losses[place][0]
    assert losses["cuda"][0] == pytest.approx(losses["cpu"][0], rel=0.02)
