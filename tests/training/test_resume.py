"""Killed at any instant, `--resume` continues to the same final weights and the same results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from manyskills.config.file import dump_config
from manyskills.training import loop
from manyskills.training import run as run_module
from tests.training.helpers import small_config
from tests.training.killing import Killed, assert_same, cut_line, kill_at, leave_everything_behind, records, renames

ROOT = Path(__file__).parents[2]


CHANGES = {
    "max_steps": 8,
    "eval_steps": 2,
    "save_steps": 3,
    "method": {"name": "lora", "r": 2, "lora_dropout": 0.2},
    "learning_rate": 3e-2,
    "early_stopping": {"patience": 2, "keep_task_best": True},
    "baselines": ["untrained"],
}
VARIANTS = {
    "uniform": {},
    "learned_softmax": {"balancing": {"name": "learned_softmax", "learning_rate": 0.3}, "step_memory": "cached"},
    "frozen_first": {"heads_first": True, "baselines": ["frozen"]},
    "db_mtl": {"balancing": "db_mtl"},
    "famo": {"balancing": {"name": "famo", "every": 2}, "logging_steps": 4},
    "coba": {"balancing": {"name": "coba", "every": 2, "warmup": 2, "history": 2, "rows": 4}},
    "gradnorm": {"balancing": {"name": "gradnorm", "learning_rate": 0.3}},
    "alternating": {"sampling": "alternating", "logging_steps": 4, "conflict_steps": 2},
}


def _train(config, **options):
    return run_module.train(config, announce=lambda _: None, **options)


def _config(variant, backbone_folder, data_dir, folder):
    return small_config(backbone_folder("bert"), data_dir, folder, **(CHANGES | VARIANTS[variant]))


@pytest.fixture(scope="module", autouse=True)
def _no_plots():
    """Drawing takes longer than everything else here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run_module, "write_plots", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def uninterrupted(backbone_folder, data_dir, tmp_path_factory):
    """The run that nothing interrupts, by variant."""
    made = {}

    def make(variant):
        if variant not in made:
            folder = tmp_path_factory.mktemp("whole") / "run"
            _train(_config(variant, backbone_folder, data_dir, folder))
            made[variant] = folder
        return made[variant]

    return make


POINTS = {
    "before the first validation": lambda m: kill_at(m, loop, "encode_texts", 1),
    "before the first checkpoint of best": lambda m: kill_at(m, loop, "save_model", 1),
    "in the first step": lambda m: kill_at(m, loop, "accumulate_gradients", 1),
    "in the fifth step": lambda m: kill_at(m, loop, "accumulate_gradients", 5),
    "between update and log": lambda m: kill_at(m, loop.Trainer, "_log", 6),
    "in a line of metrics": lambda m: cut_line(m, 7),
    "after a validation": lambda m: kill_at(m, loop.Trainer, "_validate", 3, after=True),
    "while the model of last is written": lambda m: kill_at(m, loop.Optimizer, "save", 2),
    "between the two renames of last": lambda m: kill_at(m, os, "rename", 3, after=True, when=renames("last")),
    "before last is moved aside": lambda m: kill_at(m, os, "rename", 2, when=renames("last")),
    "between the two renames of best": lambda m: kill_at(m, os, "rename", 2, after=True, when=renames("best")),
    "after the last checkpoint": lambda m: kill_at(m, loop.Trainer, "run", 1, after=True),
    "in the final evaluation": lambda m: kill_at(m, run_module, "baseline_scores", 1),
    "while predictions are written": lambda m: kill_at(m, run_module, "write_predictions", 1, after=True),
    "before the results": lambda m: kill_at(m, run_module, "write_card", 1, after=True),
}


@pytest.mark.parametrize("point", POINTS)
def test_killed_once_it_continues_to_the_same_weights(
    point, backbone_folder, data_dir, tmp_path, monkeypatch, uninterrupted
):
    variant = list(VARIANTS)[list(POINTS).index(point) % len(VARIANTS)]
    config = _config(variant, backbone_folder, data_dir, tmp_path / "run")
    expected = uninterrupted(variant)
    with monkeypatch.context() as patched:
        POINTS[point](patched)
        leave_everything_behind(patched)
        with pytest.raises(Killed):
            _train(config)
    _train(config, resume=True)
    assert_same(tmp_path / "run", expected)


