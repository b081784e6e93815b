"""A pair set of the shape of BigCloneBench's test set, and a module that scores it.

Shape legend: E pairs, N distinct functions, S pairs of a sample, B texts of a batch, T tokens, D size of a vector.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from manyskills.config import TrainConfig
from manyskills.data.preparation import prepare, read_tasks
from manyskills.data.text_set import Examples, pad_chunk
from manyskills.data.tokens import TokenStore
from manyskills.model.heads import PairHead
from manyskills.model.multitask import MultiTaskModel, build_model

TASK = "clone_detection"
FUNCTIONS, PAIRS = 9_134, 415_416
"""What BigCloneBench's test set holds, as CodeXGLUE publishes it."""
POSITIVE = 0.13
"""Share of clones in it; scores do not depend on labels."""
REFERENCE_LENGTH = 512
"""What the reference recipe pads every text to."""


@dataclass(frozen=True, slots=True)
class PairSet:
    """Pairs to score, and what scores them."""

    model: MultiTaskModel
    store: TokenStore
    examples: Examples
    token_budget: int


def write_pairs(data: Path, folder: Path, functions: int, pairs: int, seed: int) -> None:
    """A folder with these many functions of `data` (or all, if it has fewer) and pairs of them drawn at random."""
    source = data / TASK / "functions.jsonl"
    with source.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, functions)]
    rng = np.random.default_rng(seed)
    first_E = rng.integers(len(rows), size=pairs)
    second_E = (first_E + rng.integers(1, len(rows), size=pairs)) % len(rows)
    label_E = rng.random(pairs) < POSITIVE
    target = folder / TASK
    target.mkdir(parents=True)
    with (target / "functions.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"id": row["id"], "code": row["code"]}) + "\n" for row in rows)
    with (target / "pairs_test.jsonl").open("w", encoding="utf-8") as file:
        for a, b, label in zip(first_E, second_E, label_E, strict=True):
            pair = {"id1": rows[a]["id"], "id2": rows[b]["id"], "label": int(label)}
            file.write(json.dumps(pair) + "\n")


def load_pairs(folder: Path, backbone: str, max_length: int) -> PairSet:
    """Read, tokenise, and build a LoRA module whose head and updates are not zero, so that every part has a say."""
    values = {"backbone": backbone, "tasks": [TASK], "data_dir": str(folder), "max_length": max_length}
    config = TrainConfig.model_validate(values)
    model = build_model(config, torch.device("cpu")).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01, generator=generator)
        head = model.head(TASK)
        assert isinstance(head, PairHead)
        head.out.weight.normal_(std=0.05, generator=generator)
    prepared = prepare(
        read_tasks(config, ("test",)), config.tasks, max_length, model.tokenizer, model.template,
        model.architecture.max_positions, model.routes,
    )  # fmt: skip
    return PairSet(model, prepared.store, prepared.examples["test"][TASK], config.token_budget)


@torch.no_grad()
def score_both_sides(pairs: PairSet, texts_S2: np.ndarray, batch: int, width: int | None) -> np.ndarray:
    """P(clone) of pairs, both sides of each encoded for it, in padded batches in the order of the pairs.

    Args:
        pairs: The module and the tokens.
        texts_S2: Indices of the texts.
        batch: Pairs of a batch.
        width: Tokens that every text is padded to; None: the longest of the batch.
    """
    head = pairs.model.head(TASK)
    assert isinstance(head, PairHead)
    found: list[torch.Tensor] = []
    for part_B2 in _batches(texts_S2, batch):
        left_BD, right_BD = (_encode_padded(pairs, part_B2[:, side], width) for side in (0, 1))
        rows_B2 = torch.arange(2 * len(part_B2)).reshape(2, -1).T
        found.append(head.probabilities(head.sides(torch.cat([left_BD, right_BD])), rows_B2))
    return torch.cat(found).double().numpy()


def _batches(texts_S2: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (texts_S2[start : start + size] for start in range(0, len(texts_S2), size))


def _encode_padded(pairs: PairSet, indices_B: np.ndarray, width: int | None) -> torch.Tensor:
    ids_BT, mask_BT = pad_chunk(pairs.store, indices_B, pad_id := pairs.model.architecture.pad_id)
    if width is not None:
        room = ((0, 0), (0, width - ids_BT.shape[1]))
        ids_BT, mask_BT = np.pad(ids_BT, room, constant_values=pad_id), np.pad(mask_BT, room)
    return pairs.model.encode(torch.from_numpy(ids_BT), torch.from_numpy(mask_BT))
