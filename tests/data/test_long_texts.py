"""What a task says about texts over its limit is done, counted and told."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import AutoTokenizer

from manyskills.data.long_texts import ReadingRule, Truncation
from manyskills.data.options import refuse_useless_options
from manyskills.data.preparation import prepare, read_tasks
from manyskills.data.problems import SHOWN
from manyskills.data.tokens import read_template
from manyskills.errors import UserError
from manyskills.tasks import SPLITS
from manyskills.training.run import train
from tests.training.helpers import small_config


@pytest.fixture
def tokenizer(backbone_folder):
    return AutoTokenizer.from_pretrained(backbone_folder("bert"))


@pytest.fixture
def prepared_as(data_dir, tokenizer):
    def make(**changes):
        config = small_config("unused", data_dir, **changes)
        rows = read_tasks(config, SPLITS)
        template = read_template(tokenizer, end_token=False)
        return prepare(rows, config.tasks, config.max_length, tokenizer, template, 80)

    return make


def test_windows_are_counted_and_nothing_is_lost(prepared_as, tokenizer):
    tasks = {"defect_detection": {"long": "window", "max_length": 40}, "flaky_tests": {"max_length": 20}}
    prepared = prepared_as(tasks=tasks)
    texts = [row["code"] for split in SPLITS for row in prepared.rows[split]["defect_detection"].rows]
    lengths = np.array([len(tokenizer(text)["input_ids"]) for text in texts])
    found = prepared.truncation["defect_detection"]
    assert (found.cut, found.lost, found.tokens) == (0, 0, lengths.sum())
    assert found.windowed == (lengths > 40).sum() > 0
    stride = 38 - round(38 * 0.25)
    assert found.windows == sum(1 - (40 - n) // stride for n in lengths[lengths > 40])
    whole = f"{found.windowed} of {len(lengths)} texts ({found.windowed / len(lengths):.1%}) are longer than 40 tokens"
    assert found.sentence() == f"{whole} and are read in {found.windows} windows, losing nothing"
    other = prepared.truncation["flaky_tests"]
    assert other.cut > 0 and other.windowed == 0 and "are cut at 20 tokens" in other.sentence()


def test_a_text_of_two_tasks_is_read_as_each_says(prepared_as):
    """The same function, in windows for one task and cut for another, is two texts."""
    tasks = {
        "defect_detection": {"long": "window", "max_length": 30},
        "flaky_tests": {"max_length": 30, "columns": {}},
    }
    prepared = prepared_as(tasks=tasks)
    store = prepared.store
    windowed, cut = (prepared.examples["train"][name].texts_EK.ravel() for name in tasks)
    assert store.sequences_N[windowed].max() > 1
    assert store.sequences_N[cut].max() == 1


def test_every_text_that_a_task_refuses_is_named_at_once(prepared_as, tokenizer):
    with pytest.raises(UserError) as caught:
        prepared_as(tasks={"flaky_tests": {"long": "error", "max_length": 30}, "code_search": {"max_length": 9}})
    message = caught.value.message
    lines = message.splitlines()
    assert lines[0].endswith("problems in the data:")
    tokens = len(tokenizer("def test_0():\n    time.sleep(1); assert g(0) == 0")["input_ids"])
    assert lines[1].strip() == f"flaky_tests, train, t0: wanted at most 30 tokens in column 'code', found {tokens}"
    assert len(lines) == SHOWN + 2 and lines[-1].strip().startswith("and ")
    assert "code_search" not in message
    assert "tasks.flaky_tests.long to truncate or window" in (caught.value.hint or "")


def test_a_text_of_many_pairs_is_refused_once(prepared_as):
    with pytest.raises(UserError) as caught:
        prepared_as(tasks={"clone_detection": {"long": "error", "max_length": 9}})
    message = caught.value.message
    assert "44 problems" in message, "24 + 10 + 10 functions, each in several pairs"
    assert "clone_detection, train, pairs_train.jsonl:1: wanted at most 9 tokens in column 'code1'" in message


def test_a_limit_that_no_text_exceeds_refuses_nothing(prepared_as):
    prepared = prepared_as(tasks={"flaky_tests": {"long": "error", "max_length": 80}})
    assert prepared.truncation["flaky_tests"].sentence() == "none of 44 texts is longer than 80 tokens"
    with pytest.raises(UserError, match=r"train\.jsonl:1: wanted at most 40 tokens, found"):
        prepared_as(tasks={"clone_detection": {"long": "error", "max_length": 40, "read": "joint"}})


def test_nothing_is_written_before_a_refusal(backbone_folder, data_dir, tmp_path):
    folder = tmp_path / "run"
    config = small_config(
        backbone_folder("bert"), data_dir, folder, tasks={"flaky_tests": {"long": "error", "max_length": 30}}
    )
    with pytest.raises(UserError, match="flaky_tests, train, t0"):
        train(config, announce=lambda _: None)
    assert not folder.exists()


def test_windows_of_a_joint_pair_are_refused(prepared_as):
    with pytest.raises(UserError, match=r"^tasks\.clone_detection\.long: windows are pieces of one text"):
        prepared_as(tasks={"clone_detection": {"long": "window", "read": "joint"}})


def test_an_overlap_of_what_is_not_in_windows_is_refused(data_dir):
    tasks = {"flaky_tests": {"window_overlap": 0.5}, "code_search": {"long": "window", "window_overlap": 0.5}}
    with pytest.raises(UserError) as caught:
        refuse_useless_options(small_config("unused", data_dir, tasks=tasks))
    message = "tasks.flaky_tests.window_overlap: only windows overlap, and long is truncate"
    assert caught.value.message == message


def test_a_rule_without_choices_cuts():
    assert ReadingRule(40).long == "truncate"
    assert Truncation(8, 2, 200, 10, 40).sentence().startswith("2 of 8 texts (25.0%) are cut at 40 tokens, losing 5.0%")
