"""Two processes take the single process's steps; only the first writes and speaks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from manyskills.config.file import dump_config
from manyskills.training.processes import Processes
from manyskills.training.run import train
from tests.training.helpers import ALONE, CPU, small_config

ROOT = Path(__file__).parents[2]

RANK = """
import os, sys, torch
from pathlib import Path
from manyskills import files
from manyskills.cli import app as cli
from manyskills.training.run_folder import RunFolder

torch.set_num_threads(1)
if os.environ["RANK"] != "0":
    def refuse(*_, **__):
        raise AssertionError("only the main process writes")
    files.write_atomically = files.replace_folder_atomically = refuse
    RunFolder.append_metrics = RunFolder.trim_metrics = RunFolder.open = refuse
sys.exit(cli.run(["train", *sys.argv[1:]]))
"""


@pytest.fixture
def config(backbone_folder, data_dir, tmp_path, trained_run):
    return small_config(
        backbone_folder("bert"),
        data_dir,
        tmp_path / "run",
        method={"name": "lora", "r": 2, "lora_dropout": 0.2},
        token_budget=100,
        early_stopping={"patience": 1},
        balancing="learned_softmax",
        step_memory="cached",
        heads_first=True,
        baselines=["untrained", "frozen"],
        distillation={"teachers": dict.fromkeys(["code_search", "clone_detection"], str(trained_run.path))},
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _launch(tmp_path: Path, *arguments: str, count: int = 2) -> list[subprocess.CompletedProcess]:
    """As torchrun does: the same command, with rank and meeting place in the environment."""
    common = os.environ | {
        "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    command = [sys.executable, "-c", RANK, *arguments]
    started = [
        subprocess.Popen(
            command, cwd=ROOT, env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(count)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300) for process in started]
    return [
        subprocess.CompletedProcess(command, process.returncode, *output)
        for process, output in zip(started, outputs, strict=True)
    ]


def _losses(folder: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        record["loss"] | {f"w_{k}": v for k, v in record["weights"].items()} for record in records if "loss" in record
    ]


def test_two_processes_give_the_single_process_run(config, tmp_path):
    (tmp_path / "run.yaml").write_text(dump_config(config))
    first, second = _launch(tmp_path, str(tmp_path / "run.yaml"))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert (second.stdout, second.stderr) == ("", "")
    assert "clone_detection" in first.stdout
    assert "validation at step 6" in first.stderr

    alone = train(config.model_copy(update={"output_dir": str(tmp_path / "alone")}), announce=lambda _: None)
    expected, found = _losses(alone.path), _losses(tmp_path / "run")
    assert len(found) == len(expected) == 6
    for one, two in zip(expected, found, strict=True):
        assert two == pytest.approx(one, abs=1e-4)
    for part in ("last", "best"):
        for name in ("adapter_model.safetensors", "heads.safetensors"):
            weights = load_file(alone.path / part / name)
            for key, value in load_file(tmp_path / "run" / part / name).items():
                assert (value - weights[key]).abs().max() <= 1e-4, (part, key)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["training"]["best_step"] == alone.results["training"]["best_step"]
    assert results["training"]["tokens"] == alone.results["training"]["tokens"]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in alone.path.iterdir()}


def test_a_rule_on_gradients_gives_the_single_process_run(backbone_folder, data_dir, tmp_path):
    """One with a state of its own, made of the gradients' lengths."""
    config = small_config(
        backbone_folder("bert"), data_dir, tmp_path / "run", token_budget=100, baselines=[], max_steps=4,
        balancing={"name": "gradnorm", "learning_rate": 0.1},
    )  # fmt: skip
    (tmp_path / "run.yaml").write_text(dump_config(config))
    first, second = _launch(tmp_path, str(tmp_path / "run.yaml"))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    alone = train(config.model_copy(update={"output_dir": str(tmp_path / "alone")}), announce=lambda _: None)
    expected, found = _losses(alone.path), _losses(tmp_path / "run")
    assert len(found) == len(expected) == 4
    for one, two in zip(expected, found, strict=True):
        assert two == pytest.approx(one, abs=1e-3)
    assert found[3]["w_code_search"] != pytest.approx(0.25, abs=0.01)


WRITING = {
    "flaky_tests": {},
    "code_translation": {"max_new_tokens": 12, "select_by": "generation"},
    "code_summarization": {"max_new_tokens": 10, "select_by": "likelihood"},
    "defect_detection": {"answer": "text", "prompt": "Bad? {code}"},
}


