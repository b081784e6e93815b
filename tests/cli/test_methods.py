"""`manyskills methods`: numbers of every method on a backbone, without reading weights."""

from __future__ import annotations

import json

import pytest

from manyskills.cli.app import run
from manyskills.model.methods import METHODS


def _rows(capsys, *arguments):
    assert run(["methods", *arguments]) == 0
    return capsys.readouterr().out


def test_every_method_is_listed_with_its_numbers(backbone_folder, capsys):
    found = json.loads(_rows(capsys, "--backbone", backbone_folder("bert"), "--json", "lora.r=4", "ia3.layers=last 1"))
    rows = {row["name"]: row for row in found}
    assert list(rows) == list(METHODS)
    assert rows["lora"]["trainable"] == 2 * 2 * 4 * 64
    assert rows["lora"]["storage"] == 4 * rows["lora"]["trainable"]
    assert rows["lora"]["share"] == rows["lora"]["trainable"] / (rows["lora"]["trainable"] + rows["lora"]["backbone"])
    assert rows["ia3"]["trainable"] == 32 + 32 + 48
    assert rows["ia3"]["where"].endswith("in the last 1 layers")
    assert rows["full"]["share"] == 1
    assert rows["frozen"]["trainable"] == rows["frozen"]["changed"] == 0
    assert "task" in rows["mtl_lora"]["shared"]


def test_the_table_says_where_each_method_sits(backbone_folder, capsys):
    out = _rows(capsys, "--backbone", backbone_folder("t5"), "--part", "whole")
    assert "query and value projections" in out
    assert all(name in out for name in METHODS)


@pytest.mark.parametrize(
    ("change", "problem"),
    [("lorra.r=2", "lorra"), ("lora.rank=2", "rank"), ("lora.r", "lora.r=32"), ("lora.r=0", "greater than 0")],
)
def test_a_wrong_change_is_one_sentence(change, problem, backbone_folder, capsys):
    assert run(["methods", change, "--backbone", backbone_folder("bert")]) == 2
    assert problem in capsys.readouterr().err


def test_an_unknown_architecture_shows_what_works_and_why_the_rest_does_not(backbone_folder, capsys, monkeypatch):
    from manyskills.model.sites import SITES

    monkeypatch.delitem(SITES, "bert")
    arguments = ["methods", "--backbone", backbone_folder("bert"), "--json", "lora.targets=[query]"]
    assert run(arguments) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {name for name, row in rows.items() if "error" not in row} == {"frozen", "full", "lora"}
    assert rows["lora"]["where"] == "on the modules named query"
    assert run(["methods", "--backbone", backbone_folder("bert")]) == 0
    found = capsys.readouterr()
    assert "every weight of the backbone" in found.out
    assert found.err.count("attention.self.query") == 1, "the modules are listed once"


def test_a_wrong_part_or_backbone_is_one_sentence(backbone_folder, capsys):
    assert run(["methods", "--backbone", backbone_folder("bert"), "--part", "whole"]) == 2
    assert "is no encoder-decoder" in capsys.readouterr().err
    assert run(["methods", "--backbone", "minilmm"]) == 2
    assert "minilm" in capsys.readouterr().err
