"""Reading texts: what is found, what is left out, what is held out, and what people are told."""

from __future__ import annotations

import json

import pytest

from manyskills.config.pretraining import PretrainConfig
from manyskills.errors import UserError
from manyskills.pretraining.texts import read_texts


def texts_of(*entries, **changes):
    return read_texts(PretrainConfig.model_validate({"data": list(entries), "validation": 0, **changes}))


def test_folders_patterns_and_files_are_read_as_source(tmp_path):
    for name, content in (("a.py", "a = 1\n"), ("sub/b.py", "b = 2\n"), (".git/c.py", "c"), ("__pycache__/d", "d")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "empty.py").write_text(" \n")
    assert texts_of(str(tmp_path)).train == ["a = 1\n", "b = 2\n"]
    assert texts_of(str(tmp_path / "**" / "*.py")).train.count("b = 2\n") == 1
    assert texts_of(str(tmp_path / "a.py")).train == ["a = 1\n"]


def test_cells_are_texts_or_rows_are(tmp_path):
    rows = [{"nl": "add", "code": "a\n"}, {"nl": None, "code": "b"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {"path": str(tmp_path / "x.jsonl"), "columns": ["nl", "code"]}
    assert texts_of(entry).train == ["add", "a\n", "b"]
    assert texts_of(entry | {"join": "|"}).train == ["add|a\n", "|b"]
    (tmp_path / "x.csv").write_text("nl,code\nadd,c\n")
    assert texts_of({"path": str(tmp_path / "x.csv"), "columns": ["code"]}).train == ["c"]


def test_duplicates_are_left_out_before_texts_are_held_out(tmp_path):
    lines = [json.dumps({"code": f"f{n % 20}()"}) for n in range(60)]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    found = texts_of({"path": str(tmp_path / "x.jsonl"), "columns": ["code"]}, validation=0.25)
    assert (len(found.train), len(found.valid), found.duplicates) == (15, 5, 40)
    assert not set(found.train) & set(found.valid)


def test_a_limit_draws_rows_by_the_seed(tmp_path):
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps({"code": f"f{n}()"}) for n in range(50)))
    entry = {"path": str(tmp_path / "x.jsonl"), "columns": ["code"], "limit": 10}
    first, again, other = (texts_of(entry, seed=seed).train for seed in (0, 0, 1))
    assert first == again
    assert len(first) == len(set(first)) == 10
    assert first != other
    assert first != [f"f{n}()" for n in range(10)]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"path": "{}/good.jsnl"}, "there is no file or folder {}/good.jsnl\n  hint: did you mean 'good.jsonl'?"),
        ({"path": "{}/*.java"}, "no file at {}/*.java"),
        ({"path": "{}/good.jsonl"}, "data[0]: {}/good.jsonl holds rows, and no column is named"),
        ({"path": "{}/a.py", "columns": ["code"]}, "columns are named, and {}/a.py holds no .jsonl"),
        ({"path": "{}/good.jsonl", "columns": ["cod"]}, "good.jsonl:1: there is no column 'cod'\n  hint: did you mean"),
        ({"path": "{}/bad.jsonl", "columns": ["code"]}, "bad.jsonl:2: code: wanted text, found 7 (int)"),
        ({"path": "{}/latin.py"}, "latin.py:2: wanted UTF-8, found byte 0xe9 at byte offset 3"),
        ({"path": "{}/empty.py"}, "wanted texts, found none that is not empty"),
    ],
)
def test_bad_input(entry, said, tmp_path):
    (tmp_path / "good.jsonl").write_text('{"code": "x"}\n')
    (tmp_path / "bad.jsonl").write_text('{"code": "x"}\n{"code": 7}\n')
    (tmp_path / "a.py").write_text("a")
    (tmp_path / "empty.py").write_text("\n")
    (tmp_path / "latin.py").write_bytes(b"a\n#\xe9\n")
    with pytest.raises(UserError) as raised:
        texts_of(entry | {"path": entry["path"].format(tmp_path)})
    assert said.format(tmp_path) in str(raised.value)
