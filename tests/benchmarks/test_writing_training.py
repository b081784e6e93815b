"""Contenders that learn to write learn the same, and ours reads no padding."""

from __future__ import annotations

import json

import pytest

import writing_training
from tests.benchmarks.helpers import in_this_process

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own, about each other's names


def test_losses_are_compared_and_everybody_runs(seven_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(writing_training, "peak_memory_of", in_this_process(writing_training.main))
    monkeypatch.setattr(
        writing_training, "SIZES", {"50m": writing_training.QUICK}
    )  # programs of their own would take the real size
    writing_training.main(["--quick", "--rounds", "1", "--threads", "1", "--sizes", "50m", "--data", str(seven_dir),
                           "--output", str(tmp_path)])  # fmt: skip
    found = json.loads((tmp_path / "writing_training.json").read_text())
    (one,) = found["measurements"]
    tokens = one["tokens_a_step"]
    assert tokens[writing_training.OURS] < tokens[writing_training.LONGEST] < tokens[writing_training.FIXED]
    assert tokens[writing_training.FIXED] == one["batch_size"] * writing_training.MAX_LENGTH
    assert set(one["peak_bytes"]) == set(writing_training.CONTENDERS)
    seven = found["seven_tasks"]
    rows = [seven[name]["rows_a_step"] for name in ("the three that write", "the four with heads", "all seven")]
    assert rows[0] + rows[1] == rows[2]


def test_it_needs_data(capsys):
    with pytest.raises(SystemExit) as stopped:
        writing_training.main([])
    assert stopped.value.code == 2
    assert "--data: a folder with code_generation" in capsys.readouterr().err
