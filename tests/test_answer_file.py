"""Answers that survive an interruption, and never mix with others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from manyskills.answer_file import AnswerFile, module_digest, rows_digest
from manyskills.errors import UserError

ROWS = [{"id": f"r{n}", "variant": "java", "code": f"x{n} é \u2028"} for n in range(4)]
OPTIONS = {"task": "code_summarization", "seed": 0, "rows": "abc"}


def started(path, samples=1, options=OPTIONS, **how):
    file = AnswerFile(path, options, samples)
    return file, file.open(**{"resume": False, "overwrite": False} | how)


def whole(path, samples=1):
    file, there = started(path, samples)
    assert there == set()
    for row in ROWS:
        file.add(row, [f"{row['code']}\n{n}" for n in range(samples)])
    file.finish(ROWS)
    return path.read_bytes()


@pytest.mark.parametrize("samples", [1, 3])
def test_gone_on_with_at_any_byte_it_is_the_same(samples, tmp_path):
    expected = whole(tmp_path / "whole.jsonl", samples)
    path = tmp_path / "torn.jsonl"
    for cut in range(0, len(expected) + 1, 7):
        path.unlink(missing_ok=True)
        file, _ = started(path, samples)
        for row in ROWS[::-1]:  # in another order than the rows'
            file.add(row, [f"{row['code']}\n{n}" for n in range(samples)])
        file.close()
        path.write_bytes(path.read_bytes()[:cut])
        file, there = started(path, samples, resume=True)
        assert len(there) == cut * 4 // len(expected)
        for row in ROWS:
            if row["id"] not in there:
                file.add(row, [f"{row['code']}\n{n}" for n in range(samples)])
        file.finish(ROWS)
        assert path.read_bytes() == expected


def test_lines(tmp_path):
    lines = [json.loads(line) for line in whole(tmp_path / "a.jsonl").decode().split("\n")[:-1]]
    assert lines[0] == {"id": "r0", "variant": "java", "prediction": "x0 é \u2028\n0"}
    lines = [json.loads(line) for line in whole(tmp_path / "b.jsonl", 2).decode().split("\n")[:-1]]
    assert lines[1] == {"id": "r0", "variant": "java", "sample": 1, "prediction": "x0 é \u2028\n1"}


def test_nothing_is_lost_or_mixed_unasked(tmp_path):
    path = tmp_path / "new" / "a.jsonl"
    before = whole(path)
    for options, how, said in (
        (OPTIONS, {}, "is there already"),
        (OPTIONS, {"resume": True, "overwrite": True}, "contradict"),
        (OPTIONS | {"seed": 3}, {"resume": True}, "other seed: 0, now 3"),
        (OPTIONS | {"rows": "def"}, {"resume": True}, "written with other rows\n"),
    ):
        with pytest.raises(UserError, match=said):
            started(path, 1, options, **how)
        assert path.read_bytes() == before
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text("mine\n")
    with pytest.raises(UserError, match=r"foreign\.jsonl\.options\.json is missing or broken"):
        started(foreign, resume=True)
    with pytest.raises(UserError, match="is a folder"):
        started(tmp_path, overwrite=True)
    assert foreign.read_text() == "mine\n"
    file, there = started(path, overwrite=True)
    file.close()
    assert there == set()
    assert path.read_bytes() == b""


def test_digests(tmp_path):
    sources = {"java": "code"}
    first = rows_digest(ROWS, sources)
    assert first == rows_digest([row | {"other": 1} for row in ROWS], sources)
    assert first != rows_digest(ROWS[::-1], sources)
    assert first != rows_digest([*ROWS[:3], ROWS[3] | {"code": "y"}], sources)
    (tmp_path / "tasks.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"1")
    (tmp_path / "README.md").write_text("a")
    before = module_digest(tmp_path, "some/backbone")
    (tmp_path / "README.md").write_text("b")
    assert module_digest(tmp_path, "some/backbone") == module_digest(tmp_path, str(tmp_path)) == before
    (tmp_path / "adapter_model.safetensors").write_bytes(b"2")
    assert module_digest(tmp_path, "some/backbone") != before


def test_a_backbone_that_was_pretrained_again_is_another_module(tmp_path):
    module, backbone = tmp_path / "module", tmp_path / "backbone"
    for folder in (module, backbone):
        folder.mkdir()
    (module / "tasks.json").write_text("{}")
    (backbone / "model.safetensors").write_bytes(bytes(100))
    (backbone / "tokenizer.json").write_text("{}")
    digests = {module_digest(module, str(backbone))}
    (backbone / "model.safetensors").write_bytes(bytes(99) + b"1")
    digests.add(module_digest(module, str(backbone)))
    (backbone / "tokenizer.json").write_text("[]")
    digests.add(module_digest(module, str(backbone)))
    (backbone / "README.md").write_text("x")
    digests.add(module_digest(module, str(backbone)))
    assert len(digests) == 3


def test_what_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    for path in (tmp_path / ("x" * 300), Path("/proc/nowhere/a.jsonl")):
        with pytest.raises(UserError, match="cannot write"):
            started(path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is a folder"):
        started(Path(), overwrite=True)
    assert not list(tmp_path.iterdir())