@pytest.mark.parametrize(
    ("step_memory", "balancing", "conflict_steps"), [("cached", "learned_softmax", 2), ("single_pass", "pcgrad", None)]
)
def test_heads_and_written_answers_give_the_single_process_run(
    step_memory, balancing, conflict_steps, backbone_folder, seven_dir, tmp_path
):
    """Vectors are shared by all, states of answers are not; validation generates, measures likelihood and chooses."""
    config = small_config(
        backbone_folder("qwen2"), seven_dir, tmp_path / "run", tasks=WRITING, max_length=64, token_budget=150,
        method={"name": "lora", "r": 2, "lora_dropout": 0.2}, step_memory=step_memory, balancing=balancing,
        conflict_steps=conflict_steps, max_steps=4, eval_steps=2, baselines=[],
    )  # fmt: skip
    (tmp_path / "run.yaml").write_text(dump_config(config))
    first, second = _launch(tmp_path, str(tmp_path / "run.yaml"))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert (second.stdout, second.stderr) == ("", "")
    alone = train(config.model_copy(update={"output_dir": str(tmp_path / "alone")}), announce=lambda _: None)
    expected, found = _losses(alone.path), _losses(tmp_path / "run")
    assert len(found) == len(expected) == 4
    for one, two in zip(expected, found, strict=True):
        assert two == pytest.approx(one, abs=1e-4)
    for one, two in zip(_validations(alone.path), _validations(tmp_path / "run"), strict=True):
        assert two["primary"] == pytest.approx(one["primary"], abs=1e-4)
        assert two["valid_loss"] == pytest.approx(one["valid_loss"], abs=1e-4)
        assert two["thresholds"] == pytest.approx(one["thresholds"], abs=1e-4)
        for name, metrics in one["metrics"].items():
            assert two["metrics"][name] == pytest.approx(metrics, abs=1e-4), name
    tokens = [json.loads((path / "results.json").read_text())["training"]["tokens"] for path in
              (alone.path, tmp_path / "run")]  # fmt: skip
    assert tokens[0] == tokens[1]


def _validations(folder: Path) -> list[dict[str, dict]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == "valid"]


def test_each_item_comes_from_the_process_that_has_it(monkeypatch):
    """Empty answers are answers; what no process has stays empty; text keeps every character."""
    parts = [[["eins\n"], [], [""], []], [[], ["ä😀", "b"], [], []]]
    joined = [["eins\n"], ["ä😀", "b"], [""], []]
    sent: list[torch.Tensor] = []
    monkeypatch.setattr(dist, "broadcast", lambda tensor, src: sent.append(tensor))
    for rank in range(2):  # what each would send when it is its turn
        Processes(rank, 2, CPU)._told(parts[rank], rank)
    for rank in range(2):
        messages = iter(sent)
        monkeypatch.setattr(dist, "broadcast", lambda tensor, src, given=messages: tensor.copy_(next(given)))
        assert Processes(rank, 2, CPU).join(parts[rank]) == joined
    assert ALONE.join(parts[0]) is parts[0]


def test_a_helper_process_of_a_finished_run_has_nothing_to_print(trained_run, monkeypatch, capsys):
    from manyskills.cli.app import run

    monkeypatch.setattr(Processes, "current", lambda: Processes(1, 2, CPU))
    assert run(["train", str(trained_run.path / "config.yaml"), "--resume"]) == 0
    assert capsys.readouterr() == ("", "")


def test_accelerate_launch_gives_the_single_process_trace(config, tmp_path):
    config = config.model_copy(update={"max_steps": 3, "baselines": [], "heads_first": False})
    (tmp_path / "run.yaml").write_text(dump_config(config))
    launcher = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port", str(_free_port()),
        "-m", "manyskills", "train", str(tmp_path / "run.yaml"), "--quiet",
    ]  # fmt: skip
    own = {"CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launcher, cwd=ROOT, env=os.environ | own, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    alone = train(config.model_copy(update={"output_dir": str(tmp_path / "alone")}), announce=lambda _: None)
    expected, found = _losses(alone.path), _losses(tmp_path / "run")
    assert len(found) == len(expected) == 3
    for one, two in zip(expected, found, strict=True):
        assert two == pytest.approx(one, abs=1e-4)
