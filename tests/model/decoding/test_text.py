"""Answers that end behind their function: while they are written, and as text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from manyskills.model.decoding.loop import Choice, write_answers
from manyskills.model.decoding.options import Stop
from manyskills.model.decoding.stopping import function_end
from manyskills.model.decoding.text import AnswerTexts
from manyskills.model.generation import Decoding, generate
from tests.model.decoding.helpers import prompts, store, text, writer

PYTHON = "def add(a, b):\n    return a + b\nprint(add(1, 2))\n"
JAVA = "int f() { return 1; } int g() { return 2; }"


class _Script:
    """Stands for a network that writes these texts."""

    def __init__(self, tokens):
        self.tokens, self.rows, self.place, self.steps = tokens, list(range(len(tokens))), 0, 0

    def read(self):
        return self._logits()

    def write(self, tokens_B):
        assert tokens_B.tolist() == [self.tokens[row][self.place] for row in self.rows]
        self.place += 1
        return self._logits()

    def keep(self, rows):
        self.rows = [self.rows[row] for row in rows.tolist()]

    def _logits(self):
        self.steps += len(self.rows)
        return torch.nn.functional.one_hot(torch.tensor([self.tokens[row][self.place] for row in self.rows]), 300)


@pytest.fixture(scope="module")
def model(backbone_folder):
    return writer(backbone_folder("qwen2"))


def test_an_answer_ends_with_its_function(model):
    ids = [model.tokenizer.encode(code, add_special_tokens=False) for code in (PYTHON, JAVA, JAVA)]
    longest = max(map(len, ids))
    script = _Script([[*row, *[2] * (longest - len(row))] for row in ids])
    texts = AnswerTexts(model, "function", ["english", "python", "java", "english"])
    positions = np.array([1, 2, 3])
    found = write_answers(
        script, 3, samples=1, length=longest, choice=Choice(), end_ids=texts.end_ids, ended=texts.ended(positions, 1)
    )
    answers = [texts.text(int(position), tokens) for position, tokens in zip(positions, found, strict=True)]
    assert answers == ["def add(a, b):\n    return a + b", "int f() { return 1; }", JAVA]
    written = [text(model, tokens) for tokens in found]
    assert written == ["def add(a, b):\n    return a + b\np", "int f() { return 1; }", JAVA]
    assert script.steps < 3 * longest, "what has ended leaves the batch"


def test_without_a_language_only_the_end_token_counts(model):
    assert AnswerTexts(model, "function", None).ended(np.arange(2), 1) is None
    assert AnswerTexts(model, "function", ["english"]).ended(np.arange(1), 1) is None
    assert AnswerTexts(model, "end", ["python"]).ended(np.arange(1), 1) is None
    assert AnswerTexts(model, "end", ["python"]).text(0, model.tokenizer.encode(PYTHON)) == PYTHON


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", ["qwen2", "t5"])
def test_stopping_cuts_what_would_be_written_anyway(beams, family, backbone_folder):
    model = writer(backbone_folder(family))
    with torch.no_grad():  # a writer of brackets, braces and semicolons
        network: Any = model.language_model
        head = network.get_output_embeddings()
        for mark in "(){};":
            head.weight[model.tokenizer.encode(mark, add_special_tokens=False)[0]] *= 3

    def write(stop: Stop) -> list[str]:
        decoding = Decoding(20, num_beams=beams, stop=stop)
        found = generate(model, store(prompts(8)), np.arange(8), decoding, token_budget=500, languages=["java"] * 8)
        return [text for (text,) in found]

    whole, cut = write("end"), write("function")
    assert cut != whole
    assert any(function_end(text, "java") is not None for text in cut)
    assert all(function_end(text, "java") in (None, len(text)) for text in cut)
    if beams == 1:
        assert cut == [text[: function_end(text, "java")] for text in whole]
