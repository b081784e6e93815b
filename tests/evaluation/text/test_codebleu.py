"""CodeBLEU's four parts see what they should, and nothing else."""

import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from manyskills.evaluation.text.codebleu import codebleu
from manyskills.evaluation.text.codebleu.dataflow import data_flow
from manyskills.evaluation.text.codebleu.parsing import FRAME, parse
from manyskills.evaluation.text.codebleu.syntax import subtrees

CODE = {
    "java": "public int add(int a, int b) { int sum = a + b; return sum; }",
    "csharp": "public int Add(int a, int b) { int sum = a + b; return sum; }",
    "python": "def add(a, b):\n    total = a + b\n    return total\n",
}
RENAMED = {
    "java": "public int add(int x, int y) { int z = x + y; return z; }",
    "csharp": "public int Add(int x, int y) { int z = x + y; return z; }",
    "python": "def add(x, y):\n    z = x + y\n    return z\n",
}
LANGUAGES = sorted(CODE)


def score(prediction, reference, language):
    return codebleu(language)([prediction], [reference])


def flow(text, language="java"):
    return data_flow(parse(text, language), language)


@pytest.mark.parametrize("language", LANGUAGES)
def test_methods_parse_without_errors(language):
    trees = parse(CODE[language], language)
    assert len(trees) == 1
    assert not trees[0].has_error
    assert trees[0].start_byte == len(FRAME[language][0])


@pytest.mark.parametrize("language", LANGUAGES)
def test_renaming_changes_words_but_neither_syntax_nor_data_flow(language):
    found = score(RENAMED[language], CODE[language], language)
    assert found["codebleu_syntax"] == found["codebleu_dataflow"] == 1
    assert found["codebleu_ngram"] < 0.5
    parts = [found[f"codebleu_{part}"] for part in ("ngram", "weighted", "syntax", "dataflow")]
    assert found["codebleu"] == pytest.approx(sum(parts) / 4)


def test_a_lost_keyword_costs_more_than_another_word():
    reference = "return this . a + b . c + d . e"
    without_keyword = score("x this . a + b . c + d . e", reference, "java")
    without_word = score("return this . a + b . c + d . x", reference, "java")
    assert without_keyword["codebleu_ngram"] == pytest.approx(without_word["codebleu_ngram"])
    assert without_keyword["codebleu_weighted"] < without_word["codebleu_weighted"]


def test_weighted_words_by_hand():
    # `int a` of `int b`: a keyword of weight 5 matches, a word of weight 1 does not; then no pair, and nothing longer.
    found = score("int a", "int b", "java")
    assert found["codebleu_weighted"] == pytest.approx((5 / 6 * 0.1 * 0.1 * 0.1) ** 0.25)
    assert found["codebleu_ngram"] == pytest.approx((1 / 2 * 0.1 * 0.1 * 0.1) ** 0.25)


def test_subtrees_are_counted_and_clipped():
    shapes = {}
    once = subtrees(parse("f(a + b);", "python"), shapes)
    twice = subtrees(parse("f(a + b + c)", "python"), shapes)
    assert sum(once.values()) == 5  # module, statement, call, arguments, sum
    assert sum((twice & once).values()) == 1  # the inner sum only: the shapes around it differ
    assert score("x + y\n", "x + y\nx + y\n", "python")["codebleu_syntax"] == pytest.approx(2 / 5)


def test_comments_do_not_count():
    commented = CODE["java"].replace("return", "/* the sum */ return")
    found = score(commented, CODE["java"], "java")
    assert found["codebleu_syntax"] == found["codebleu_dataflow"] == 1


def test_edges():
    # b is computed from a; then a, b are read again.
    assert flow("void f(int a) { int b = a; g(a, b); }") == Counter(
        {(0, "comes from", (0,)): 2, (1, "computed from", (0,)): 1, (1, "comes from", (1,)): 1}
    )


@pytest.mark.parametrize(
    ("language", "text", "same"),
    [
        ("java", "void f(int a, int b) { a += b; }", "void f(int a, int b) { a = a + b; }"),
        ("csharp", "void F(int a) { a++; }", "void F(int a) { a = a; }"),
        ("csharp", "void F(int a) { var b = -a; }", "void F(int a) { var b = a; }"),
        ("python", "def f(x):\n    a, b = x\n    return a", "def f(p):\n    c, d = p\n    return c"),
        ("python", "[t for t in c]", "for t in c:\n    t"),
        ("python", "with g(x) as y:\n    y", "y = x\ny"),
    ],
)
def test_ways_of_saying_the_same_flow(language, text, same):
    assert flow(text, language)
    assert flow(text, language) == flow(same, language)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("java", "void f(int a) { this.n = a; return this.n; }"),
        ("csharp", "void F(int a) { this.n = a; return this.n; }"),
        ("python", "def f(self, a):\n    self.n = a\n    return self.n"),
    ],
)
def test_own_fields_are_variables(language, text):
    assert flow(text, language) == Counter(
        {(0, "comes from", (0,)): 1, (1, "computed from", (0,)): 1, (1, "comes from", (1,)): 1}
    )


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("java", "void f() { g(); a.b(); }"),
        ("csharp", "void F() { G(1); a.B(); Foo<int> x; }"),
        ("python", "def f(a):\n    return b.a(key=1)"),
    ],
)
def test_names_of_functions_and_fields_are_no_variables(language, text):
    assert not flow(text, language)


def test_without_data_flow_the_other_parts_share_the_weight():
    found = score("void f() { g(); }", "void f() { h(); }", "java")
    assert np.isnan(found["codebleu_dataflow"])
    others = [found[f"codebleu_{part}"] for part in ("ngram", "weighted", "syntax")]
    assert found["codebleu"] == pytest.approx(sum(others) / 3)
    two = codebleu("java")([CODE["java"], "void f() { g(); }"], [CODE["java"], "void f() { g(); }"])
    assert two["codebleu_dataflow_rows"] == 0.5
    assert two["codebleu"] == pytest.approx(1)


@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_written_scores_nothing(language):
    assert score("", CODE[language], language)["codebleu"] == 0


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("text", ["} class B {", "(" * 3000, "\ud800 \0", "a" + "+a" * 3000, "x = [" * 500, ")" * 50])
def test_any_text_is_scored(language, text):
    assert 0 <= score(text, CODE[language], language)["codebleu"] <= 1
    score(CODE[language], text, language)


def test_the_same_whatever_the_hash_seed():
    program = (
        "from manyskills.evaluation.text.codebleu import codebleu\n"
        f"print(codebleu('java')([{RENAMED['java']!r}], [{CODE['java']!r}]))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
