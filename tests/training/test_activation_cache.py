"""Training on the last layers with the lower ones' states from disk, killed and not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from manyskills.config.file import dump_config
from manyskills.data.activation_store import STATE_BYTES, ActivationStore
from manyskills.errors import UserError
from manyskills.model.activations import cached_trunk
from manyskills.model.trunk import Trunk
from manyskills.training import run as run_module
from manyskills.training import systems
from manyskills.training.plan import make_plan
from manyskills.training.plan_text import plan_text
from manyskills.training.vectors import BackboneVectors
from tests.training.helpers import ALONE, small_config, warmed_up

ROOT = Path(__file__).parents[2]
METHOD = {"name": "lora", "r": 2, "lora_dropout": 0.2, "layers": "last 1"}
CHANGES = {"method": METHOD, "max_steps": 6, "eval_steps": 3, "save_steps": 2, "baselines": [], "learning_rate": 3e-2}


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.fixture(scope="module", autouse=True)
def _no_plots():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run_module, "write_plots", lambda *_: None)
        yield


@pytest.fixture
def config(backbone_folder, data_dir, tmp_path, monkeypatch):
    """Makes a run of this test; each cache is empty at first."""

    def make(name="run", cache="cache", **changes):
        monkeypatch.setenv("MANYSKILLS_CACHE", str(tmp_path / cache))
        return small_config(backbone_folder("bert"), data_dir, tmp_path / name, **(CHANGES | changes))

    return make


def _train(config, **options):
    return run_module.train(config, announce=lambda _: None, **options)


def _weights(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}
    assert found
    return found


def _records(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


@pytest.mark.parametrize("step_memory", ["single_pass", "cached"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_whole_network(step_memory, checkpointing, config):
    made = config(method=METHOD | {"lora_dropout": 0.0}, gradient_checkpointing=checkpointing)
    model, prepared = warmed_up(made)
    model.train()
    unique_N = prepared.used_texts("train")
    generator = torch.Generator().manual_seed(0)
    weights_ND = torch.randn(len(unique_N), model.architecture.hidden_size, generator=generator)

    def gradients(encoder):
        model.zero_grad()
        cached = step_memory == "cached"
        source = BackboneVectors(model, prepared.store, 160, cached=cached, processes=ALONE, encoder=encoder)
        source.forward(unique_N, 1)
        source.backward(weights_ND)
        return {name: p.grad.clone() for name, p in model.shared_parameters() if p.grad is not None}

    expected = gradients(None)
    found = gradients(cached_trunk(Trunk(model, 1), prepared.store))
    for name, gradient in expected.items():
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(found[name], gradient, rtol=2e-2, atol=2e-2 * float(gradient.abs().max()))


def test_a_run_with_the_cache_learns_what_one_without_does(config):
    with_cache = _train(config("with"))
    without = _train(config("without", activation_cache=False))
    again = _train(config("again"))
    losses = [[r["loss"] for r in _records(run.path) if r["kind"] == "train"] for run in (with_cache, without)]
    for one, other in zip(*losses, strict=True):
        assert one == pytest.approx(other, rel=2e-2)
    assert losses[0] != losses[1]
    assert _weights(again.path / "last") == _weights(with_cache.path / "last"), "what is kept serves the next run"
    names = load_file(without.path / "best" / "adapter_model.safetensors").keys()
    assert load_file(with_cache.path / "best" / "adapter_model.safetensors").keys() == names


@pytest.fixture(scope="module")
def whole(backbone_folder, data_dir, tmp_path_factory) -> Path:
    """The run that nothing interrupts, with a cache of its own."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MANYSKILLS_CACHE", str(folder / "cache"))
        return _train(small_config(backbone_folder("bert"), data_dir, folder / "run", **CHANGES)).path


def _lines(config) -> int:
    """How many lines metrics.jsonl has, which say where a run is: valid 0, train 1, 2, 3, valid 3, train 4 ..."""
    file = Path(config.output_dir) / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.mark.parametrize(
    ("line", "number", "after"),
    [(0, 1, False), (0, 4, True), (5, 2, False)],
    ids=["first-validation", "between-its-chunks", "in-step-4"],
)
def test_killed_around_a_write_it_continues_to_the_same_weights(line, number, after, whole, config, monkeypatch):
    killed = config()
    real, here = ActivationStore.add, []

    def dying(self, *arguments):
        here.append(_lines(killed) == line)
        hit = here[-1] and sum(here) == number
        if hit and not after:
            raise Killed
        real(self, *arguments)
        if hit:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(ActivationStore, "add", dying)
        with pytest.raises(Killed):
            _train(killed)
    assert _lines(killed) == line
    _assert_same(_train(killed, resume=True).path, whole)


def _assert_same(folder: Path, expected: Path) -> None:
    for part in ("best", "last"):
        assert _weights(folder / part) == _weights(expected / part)
    assert _records(folder) == _records(expected)


