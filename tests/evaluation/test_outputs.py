"""Answers do not depend on how many pairs are scored at a time; losses are those of plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from manyskills.data.text_set import gather
from manyskills.evaluation import outputs
from manyskills.evaluation.answers import Probabilities
from manyskills.evaluation.outputs import evaluation_losses, task_outputs
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


def plain_info_nce(scores_EE, texts_E2):
    """Both directions; the right answers of other rows are no negatives."""
    queries_E, answers_E = texts_E2.T
    same_EE = (queries_E[:, None] == queries_E) | (answers_E[:, None] == answers_E)
    kept_EE = np.where(same_EE & ~np.eye(len(scores_EE), dtype=bool), -np.inf, scores_EE)
    log_sums = [np.log(np.exp(kept_EE).sum(axis=axis)) for axis in (1, 0)]
    return np.mean([(log_sum_E - np.diag(scores_EE)).mean() for log_sum_E in log_sums])


def test_losses_against_numpy(backbone_folder, data_dir, monkeypatch):
    """A classification's are those of the answers that are given; a search's are taken block by block."""
    names = ["defect_detection", "clone_detection", "code_search"]
    model, prepared = warmed_up(small_config(backbone_folder("bert"), data_dir, tasks=names))
    examples = prepared.examples["train"]
    texts = gather(examples)
    vectors_ND = torch.randn(len(texts.unique_N), 32, generator=torch.Generator().manual_seed(0))
    answers = task_outputs(model, examples, vectors_ND)
    monkeypatch.setattr(outputs, "LOSS_BLOCK", 5)
    monkeypatch.setattr(outputs, "_probabilities", None)  # nothing is scored again
    found = evaluation_losses(model, examples, vectors_ND, answers)
    for name in names[:2]:
        given = answers[name]
        assert isinstance(given, Probabilities)
        assert given.labels_E is not None
        labels_E, p_E = given.labels_E, given.probabilities_E
        rate = labels_E.mean()
        losses_E = -np.where(labels_E == 1, np.log(p_E), np.log(1 - p_E))
        chance = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
        assert found[name] == pytest.approx(losses_E.mean() / chance)
    view, head = texts.views["code_search"], model.head("code_search")
    with torch.no_grad():
        sides_MP = head.sides(vectors_ND[torch.from_numpy(view.members_M)]).double().numpy()
        total, scale = 0.0, head.scale.item()
    for start in range(0, len(view.texts_EK), 5):
        block_E2 = view.texts_EK[start : start + 5]
        scores_EE = scale * sides_MP[block_E2[:, 0]] @ sides_MP[block_E2[:, 1]].T
        total += len(block_E2) * plain_info_nce(scores_EE, block_E2) / np.log(max(2, len(block_E2)))
    assert len(view.texts_EK) > 10
    assert found["code_search"] == pytest.approx(total / len(view.texts_EK), rel=1e-5)
