"""The benchmark of writing compares equal answers, and counts what each way gives the network to read."""

from __future__ import annotations

import json
import shutil

import pytest

import generation
from contenders.field import OURS

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own, about options of generate


def test_all_write_the_same_and_ours_reads_least(tmp_path, monkeypatch, seven_dir):
    monkeypatch.setattr(generation, "with_summaries", lambda temporary: seven_dir)  # mining takes longer than the rest
    generation.main(["--quick", "--rounds", "1", "--threads", "1", "--output", str(tmp_path)])
    found = json.loads((tmp_path / "generation.json").read_text())
    assert found["same_answers"] == {OURS: 1.0, generation.SORTED: 1.0, generation.IN_ORDER: 1.0}
    read = found["tokens_read"]
    assert read[OURS] <= read[generation.SORTED]
    assert found["prompt_tokens"] + found["answer_tokens"] - found["prompts"] <= read[OURS]
    assert (tmp_path / "generation.md").is_file()


def test_a_trained_module_answers_its_test_rows(writing_module, seven_dir, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(writing_module("full"), run / "best")
    arguments = ["--quick", "--rounds", "1", "--threads", "1", "--module", str(run), "--data", str(seven_dir)]
    generation.main([*arguments, "--output", str(tmp_path)])
    found = json.loads((tmp_path / "generation.json").read_text())
    assert found["prompts"] == 9
    assert found["max_new_tokens"] == 9


def test_summaries_are_made_of_documented_functions(tmp_path, monkeypatch, data_dir):
    data = tmp_path / "data"
    shutil.copytree(data_dir / "code_search", data / "code_search")
    monkeypatch.setattr(generation, "data_folder", lambda *_: data)
    folder = generation.with_summaries(tmp_path) / generation.SUMMARIES
    row = json.loads((folder / "python_test.jsonl").read_text().splitlines()[0])
    assert row == {"id": "s200", "code": "def add(a):\n    return a + 200", "summary": "add 200 to a number"}


def test_a_module_needs_rows(capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        generation.main(["--module", str(tmp_path)])
    assert stopped.value.code == 2
    assert "give --data" in capsys.readouterr().err
