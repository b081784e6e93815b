"""Placeholders take the place of a function's own names and of nothing else."""

from __future__ import annotations

import ast

import pytest

from manyskills.data.renaming import rename_some, with_placeholders
from manyskills.data.rows import SplitRows
from manyskills.tasks import get_task

CODE = '''def read_json(path, *rest, default=None):
    """café: path stays here"""
    with open(path) as handle:   # path stays in a comment
        data = json.load(handle)
    for key, value in data.items():
        data.key = value, "data"
    return [read_json(path=key) for key in rest] or default'''

RENAMED = '''def Func(arg_0, *arg_1, arg_2=None):
    """café: path stays here"""
    with open(arg_0) as loc_0:   # path stays in a comment
        loc_1 = json.load(loc_0)
    for loc_2, loc_3 in loc_1.items():
        loc_1.key = loc_3, "data"
    return [Func(path=loc_2) for loc_2 in arg_1] or arg_2'''


def test_own_names_are_replaced_and_others_stay():
    assert with_placeholders(CODE) == RENAMED


def test_names_after_wide_characters_are_found():
    code = 'def f(a):\n    return "ü", a, "é", a'
    assert with_placeholders(code) == 'def Func(arg_0):\n    return "ü", arg_0, "é", arg_0'


def test_globals_stay():
    code = "def f():\n    global count\n    count = 1\n    own = count"
    assert with_placeholders(code) == "def Func():\n    global count\n    count = 1\n    loc_0 = count"


@pytest.mark.parametrize(
    "code", ["int f(int a) { return a; }", "print 'python 2'", "x = 1", "def f(:", "", "def f(): pass\nx = 1"]
)
def test_what_is_no_single_function_stays(code):
    assert with_placeholders(code) == code


def test_the_result_parses_and_keeps_its_structure():
    before, after = ast.parse(CODE), ast.parse(with_placeholders(CODE))
    assert [type(node) for node in ast.walk(before)] == [type(node) for node in ast.walk(after)]


def test_a_share_of_the_rows_is_renamed_the_same_ones_every_time():
    rows = [{"id": str(n), "query": f"q{n}", "code": f"def name_{n}(): return {n}"} for n in range(200)]
    part = SplitRows(get_task("code_search"), "train", rows, 200, "memory", "digest")
    renamed = rename_some(part, 0.8, seed=1)
    changed = [row["code"].startswith("def Func") for row in renamed.rows]
    assert 140 <= sum(changed) <= 180
    assert changed == [row["code"].startswith("def Func") for row in rename_some(part, 0.8, seed=1).rows]
    assert [row["query"] for row in renamed.rows] == [row["query"] for row in rows]
    assert rows[0]["code"] == "def name_0(): return 0", "the given rows stay as they are"
