"""The grouping study on a tiny backbone."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from manyskills.config import TrainConfig
from manyskills.errors import UserError
from manyskills.studies.affinity import AffinityRecorder
from manyskills.studies.fit import fit
from manyskills.studies.grouping import grouping, study_folder, subset_config
from manyskills.studies.grouping_report import Grouping
from tests.training.helpers import small_config

NAMES = ("defect_detection", "flaky_tests", "code_search")
SIZES = dict.fromkeys(NAMES, 24)


def config(backbone_folder, data_dir, folder, **changes):
    return small_config(
        backbone_folder("bert"), data_dir, folder, tasks=list(NAMES), max_steps=6, batch_size=12, **changes
    )


@pytest.fixture(scope="module")
def study(backbone_folder, data_dir, tmp_path_factory):
    """A study whose best partition was trained."""
    folder = tmp_path_factory.mktemp("grouping")
    wanted = config(backbone_folder, data_dir, folder)
    said = []
    return wanted, grouping(wanted, said.append, share=0.5, verify=1), said


def test_what_a_study_finds(study):
    wanted, found, _ = study
    assert found.tasks == NAMES
    assert len(found.predicted) == 7
    assert [len(one.groups) for one in found.partitions] == [1, 2, 3]
    assert found.partitions[0].predicted == pytest.approx(1)
    losses = [one.predicted for one in found.partitions]
    assert found.advised.predicted == min(losses)
    assert found.lookahead is not None
    assert found.cost.all_subsets == 24
    assert 0 < found.cost.share < 1
    together = next(one.losses for one in found.predicted if one.tasks == NAMES)
    assert together == pytest.approx([_valid_losses(wanted, "joint-3")[-1][name] for name in NAMES])


def test_the_best_partition_all_together_and_all_alone_are_trained(study):
    wanted, found, _ = study
    groups = {one.groups for one in found.verified}
    assert (NAMES,) in groups
    assert tuple((name,) for name in NAMES) in groups
    together = next(one for one in found.verified if one.groups == (NAMES,))
    assert together.real == pytest.approx(1)
    alone = next(one for one in found.verified if len(one.groups) == 3)
    base = _valid_losses(wanted, f"subsets/{'+'.join(NAMES)}")[-1]
    real = [_valid_losses(wanted, f"subsets/{name}")[-1][name] / base[name] for name in NAMES]
    assert alone.real == pytest.approx(sum(real) / 3)


def test_what_is_there_is_not_trained_again(study):
    wanted, found, _ = study
    stamps = {path: path.stat().st_mtime_ns for path in _files(wanted)}
    again = grouping(wanted, lambda _: None, share=0.5, verify=1)
    assert again.to_dict() == found.to_dict()
    assert {path: path.stat().st_mtime_ns for path in _files(wanted)} == stamps
    written = json.loads((_folder(wanted) / "grouping.json").read_text())
    assert Grouping.from_dict(written).to_dict() == found.to_dict()


def test_watching_does_not_change_the_run(backbone_folder, data_dir, tmp_path):
    runs = []
    for name, watcher in (("watched", AffinityRecorder(tmp_path / "affinity", NAMES, 1)), ("alone", None)):
        one = config(backbone_folder, data_dir, tmp_path / name, conflict_steps=2)
        fit(one, lambda _: None, watcher)
        runs.append(load_file(tmp_path / name / "last" / "adapter_model.safetensors"))
    assert all((runs[0][key] == runs[1][key]).all() for key in runs[0])


def test_every_task_of_a_subset_has_the_rows_of_the_whole(backbone_folder, data_dir, tmp_path):
    weights = dict(zip(NAMES, (1, 2, 3), strict=True))
    wanted = config(
        backbone_folder, data_dir, tmp_path, balancing={"name": "fixed", "weights": weights},
        distillation={"teachers": {"flaky_tests": "somewhere"}},
    )  # fmt: skip
    two = subset_config(wanted, NAMES[:2], tmp_path / "two", 6, SIZES)
    assert two.batch_size == 8
    assert list(two.tasks) == list(NAMES[:2])
    assert two.balancing.weights == {"defect_detection": 1, "flaky_tests": 2}
    assert two.distillation.teachers == {"flaky_tests": "somewhere"}
    one = subset_config(wanted, NAMES[2:], tmp_path / "one", 6, SIZES)
    assert one.batch_size == 4
    assert one.distillation is None
    TrainConfig.model_validate(one.model_dump())


def test_a_task_without_weight_trains_alone_all_the_same(backbone_folder, data_dir, tmp_path):
    weights = {"name": "fixed", "losses": "raw", "weights": dict(zip(NAMES, (1, 0, 3), strict=True))}
    wanted = config(backbone_folder, data_dir, tmp_path, balancing=weights)
    one = subset_config(wanted, NAMES[1:2], tmp_path / "one", 6, SIZES)
    assert one.balancing.weights == {"flaky_tests": 1}
    assert one.balancing.losses == "raw"
    TrainConfig.model_validate(one.model_dump())


@pytest.mark.parametrize("changes", [
    {"balancing": "pcgrad"},
    {"method": {"name": "mtl_lora", "r": 2}},
    {"max_steps": None, "num_train_epochs": 1.0},
    {"sampling": "proportional", "tasks": {n: {"limit": {"train": 24 if n != NAMES[0] else 8}} for n in NAMES}},
], ids=["pcgrad", "mtl_lora", "epochs", "proportional"])  # fmt: skip
def test_other_trainings(changes, backbone_folder, data_dir, tmp_path):
    wanted = small_config(
        backbone_folder("bert"), data_dir, tmp_path / "run",
        **({"tasks": list(NAMES), "max_steps": 6, "batch_size": 12} | changes),
    )  # fmt: skip
    found = grouping(wanted, lambda _: None, share=1.0)
    assert found.cost.all_subsets == 24
    assert set(found.tasks) == set(NAMES)
    assert not wanted_folder_exists(wanted)


def wanted_folder_exists(wanted):
    """The training's own folder is left alone."""
    return _folder(wanted).with_name("run").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": {"name": "frozen"}}, "shares nothing"),
        ({"sampling": "alternating"}, "one task a step"),
        ({"tasks": ["flaky_tests"]}, "1 tasks cannot be grouped"),
    ],
)
def test_what_cannot_be_grouped(changes, said, backbone_folder, data_dir, tmp_path):
    wanted = small_config(backbone_folder("bert"), data_dir, tmp_path / "run", **({"tasks": list(NAMES)} | changes))
    with pytest.raises(UserError, match=said):
        grouping(wanted, lambda _: None)
    assert not list(tmp_path.iterdir())


def _folder(wanted):
    return study_folder(wanted)


def _files(wanted):
    return sorted([*_folder(wanted).glob("**/*.safetensors"), *_folder(wanted).glob("**/*.jsonl")])


def _valid_losses(wanted, name):
    lines = (_folder(wanted) / name / "metrics.jsonl").read_text().splitlines()
    return [record["valid_loss"] for record in map(json.loads, lines) if record["kind"] == "valid"]
