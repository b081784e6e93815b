"""Draws that stand for the whole. `test_reading` has those of a split's limit."""

from __future__ import annotations

import numpy as np

from manyskills.data.prompted import PromptExamples
from manyskills.data.sampling_rows import sample_examples
from manyskills.data.text_set import Examples
from manyskills.tasks import get_task

LABELS_E = np.array([1] * 25 + [0] * 75, dtype=np.float32)
TEXTS_EK = np.arange(100)[:, None]


def test_rows_in_columns_are_drawn_by_label_and_by_key():
    examples = Examples(get_task("defect_detection"), TEXTS_EK, LABELS_E)
    found = sample_examples(examples, 16, "0/defect_detection")
    assert len(found) == 16
    assert found.labels_E.sum() == 4
    np.testing.assert_array_equal(found.texts_EK, sample_examples(examples, 16, "0/defect_detection").texts_EK)
    assert not np.array_equal(found.texts_EK, sample_examples(examples, 16, "1/defect_detection").texts_EK)
    assert len(sample_examples(examples, 1000, "0")) == 100
    assert len(sample_examples(examples, 0, "0")) == 0


def written(variants, labels_E=None):
    texts = np.array([f"t{n}" for n in range(len(variants))], dtype=object)
    return PromptExamples(
        get_task("code_summarization"), np.arange(len(variants)), texts, np.array(variants, dtype=object), labels_E
    )


def test_written_rows_are_drawn_by_variant_or_label():
    found = sample_examples(written(["python"] * 75 + ["java"] * 25), 16, "0")
    assert (found.variants_E == "java").sum() == 4
    assert (found.references_E == [f"t{index}" for index in found.prompts_E]).all()
    answers = sample_examples(written([""] * 100, LABELS_E), 16, "0")
    assert answers.labels_E is not None
    assert answers.labels_E.sum() == 4


def test_rows_without_labels():
    found = sample_examples(Examples(get_task("code_search"), TEXTS_EK, None), 7, "0")
    assert len(np.unique(found.texts_EK)) == 7
