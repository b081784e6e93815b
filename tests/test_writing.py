"""The Python interface of tasks whose answers are written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import manyskills
from manyskills.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

JAVA = [f"int get{n}() {{ return a{n * n}; }}" for n in range(6)]
ROWS = [{"java": code} for code in JAVA]
GO: dict[str, Any] = {"variant": "java_csharp"}


@pytest.fixture(scope="module", params=[("lora", "qwen2"), ("mtl_lora", "t5")], ids=["qwen2", "t5"])
def model(request, writing_module):
    return manyskills.load(writing_module(*request.param))


def test_one_answer_a_row_in_order(model):
    found = model.generate("code_translation", ROWS, **GO)
    assert len(found) == 6
    assert all(isinstance(text, str) for text in found)
    assert model.generate("code_translation", ROWS[::-1], **GO) == found[::-1]
    assert model.generate("code_translation", ROWS[2:3], **GO) == found[2:3]
    assert model.generate("code_translation", [], **GO) == []
    told = {}
    model.generate("code_translation", ROWS, **GO, done=told.__setitem__)
    assert told == {place: [text] for place, text in enumerate(found)}


def test_variants_are_told_by_rows_or_by_the_caller(model):
    mixed = [{"java": JAVA[0]}, {"csharp": JAVA[0]}, {"java": JAVA[1], "csharp": "", "variant": "java_csharp"}]
    found = model.generate("code_translation", mixed)
    first, third = model.generate("code_translation", [ROWS[0], ROWS[1]], **GO)
    second = model.generate("code_translation", [{"csharp": JAVA[0]}], variant="csharp_java")[0]
    assert found == [first, second, third]
    assert model.variants("code_translation") == ["java_csharp", "csharp_java"]
    assert model.variants("code_search") == []
    with pytest.raises(UserError, match="nothing tells whether this row is"):
        model.generate("code_translation", [{"java": "a", "csharp": "b"}])
    with pytest.raises(UserError, match="unknown variant 'java_c'"):
        model.generate("code_translation", ROWS, variant="java_c")
    with pytest.raises(UserError, match="row 1"):
        model.generate("code_summarization", [{"code": 3}], variant="python")


def test_draws_depend_on_nothing_else(model):
    options = {**GO, "temperature": 0.9, "samples": 3, "seed": 5}
    found = model.generate("code_translation", ROWS, **options)
    assert [len(texts) for texts in found] == [3] * 6
    assert any(len(set(texts)) > 1 for texts in found)
    assert model.generate("code_translation", ROWS[::-1], **options) == found[::-1]
    assert [model.generate("code_translation", [row], **options)[0] for row in ROWS[:2]] == found[:2]
    assert model.generate("code_translation", ROWS, **options | {"seed": 6}) != found


def test_what_is_left_open_is_as_in_training(model):
    rows = [{"code": code} for code in JAVA]
    trained = model.generate("code_summarization", rows, variant="java")
    assert trained == model.generate("code_summarization", rows, variant="java", num_beams=2, max_new_tokens=7)
    longer = model.generate("code_translation", ROWS, **GO, max_new_tokens=12)
    for short, long in zip(model.generate("code_translation", ROWS, **GO), longer, strict=True):
        assert long.startswith(short)
    cut = model.generate("code_translation", ROWS, **GO, max_new_tokens=12, stop="function")
    for short, long in zip(cut, longer, strict=True):
        assert long.startswith(short)


def test_yes_or_no_in_a_word(model):
    rows = [{"code": code} for code in JAVA]
    found = model.predict_proba("defect_detection", rows)
    assert found.dtype == np.float64
    assert ((found > 0) & (found < 1)).all()
    np.testing.assert_allclose(model.predict_proba("defect_detection", rows[::-1]), found[::-1], atol=1e-5)
    assert model.predict("defect_detection", rows) == [int(p >= 0.4) for p in found]
    assert len(model.predict_proba("defect_detection", [])) == 0


def test_evaluation_covers_what_is_written_and_what_is_not(model, seven_dir):
    found = model.evaluate(seven_dir, samples=3)
    assert list(found) == ["code_translation", "code_summarization", "defect_detection", "code_search"]
    assert {"bleu", "bleu/java_csharp", "bleu/csharp_java"} <= set(found["code_translation"].metrics)
    assert found["code_translation"].rows == 16
    assert found["defect_detection"].threshold == 0.4
    alone = model.evaluate(seven_dir, tasks=["code_summarization"], samples=3)
    assert alone["code_summarization"].to_dict() == found["code_summarization"].to_dict()
    assert list(model.evaluate(seven_dir, tasks=["code_search"], samples=3)) == ["code_search"]


def test_each_kind_is_asked_its_own_way(model):
    for ask, said in (
        (lambda: model.generate("defect_detection", [{"code": "x"}]), "defect_detection does not write"),
        (lambda: model.generate("code_search", [{"query": "x"}]), "code_search does not write"),
        (lambda: model.generate("flaky_tests", [{"code": "x"}]), "was not trained on 'flaky_tests'"),
        (lambda: model.predict("code_translation", ROWS), "code_translation writes, it does not classify"),
        (lambda: model.encode(["x"], task="code_translation"), "is answered with text, and has no vectors"),
        (lambda: model.encode(["x"], task="defect_detection"), "is answered with text, and has no vectors"),
        (lambda: model.generate("code_translation", ROWS, **GO, samples=2), "without drawing"),
        (lambda: model.generate("code_translation", ROWS, **GO, stop="line"), "stop: wanted one of"),
    ):
        with pytest.raises(UserError, match=said):
            ask()
    assert model.encode(["a", "b"], task="code_search").shape[0] == 2


def test_the_frames_that_were_trained_with_count(writing_module, tmp_path):
    folder = tmp_path / "best"
    shutil.copytree(writing_module("lora"), folder)
    before = manyskills.load(folder).generate("code_translation", ROWS, **GO)
    content = json.loads((folder / "tasks.json").read_text())
    assert set(content["prompts"]["code_translation"]) == {"java_csharp", "csharp_java"}
    content["prompts"]["code_translation"]["java_csharp"][0] = "Other words: "
    (folder / "tasks.json").write_text(json.dumps(content))
    assert manyskills.load(folder).generate("code_translation", ROWS, **GO) != before


def test_the_interface_does_not_import_torch():
    code = "import sys, manyskills.code_model, manyskills.cli.generation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
