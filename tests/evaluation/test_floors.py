"""Floors on tiny data: they separate what is separable, and never look at the test labels to choose."""

from dataclasses import replace

import numpy as np
import pytest

from manyskills.data.rows import SplitRows
from manyskills.errors import UserError
from manyskills.evaluation.floors import tfidf_floor
from manyskills.evaluation.tfidf import subwords, subwords_and_signs
from manyskills.tasks import get_task

OPTIONS = {"samples": 50, "confidence": 0.95, "seed": 0}


def split(task, name, rows):
    return SplitRows(get_task(task), name, rows, len(rows), f"{name}.jsonl", "0")


def classify_rows(count, seed):
    rng = np.random.default_rng(seed)
    labels = [index % 2 for index in range(count)]
    return [
        {
            "id": str(index),
            "code": f"void f{rng.integers(99)}() {{ {('x = y;', 'Thread.sleep(9);')[label]} }}",
            "label": label,
        }
        for index, label in enumerate(labels)
    ]


def pair_rows(count, seed):
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        words = [" ".join(rng.choice(list("abcdefghijklmnop"), 6)) for _ in range(2)]
        label = index % 2
        rows.append({"id": str(index), "code1": words[0], "code2": words[1 - label], "label": label})
    return rows


def search_rows(count, seed):
    rng = np.random.default_rng(seed)
    words = [f"{a}{b}" for a in "abcdefgh" for b in "rstuvwxyz"]
    rows = []
    for index in range(count):
        name, noun = rng.choice(words, 2, replace=False)
        rows.append(
            {"id": str(index), "query": f"{name} the {noun} {index}", "code": f"def {name}_{noun}{index}(): pass"}
        )
    return rows


def splits(task, make, sizes=(60, 20, 20)):
    names = ("train", "valid", "test")
    return tuple(
        split(task, name, make(size, seed)) for seed, (name, size) in enumerate(zip(names, sizes, strict=True))
    )


@pytest.mark.parametrize(
    ("task", "make"),
    [("defect_detection", classify_rows), ("flaky_tests", classify_rows), ("clone_detection", pair_rows)],
)
def test_separable_data_is_separated(task, make):
    floor = tfidf_floor(*splits(task, make), **OPTIONS)
    assert floor.valid.metrics["f1"].value == 1
    assert floor.test is not None
    assert floor.test.metrics["roc_auc"].value == 1
    assert (floor.train_rows, floor.test.rows, floor.test.positives) == (60, 20, 10)
    assert floor.test.threshold == floor.valid.threshold
    assert floor.to_dict()["test"] == floor.test.to_dict()


def test_search_finds_words_inside_identifiers():
    floor = tfidf_floor(*splits("code_search", search_rows), **OPTIONS)
    assert floor.test is not None
    assert floor.test.metrics["mrr"].value > 0.9
    assert (floor.test.rows, floor.test.candidates, floor.test.threshold) == (20, 20, None)


def test_search_counts_equal_candidates_once():
    train, valid, _ = splits("code_search", search_rows)
    twice = split("code_search", "test", [*valid.rows, *valid.rows])
    floor = tfidf_floor(train, valid, twice, **OPTIONS)
    assert floor.test is not None
    assert (floor.test.rows, floor.test.candidates) == (40, 20)
    assert floor.test.metrics["mrr"].value == pytest.approx(floor.valid.metrics["mrr"].value)


def test_a_query_of_unknown_words_ranks_in_the_middle():
    train, valid, _ = splits("code_search", search_rows)
    strange = split("code_search", "test", [{**row, "query": "§§"} for row in valid.rows])
    floor = tfidf_floor(train, valid, strange, **OPTIONS)
    assert floor.test is not None
    assert floor.test.metrics["mrr"].value == pytest.approx(1 / 10.5)


@pytest.mark.parametrize(("task", "make"), [("defect_detection", classify_rows), ("clone_detection", pair_rows)])
def test_test_labels_choose_nothing(task, make):
    train, valid, test = splits(task, make)
    flipped = replace(test, rows=[{**row, "label": 1 - row["label"]} for row in test.rows])
    one, other, without = (tfidf_floor(train, valid, third, **OPTIONS) for third in (test, flipped, None))
    assert one.valid == other.valid == without.valid
    assert without.test is None
    assert one.test is not None
    assert other.test is not None
    assert other.test.threshold == one.test.threshold
    assert other.test.metrics["roc_auc"].value == 0


def test_a_cosine_is_no_probability():
    floor = tfidf_floor(*splits("clone_detection", pair_rows), **OPTIONS)
    assert floor.valid.metrics["ece"].value is None
    assert floor.valid.metrics["brier"].value is None


def test_validation_of_one_class_still_gives_a_floor():
    train, valid, test = splits("flaky_tests", classify_rows)
    negative = replace(valid, rows=[row for row in valid.rows if row["label"] == 0])
    floor = tfidf_floor(train, negative, test, **OPTIONS)
    assert floor.valid.metrics["roc_auc"].value is None
    assert floor.test is not None
    assert floor.test.metrics["roc_auc"].value == 1


def test_repeats_exactly():
    one, two = (tfidf_floor(*splits("flaky_tests", classify_rows), **OPTIONS) for _ in range(2))
    assert replace(one, seconds=0) == replace(two, seconds=0)


def test_bad_input_is_one_clear_sentence():
    train, valid, test = splits("flaky_tests", classify_rows)
    with pytest.raises(UserError, match=r"valid\.jsonl: the valid split of flaky_tests has no rows"):
        tfidf_floor(train, replace(valid, rows=[]), test, **OPTIONS)
    one_class = replace(train, rows=[{**row, "label": 0} for row in train.rows])
    with pytest.raises(UserError, match="all training labels of flaky_tests are 0"):
        tfidf_floor(one_class, valid, test, **OPTIONS)


def test_identifiers_are_split():
    assert subwords("parseHTTPHeader2 = arg_0 + größe;") == ["parse", "http", "header", "arg", "gr", "öß", "e"]
    assert subwords_and_signs("i<=maxLen2") == ["i", "<", "=", "max", "len", "2"]
