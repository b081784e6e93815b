"""Functions are cut out of modules as their authors wrote them, docstrings apart."""

import ast
from pathlib import Path

import pytest

from manyskills.data.mining.functions import extract_functions
from manyskills.data.mining.limits import MiningLimits
from manyskills.data.mining.search import query_of
from manyskills.data.mining.sources import Module

ANY = MiningLimits(min_lines=1, min_chars=1)

MODULE = '''\
"""Module."""
import numpy as len

@decorated
def top(a):
    """Say what it does.

    And more.
    """

    # a comment
    x  =  a   # layout
    return x


class A:
    class B:
        async def method(self):
            r"""Docstring, raw."""  # with a comment
            text = """two
            lines"""
            return text

        def kept(self):
            """One."""
            if self:
# at the margin
                return (1,
                        2)

        def only_docstring(self):
            """Nothing else."""

        def one_line(self): """Doc."""; return 1

        def continued(self):
            return "a\\
            b"

        def foreign(self):
            return "\u00e9"
'''


@pytest.fixture
def extract(tmp_path):
    def run(text, limits=ANY, is_test=False):
        path = tmp_path / "m.py"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return {f.qualname: f for f in extract_functions(Module("p", "p.m", path, is_test), limits)}

    return run


def test_what_is_cut_out(extract):
    found = extract(MODULE)
    assert set(found) == {"top", "A.B.kept"}  # strings over several lines would change with the indentation
    assert found["top"].code == "def top(a):\n    # a comment\n    x  =  a   # layout\n    return x"
    assert found["top"].docstring == "Say what it does.\n\nAnd more."
    assert found["top"].shadowed == {"len"}
    assert (
        found["A.B.kept"].code
        == "def kept(self):\n    if self:\n# at the margin\n        return (1,\n                2)"
    )
    assert found["A.B.kept"].is_method and not found["top"].is_method
    assert found["A.B.kept"].name == "kept" and found["A.B.kept"].id == "p.m:24:A.B.kept"
    for function in found.values():
        ast.parse(function.code)


def test_strings_over_lines_stay_where_nothing_is_dedented(extract):
    code = 'def f():\n    return """a\n      b\n"""'
    assert extract(code)["f"].code == code
    assert extract('def f():\n    return """a   \n      b\n"""') == {}  # blanks at a line's end would be lost


def test_windows_line_ends_and_form_feeds(extract):
    assert (
        extract(b"x = 1\r\n\x0c\r\ndef f(a):\r\n    '''Doc.'''\r\n    return a\r\n")["f"].code
        == "def f(a):\n    return a"
    )


@pytest.mark.parametrize("text", [b"\xff\xfe", "def f(:", "x = 1\0", "(" * 500, ""])
def test_files_that_cannot_be_read_give_nothing(extract, text):
    assert extract(text) == {}


def test_limits_count_without_the_docstring(extract):
    text = 'def f(a):\n    """' + "long " * 400 + '"""\n    b = a\n    return b'
    assert set(extract(text, MiningLimits(min_chars=10))) == {"f"}
    assert extract(text, MiningLimits(min_lines=4)) == {}
    assert extract(text, MiningLimits(min_chars=10, max_chars=20)) == {}


def test_of_a_test_suite_only_tests_are_taken(extract):
    assert set(extract("def helper(a):\n    return a\ndef test_a():\n    assert 1", is_test=True)) == {"test_a"}


def test_a_missing_file_gives_nothing():
    assert extract_functions(Module("p", "p.m", Path("/nowhere/m.py"), False), ANY) == []


@pytest.mark.parametrize(
    ("docstring", "query"),
    [
        ("Return the number of\n  words.\n\nMore.", "Return the number of words."),
        ("Use :class:`~a.Path` or :func:`open <io.open>` to ``read`` it all", "Use a.Path or open to read it all"),
        (None, None),
        ("", None),
        ("Too short.", None),
        ("See the method of the same name in the base class.", None),
        (">>> f(1, 2, 3) and so on and on", None),
        ("Deprecated since version one, please use another function.", None),
        ("%(name)s of the thing that is documented elsewhere", None),
        ("\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440 hello there to all of the world", None),
        ("a=1; b=2; c=(3, 4); d={5: 6} xx yy zz ww vv", None),
        ("word " * 80, None),
    ],
)
def test_queries(docstring, query):
    assert query_of(docstring) == query
