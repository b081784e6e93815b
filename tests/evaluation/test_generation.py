"""Written texts are scored variant by variant; their intervals are those of resampled rows."""

from dataclasses import replace

import numpy as np
import pytest

from manyskills.errors import UserError
from manyskills.evaluation import text as text_metrics
from manyskills.evaluation.answers import Generations, choose_thresholds, plain_metrics, score
from manyskills.evaluation.bootstrap import resample_counts
from manyskills.evaluation.generation import generation_metrics, score_generations
from manyskills.evaluation.text import metrics_for
from manyskills.tasks import get_task

TRANSLATION = get_task("code_translation")
OPTIONS = {"samples": 40, "confidence": 0.9, "seed": 3}


def translations(rows=12, task=TRANSLATION):
    """Rows of both directions in turn, of which every third is wrong in a way of its own."""
    rng = np.random.default_rng(0)
    references = [
        f"int f{row}(int a) {{ int b = a + {row}; return b * {rng.integers(9)}; }}" for row in range(2 * rows)
    ]
    predictions = [
        f"int g(int a) {{ return a + {row}; }}" if row % 3 == 0 else text for row, text in enumerate(references)
    ]
    return Generations(predictions, references, ["java_csharp", "csharp_java"] * rows, task)


def rows_of(answers, variant):
    chosen = [row for row, name in enumerate(answers.variants) if name == variant]
    return [answers.predictions[row] for row in chosen], [answers.references[row] for row in chosen]


def test_each_variant_and_their_mean():
    answers = translations()
    answers = replace(answers, variants=["java_csharp"] * 5 + ["csharp_java"] * 19)
    found = score_generations(answers, **OPTIONS).metrics
    for variant in TRANSLATION.variants:
        for metric in metrics_for(variant).values():
            for name, value in metric(*rows_of(answers, variant.name)).items():
                assert found[f"{name}/{variant.name}"].value == pytest.approx(value)
    for name in ("bleu", "chrf", "exact_match", "codebleu", "codebleu_dataflow_rows"):
        both = [found[f"{name}/{variant.name}"].value for variant in TRANSLATION.variants]
        assert found[name].value == pytest.approx(sum(both) / 2), name
    assert list(found)[:4] == ["bleu", "chrf", "exact_match", "codebleu"]


def test_intervals_are_those_of_metrics_on_resampled_rows():
    answers = translations()
    scores = score_generations(answers, **OPTIONS)
    by_variant = []
    for variant in TRANSLATION.variants:
        predictions, references = rows_of(answers, variant.name)
        counts_SN = np.concatenate(list(resample_counts(len(predictions), OPTIONS["samples"], OPTIONS["seed"])))
        drawn = [np.repeat(np.arange(len(predictions)), counts_N.astype(int)) for counts_N in counts_SN]
        bleu = metrics_for(variant)["bleu"]
        values = [bleu([predictions[i] for i in rows], [references[i] for i in rows])["bleu"] for rows in drawn]
        estimate = scores.metrics[f"bleu/{variant.name}"]
        assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(values, [0.05, 0.95])))
        by_variant.append(values)
    mean = np.quantile(np.mean(by_variant, axis=0), [0.05, 0.95])
    assert (scores.metrics["bleu"].low, scores.metrics["bleu"].high) == pytest.approx(tuple(mean))
    assert (scores.rows, scores.threshold, scores.positives, scores.candidates) == (24, None, None, None)
    assert type(scores).from_dict(scores.to_dict()) == scores


def test_without_resamples_there_are_no_intervals():
    estimate = score_generations(translations(), samples=0, confidence=0.9, seed=0).metrics["bleu"]
    assert estimate.value is not None
    assert estimate.low is None


def test_validation_parses_only_if_codebleu_decides():
    quick = generation_metrics(translations())
    assert not [name for name in quick if name.startswith("codebleu")]
    assert quick["bleu"] == pytest.approx(score_generations(translations(), **OPTIONS).metrics["bleu"].value)
    for primary in ("codebleu", "codebleu_syntax"):
        assert primary in generation_metrics(translations(task=replace(TRANSLATION, primary_metric=primary)))


def test_without_tree_sitter_only_codebleu_is_missing(monkeypatch):
    monkeypatch.setattr(text_metrics, "can_parse", lambda language: False)
    found = score_generations(translations(), **OPTIONS).metrics
    assert sorted(name for name in found if "/" not in name) == ["bleu", "chrf", "exact_match"]
    decides = translations(task=replace(TRANSLATION, primary_metric="codebleu"))
    with pytest.raises(UserError, match=r"code_translation cannot be measured by codebleu\n.*manyskills\[eval\]"):
        generation_metrics(decides)


def test_a_metric_of_some_variants_has_no_mean():
    go = replace(TRANSLATION.variants[0], language="go")
    answers = translations(task=replace(TRANSLATION, variants=(go, TRANSLATION.variants[1])))
    found = score_generations(answers, **OPTIONS).metrics
    assert "codebleu/csharp_java" in found
    assert not {"codebleu", "codebleu/java_csharp"} & set(found)


def test_they_stand_beside_other_answers():
    outputs = {"code_translation": translations()}
    assert choose_thresholds(outputs, {"code_translation": "bleu"}) == {}
    assert plain_metrics(outputs, {})["code_translation"] == generation_metrics(translations())
    assert score(outputs, {}, **OPTIONS)["code_translation"] == score_generations(translations(), **OPTIONS)


def test_bad_answers():
    with pytest.raises(ValueError, match="1 predictions, 2 references, 1 variants"):
        Generations(["a"], ["a", "b"], ["java_csharp"], TRANSLATION)
    with pytest.raises(ValueError, match=r"no variants \['python'\]"):
        Generations(["a"], ["a"], ["python"], TRANSLATION)
    with pytest.raises(UserError, match="no rows of code_translation"):
        generation_metrics(Generations([], [], [], TRANSLATION))
    with pytest.raises(UserError, match=r"cannot be measured by rouge_l\n.*choose one of: bleu, chrf"):
        generation_metrics(translations(task=replace(TRANSLATION, primary_metric="rouge_l")))
