"""Answers do not depend on how many pairs are scored at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from manyskills.data.text_set import gather
from manyskills.evaluation import outputs
from manyskills.evaluation.answers import Probabilities
from manyskills.evaluation.outputs import task_outputs
from tests.training.helpers import small_config, warmed_up


@pytest.mark.parametrize("block", [1, 7, 10_000])
def test_pairs_are_scored_in_blocks(block, backbone_folder, data_dir, monkeypatch):
    model, prepared = warmed_up(small_config(backbone_folder("bert"), data_dir, tasks=["clone_detection"]))
    examples = prepared.examples["train"]
    texts = gather(examples)
    vectors_ND = torch.randn(len(texts.unique_N), 32, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(outputs, "PAIR_BLOCK_ON_CPU", block)
    found = task_outputs(model, examples, vectors_ND)["clone_detection"]
    assert isinstance(found, Probabilities)
    head, view = model.eval().head("clone_detection"), texts.views["clone_detection"]
    with torch.no_grad():
        sides_MP = head.sides(vectors_ND[torch.from_numpy(view.members_M)])
        logits_E = head.scores(sides_MP, torch.from_numpy(view.texts_EK))
        expected_E = torch.sigmoid(logits_E + head.get_buffer("prior_shift")).numpy()
    np.testing.assert_allclose(found.probabilities_E, expected_E, atol=1e-6)
    assert len(found.probabilities_E) == len(examples["clone_detection"]) > 7


def test_no_examples_have_no_answers(backbone_folder, data_dir):
    model, prepared = warmed_up(small_config(backbone_folder("bert"), data_dir, tasks=["clone_detection"]))
    none = {"clone_detection": prepared.examples["train"]["clone_detection"].take(np.empty(0, dtype=np.int64))}
    found = task_outputs(model, none, torch.empty(0, 32))["clone_detection"]
    assert isinstance(found, Probabilities)
    assert found.probabilities_E.shape == (0,)
    assert found.probabilities_E.dtype == np.float64
