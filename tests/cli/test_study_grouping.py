"""`study grouping` from the command line."""

from __future__ import annotations

import json

import pytest

from manyskills.cli.app import run
from manyskills.config.file import dump_config
from tests.training.helpers import small_config


@pytest.fixture
def configuration(backbone_folder, data_dir, tmp_path):
    wanted = small_config(backbone_folder("bert"), data_dir, tmp_path / "run", tasks=["flaky_tests", "code_search"],
                          batch_size=8)  # fmt: skip
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(wanted), encoding="utf-8")
    return path


def test_tables_on_stdout_and_everything_in_a_folder_beside_the_runs(configuration, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["study", "grouping", str(configuration), "max_steps=5", "--share", "0.8", "--verify", "1"]) == 0
    found = capsys.readouterr()
    for said in ("Gradient cosine", "Transfer", "1 flaky_tests", "advised: ", "% of the 10 of training every subset",
                 "Trained whole", "flaky_tests  |  code_search"):  # fmt: skip
        assert said in found.out, said
    assert all(len(line.rstrip()) <= 80 for line in found.out.splitlines() if "advised" not in line)
    assert "all figures are in" in found.err
    assert not (tmp_path / "run").exists()
    assert json.loads((tmp_path / "run-grouping" / "grouping.json").read_text())["verified"]
    assert run(["study", "grouping", str(configuration), "max_steps=5", "--share", "0.8", "--json", "--quiet"]) == 0
    again = capsys.readouterr()
    assert again.err == ""
    assert json.loads(again.out)["cost"]["all_subsets"] == 10


def test_mistakes_are_one_sentence(configuration, capsys):
    assert run(["study", "grouping", str(configuration), "method=frozen"]) == 2
    assert "method frozen shares nothing between tasks" in capsys.readouterr().err
    assert run(["study", "grouping", str(configuration), "max_steps=5", "--share", "0.8"]) == 0
    assert run(["study", "grouping", str(configuration), "max_steps=5", "--share", "0.6"]) == 0  # another joint run
    capsys.readouterr()
    assert run(["study", "grouping", str(configuration), "max_steps=5", "--share", "0.8", "learning_rate=1e-5"]) == 2
    assert "started with other values of learning_rate" in capsys.readouterr().err
