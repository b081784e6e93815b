"""Values worked by hand, and those of other programs where these compute the same."""

import math

import pytest
import sacrebleu
from nltk.translate.bleu_score import SmoothingFunction
from nltk.translate.bleu_score import sentence_bleu as nltk_bleu

from manyskills.evaluation.text import metrics_for
from manyskills.evaluation.text.bleu import SUMMARIZATION_BLEU, TRANSLATION_BLEU, sentence_bleu, sentence_tokens
from manyskills.evaluation.text.chrf import CHRF
from manyskills.evaluation.text.exact import EXACT_MATCH
from manyskills.evaluation.text.rouge import ROUGE_L
from manyskills.tasks import get_task

PREDICTIONS = [
    "public int size() { return this.count; }",
    "the cat sat on the mat with the other cat",
    "x",
    "",
    "int a = b + c ; return a ;",
]
REFERENCES = [
    "public int Size() { return count; }",
    "the cat is on the mat with another cat",
    "x y z",
    "nothing at all",
    "int a = b * c ; return a ; done",
]


def test_translation_bleu_by_hand():
    # Matches 4, 3, 2, 1 of 5, 4, 3, 2; one more of each: 5/6 * 4/5 * 3/4 * 2/3 = 1/3.
    assert TRANSLATION_BLEU(["a b c d e"], ["a b c d f"])["bleu"] == pytest.approx((1 / 3) ** 0.25)
    # With a second row that is too short: 6/7 * 4/5 * 3/4 * 2/3, and 6 tokens for 7.
    found = TRANSLATION_BLEU(["a b  c d\te", "a"], ["a b c d f", "a b"])["bleu"]
    assert found == pytest.approx((6 / 7 * 2 / 5) ** 0.25 * math.exp(1 - 7 / 6))
    assert TRANSLATION_BLEU(["a a a"], ["a b c"])["bleu"] == pytest.approx((2 / 4 * 1 / 3 * 1 / 2 * 1) ** 0.25)
    assert TRANSLATION_BLEU(["", ""], ["a b", "c"])["bleu"] == 0


def test_translation_bleu_against_sacrebleu():
    # sacrebleu adds 1 for n = 2 to 4 only; the evaluator for n = 1 too.
    other = sacrebleu.corpus_bleu(
        PREDICTIONS, [REFERENCES], smooth_method="add-k", smooth_value=1, tokenize="none", force=True
    )
    first = (other.counts[0] + 1) / (other.totals[0] + 1) / (other.counts[0] / other.totals[0])
    assert TRANSLATION_BLEU(PREDICTIONS, REFERENCES)["bleu"] == pytest.approx(other.score / 100 * first**0.25)


def test_summaries_are_words_and_signs():
    assert sentence_tokens("Don't PARSE foo_bar2, e.g. <T>.") == [
        "don", "'", "t", "parse", "foo", "_", "bar2", ",", "e", ".", "g", ".", "<", "t", ">", ".",
    ]  # fmt: skip
    assert sentence_bleu("Größe ändern", "größe  ändern") == pytest.approx(1)


def test_summarization_bleu_by_hand():
    # 1/2 * (0+1)/(1+1) * (0+1)/(0+1) * (0+1)/(0+1), as long as the reference.
    assert sentence_bleu("the dog", "The cat") == pytest.approx(0.25**0.25)
    # 1 * 1/1 * 1 * 1, and 1 - (3 + 1) / (1 + 1).
    assert sentence_bleu("the", "the cat sat") == pytest.approx(math.exp(-1))
    assert sentence_bleu("", "one two") == pytest.approx(math.exp(-2))
    assert sentence_bleu("other", "the cat") < 1e-70
    rows = [sentence_bleu(*pair) for pair in zip(PREDICTIONS, REFERENCES, strict=True)]
    assert SUMMARIZATION_BLEU(PREDICTIONS, REFERENCES)["bleu"] == pytest.approx(sum(rows) / len(rows))


def test_summarization_bleu_against_nltk():
    prediction, reference = PREDICTIONS[1], REFERENCES[1]
    assert len(prediction.split()) > len(reference.split())  # their penalties for brevity differ
    smoothing = SmoothingFunction().method2
    other = nltk_bleu([reference.split()], prediction.split(), smoothing_function=smoothing)
    assert sentence_bleu(prediction, reference) == pytest.approx(other)


@pytest.mark.parametrize("rows", [slice(0, 1), slice(0, 5), slice(2, 4), slice(3, 4)])
def test_chrf_against_sacrebleu(rows):
    other = sacrebleu.corpus_chrf(PREDICTIONS[rows], [REFERENCES[rows]]).score / 100
    assert CHRF(PREDICTIONS[rows], REFERENCES[rows])["chrf"] == pytest.approx(other)


def test_rouge_l_by_hand():
    # The longest common subsequence is `the cat`: 2 of 3 and 2 of 2.
    assert ROUGE_L(["The cat, sat"], ["the cat"])["rouge_l"] == pytest.approx(2 * (2 / 3) / (2 / 3 + 1))
    assert ROUGE_L(["", "a b"], ["a", "b a"])["rouge_l"] == pytest.approx(0.25)


def test_exact_match_ignores_white_space_between_words_only():
    found = EXACT_MATCH(["a  b\n", "\tx = 1\n  y", "f( x )", "A"], ["a b", "x = 1\ny", "f(x)", "a"])
    assert found == {"exact_match": 0.5}


@pytest.mark.parametrize("task", ["code_translation", "code_summarization", "code_generation"])
def test_each_metric_is_1_for_the_reference_and_lies_between_0_and_1(task):
    for variant in get_task(task).variants:
        for name, metric in metrics_for(variant).items():
            assert metric(REFERENCES, REFERENCES)[name] == pytest.approx(1), (variant.name, name)
            assert all(0 <= value <= 1 for value in metric(PREDICTIONS, REFERENCES).values() if not math.isnan(value))
            assert metric([""] * 5, REFERENCES)[name] < 0.1


def test_which_metrics():
    (python, _), (to_csharp, _) = get_task("code_summarization").variants, get_task("code_translation").variants
    assert list(metrics_for(python)) == ["bleu", "rouge_l", "chrf", "exact_match"]
    assert list(metrics_for(to_csharp)) == ["bleu", "chrf", "exact_match", "codebleu"]
    assert metrics_for(python)["bleu"] is SUMMARIZATION_BLEU
    assert metrics_for(to_csharp)["bleu"] is TRANSLATION_BLEU


def test_rows_must_correspond():
    with pytest.raises(ValueError, match="1 predictions and 2 references"):
        CHRF(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="0 predictions"):
        EXACT_MATCH([], [])