DRIVER = """
import os, signal, sys
from pathlib import Path
from manyskills.cli import app as cli

cache, metrics, real, here = Path(os.environ["MANYSKILLS_CACHE"]), Path(sys.argv[2]), os.pwrite, []
def dying(descriptor, content, offset):
    (index,) = cache.glob("activations/*/index.bin")
    if metrics.exists() and len(metrics.read_text().splitlines()) == 3:
        here.append(os.path.samestat(os.fstat(descriptor), index.stat()))
        if here[-1] and sum(here) == 2:
            real(descriptor, content[: len(content) // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
    return real(descriptor, content, offset)
os.pwrite = dying
sys.exit(cli.run(["train", sys.argv[1], "--resume", "--quiet"]))
"""


def test_kill_minus_nine_in_the_middle_of_a_write(whole, config, tmp_path):
    """Of the index of step 3's second chunk, when its states are there already."""
    killed = config()
    (tmp_path / "run.yaml").write_text(dump_config(killed))
    metrics = Path(killed.output_dir) / "metrics.jsonl"
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "run.yaml"), str(metrics)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert _lines(killed) == 3
    _assert_same(_train(killed, resume=True).path, whole)


def test_a_folder_that_is_removed_costs_nothing(whole, config, tmp_path, monkeypatch):
    """In the middle of the run, and so that nothing can be written there at its end."""
    made, real = config(), ActivationStore.add

    def removing(self, *arguments):
        real(self, *arguments)
        if _lines(made) == 3 and self.folder.exists():
            shutil.rmtree(tmp_path / "cache" / "activations")
            (tmp_path / "cache" / "activations").write_text("in the way")

    monkeypatch.setattr(ActivationStore, "add", removing)
    _assert_same(_train(made).path, whole)
    assert (tmp_path / "cache" / "activations").is_file()


def test_a_head_that_is_lost_on_disk_is_seen(config, monkeypatch):
    real = systems.load_model

    def losing(folder, device):
        model = real(folder, device)
        for p in model.head("flaky_tests").parameters():
            p.data.zero_().sub_(1)
        return model

    monkeypatch.setattr(systems, "load_model", losing)
    with pytest.raises(RuntimeError, match=r"does not hold what was trained: flaky_tests"):
        _train(config(max_steps=2, eval_steps=2))


def test_no_room_is_said_before_the_first_step(config, monkeypatch):
    made = config()
    monkeypatch.setattr(ActivationStore, "free_bytes", property(lambda self: 100))
    with pytest.raises(UserError, match="wanted for the states"):
        _train(made)
    assert _lines(made) == 0


COMBINED = {
    "method": {"name": "mtl_lora", "r": 2, "layers": "last 1"},
    "tasks": {"flaky_tests": {"long": "window", "max_length": 12}, "defect_detection": {}},
    "gradient_checkpointing": True,
    "step_memory": "cached",
    "heads_first": True,
    "max_steps": 2,
    "eval_steps": 1,
}


@pytest.mark.parametrize("changes", [COMBINED, {"method": METHOD | {"name": "qlora"}}], ids=["combined", "qlora"])
def test_with_other_choices(changes, config, tmp_path):
    if changes is not COMBINED:
        pytest.importorskip("bitsandbytes")
    said: list[str] = []
    runs = [
        run_module.train(config(name, **changes, activation_cache=name == "with"), announce=said.append)
        for name in ("with", "without")
    ]
    assert any("kept in" in sentence for sentence in said)
    assert any("windows" in sentence for sentence in said) == (changes is COMBINED)
    losses = [[r["loss"] for r in _records(run.path) if r["kind"] == "train"] for run in runs]
    for one, other in zip(*losses, strict=True):
        assert one == pytest.approx(other, rel=2e-2)
    assert losses[0] != losses[1]
    (states,) = (tmp_path / "cache" / "activations").glob("*/states.bin")
    assert states.stat().st_size


def test_the_plan_says_what_is_kept(config, tmp_path):
    made = config()
    plan = make_plan(made)
    assert plan.lower_layers is not None
    assert plan.lower_layers.count == 1
    assert plan.lower_layers.disk == plan.lower_layers.tokens * 32 * STATE_BYTES
    assert "once for each text" in plan_text(plan)
    _train(config("run", max_steps=40, eval_steps=40))
    (states,) = (tmp_path / "cache" / "activations").glob("*/states.bin")
    assert 0.8 * plan.lower_layers.disk < states.stat().st_size <= plan.lower_layers.disk
    assert make_plan(config(activation_cache=False)).lower_layers is None
    everything = make_plan(config(method=METHOD | {"layers": "all"}))
    assert everything.lower_layers is None
    assert everything.memory["single_pass"].activations > 1.5 * plan.memory["single_pass"].activations
