"""`export` from the command line: data on stdout, talk on stderr, exit codes."""

from __future__ import annotations

import json

import pytest

import manyskills
from manyskills.cli.app import run


def test_a_table_and_where_it_is(trained_run, tmp_path, capsys):
    assert run(["export", str(trained_run.path), "-o", str(tmp_path / "made")]) == 0
    found = capsys.readouterr()
    for text in ("defect_detection", "accuracy", "float32: vectors of", "cosine 1.000000"):
        assert text in found.out
    assert f"the export is in {tmp_path / 'made'}" in found.err
    assert list(manyskills.load(tmp_path / "made").tasks) == list(manyskills.load(trained_run.path).tasks)


def test_json(trained_run, tmp_path, capsys):
    arguments = ["export", str(trained_run.path), "-o", str(tmp_path / "made"), "--format", "lora", "-t", "flaky_tests"]
    assert run([*arguments, "--json", "--quiet", "--limit", "4"]) == 0
    found = capsys.readouterr()
    assert found.err == ""
    summary = json.loads(found.out)
    assert summary["export"] == "lora"
    assert summary["checks"]["float32"]["tasks"]["flaky_tests"]["rows"] == 4
    assert run([*arguments, "--no-check", "--overwrite"]) == 0
    assert "not compared with the module" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{none}", "-o", "{out}"], "is not a folder"),
        (["{run}"], "output"),
        (["{run}", "-o", "{out}", "-f", "onx"], "unknown format 'onx'\n  hint: did you mean 'onnx'?"),
        (["{run}", "-o", "{out}", "--int8"], "--int8 is for ONNX graphs"),
        (["{run}", "-o", "{out}", "--data", "{none}"], "there is no folder"),
        (["{run}", "-o", "{out}", "--limit", "0"], "limit"),
        (["{run}", "-o", "{run}", "--overwrite"], "was not made by an export"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(arguments, said, trained_run, tmp_path, capsys):
    places = {"run": trained_run.path, "out": tmp_path / "out", "none": tmp_path / "none"}
    assert run(["export", *(argument.format(**places) for argument in arguments)]) == 2
    found = capsys.readouterr()
    assert said in found.err
    assert found.out == ""
    assert "Traceback" not in found.err
    assert not list(tmp_path.iterdir())
