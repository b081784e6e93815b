"""Every mutation is one small change of the text that changes what the program is."""

import ast
import difflib
import random

import pytest

from manyskills.data.mining.functions import Function, compiles
from manyskills.data.mining.mutations import KINDS, mutate

RICH = """\
def merge(first, second, limit=10):  # layout   stays
    if first is None:
        return second
    # no more room
    if limit <= 0:
        return first
    total = 0
    for i in range(len(first) - 1):
        if first[i] < second[i] and (total + i) > limit:
            total += combine(first, second[i:limit])
    while total and limit:
        total = total - 1
    return swap(first, total), second[0]
"""


def function_of(code):
    return Function("p", "p.m", "f", 1, code)


def mutants(code, count=200):
    made = (mutate(function_of(code), random.Random(seed)) for seed in range(count))
    return {mutated.code: mutated.kind for mutated in made if mutated is not None}


def test_mutants_compile_and_differ_in_one_place():
    found = mutants(RICH)
    assert set(found.values()) == set(KINDS)
    for code, kind in found.items():
        assert compiles(code)
        assert ast.dump(ast.parse(code)) != ast.dump(ast.parse(RICH))
        matcher = difflib.SequenceMatcher(None, RICH.splitlines(), code.splitlines(), autojunk=False)
        changes = [change for change in matcher.get_opcodes() if change[0] != "equal"]
        assert len(changes) == 1, kind
        assert code.splitlines()[0].endswith("# layout   stays")


@pytest.mark.parametrize(
    ("kind", "code", "expected"),
    [
        ("wrong operator", "def f(a):\n    return (a) not  in (b)", {"def f(a):\n    return (a) in (b)"}),
        ("wrong operator", "def f(a, b):\n    return a and b and g", {"def f(a, b):\n    return a or b or g"}),
        ("off by one", "def f(a):\n    return a[0]", {"def f(a):\n    return a[1]"}),
        ("off by one", "def f(a):\n    return a[:n - 1]", {"def f(a):\n    return a[:n]"}),
        ("swapped arguments", "def f(a, b):\n    return g(a,\n  b)", {"def f(a, b):\n    return g(b,\n  a)"}),
        (
            "dropped guard",
            "def f(a):\n    # why\n    if a:\n        return 1\n    return 2",
            {"def f(a):\n    return 2"},
        ),
        ("wrong variable", "def f(a, b):\n    return a", {"def f(a, b):\n    return b"}),
    ],
)
def test_each_kind_does_what_it_says(kind, code, expected):
    assert {text for text, made in mutants(code, 60).items() if made == kind} == expected


@pytest.mark.parametrize(
    "code",
    [
        "def f(a):\n    raise ValueError('a' + 'b', 1 < 2)",  # only words of an error
        "def f(self):\n    return self.g()",
        "def f(a):\n    return max(a, 'b')",
        "def f(a):\n    return 'x' + a",
        "def f(a):\n    return isinstance(a, str)",
        "def f(a):\n    return [a for a in g]",
        "def f():\n    return b",  # not a variable of the function
    ],
)
def test_no_mutation_where_none_would_be_realistic(code):
    assert mutants(code, 20) == {}


def test_a_variable_is_not_replaced_by_one_that_has_no_value_yet():
    code = "def f(a):\n    g(a)\n    later = 1\n    return 5"
    assert mutants(code, 30) == {}


def test_same_seed_same_mutant():
    assert mutate(function_of(RICH), random.Random("s")) == mutate(function_of(RICH), random.Random("s"))
