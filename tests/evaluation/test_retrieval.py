"""Floors of tasks that write."""

from dataclasses import replace

import pytest

from manyskills.data.rows import SplitRows
from manyskills.errors import UserError
from manyskills.evaluation.floors import tfidf_floor
from manyskills.evaluation.retrieval import can_be_copied, copied_sources, copy_floor, nearest_answers, retrieval_floor
from manyskills.tasks import get_task

OPTIONS = {"samples": 20, "confidence": 0.95, "seed": 0}
NAMES = ("readFile", "write_line", "openSocket", "closeAll", "sort keys")


def split(task, name, rows):
    return SplitRows(get_task(task), name, rows, len(rows), f"{name}.jsonl", "0")


def summaries(name, *, ask="", variants=("python", "java")):
    rows = [
        {"id": f"{variant}{row}", "variant": variant, "code": f"{ask} {word} ();", "summary": f"{variant} does {word}"}
        for variant in variants
        for row, word in enumerate(NAMES)
    ]
    return split("code_summarization", name, rows)


def translations(name):
    pairs = [(f"int {word.replace(' ', '')}() ;", f"public int {word.replace(' ', '')}() ;") for word in NAMES]
    rows = [
        {"id": f"{row}:{variant}", "variant": variant, "java": java, "csharp": csharp}
        for row, (java, csharp) in enumerate(pairs)
        for variant in ("java_csharp", "csharp_java")
    ]
    return split("code_translation", name, rows)


def test_the_nearest_source_of_the_same_variant_answers():
    answers = nearest_answers(summaries("train"), summaries("test", ask="return"))
    assert answers.predictions == answers.references
    assert answers.variants == ["python"] * 5 + ["java"] * 5


def test_equally_near_sources_answer_in_order():
    test = summaries("test")
    unknown = replace(test, rows=[{**row, "code": "§§"} for row in test.rows])
    assert set(nearest_answers(summaries("train"), unknown).predictions) == {
        "python does readFile",
        "java does readFile",
    }


def test_a_variant_without_training_rows_gets_nothing():
    answers = nearest_answers(summaries("train", variants=("java",)), summaries("test"))
    assert answers.predictions[:5] == [""] * 5
    assert answers.predictions[5:] == answers.references[5:]


def test_the_floor_of_a_generating_task():
    train, valid, test = summaries("train"), summaries("valid"), summaries("test", ask="return")
    floor = tfidf_floor(train, valid, test, **OPTIONS)
    assert floor.test is not None
    assert floor.test.metrics["exact_match"].value == 1
    assert floor.test.metrics["bleu/java"].value == pytest.approx(1)
    assert (floor.train_rows, floor.test.rows, floor.test.threshold) == (10, 10, None)
    again = retrieval_floor(train, valid, test, **OPTIONS)
    assert replace(again, seconds=0) == replace(floor, seconds=0)
    assert tfidf_floor(train, valid, None, **OPTIONS).test is None


def test_the_copied_source():
    answers = copied_sources(translations("test"))
    assert answers.predictions[:2] == ["int readFile() ;", "public int readFile() ;"]
    assert answers.references[:2] == ["public int readFile() ;", "int readFile() ;"]
    floor = copy_floor(translations("valid"), translations("test"), **OPTIONS)
    assert floor.test is not None
    assert floor.test == floor.valid
    assert floor.test.metrics["exact_match"].value == 0
    assert 0 < floor.test.metrics["bleu/java_csharp"].value < 1
    assert (floor.train_rows, floor.test.rows) == (0, 10)


def test_only_translations_are_copied():
    copied = [name for name in ("code_translation", "code_summarization", "code_generation", "flaky_tests")
              if can_be_copied(get_task(name))]  # fmt: skip
    assert copied == ["code_translation"]


def test_an_empty_split_is_one_clear_sentence():
    empty = split("code_translation", "valid", [])
    with pytest.raises(UserError, match=r"valid\.jsonl: the valid split of code_translation has no rows"):
        copy_floor(empty, None, **OPTIONS)
    with pytest.raises(UserError, match="train split of code_summarization has no rows"):
        tfidf_floor(replace(summaries("train"), rows=[]), summaries("valid"), None, **OPTIONS)
