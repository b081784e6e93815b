"""The rules of the run folder: nothing is overwritten by accident, nothing that a run did not write is removed."""

from __future__ import annotations

import json

import pytest

from manyskills.errors import UserError
from manyskills.files import clear_errors
from manyskills.training.run_folder import OURS, RunFolder, environment
from tests.training.helpers import small_config


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def _config(folder, **changes):
    return small_config("some/backbone", "data", folder.path, **changes)


DIGESTS = {"train": {"code_search": "abc"}, "valid": {"code_search": "def"}}


def _open(folder, *, resume=False, overwrite=False, digests=DIGESTS, **changes):
    folder.open(_config(folder, **changes), digests, resume=resume, overwrite=overwrite)


def _fill(folder):
    _open(folder)
    for name in ("best", "last", "plots", "best.old", "last.tmp-99999999"):
        (folder.path / name).mkdir()
        (folder.path / name / "file").write_text("x")
    folder.append_metrics({"step": 1})
    folder.results_file.write_text("{}")


def test_a_new_folder_gets_configuration_and_environment(folder):
    from manyskills.config.file import load_config

    _open(folder)
    assert {path.name for path in folder.path.iterdir()} == {"config.yaml", "environment.json"}
    assert load_config(folder.config_file) == _config(folder)
    found = json.loads((folder.path / "environment.json").read_text())
    assert found == environment() | {"data": DIGESTS}
    assert found["libraries"].keys() >= {"torch", "peft", "transformers"}


def test_an_empty_folder_is_as_good_as_none(folder):
    folder.path.mkdir()
    _open(folder)
    assert folder.config_file.is_file()


def test_what_is_there_is_not_overwritten(folder):
    folder.path.mkdir()
    (folder.path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"holds files already(.|\n)*--resume(.|\n)*--overwrite"):
        _open(folder)
    assert [path.name for path in folder.path.iterdir()] == ["thesis.tex"]


def test_a_finished_run_is_called_so(folder):
    _fill(folder)
    assert folder.finished
    with pytest.raises(UserError, match="holds a finished run"):
        _open(folder)


def test_a_file_of_that_name(folder):
    folder.path.write_text("")
    with pytest.raises(UserError, match="is a file"):
        _open(folder)


def test_both_flags_contradict(folder):
    with pytest.raises(UserError, match="contradict"):
        _open(folder, resume=True, overwrite=True)
    assert not folder.path.exists()


def test_overwrite_removes_what_runs_write(folder):
    _fill(folder)
    _open(folder, overwrite=True, seed=3)
    assert {path.name for path in folder.path.iterdir()} == {"config.yaml", "environment.json"}


@pytest.mark.parametrize("foreign", ["thesis.tex", "bestof", "last2", "data"])
def test_overwrite_removes_nothing_else(folder, foreign):
    _fill(folder)
    (folder.path / foreign).write_text("mine")
    before = sorted(path.name for path in folder.path.iterdir())
    with pytest.raises(UserError, match=f"no run wrote: {foreign}"):
        _open(folder, overwrite=True)
    assert sorted(path.name for path in folder.path.iterdir()) == before


def test_overwrite_removes_nothing_that_only_looks_like_a_run(folder):
    """A folder with a configuration and notes of the user's own has the names that a run uses."""
    folder.path.mkdir()
    for name in ("config.yaml", "README.md"):
        (folder.path / name).write_text("mine")
    with pytest.raises(UserError, match="was not made by a run"):
        _open(folder, overwrite=True)
    assert (folder.path / "config.yaml").read_text() == "mine"


def test_resume_on_other_data_names_the_split(folder):
    _open(folder)
    changed = {**DIGESTS, "train": {"code_search": "other"}}
    with pytest.raises(UserError, match=r"the data of code_search \(train\) is not what the run was started with"):
        _open(folder, resume=True, digests=changed)


def test_overwrite_follows_no_link_out_of_the_folder(folder, tmp_path):
    _open(folder)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("mine")
    (folder.path / "plots").symlink_to(tmp_path / "precious")
    _open(folder, overwrite=True)
    assert (tmp_path / "precious" / "file").read_text() == "mine"


def test_everything_a_run_writes_is_ours(trained_run):
    assert {path.name for path in trained_run.path.iterdir()} <= OURS


def test_resume_of_a_changed_configuration_names_the_keys(folder):
    _open(folder)
    with pytest.raises(UserError) as error:
        _open(folder, resume=True, seed=1, learning_rate=0.5, tasks=["code_search"])
    assert "other values of tasks, learning_rate, seed" in error.value.message
    from manyskills.config.file import load_config

    assert load_config(folder.config_file).seed == 0


def test_resume_may_change_where_to_and_who_is_told(folder):
    _open(folder)
    _open(folder, resume=True, report_to="none", push_to_hub=True, hub_model_id="a/b")
    assert "hub_model_id: a/b" in folder.config_file.read_text()


def test_resume_of_nothing_starts(folder):
    _open(folder, resume=True)
    assert folder.config_file.is_file()


def test_resume_in_a_folder_of_other_things_is_refused(folder):
    folder.path.mkdir()
    (folder.path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="not a run folder"):
        _open(folder, resume=True)
    assert [path.name for path in folder.path.iterdir()] == ["thesis.tex"]


def test_a_removal_that_was_killed_leaves_nothing_to_continue(folder, monkeypatch):
    """Killed while it removes a former run, the folder must not be resumed from what is left of that run."""
    import shutil

    _fill(folder)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        _open(folder, overwrite=True, seed=3)
    monkeypatch.undo()
    assert not folder.finished
    _open(folder, resume=True, seed=3)
    assert {path.name for path in folder.path.iterdir()} == {"config.yaml", "environment.json"}


@pytest.mark.parametrize("rest", [b"", b'{"kind": "train", "st', b'{"kind"\n', b"\x00\x00\x00", "é".encode()[:1]])
def test_trimming_drops_later_steps_and_a_line_cut_short(folder, rest):
    _open(folder)
    for step in (0, 1, 2, 2, 3):
        folder.append_metrics({"kind": "train", "step": step})
    with folder.metrics_file.open("ab") as file:
        file.write(rest)
    assert [record["step"] for record in folder.read_metrics()] == [0, 1, 2, 2, 3]
    folder.trim_metrics(2)
    assert [json.loads(line)["step"] for line in folder.metrics_file.read_text().splitlines()] == [0, 1, 2, 2]
    folder.append_metrics({"step": 9})
    assert folder.read_metrics()[-1] == {"step": 9}


def test_a_line_without_its_end_is_kept_and_the_next_is_a_line_of_its_own(folder):
    _open(folder)
    folder.metrics_file.write_text('{"step": 1}')
    folder.trim_metrics(1)
    folder.append_metrics({"step": 2})
    assert folder.read_metrics() == [{"step": 1}, {"step": 2}]


def test_no_space_for_a_metrics_line_is_one_sentence(folder):
    import errno

    with pytest.raises(UserError, match="no space left on device"), clear_errors(folder.metrics_file):
        raise OSError(errno.ENOSPC, "No space left on device")
