"""What grows with what."""

from __future__ import annotations

import json

import pytest

import growth


def test_every_size_is_measured(backbone_folder, tmp_path):
    growth.main(["--quick", "--rounds", "1", "--threads", "1", "--backbone", backbone_folder("bert"),
                 "--output", str(tmp_path)])  # fmt: skip
    found = json.loads((tmp_path / "growth.json").read_text())
    sizes = {axis: {what: list(costs) for what, costs in by.items()} for axis, by in found["growth"].items()}
    assert sizes[growth.LENGTH] == {growth.STEP: ["16", "32"], growth.EVALUATION: ["16", "32"]}
    assert sizes[growth.CANDIDATES] == {growth.SEARCH: ["100", "400"]}
    assert found["memory"]["400"] >= 400 * 20 * 4, "all scores of a block"


def test_the_exponent_is_the_slope_of_the_logarithms():
    costs = {size: {"cpu": 3.0 * size**2} for size in (1, 4, 16)}
    assert growth.exponent(costs) == pytest.approx(2)
