"""The hub's path, with local folders in its layout: `load_dataset` takes both."""

import sys

import pytest

from manyskills.data import hub, reading
from manyskills.data.reading import available_splits, read_split
from manyskills.errors import UserError
from manyskills.tasks import get_task
from tests.data.helpers import clone_folder, defects

DEFECTS, CLONES = get_task("defect_detection"), get_task("clone_detection")


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A folder that is read as if its name were a hub id."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    folder = tmp_path / "org" / "name"
    folder.mkdir(parents=True)
    real = reading._open_hub
    monkeypatch.setattr(reading, "_open", lambda task, source, split: real(task, source, split))
    monkeypatch.setattr(reading, "_check_hub_id", lambda task, source: None)
    return folder


def test_parquet_shards(remote):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (remote / "data").mkdir()
    for split, count in {"train": 6, "validation": 3, "test": 3}.items():
        pq.write_table(pa.Table.from_pylist(defects(count)), remote / "data" / f"{split}-00000-of-00001.parquet")
    found = read_split(DEFECTS, str(remote), "valid", limit=2)
    assert (found.total, len(found.rows), found.source) == (3, 2, f"{remote}[valid]")
    assert found.rows[0]["code"].startswith("def f")
    assert list(hub.hub_splits(str(remote))) == ["train", "valid", "test"]


def test_a_table_of_texts(remote):
    rows = read_split(CLONES, str(clone_folder(remote)), "test").rows
    assert rows[0]["code1"].startswith("int f4")


def test_splits_that_are_not_there(remote):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(defects(3)), remote / "train.parquet")
    with pytest.raises(UserError, match="wanted the split valid, found train"):
        read_split(DEFECTS, str(remote), "valid")


def test_a_name_that_nobody_has(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_load", lambda name: (_ for _ in ()).throw(UserError(f"{name}: cannot be read")))
    with pytest.raises(UserError, match="no-such-org/no-such-data: cannot be read"):
        available_splits(DEFECTS, "no-such-org/no-such-data")
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match="there is no folder data/defects"):
        read_split(DEFECTS, "data/defects", "train")


def test_without_datasets_is_one_clear_sentence(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="no such folder, and reading it from the hub needs datasets") as caught:
        read_split(CLONES, "some-org/some-data", "train")
    assert "pip install datasets" in str(caught.value.hint)


def test_offline_is_one_clear_sentence(monkeypatch, tmp_path):
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="no such folder, and the hub's data set of that name cannot be read") as caught:
        read_split(DEFECTS, "no-such-org/no-such-data", "train")
    assert "HF_HUB_OFFLINE" in str(caught.value.hint)
