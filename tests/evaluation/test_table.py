"""The table says which is best, where a baseline stands higher, and which labels are synthetic."""

import io

import pytest
from rich.console import Console

from manyskills.evaluation.results import metric_label
from manyskills.evaluation.scores import Estimate, TaskScores
from manyskills.evaluation.scores_table import print_scores
from manyskills.evaluation.table import notes, print_table, render_markdown, results_table


def scores(metric, value, low=None, high=None, *, candidates=None):
    return {
        "metrics": {metric: {"value": value, "low": low, "high": high}},
        "threshold": None if candidates else 0.5,
        "rows": 4000,
        "positives": None if candidates else 1255,
        "candidates": candidates,
    }


def system(*values, **options):
    return {"valid": scores(*values, **options), "test": scores(*values, **options)}


@pytest.fixture
def results():
    defects = {
        "module": system("accuracy", 0.604, 0.59, 0.62),
        "untrained": system("accuracy", 0.54, 0.53, 0.55),
        "floor": system("accuracy", 0.645, 0.63, 0.66),
    }
    search = {
        "floor": system("mrr", 0.3, 0.28, 0.32, candidates=2032),
        "module": system("mrr", 0.35, 0.33, 0.37, candidates=2032),
    }
    flaky = {"module": system("f1", None), "floor": system("f1", 0.5)}
    return {
        "tasks": {
            "defect_detection": {"primary_metric": "accuracy", "synthetic": None, "systems": defects},
            "code_search": {"primary_metric": "mrr", "synthetic": None, "systems": search},
            "flaky_tests": {"primary_metric": "f1", "synthetic": "causes injected into real tests", "systems": flaky},
        }
    }


def printed(results, width):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_table(results, console)
    return console.file.getvalue()


def test_rows_are_data(results):
    first, second, third = results_table(results)
    assert (first["best"], second["best"], third["best"]) == ("floor", "module", "floor")
    assert list(second["systems"]) == ["module", "floor"]
    assert second["candidates"] == 2032
    assert first["positives"] == 1255
    assert third["systems"]["module"] == {"value": None, "low": None, "high": None}


def test_markdown(results):
    lines = render_markdown(results).splitlines()
    assert lines[0] == "| task | metric | data | module | untrained | TF-IDF floor |"
    assert lines[2] == (
        "| `defect_detection` | accuracy | 4,000 rows, 1,255 positive | 0.604 [.590, .620] | 0.540 [.530, .550] "
        "| **0.645** [.630, .660] |"
    )
    assert "| `flaky_tests` (synthetic labels) | F1 |" in lines[4]
    assert len({line.count("|") for line in lines[:5]}) == 1


def test_notes_name_what_stands_higher(results):
    assert notes(results) == [
        "defect_detection: the TF-IDF floor stands higher than the module, by 0.041 accuracy (0.645 against 0.604); "
        "their intervals do not overlap",
        "flaky_tests: synthetic labels (causes injected into real tests)",
    ]
    results["tasks"]["defect_detection"]["systems"]["floor"]["test"]["metrics"]["accuracy"]["low"] = 0.61
    assert notes(results)[0].endswith("their intervals overlap")


def test_without_test_scores_the_table_is_of_valid(results):
    results["tasks"]["code_search"]["systems"]["module"]["test"] = None
    assert results_table(results)[1]["split"] == "valid"
    assert "code_search: scores are on the valid split" in notes(results)


@pytest.mark.parametrize("width", [120, 80, 70])
def test_terminal(results, width):
    text = printed(results, width)
    assert max(map(len, text.splitlines())) <= width
    for part in ("* 0.645", "[.630, .660]", "1,255 positive", "2,032 candidates", "F1, synthetic", "stands higher"):
        assert part in text


def test_no_tasks_is_an_empty_table():
    assert results_table({"tasks": {}}) == []
    assert render_markdown({"tasks": {}}).startswith("| task |")
    printed({"tasks": {}}, 80)


def test_written_answers_stand_beside_the_others(results):
    def written(value):
        return {**scores("bleu", value, value - 0.01, value + 0.01), "threshold": None, "positives": None}

    systems = {
        name: {"valid": written(value), "test": written(value)} for name, value in (("copy", 0.19), ("module", 0.5))
    }
    results["tasks"]["code_translation"] = {"primary_metric": "bleu", "synthetic": None, "systems": systems}
    lines = render_markdown(results).splitlines()
    assert lines[0].endswith("| TF-IDF floor | source copied |")
    assert lines[5].startswith("| `code_translation` | BLEU | 4,000 rows | **0.500** [.490, .510] |")
    assert "4,000 rows" in printed(results, 80)


def test_metrics_of_a_variant_say_so():
    assert metric_label("bleu/java_csharp") == "BLEU (java_csharp)"
    assert metric_label("strange") == "strange"


@pytest.mark.parametrize("installed", [True, False])
def test_scores_of_written_answers(monkeypatch, installed):
    monkeypatch.setattr("manyskills.evaluation.text.can_parse", lambda language: installed)
    metrics = {"bleu": Estimate(0.5, 0.4, 0.6), "bleu/java_csharp": Estimate(0.5)}
    console = Console(file=io.StringIO(), width=100, color_system=None)
    print_scores({"code_translation": TaskScores(metrics, None, 10, None, None)}, {}, console)
    text = console.file.getvalue()
    assert "0.5000 [0.4000, 0.6000]   10 rows" in text
    assert "BLEU (java_csharp)" in text
    assert ("tree-sitter" in text) is not installed
