"""Comparing a graph with the module it was made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from manyskills.export.source import load_source
from manyskills.inference.graph import Graph


def padded(batch: int, tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids and mask; the first sequence is as long as the batch allows."""
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(3, 300, (batch, tokens), generator=generator)
    lengths_B = torch.randint(1, tokens + 1, (batch,), generator=generator)
    lengths_B[0] = tokens
    mask_BT = (torch.arange(tokens) < lengths_B[:, None]).long()
    return ids_BT * mask_BT + 1 - mask_BT, mask_BT


def assert_same_vectors(graph_folder: Path, module_folder: Path) -> None:
    """At several sizes of batch and length, with padding."""
    graph, model = Graph(graph_folder, threads=1), load_source(module_folder, None).model.eval()
    for seed, (batch, tokens) in enumerate([(1, 1), (2, 8), (5, 40), (3, 79), (1, 23)]):
        ids_BT, mask_BT = padded(batch, tokens, seed)
        with torch.no_grad():
            wanted_BD = model.encode(ids_BT, mask_BT).numpy()
        np.testing.assert_allclose(graph.encode(ids_BT.numpy(), mask_BT.numpy()), wanted_BD, atol=2e-5)
