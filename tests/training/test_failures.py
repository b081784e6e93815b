"""What can go wrong in the middle of a run is one sentence, and leaves nothing half-written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from manyskills.cli.app import run
from manyskills.config import LearnedSoftmaxConfig, PcgradConfig
from manyskills.config.file import dump_config
from manyskills.errors import UserError
from manyskills.training import forward, loop
from manyskills.training.run import train
from tests.training.helpers import small_config


@pytest.fixture
def config(backbone_folder, data_dir, tmp_path):
    return small_config(backbone_folder("bert"), data_dir, tmp_path / "run", baselines=[])


def _out_of_memory(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize(
    ("name", "place"), [("accumulate_gradients", "step 1"), ("encode_texts", "validation at step 0")]
)
def test_out_of_memory_names_what_helps(name, place, config, monkeypatch):
    monkeypatch.setattr(loop, name, _out_of_memory)
    with pytest.raises(UserError) as error:
        train(config)
    assert error.value.message == f"{place}: the device's memory is full"
    for key in ("token_budget", "step_memory=cached", "max_length"):
        assert key in str(error.value.hint)


def test_a_rule_on_gradients_is_a_part_of_the_hint(config, monkeypatch):
    monkeypatch.setattr(loop, "accumulate_gradients", _out_of_memory)
    with pytest.raises(UserError) as error:
        train(config.model_copy(update={"balancing": PcgradConfig()}))
    assert "token_budget" in str(error.value.hint)
    assert "balance losses instead of gradients" in str(error.value.hint)


@pytest.mark.parametrize("damage", ["missing", "broken", "of another rule"])
def test_a_balancing_state_that_cannot_be_read_is_one_sentence(damage, config, monkeypatch):
    config = config.model_copy(update={"balancing": LearnedSoftmaxConfig()})
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("manyskills.training.run._finish", _interrupt)
        train(config)
    path = Path(config.output_dir) / "last" / loop.BALANCING_FILE
    match damage:
        case "missing":
            path.unlink()
        case "broken":
            path.write_bytes(path.read_bytes()[:20])
        case _:
            save_file({"count": np.zeros(1)}, path)
    with pytest.raises(UserError, match=r"balancing.safetensors is not what manyskills writes"):
        train(config, resume=True)


def _interrupt(*_, **__):
    raise KeyboardInterrupt


def test_out_of_memory_on_the_cpu_and_other_runtime_errors():
    with pytest.raises(UserError, match="memory is full"), loop.clear_failures("here", "less"):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
    with pytest.raises(RuntimeError, match="something else"), loop.clear_failures("here", "less"):
        raise RuntimeError("something else")


def test_a_loss_that_is_not_finite_names_step_and_task(config, monkeypatch):
    from manyskills.training.balancing import TaskLoss

    losses = forward.task_losses

    def broken(*arguments):
        found = losses(*arguments)
        return found | {"code_search": TaskLoss(found["code_search"].value * float("nan"), 1.0)}

    monkeypatch.setattr(forward, "task_losses", broken)
    with pytest.raises(UserError, match=r"step 1: the loss of code_search is not a finite number(.|\n)*learning_rate"):
        train(config)


def _full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def _rust_full_disk(*_, **__):
    from safetensors import SafetensorError

    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("manyskills.model.checkpoint.save_file", _rust_full_disk),
        ("manyskills.training.optimizer.save_file", _rust_full_disk),
        ("manyskills.files.os.fsync", _full_disk),
        ("manyskills.training.run.write_predictions", _full_disk),
        ("manyskills.training.results.plot_results", _full_disk),
    ],
)
def test_no_space_is_one_sentence_and_nothing_half_written(target, error, config, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(target, error)
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(config))
    assert run(["train", str(path), "--quiet"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("manyskills: no space left on device")
    assert "Traceback" not in err
    folder = Path(config.output_dir)
    left = [] if not folder.exists() else [str(p.relative_to(folder)) for p in folder.rglob("*")]
    assert not any(".tmp-" in name or ".old" in name for name in left)
    assert "results.json" not in left
    monkeypatch.undo()
    if folder.exists():  # after space was made the run goes on
        assert train(config, resume=True).results["tasks"]


def test_no_space_while_the_second_checkpoint_is_written_keeps_the_first(config, monkeypatch):
    calls = []
    save = loop.save_model

    def third_is_too_much(*arguments, **options):
        calls.append(arguments)
        if len(calls) > 3:
            _full_disk()
        save(*arguments, **options)

    monkeypatch.setattr(loop, "save_model", third_is_too_much)
    with pytest.raises(UserError, match="no space left on device"):
        train(config)
    state = Path(config.output_dir) / "last" / "trainer_state.json"
    assert '"step": 3' in state.read_text()
    assert {p.name for p in Path(config.output_dir).iterdir()} <= {
        "config.yaml", "environment.json", "metrics.jsonl", "best", "last"
    }  # fmt: skip


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(config, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write"):
        train(config)


def test_an_output_dir_below_a_file(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write|is a file"):
        train(config.model_copy(update={"output_dir": str(tmp_path / "file" / "run")}))


def test_bad_data_is_found_before_anything_is_written(config, tmp_path):
    bad = config.model_copy(update={"data_dir": str(tmp_path / "nowhere")})
    with pytest.raises(UserError, match="clone_detection"):
        train(bad)
    assert not Path(config.output_dir).exists()
