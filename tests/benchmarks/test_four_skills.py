"""One module with four heads answers as four single-task models do."""

from __future__ import annotations

import json

import four_skills


def test_answers_are_the_same(backbone_folder, data_dir, tmp_path):
    four_skills.main(["--quick", "--rounds", "1", "--threads", "1", "--backbone", backbone_folder("bert"),
                      "--max-length", "64", "--data", str(data_dir), "--output", str(tmp_path)])  # fmt: skip
    found = json.loads((tmp_path / "four_skills.json").read_text())
    assert set(found["largest_differences"]) == set(four_skills.TASKS)
    assert max(found["largest_differences"].values()) < 1e-6
    assert found["functions"] == 16
