"""What is saved is what comes back, and what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from manyskills.data.text_set import gather
from manyskills.errors import UserError
from manyskills.evaluation.answers import Probabilities
from manyskills.evaluation.outputs import task_outputs
from manyskills.model.checkpoint import load_model, load_weights, save_model
from manyskills.model.encoding import encode_texts
from manyskills.saved import read_tasks_file
from tests.conftest import FAMILIES
from tests.training.helpers import CPU, small_config, warmed_up

METHODS = {"lora": {"name": "lora", "r": 2, "target": "all-linear"}, "full": "full", "frozen": "frozen"}
CHOICES = {
    "clone_detection": {"head_hidden": 5},
    "defect_detection": {"positive_share": 0.3, "head_hidden": 4},
    "flaky_tests": {"positive_weight": "balanced"},
    "code_search": {"head_hidden": 6},
}


def _answers(model, prepared):
    examples = prepared.examples["test"]
    vectors_ND = encode_texts(model, prepared.store, gather(examples).unique_N, 200)
    outputs = task_outputs(model, examples, vectors_ND)
    return {n: a.probabilities_E if isinstance(a, Probabilities) else a.ranks_Q for n, a in outputs.items()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_answers_after_loading(family, method, backbone_folder, data_dir, tmp_path):
    config = small_config(backbone_folder(family), data_dir, method=METHODS[method], tasks=CHOICES)
    model, prepared = warmed_up(config)
    save_model(model, tmp_path, config, {"flaky_tests": 0.25}, {"flaky_tests": "planted"})
    expected, loaded = _answers(model, prepared), load_model(tmp_path, CPU)
    for name, found in _answers(loaded, prepared).items():
        np.testing.assert_allclose(found, expected[name], atol=1e-6)
        assert len(set(np.round(found, 6).tolist())) > 1, "equal answers to all rows would prove nothing"
    assert not loaded.training
    saved = read_tasks_file(tmp_path)
    assert (saved.config, saved.thresholds, saved.synthetic) == (
        config,
        {"flaky_tests": 0.25},
        {"flaky_tests": "planted"},
    )
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".md"}


@pytest.fixture(scope="module")
def saved(backbone_folder, data_dir, tmp_path_factory):
    """A warmed-up model by method, saved once."""
    found = {}
    for method in METHODS:
        config = small_config(backbone_folder("bert"), data_dir, method=METHODS[method], tasks=CHOICES)
        found[method] = tmp_path_factory.mktemp(method)
        save_model(warmed_up(config)[0], found[method], config)
    return found


@pytest.fixture
def copy(saved, tmp_path):
    return lambda method="lora": shutil.copytree(saved[method], tmp_path / method)


def test_the_files_of_each_method(saved):
    always = {"heads.safetensors", "tasks.json"}
    names = {method: {path.name for path in folder.iterdir()} for method, folder in saved.items()}
    assert names["frozen"] == always
    assert names["full"] == always | {"model.safetensors"}
    assert names["lora"] >= always | {"adapter_model.safetensors", "adapter_config.json"}


def test_peft_itself_loads_the_adapter(saved, backbone_folder):
    import warnings

    import peft
    import torch
    from transformers import AutoModel

    base = AutoModel.from_pretrained(backbone_folder("bert"), add_pooling_layer=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(base, str(saved["lora"]))
    ours = load_model(saved["lora"], CPU)
    ids = torch.tensor([[0, 17, 40, 2]])
    with torch.no_grad():
        state = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    torch.testing.assert_close(state.mean(1), ours.encode(ids, torch.ones_like(ids)).detach())


FILES = [("lora", "adapter_model"), ("full", "model"), ("lora", "heads"), ("frozen", "heads")]


@pytest.mark.parametrize(("method", "name"), FILES)
@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape"])
def test_weights_that_do_not_fit_are_refused(method, name, damage, copy):
    path = copy(method) / f"{name}.safetensors"
    state = load_file(path)
    first = sorted(state)[0]
    match damage:
        case "missing":
            state.pop(first)
        case "unexpected":
            state["something.else"] = state[first].clone()
        case "shape":
            state[first] = state[first].new_zeros(*state[first].shape, 3)
    save_file(state, path)
    with pytest.raises(UserError) as error:
        load_model(path.parent, CPU)
    assert str(path) in error.value.message
    if damage != "shape":
        assert f"1 {damage}" in error.value.message
        assert (first if damage == "missing" else "something.else") in error.value.message


@pytest.mark.parametrize(("method", "name"), FILES)
@pytest.mark.parametrize("damage", ["gone", "cut", "empty", "nonsense"])
def test_a_broken_file_is_one_sentence(method, name, damage, copy):
    path = copy(method) / f"{name}.safetensors"
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "nonsense": b"x" * 99}[damage])
    with pytest.raises(UserError, match="is missing" if damage == "gone" else "is broken"):
        load_model(path.parent, CPU)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": "x"}', '{"format": 1, "config": {"tasks": 3}}'])
def test_a_broken_tasks_file_is_one_sentence(content, copy):
    folder = copy()
    (folder / "tasks.json").write_text(content)
    with pytest.raises(UserError, match=r"tasks\.json is not what manyskills writes"):
        read_tasks_file(folder)


def test_a_newer_format_and_no_file(copy, tmp_path):
    folder = copy()
    content = json.loads((folder / "tasks.json").read_text())
    (folder / "tasks.json").write_text(json.dumps(content | {"format": 2, "manyskills": "9.9"}))
    with pytest.raises(UserError, match=r"written by manyskills 9\.9(.|\n)*upgrade"):
        read_tasks_file(folder)
    with pytest.raises(UserError, match="holds no trained module"):
        read_tasks_file(tmp_path)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_another_backbone_is_refused(method, saved, backbone_folder, data_dir):
    other = small_config(backbone_folder("llama"), data_dir, method=METHODS[method], tasks=CHOICES)
    with pytest.raises(UserError, match="weights do not match the model"):
        load_weights(warmed_up(other)[0], saved[method])


def test_another_width_of_the_same_backbone_is_refused(copy, backbone_folder, data_dir, tmp_path):
    from transformers import BertConfig, BertModel

    wide = Path(shutil.copytree(backbone_folder("bert"), tmp_path / "wide"))
    config = BertConfig.from_pretrained(wide)
    config.hidden_size = 64
    BertModel(config, add_pooling_layer=False).save_pretrained(wide)
    folder = copy()
    content = json.loads((folder / "tasks.json").read_text())
    content["config"]["backbone"]["name"] = str(wide)
    (folder / "tasks.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="does not fit the backbone"):
        load_model(folder, CPU)


def test_a_task_more_or_less_is_refused(copy):
    folder = copy("frozen")
    content = json.loads((folder / "tasks.json").read_text())
    del content["config"]["tasks"]["flaky_tests"]
    (folder / "tasks.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"unexpected \(first: flaky_tests"):
        load_model(folder, CPU)


def test_a_module_of_0_1_0_is_still_read(backbone_folder, data_dir, tmp_path):
    config = small_config(backbone_folder("bert"), data_dir, method={"name": "lora", "r": 2})
    model, _ = warmed_up(config)
    save_model(model, tmp_path, config)
    content = json.loads((tmp_path / "tasks.json").read_text())
    former = content["config"]["method"]
    del former["targets"], former["layers"]
    content["config"]["method"] = former | {"target_modules": None}
    for key in ("gradient_checkpointing", "activation_cache", "optim"):
        del content["config"][key]
    (tmp_path / "tasks.json").write_text(json.dumps(content))
    assert load_model(tmp_path, CPU).method == config.method


def test_an_unknown_key_is_one_line(backbone_folder, data_dir, tmp_path):
    config = small_config(backbone_folder("bert"), data_dir)
    save_model(warmed_up(config)[0], tmp_path, config)
    content = json.loads((tmp_path / "tasks.json").read_text())
    content["config"]["method"]["ranks"] = 3
    (tmp_path / "tasks.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"method\.lora\.ranks: Extra inputs are not permitted\n"):
        read_tasks_file(tmp_path)


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [
        ("mtl_lora", "tasks", ["flaky_tests", "code_search"]),
        ("parallel_adapter", "scale", 3.0),
        ("lora", "lora_alpha", 5),
    ],
)
def test_an_adapter_of_the_same_shapes_and_other_numbers_is_refused(
    method, key, value, backbone_folder, data_dir, tmp_path
):
    config = small_config(backbone_folder("bert"), data_dir, method=method, tasks=["code_search", "flaky_tests"])
    save_model(warmed_up(config)[0], tmp_path, config)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError, match=f"adapter_config.json: {key} is"):
        load_model(tmp_path, CPU)
