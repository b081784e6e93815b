"""One line a test row, whatever the kind of answer."""

import json

import numpy as np

from manyskills.data.rows import SplitRows
from manyskills.evaluation.answers import Generations, Probabilities, Ranking
from manyskills.tasks import get_task
from manyskills.training.predictions import write_predictions


def rows(task, **columns):
    found = [{"id": str(number), **dict(zip(columns, values, strict=True))}
             for number, values in enumerate(zip(*columns.values(), strict=True))]  # fmt: skip
    return SplitRows(get_task(task), "test", found, len(found), "test.jsonl", "0")


def test_every_kind_of_answer(tmp_path):
    parts = {
        "flaky_tests": rows("flaky_tests", label=[0, 1]),
        "code_search": rows("code_search", query=["a", "b"]),
        "code_translation": rows("code_translation", variant=["java_csharp", "csharp_java"]),
    }
    outputs = {
        "flaky_tests": Probabilities(np.array([0, 1]), np.array([0.25, 0.75])),
        "code_search": Ranking(np.array([1.0, 2.5]), 9),
        "code_translation": Generations(
            ["Größe();\n", ""], ["x();", "y();"], ["java_csharp", "csharp_java"], get_task("code_translation")
        ),
    }
    write_predictions(tmp_path, parts, outputs, {"flaky_tests": 0.7})

    def lines(name):
        return [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]

    assert lines("flaky_tests")[1] == {"id": "1", "label": 1, "probability": 0.75, "prediction": 1}
    assert lines("code_search")[1] == {"id": "1", "rank": 2.5}
    assert lines("code_translation") == [
        {"id": "0", "variant": "java_csharp", "prediction": "Größe();\n", "reference": "x();"},
        {"id": "1", "variant": "csharp_java", "prediction": "", "reference": "y();"},
    ]
