"""Models that write, prompts for them, and what they should write: everything read again for each token."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from manyskills.config import BackboneConfig, TaskConfig, TrainConfig
from manyskills.data.prompted import PromptStore
from manyskills.model.backbones import load_backbone
from manyskills.model.multitask import MultiTaskModel

TASKS = ("code_translation", "code_summarization")


def writer(folder: str, method: Any = "lora", tasks: tuple[str, ...] = TASKS, **changes: Any) -> MultiTaskModel:
    """A model whose adapters do something and whose logits are far apart."""
    config = TrainConfig.model_validate({"backbone": folder, "tasks": list(tasks), "method": method} | changes)
    backbone = load_backbone(BackboneConfig(name=folder), language_head=True)
    torch.manual_seed(0)
    model = MultiTaskModel(backbone, config.method, {name: TaskConfig() for name in tasks}).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.2)
    return model


def prompts(count: int, *, shortest: int = 3, longest: int = 20, seed: int = 0) -> list[np.ndarray]:
    """Random ids without special tokens."""
    rng = np.random.default_rng(seed)
    return [rng.integers(4, 300, rng.integers(shortest, longest + 1)) for _ in range(count)]


def store(texts: list[np.ndarray], routes: list[int] | None = None) -> PromptStore:
    """These prompts without answers."""
    starts = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
    routes_S = np.array(routes if routes is not None else [0] * len(texts), dtype=np.int64)
    nothing = np.zeros(len(texts) + 1, dtype=np.int64)
    ids_T = np.concatenate(texts).astype(np.int32)
    return PromptStore(ids_T, starts, np.zeros(0, np.int32), nothing, routes_S, np.zeros(len(texts), dtype=bool))


@torch.no_grad()
def next_logits(model: MultiTaskModel, prompt: np.ndarray, answer: list[int], route: int = 0) -> torch.Tensor:
    """Logits of the token behind one prompt and what was written, all of it read at once, without a cache."""
    network: Any = model.language_model
    with model.routed(torch.tensor([route])):
        if model.architecture.family == "encoder_decoder":
            start = [model.architecture.start_id, *answer]
            out = network(
                input_ids=torch.from_numpy(prompt)[None], decoder_input_ids=torch.tensor([start]), use_cache=False
            )
        else:
            out = network(input_ids=torch.tensor([[*prompt.tolist(), *answer]]), use_cache=False)
    return out.logits[0, -1]


def greedy(model: MultiTaskModel, prompt: np.ndarray, length: int, route: int = 0, end: int = 2) -> list[int]:
    """The likeliest tokens, one after another."""
    answer: list[int] = []
    while len(answer) < length:
        token = int(next_logits(model, prompt, answer, route).argmax())
        if token == end:
            break
        answer.append(token)
    return answer


def text(model: MultiTaskModel, tokens: list[int]) -> str:
    """As the tokenizer reads them."""
    return model.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
