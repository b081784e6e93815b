"""Metrics of texts that a model writes. All built-in ones are listed here; each lies between 0 and 1."""

from __future__ import annotations

from manyskills.evaluation.text.base import TextMetric
from manyskills.evaluation.text.bleu import SUMMARIZATION_BLEU, TRANSLATION_BLEU
from manyskills.evaluation.text.chrf import CHRF
from manyskills.evaluation.text.codebleu import LANGUAGES, can_parse, codebleu
from manyskills.evaluation.text.exact import EXACT_MATCH
from manyskills.evaluation.text.rouge import ROUGE_L
from manyskills.tasks import Task, Variant

__all__ = ["CODEBLEU_HINT", "PROSE", "TextMetric", "lacks_codebleu", "metrics_for"]

PROSE = "english"
"""The language of variants that write sentences; any other is a programming language."""

PROSE_METRICS = {"bleu": SUMMARIZATION_BLEU, "rouge_l": ROUGE_L, "chrf": CHRF, "exact_match": EXACT_MATCH}
CODE_METRICS = {"bleu": TRANSLATION_BLEU, "chrf": CHRF, "exact_match": EXACT_MATCH}

CODEBLEU_HINT = 'CodeBLEU needs tree-sitter: pip install "manyskills[eval]" -c constraints.txt'


def metrics_for(variant: Variant) -> dict[str, TextMetric]:
    """The metrics of what a variant writes; CodeBLEU for `LANGUAGES` if tree-sitter is installed."""
    if variant.language == PROSE:
        return PROSE_METRICS
    if variant.language in LANGUAGES and can_parse(variant.language):
        return {**CODE_METRICS, "codebleu": codebleu(variant.language)}
    return CODE_METRICS


def lacks_codebleu(task: Task) -> bool:
    """Whether the task writes a language that CodeBLEU covers and the packages for it are missing."""
    return any(variant.language in LANGUAGES and not can_parse(variant.language) for variant in task.variants)
