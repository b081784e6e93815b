"""A text is read for a task: routes through steps, checkpointed layers, a whole run, and the interface."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

import manyskills
from manyskills.data.text_set import gather
from manyskills.errors import UserError
from manyskills.model.encoding import WholeBackbone, encode_texts
from manyskills.model.methods.mtl_lora_tuner import MtlLoraLinear
from manyskills.training import loop
from manyskills.training import run as run_module
from manyskills.training.run import load_inputs
from tests.training.helpers import CPU, TASKS, gradients, small_config, warmed_up

MTL_LORA = {"name": "mtl_lora", "r": 2, "experts": 2, "lora_dropout": 0.1}


@pytest.fixture
def shared_texts(data_dir, tmp_path):
    """Two tasks with the same texts."""
    for task in ("defect_detection", "flaky_tests"):
        folder = tmp_path / "data" / task
        folder.mkdir(parents=True)
        for split in ("train", "valid", "test"):
            (folder / f"{split}.jsonl").write_text((data_dir / "flaky_tests" / f"{split}.jsonl").read_text())
    return tmp_path / "data"


@pytest.mark.parametrize(("method", "times"), [({"name": "lora", "r": 2}, 1), (MTL_LORA, 2)])
def test_a_text_of_two_tasks_is_read_once_or_once_for_each(method, times, backbone_folder, shared_texts):
    tasks = {"defect_detection": {}, "flaky_tests": {}}
    model, prepared = load_inputs(small_config(backbone_folder("bert"), shared_texts, tasks=tasks, method=method), CPU)
    assert len(gather(prepared.examples["train"]).unique_N) == 24 * times
    routes = [set(prepared.store.routes_S[part.texts_EK.ravel()]) for part in prepared.examples["train"].values()]
    assert routes == ([{0}, {1}] if times == 2 else [{0}, {0}])
    assert list(model.routes.values()) == ([0, 1] if times == 2 else [0, 0])


def test_a_task_reads_its_texts_in_its_own_way(backbone_folder, shared_texts):
    tasks = {"defect_detection": {}, "flaky_tests": {}}
    model, prepared = warmed_up(
        small_config(backbone_folder("bert"), shared_texts, tasks=tasks, method=MTL_LORA | {"lora_dropout": 0})
    )
    first_N, second_N = (part.texts_EK.ravel() for part in prepared.examples["valid"].values())
    mixed_ND = encode_texts(model, prepared.store, np.concatenate([first_N, second_N]), 100)
    apart = [encode_texts(model, prepared.store, texts_N, 10_000) for texts_N in (first_N, second_N)]
    torch.testing.assert_close(mixed_ND, torch.cat(apart), rtol=1e-5, atol=1e-5)
    assert (apart[0] - apart[1]).abs().max(1).values.min() > 1e-3, "every text has two vectors"


def _checkpointed(model, *, reentrant):
    """Transformer layers keep nothing but their input; counts how often the adapted linear layers run."""
    runs = []
    model.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        model.backbone.enable_input_require_grads()
    for layer in model.backbone.modules():
        if isinstance(layer, MtlLoraLinear):
            layer.register_forward_pre_hook(lambda *_: runs.append(1))
    return runs


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # reentrant, in the pass without a graph
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(("family", "reentrant"), [("bert", False), ("bert", True), ("t5", False), ("llama", False)])
def test_checkpointed_layers_are_computed_again_for_the_tasks_of_their_chunk(
    family, reentrant, cached, backbone_folder, data_dir
):
    config = small_config(backbone_folder(family), data_dir, method=MTL_LORA)
    model, prepared = warmed_up(config)
    one, expected = gradients(model, prepared, config, cached=cached, budget=160)
    runs = _checkpointed(model, reentrant=reentrant)
    encode_texts(model, prepared.store, prepared.used_texts("train"), 160)
    forward = len(runs)
    assert forward > 10, "one chunk would prove nothing"
    two, found = gradients(model, prepared, config, cached=cached, budget=160)
    assert len(runs) - forward == (3 if cached else 2) * forward, "nothing was computed again"
    assert one.losses == pytest.approx(two.losses, rel=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
        assert gradient.abs().sum() > 0, name


def test_cached_and_single_pass_and_any_chunks_give_the_same_gradients(backbone_folder, data_dir):
    tasks = {name: {"head_dropout": 0.0} for name in TASKS}
    config = small_config(backbone_folder("bert"), data_dir, method=MTL_LORA | {"lora_dropout": 0}, tasks=tasks)
    model, prepared = warmed_up(config)
    _, expected = gradients(model, prepared, config, cached=False, budget=10**9)
    _, found = gradients(model, prepared, config, cached=True, budget=64)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_going_back_without_the_routes_is_an_error_not_a_wrong_gradient(backbone_folder, data_dir):
    model, prepared = warmed_up(small_config(backbone_folder("bert"), data_dir, method=MTL_LORA))
    _checkpointed(model, reentrant=False)
    model.train()
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.training = True
    encoder, chunk_B = WholeBackbone(model, prepared.store), prepared.used_texts("valid")[:6]
    with pytest.raises(RuntimeError, match="set the route of each sequence first"):
        encoder(chunk_B).sum().backward()
    vectors_BD = encoder(chunk_B)
    with encoder.routed(chunk_B):
        vectors_BD.sum().backward()
    with pytest.raises(RuntimeError, match="set the route"):
        model.encode(torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.long))


def _config(backbone_folder, data_dir, folder):
    return small_config(
        backbone_folder("bert"), data_dir, folder, method=MTL_LORA, max_steps=8, eval_steps=2, save_steps=3,
        gradient_checkpointing=True, heads_first=True, baselines=["floor", "untrained", "frozen"],
        early_stopping={"patience": 2, "keep_task_best": True},
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(backbone_folder, data_dir, tmp_path_factory):
    """Four tasks, everything that a run is compared with."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run_module, "write_plots", lambda *_: None)
        return run_module.train(_config(backbone_folder, data_dir, tmp_path_factory.mktemp("runs") / "run"))


