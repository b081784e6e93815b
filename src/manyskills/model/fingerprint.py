"""A name for everything that decides the vector of a token sequence, the weights included.

sha256 runs at 1.7 GB/s where the processor has instructions for it (as all of recent years do), and at 0.4 elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from manyskills.model.multitask import MultiTaskModel

FORMAT = 1
"""Part of every fingerprint: raise it when the computation of vectors changes."""


def fingerprint(model: MultiTaskModel) -> str:
    """A hash of what decides the model's vectors: backbone and shared module. The heads have no part in it."""
    if not model.has_adapter:
        return published_fingerprint(model)
    digest = hashlib.sha256(published_fingerprint(model).encode())
    add_facts(digest, [model.method.model_dump(mode="json"), list(model.task_configs)])
    for name, tensor in tensors(model):
        if _is_adapters(model, name):
            add_tensor(digest, name, tensor)
    return digest.hexdigest()


def published_fingerprint(model: MultiTaskModel) -> str:
    """A hash of what decides the vectors of the backbone without its adapter, the same whatever the adapter is."""
    digest = hashlib.sha256()
    add_facts(digest, [FORMAT, asdict(model.architecture), *computation(model)])
    for name, tensor in tensors(model):
        if not _is_adapters(model, name):
            add_tensor(digest, name.replace("base_layer.", ""), tensor)  # the name without what is around it
    return digest.hexdigest()


def computation(model: MultiTaskModel) -> list[Any]:
    """How a network computes: number formats, kind of device and of attention, and its configuration (transformers'
    version is in it)."""
    network = model.network.config
    config = {key: value for key, value in network.to_dict().items() if key[0] != "_"}
    return [str(model.autocast_dtype), model.device.type, network._attn_implementation, model.attention, config]


def tensors(model: MultiTaskModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The network's weights by name, an adapter's among them."""
    content = model.network.state_dict()
    return ((name, tensor) for name, tensor in content.items() if isinstance(tensor, torch.Tensor))


def _is_adapters(model: MultiTaskModel, name: str) -> bool:
    """Whether a tensor belongs to what the method put into the network: its tuner marks it by the start of a name."""
    if not model.has_adapter:
        return False
    prefix = str(model.backbone.base_model.prefix)  # pyright: ignore
    return any(part.startswith(prefix) for part in name.split("."))


def add_facts(digest: Any, facts: list[Any]) -> None:
    """Take JSON-like facts into a hash."""
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())


def add_tensor(digest: Any, name: str, tensor: torch.Tensor) -> None:
    """Take a weight's very numbers into a hash, wherever they came from."""
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
