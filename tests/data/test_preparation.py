"""From rows to indices: nothing is lost, nothing is encoded twice, limits hold and are counted."""

from __future__ import annotations

import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from manyskills.config import TaskConfig
from manyskills.data.long_texts import length_limit
from manyskills.data.preparation import positive_rates, prepare, read_tasks, task_source
from manyskills.data.tokens import read_template
from manyskills.errors import UserError
from manyskills.tasks import SPLITS
from tests.training.helpers import TASKS, small_config


@pytest.fixture
def prepared_as(backbone_folder, data_dir):
    tokenizer = AutoTokenizer.from_pretrained(backbone_folder("bert"))
    template = read_template(tokenizer, end_token=False)

    def make(**changes):
        config = small_config("unused", data_dir, **changes)
        rows = read_tasks(config, SPLITS)
        return prepare(rows, config.tasks, config.max_length, tokenizer, template, 80), tokenizer

    return make


@pytest.mark.parametrize("split", SPLITS)
def test_indices_lead_back_to_the_rows(split, prepared_as):
    prepared, tokenizer = prepared_as(max_length=80)
    for name in TASKS:
        part, rows = prepared.examples[split][name], prepared.rows[split][name]
        assert len(part) == len(rows.rows)
        for texts_K, row in zip(part.texts_EK, rows.rows, strict=True):
            for index, column in zip(texts_K, part.task.inputs, strict=True):
                whole = tokenizer(row[column])["input_ids"]
                expected = whole if len(whole) <= 80 else [*whole[:79], 2]
                assert prepared.store.sequence(index).tolist() == expected
        if part.labels_E is not None:
            assert part.labels_E.tolist() == [row["label"] for row in rows.rows]
    used = prepared.used_texts(split)
    assert (np.diff(used) > 0).all()


def test_a_text_is_one_wherever_it_occurs_and_texts_that_differ_past_the_limit_are_two(prepared_as):
    """Merged, texts that are alike up to the limit would leave a search with fewer candidates than it has."""
    prepared, _ = prepared_as(max_length=6)
    defects = prepared.examples["train"]["defect_detection"]
    assert len(np.unique(defects.texts_EK)) == 24
    pairs = prepared.examples["train"]["clone_detection"].texts_EK
    assert len(np.unique(pairs)) == 24 < pairs.size, "each function is in two pairs"


def test_truncation_is_counted_by_task(prepared_as):
    prepared, tokenizer = prepared_as(tasks={"defect_detection": {}, "flaky_tests": {"max_length": 20}}, max_length=50)
    for name, limit in (("defect_detection", 50), ("flaky_tests", 20)):
        texts = {row["code"] for split in SPLITS for row in prepared.rows[split][name].rows}
        lengths = np.array([len(tokenizer(text)["input_ids"]) for text in texts])
        found = prepared.truncation[name]
        assert found.max_length == limit
        assert found.cut == (lengths > limit).sum()
        assert (found.texts, found.tokens) == (len(texts), lengths.sum())
        assert found.lost == np.maximum(lengths - limit, 0).sum()
        kept = [prepared.store.lengths_N[prepared.examples[split][name].texts_EK].max() for split in SPLITS]
        assert max(kept) <= limit


def test_joint_pairs_are_one_text_of_two_parts(prepared_as):
    prepared, tokenizer = prepared_as(tasks={"clone_detection": {"read": "joint"}}, max_length=80)
    part, rows = prepared.examples["train"]["clone_detection"], prepared.rows["train"]["clone_detection"].rows
    assert part.texts_EK.shape == (24, 1)
    expected = tokenizer(rows[0]["code1"], rows[0]["code2"])["input_ids"]
    assert prepared.store.sequence(part.texts_EK[0, 0]).tolist() == expected


def test_limits_beyond_the_backbone_name_the_key():
    assert length_limit("flaky_tests", TaskConfig(), 80, 80) == 80
    assert length_limit("flaky_tests", TaskConfig(max_length=9), 900, 80) == 9
    assert length_limit("flaky_tests", TaskConfig(), 900, None) == 900
    with pytest.raises(UserError, match=r"^max_length: 81 tokens wanted, the backbone reads 80 at most"):
        length_limit("flaky_tests", TaskConfig(), 81, 80)
    with pytest.raises(UserError, match=r"^tasks\.flaky_tests\.max_length: 81"):
        length_limit("flaky_tests", TaskConfig(max_length=81), 10, 80)


def test_sources_and_rates(prepared_as, data_dir, tmp_path):
    config = small_config("b", data_dir, tasks={"flaky_tests": {"data": "elsewhere"}, "code_search": {}})
    assert task_source(config, "flaky_tests") == "elsewhere"
    assert task_source(config, "code_search") == str(data_dir / "code_search")
    prepared, _ = prepared_as()
    rates = positive_rates(prepared.examples["train"])
    rows = map(json.loads, (data_dir / "flaky_tests" / "train.jsonl").read_text().splitlines())
    assert rates["flaky_tests"] == np.mean([row["label"] for row in rows])
    assert "code_search" not in rates
