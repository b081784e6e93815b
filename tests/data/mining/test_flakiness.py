"""Injected root causes, and their look-alikes, keep the test's own lines and really are what they are called."""

import ast
import os
import random
import re
from functools import cache

import pytest

from manyskills.data.mining.flakiness import CAUSES, inject, is_suspect, is_test
from manyskills.data.mining.functions import Function, compiles

UNITTEST = """\
def test_merge_names(self):
    # layout   stays
    names = ["b", "a", "c"]
    box = make(7)
    box.fill(names)
    with box.open():
        box.add("d")
    self.assertEqual(len(box), 4)
"""
PYTEST = """\
def test_merge_names(box):
    names = ["b", "a", "c"]
    result = make(7)
    assert result == 7"""


def function_of(code, name="test_merge_names"):
    return Function("p", "p.tests.test_m", name, 1, code)


@cache
def variants(code, flaky, count=200):
    made = (inject(function_of(code), random.Random(seed), flaky=flaky) for seed in range(count))
    return {injected.code: injected.cause for injected in made if injected is not None}


@pytest.mark.parametrize("code", [UNITTEST, PYTEST])
@pytest.mark.parametrize("flaky", [True, False])
def test_injections_compile_differ_and_cover_every_cause(code, flaky):
    found = variants(code, flaky)
    assert set(found.values()) == set(CAUSES)
    for text in found:
        assert compiles(text)
        assert ast.dump(ast.parse(text)) != ast.dump(ast.parse(code))
    if code is UNITTEST:
        assert all("    # layout   stays\n" in text and "        box.add(" in text for text in found)


def test_assertions_follow_the_tests_own_style():
    assert not any(re.search(r"^\s*assert ", text, re.MULTILINE) for text in variants(UNITTEST, True))
    assert not any("self." in text for text in variants(PYTEST, True))


def test_no_text_has_both_labels():
    for code in (UNITTEST, PYTEST):
        assert not variants(code, True).keys() & variants(code, False).keys()


@pytest.mark.parametrize("cause", CAUSES)
def test_most_words_occur_under_both_labels(cause):
    def words(flaky):
        texts = (text for code in (UNITTEST, PYTEST) for text, made in variants(code, flaky).items() if made == cause)
        return set(re.findall(r"[A-Za-z_]\w*", " ".join(texts)))

    flaky, harmless = words(True), words(False)
    assert len(flaky & harmless) >= 0.8 * min(len(flaky), len(harmless))


def test_harmless_waits_wait_for_the_thread():
    for text, cause in variants(PYTEST, False).items():
        if cause == "fixed wait":
            assert re.search(r"\.start\(\)\n(.*\.join\(\)|.*while \w+\.is_alive\(\))", text)
    for text, cause in variants(PYTEST, True).items():
        if cause == "fixed wait":
            assert re.search(r"\.start\(\)\n(.*time\.sleep\(|.*\.join\([\d.]+\))", text)


def test_harmless_draws_are_seeded_first_or_do_not_matter():
    for text, cause in variants(UNITTEST, False).items():
        if cause != "unseeded randomness":
            continue
        seeded = re.search(r"random\.seed\(\d+\)[\s\S]*random\.(randint|shuffle)|random\.Random\(\d+\)", text)
        unimportant = re.search(r"shuffle\(\w+\)\n\s*\w+\.sort\(\)|assertEqual\(len\(\w+\), \d+\)", text)
        assert seeded or unimportant, text


def test_harmless_look_alikes_of_sets_do_not_depend_on_the_hash_seed(tmp_path):
    # The set's own order is the only thing that may vary: what the harmless variant computes is always sorted.
    for text, cause in variants(PYTEST, False).items():
        if cause == "unordered collection":
            assert re.search(r"sorted\(|dict\.fromkeys|assert '\w+' in|assert len\(", text), text


@pytest.mark.parametrize("flaky", [True, False])
def test_injected_code_runs(flaky, tmp_path, monkeypatch):
    """The look-alikes pass as often as they are run; the root causes at least are no nonsense (no NameError)."""
    import datetime
    import tempfile
    import threading
    import time
    from unittest import mock

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    code = (
        "def test_plain():\n    names = ['b', 'a', 'c']\n    points = [1, 4, 9]\n    size = max(7, 0)\n"
        "    assert names == ['b', 'a', 'c']\n    assert points == [1, 4, 9]\n    assert size == 7"
    )
    known = {
        "time": time, "os": os, "random": random, "threading": threading, "mock": mock, "tempfile": tempfile,
        "datetime": datetime,
    }  # fmt: skip
    ran = 0
    for text, cause in variants(code, flaky).items():
        if "/tmp/" in text:
            continue
        shared = re.search(r"\b(_?[A-Z]{2,}[A-Z_]*)(\.append|\.add|\[|\.clear)", text)
        container = [] if ".append(" in text else set() if ".add(" in text else {}
        namespace = {**known, **({shared.group(1): container} if shared else {})}
        exec(compile(text, "<test>", "exec"), namespace)
        environment = dict(os.environ)
        try:
            namespace["test_plain"]()
        except (AssertionError, IndexError):
            assert flaky, (cause, text)
        finally:
            os.environ.clear()
            os.environ.update(environment)
        ran += 1
    assert ran > 50


def test_what_cannot_be_edited_safely_is_left_alone():
    assert inject(function_of("async def test_a():\n    x = g(3)\n    assert x"), random.Random(0), flaky=True) is None
    assert inject(function_of("def test_a():\n    yield g(3)\n    assert x"), random.Random(0), flaky=True) is None


def test_which_functions_are_tests():
    assert is_test(function_of(UNITTEST)) and is_test(function_of(PYTEST))
    assert not is_test(function_of("def test_x():\n    return 1"))
    assert not is_test(function_of(UNITTEST, name="helper"))


@pytest.mark.parametrize("line", ["time.sleep(1)", "random.random()", "datetime.now()", "t = threading.Thread()"])
def test_tests_that_may_be_flaky_already_get_no_label(line):
    assert is_suspect(function_of(f"def test_x():\n    {line}\n    assert y"))
    assert not is_suspect(function_of(UNITTEST))
