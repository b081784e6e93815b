"""Heads in NumPy give what the trained heads of torch give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from manyskills.config import TaskConfig
from manyskills.errors import UserError
from manyskills.inference.heads import PAIR_BLOCK, read_heads
from manyskills.model.heads import BinaryHead, build_head
from manyskills.tasks import get_task

SIZE = 24
CONFIGS = [
    ("defect_detection", {}),
    ("defect_detection", {"head_hidden": 10}),
    ("clone_detection", {}),
    ("clone_detection", {"head_hidden": 10}),
    ("clone_detection", {"read": "joint"}),
    ("clone_detection", {"read": "joint", "head_hidden": 10}),
    ("code_search", {}),
    ("code_search", {"head_hidden": 10}),
]


def _trained(name, options):
    """A head of torch with random weights, and its configuration."""
    config = TaskConfig(**options)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        head = build_head(get_task(name), SIZE, config).eval()
        for tensor in (*head.parameters(), *head.buffers()):
            tensor.add_(torch.randn(tensor.shape) / 3)
    return head, config


def _read(folder, heads, configs):
    path = folder / "heads.safetensors"
    save_file({name: weight.clone() for name, weight in nn.ModuleDict(heads).state_dict().items()}, path)
    return read_heads(path, {name: get_task(name) for name in configs}, configs, SIZE)


@pytest.mark.parametrize(("name", "options"), CONFIGS)
def test_the_same_answers(name, options, tmp_path):
    head, config = _trained(name, options)
    found = _read(tmp_path, {name: head}, {name: config})[name]
    rng = np.random.default_rng(2)
    vectors_MD = (rng.normal(size=(50, SIZE)) * rng.uniform(0.01, 30, size=(50, 1))).astype(np.float32)
    vectors_MD[3] = 0
    texts_EK = rng.integers(0, 50, size=(PAIR_BLOCK + 7, 2))
    with torch.no_grad():
        wanted_MP = head.sides(torch.from_numpy(vectors_MD))
        wanted_E = head.scores(wanted_MP, torch.from_numpy(texts_EK))
    sides_MP = found.sides(vectors_MD)
    assert sides_MP.dtype == np.float32
    np.testing.assert_allclose(sides_MP, wanted_MP.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.scores(sides_MP, texts_EK), wanted_E.numpy(), rtol=1e-4, atol=1e-4)
    if isinstance(head, BinaryHead):
        with torch.no_grad():
            wanted_E = head.probabilities(wanted_MP, torch.from_numpy(texts_EK))
        found_E = found.probabilities(sides_MP, texts_EK)
        assert found_E.dtype == np.float64
        np.testing.assert_allclose(found_E, wanted_E.numpy(), atol=2e-5)


def test_probabilities_at_the_ends_do_not_overflow(tmp_path):
    head, config = _trained("defect_detection", {})
    found = _read(tmp_path, {"defect_detection": head}, {"defect_detection": config})["defect_detection"]
    logits_M1 = np.array([[-1e4], [0], [1e4]], dtype=np.float32) - found.weights["prior_shift"]
    assert found.probabilities(logits_M1, np.array([[0], [1], [2]])).tolist() == pytest.approx([0, 0.5, 1])


def test_weights_that_are_not_those_of_the_tasks(tmp_path):
    head, config = _trained("clone_detection", {})
    with pytest.raises(UserError, match=r"3 missing \(first: flaky_tests\.out\.bias\)"):
        _read(tmp_path, {"clone_detection": head}, {"clone_detection": config, "flaky_tests": TaskConfig()})
    with pytest.raises(UserError, match="unexpected"):
        _read(tmp_path, {"clone_detection": head, "flaky_tests": head}, {"clone_detection": config})
    with pytest.raises(UserError, match=r"has shape \(128, 24\), wanted \(7, 24\)"):
        _read(tmp_path, {"clone_detection": head}, {"clone_detection": TaskConfig(head_hidden=7)})
    (tmp_path / "heads.safetensors").write_bytes(b"\0" * 30)
    with pytest.raises(UserError, match="is broken"):
        read_heads(tmp_path / "heads.safetensors", {}, {}, SIZE)
    with pytest.raises(UserError, match="is missing"):
        read_heads(tmp_path / "none", {}, {}, SIZE)
