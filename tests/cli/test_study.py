"""`study transfer` from the command line: data on stdout, talk on stderr, exit codes."""

from __future__ import annotations

import json

import pytest

from manyskills.cli.app import run
from tests.studies.helpers import write_run

LABELS = [int(n % 3 == 0) for n in range(30)]
ANSWERS = {"flaky_tests": LABELS, "defect_detection": [0] * 30}


@pytest.fixture
def folders(tmp_path):
    """Two multi-task runs and a single-task run of each task."""
    multi = [str(write_run(tmp_path / f"multi{seed}", ANSWERS, seed=seed)) for seed in (0, 1)]
    single = [str(write_run(tmp_path / task, {task: [1 - label for label in LABELS]})) for task in ANSWERS]
    return multi, single


def test_a_table_and_the_files(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    multi, single = folders
    assert run(["study", "transfer", *multi, "--single", *single, "-o", str(tmp_path / "report")]) == 0
    found = capsys.readouterr()
    assert "helps" in found.out
    assert "flaky_tests: +1.000" in found.out
    assert found.err == f"the report is in {tmp_path / 'report'}\n"
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"transfer.json", "transfer.md", "transfer.png"}


def test_json_and_a_repeated_flag(folders, capsys):
    multi, single = folders
    assert run(["study", "transfer", *multi, "--single", single[0], f"--single={single[1]}", "--json"]) == 0
    found = capsys.readouterr()
    assert found.err == ""
    report = json.loads(found.out)
    assert [task["verdict"] for task in report["tasks"]] == ["helps", "helps"]
    assert report["multi"] == multi
    assert report["single"] == single


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{multi}", "--single", "{flaky}"], "no single-task run of defect_detection"),
        (["--single", "{flaky}", "{defect}", "{multi}"], "RUN"),
        (["{multi}"], "--single"),
        (["{multi}", "--single", "{flaky}", "{multi}"], "multi-task runs come first, before --single"),
        (["{multi}", "--single", "{flaky}", "{defect}", "-o", "{file}"], "cannot write"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(arguments, said, folders, tmp_path, capsys):
    (multi, _), (flaky, defect) = folders
    places = {"multi": multi, "flaky": flaky, "defect": defect, "file": f"{flaky}/results.json"}
    assert run(["study", "transfer", *(argument.format(**places) for argument in arguments)]) == 2
    found = capsys.readouterr()
    assert said in found.err
    assert found.out == ""
    assert "Traceback" not in found.err
