"""Prompts with answers, and what a language model makes of each alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter

from manyskills.config import BackboneConfig, MethodConfig, TaskConfig
from manyskills.data.prompted import PromptStore
from manyskills.model.attention import choose_attention
from manyskills.model.backbones import load_backbone
from manyskills.model.methods import METHODS
from manyskills.model.multitask import MultiTaskModel

TASKS = ("code_translation", "defect_detection", "code_summarization")
ROUTES = (0, 2)
"""Of the tasks that write."""


def writing_model(folder: str, method: str = "lora", **options: Any) -> MultiTaskModel:
    """A model whose shared module does something, without dropout; unpadded where it can be."""
    torch.manual_seed(0)
    config: MethodConfig = TypeAdapter(MethodConfig).validate_python({"name": method, **options})
    backbone = load_backbone(BackboneConfig(name=folder), language_head=True)
    model = MultiTaskModel(backbone, config, {name: TaskConfig() for name in TASKS})
    with torch.no_grad():
        for _, p in model.shared_parameters():
            p.add_(torch.randn_like(p) * 0.05)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    choose_attention(model, "auto")
    return model.train()


def prompt_store(
    lengths: Sequence[tuple[int, int]], model: MultiTaskModel | None = None, learnt: bool = False
) -> PromptStore:
    """Random prompts and answers of these lengths, read for the writing tasks in turn."""
    generator = np.random.default_rng(0)
    prompts, answers = ([generator.integers(3, 300, size) for size in side] for side in zip(*lengths, strict=True))
    routed = model is not None and METHODS[model.method.name].routed
    routes_S = np.array([ROUTES[n % 2] if routed else 0 for n in range(len(lengths))])
    return PromptStore(*joined(prompts), *joined(answers), routes_S=routes_S, learnt_S=np.full(len(lengths), learnt))


def joined(sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Ids one behind another, and where each sequence begins."""
    starts_S = np.concatenate([[0], np.cumsum([len(ids) for ids in sequences])])
    return np.concatenate(sequences).astype(np.int32), starts_S


def loss_alone(model: MultiTaskModel, store: PromptStore, index: int) -> torch.Tensor:
    """Sum of the losses of one answer's tokens, by the language model's own logits."""
    network, prompt, answer = model.language_model, store.prompt(index), store.answer(index)
    assert network is not None
    with model.routed(torch.from_numpy(store.routes_S[[index]])):
        if model.architecture.family == "encoder_decoder":
            read = np.concatenate([[model.architecture.start_id], answer[:-1]])
            logits_TV = network(input_ids=_ids(prompt), decoder_input_ids=_ids(read)).logits[0]
            predicting_TV, targets = logits_TV, answer
        else:
            whole = np.concatenate([prompt, answer])
            first = 1 if store.learnt_S[index] else len(prompt)
            predicting_TV, targets = network(input_ids=_ids(whole)).logits[0, first - 1 : -1], whole[first:]
    return F.cross_entropy(predicting_TV, torch.from_numpy(targets.astype(np.int64)), reduction="sum")


def _ids(ids: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(ids.astype(np.int64))[None]


def gradients(model: MultiTaskModel) -> dict[str, torch.Tensor]:
    """What is in the shared parameters, which is then forgotten."""
    found = {name: p.grad.clone() for name, p in model.shared_parameters() if p.grad is not None}
    model.zero_grad()
    return found
