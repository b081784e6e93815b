"""A module of four tasks and what it is exported as, and functions to read with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from manyskills.config import TrainConfig
from manyskills.data.preparation import Prepared, prepare, read_tasks
from manyskills.data.text_set import gather
from manyskills.evaluation.answers import choose_thresholds
from manyskills.evaluation.outputs import task_outputs
from manyskills.export.run import Wish, export
from manyskills.model.checkpoint import save_model
from manyskills.model.encoding import encode_texts
from manyskills.model.multitask import MultiTaskModel, build_model
from manyskills.tasks import SplitName, get_task
from measuring import TASKS


def all_functions(data: Path) -> list[str]:
    """The functions of a repository, as long and as short as they come; some are there more than once."""
    lines = (data / "clone_detection" / "functions.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line)["code"] for line in lines if line]


def functions(data: Path, count: int, seed: int = 0) -> list[str]:
    """Some distinct ones of them in random order."""
    texts = list(dict.fromkeys(all_functions(data)))
    order = np.random.default_rng(seed).permutation(len(texts))[:count]
    return [texts[index] for index in order]


def make_module(folder: Path, backbone: str, data: Path, max_length: int, rows: int) -> Path:
    """A folder like best/ of a LoRA run of four tasks at step 0, thresholds chosen on `rows` validation rows a task.

    At step 0 the vectors are the backbone's own, a pair is scored by their cosine and a search ranks by it.
    """
    values = {"backbone": backbone, "tasks": {name: {"limit": rows} for name in TASKS}, "data_dir": str(data)}
    config = TrainConfig.model_validate(values | {"max_length": max_length})
    model = build_model(config, torch.device("cpu"))
    prepared = prepared_split(config, model, "valid")
    examples = prepared.examples["valid"]
    vectors_ND = encode_texts(model, prepared.store, gather(examples).unique_N, config.token_budget)
    metrics = {name: get_task(name).primary_metric for name in TASKS}
    thresholds = choose_thresholds(task_outputs(model, examples, vectors_ND), metrics)
    folder.mkdir(parents=True)
    save_model(model, folder, config, thresholds)
    return folder


def prepared_split(config: TrainConfig, model: MultiTaskModel, split: SplitName) -> Prepared:
    """A split's rows in tokens."""
    positions = model.architecture.max_positions
    rows = read_tasks(config, (split,))
    return prepare(
        rows, config.tasks, config.max_length, model.tokenizer, model.template, positions, model.routes
    )  # fmt: skip


def exported(module: Path, folder: Path, wishes: Mapping[str, Wish]) -> dict[str, Path]:
    """What the module becomes, by name."""
    for name, wish in wishes.items():
        export(module, folder / name, wish)
    return {name: folder / name for name in wishes}


def cosines(vectors_ND: np.ndarray, others_ND: np.ndarray) -> dict[str, float]:
    """How alike two vectors of the same text are, on average and at worst."""
    lengths_N = np.linalg.norm(vectors_ND, axis=1) * np.linalg.norm(others_ND, axis=1)
    cosine_N: Any = (vectors_ND * others_ND).sum(axis=1) / lengths_N
    return {"mean": float(cosine_N.mean()), "min": float(cosine_N.min())}