def test_killed_again_and_again_it_continues_to_the_same_weights(
    backbone_folder, data_dir, tmp_path, monkeypatch, uninterrupted
):
    """Eleven kills in one run: before anything was saved, twice at each checkpoint, and in the end."""
    config = _config("learned_softmax", backbone_folder, data_dir, tmp_path / "run")
    kills = [
        lambda m: kill_at(m, loop, "encode_texts", 1),
        lambda m: kill_at(m, loop, "save_model", 1),
        lambda m: kill_at(m, loop, "accumulate_gradients", 3),
        lambda m: kill_at(m, loop.Trainer, "_save", 1, after=True),  # step 3 is kept
        lambda m: kill_at(m, loop, "accumulate_gradients", 1),
        lambda m: kill_at(m, os, "rename", 1, after=True),
        lambda m: cut_line(m, 2),
        lambda m: kill_at(m, loop.Trainer, "_save", 1, after=True),  # step 6 is kept
        lambda m: kill_at(m, loop, "accumulate_gradients", 1),
        lambda m: kill_at(m, loop.Trainer, "run", 1, after=True),
        lambda m: kill_at(m, run_module, "write_card", 1, after=True),
    ]
    expected = uninterrupted("learned_softmax")
    for kill in kills:
        with monkeypatch.context() as patched:
            kill(patched)
            leave_everything_behind(patched)
            with pytest.raises(Killed):
                _train(config, resume=True)
    _train(config, resume=True)
    assert_same(tmp_path / "run", expected)


def test_early_stopping_was_part_of_it(uninterrupted):
    """The runs above say something about tasks that leave only if one did, and about choice only if best moved."""
    results = json.loads((uninterrupted("learned_softmax") / "results.json").read_text())
    assert results["training"]["stopped"]
    assert results["training"]["best_step"] > 0
    weights = [record["weights"] for record in records(uninterrupted("learned_softmax")) if record["kind"] == "train"]
    assert weights[1] != weights[2]


DRIVER = """
import os, signal, sys
from manyskills.cli import app as cli
from manyskills.training import loop
from manyskills.training.run_folder import RunFolder

def die_at(owner, name, calls):
    real, count = getattr(owner, name), iter(range(1, 10_000))
    def dying(*arguments, **options):
        if next(count) == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    setattr(owner, name, dying)

point, config = sys.argv[1:]
match point:
    case "step": die_at(loop, "accumulate_gradients", 4)
    case "swap": die_at(os, "rename", 4)
    case "append": die_at(RunFolder, "append_metrics", 5)
sys.exit(cli.run(["train", config, "--resume", "--quiet"]))
"""


@pytest.mark.parametrize("points", [("step", "swap"), ("append",)])
def test_kill_minus_nine(points, backbone_folder, data_dir, tmp_path, uninterrupted):
    config = _config("learned_softmax", backbone_folder, data_dir, tmp_path / "run")
    (tmp_path / "run.yaml").write_text(dump_config(config))
    for point in points:
        command = [sys.executable, "-c", DRIVER, point, str(tmp_path / "run.yaml")]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not (tmp_path / "run" / "results.json").exists()
    _train(config, resume=True)
    assert_same(tmp_path / "run", uninterrupted("learned_softmax"))


def test_a_finished_run_is_only_read(trained_run, monkeypatch):
    from manyskills.config.file import load_config

    config = load_config(trained_run.path / "config.yaml")
    monkeypatch.setattr(run_module, "load_inputs", None)
    assert _train(config, resume=True).results == json.loads((trained_run.path / "results.json").read_text())


def test_a_finished_run_of_another_configuration_is_not_passed_off(trained_run):
    from manyskills.config.file import load_config
    from manyskills.errors import UserError

    config = load_config(trained_run.path / "config.yaml", ["seed=9"])
    with pytest.raises(UserError, match="other values of seed"):
        _train(config, resume=True)