@pytest.fixture(scope="module")
def model(run):
    return manyskills.load(run.path)


def test_a_run_is_measured_beside_its_baselines(run, model, data_dir):
    systems = run.results["tasks"]["flaky_tests"]["systems"]
    assert set(systems) == {"module", "task_best", "untrained", "frozen", "floor"}
    saved = json.loads((run.path / "best" / "adapter_config.json").read_text())
    assert saved["peft_type"] == "MTL_LORA"
    assert saved["tasks"] == TASKS


def test_a_loaded_module_answers_as_the_run_did(run, model, data_dir):
    for task in ("defect_detection", "flaky_tests"):
        rows = [json.loads(line) for line in (data_dir / task / "test.jsonl").read_text().splitlines()]
        lines = (run.path / "predictions" / f"{task}.jsonl").read_text().splitlines()
        written = [json.loads(line)["probability"] for line in lines]
        np.testing.assert_allclose(model.predict_proba(task, rows), written, atol=2e-6)


@pytest.mark.parametrize("tasks", [None, ["code_search", "clone_detection"], ["flaky_tests"]])
def test_evaluating_some_tasks_uses_their_own_parts(tasks, run, model):
    for task, scores in model.evaluate(tasks=tasks, samples=0).items():
        expected = run.results["tasks"][task]["systems"]["module"]["test"]["metrics"]
        for metric, estimate in scores.metrics.items():
            assert estimate.value == pytest.approx(expected[metric]["value"], abs=1e-5), (task, metric)


def test_vectors_are_those_of_a_task(model):
    texts = ["def a(): pass", "x = 1"]
    with pytest.raises(UserError, match="mtl_lora the vector of a text depends on the task") as error:
        model.encode(texts)
    assert all(task in str(error.value.hint) for task in TASKS)
    with pytest.raises(UserError, match="depends on the task"):
        model.encode([])
    clones, defects = (model.encode(texts, task=task) for task in ("clone_detection", "defect_detection"))
    assert clones.shape == defects.shape == (2, 32)
    assert np.abs(clones - defects).max() > 1e-4
    assert model.encode([], task="flaky_tests").shape == (0, 32)
    np.testing.assert_allclose(np.linalg.norm(model.encode(texts, task="code_search"), axis=1), 1, rtol=1e-5)
    found = model.search("a", texts)
    assert sorted(index for index, _ in found) == [0, 1]


class _Killed(BaseException):
    """Stands for SIGKILL."""


def _dies_at(monkeypatch, owner, name, call):
    real, count = getattr(owner, name), iter(range(1, 1000))

    def dying(*arguments, **options):
        if next(count) == call:
            raise _Killed
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, dying)


def test_killed_and_resumed_it_has_the_same_weights(run, backbone_folder, data_dir, tmp_path, monkeypatch):
    config = _config(backbone_folder, data_dir, tmp_path / "run")
    monkeypatch.setattr(run_module, "write_plots", lambda *_: None)
    for owner, name, call in ((loop, "accumulate_gradients", 25), (loop, "accumulate_gradients", 5)):
        with monkeypatch.context() as patched:
            _dies_at(patched, owner, name, call)
            with pytest.raises(_Killed):
                run_module.train(config, resume=(tmp_path / "run").exists())
    resumed = run_module.train(config, resume=True)
    files = [path for part in ("best", "last") for path in (run.path / part).rglob("*.safetensors")]
    names = [path.relative_to(run.path) for path in files]
    assert len(names) >= 4
    for name in names:
        assert (resumed.path / name).read_bytes() == (run.path / name).read_bytes(), name
    assert resumed.results["tasks"] == run.results["tasks"]
