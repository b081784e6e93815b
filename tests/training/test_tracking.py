"""metrics.jsonl always; trackers on request, and a clear word if one is not installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from manyskills.errors import UserError
from manyskills.training.run import train
from manyskills.training.tracking import NoTracker, build_tracker, flatten, numbers, require_trackers
from tests.training.helpers import small_config


def test_numbers_of_a_record():
    record = {"kind": "train", "step": 3, "loss": {"a": 1, "b": 0.5}, "best": True, "none": None, "x": {"y": {"z": 2}}}
    assert numbers(record) == {"loss.a": 1.0, "loss.b": 0.5, "x.y.z": 2.0}
    assert dict(flatten({"a": None, "b": [1]})) == {"a": "None", "b": "[1]"}


def test_nothing_by_default(tmp_path):
    tracker = build_tracker(small_config("b", "d"), tmp_path)
    assert isinstance(tracker, NoTracker)
    tracker.log({"a": 1.0}, 1)
    tracker.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "command"),
    [("tensorboard", r'pip install "manyskills\[track\]" -c constraints.txt'), ("wandb", "pip install wandb$"),
     ("mlflow", "pip install mlflow$"), ("trackio", "pip install trackio$")],
)  # fmt: skip
def test_a_missing_package_is_found_before_anything_is_written(name, command, backbone_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    config = small_config(backbone_folder("bert"), tmp_path / "no data", tmp_path / "run", report_to=name)
    with pytest.raises(UserError, match=rf"{name} is not installed(.|\n)*{command}"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_the_numbers_of_metrics_jsonl(backbone_folder, data_dir, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = small_config(
        backbone_folder("bert"), data_dir, tmp_path / "run", report_to="tensorboard", max_steps=2, eval_steps=1,
        method="frozen", baselines=[],
    )  # fmt: skip
    require_trackers(config)
    train(config, announce=lambda _: None)
    (events,) = (tmp_path / "run" / "trackers" / "manyskills").glob("events.out.*")  # hyper-parameters lie below
    found = event_accumulator.EventAccumulator(str(events))
    found.Reload()
    lines = Path(tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    for record in map(json.loads, lines):
        for name, value in numbers(record).items():
            logged = {event.step: event.value for event in found.Scalars(name)}
            assert logged[record["step"]] == pytest.approx(value, rel=1e-5)
