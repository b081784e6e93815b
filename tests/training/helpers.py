"""Building blocks of the training tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from manyskills.config import TrainConfig
from manyskills.data.preparation import Prepared
from manyskills.model.multitask import MultiTaskModel
from manyskills.training.balancing import build_balancing
from manyskills.training.forward import Sources
from manyskills.training.processes import Processes
from manyskills.training.run import load_inputs
from manyskills.training.step import StepResult, accumulate_gradients
from manyskills.training.vectors import BackboneVectors

TASKS = ["clone_detection", "defect_detection", "flaky_tests", "code_search"]
CPU = torch.device("cpu")
ALONE = Processes(0, 1, CPU)


def small_config(backbone: str, data_dir: Path, output_dir: Path | str = "unused", **changes: Any) -> TrainConfig:
    """Four tasks on a tiny backbone."""
    values: dict[str, Any] = {
        "backbone": backbone,
        "tasks": TASKS,
        "data_dir": str(data_dir),
        "output_dir": str(output_dir),
        "method": {"name": "lora", "r": 2, "lora_dropout": 0.1},
        "max_length": 40,
        "batch_size": 16,
        "token_budget": 160,
        "max_steps": 6,
        "eval_steps": 3,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "bootstrap_samples": 20,
        "early_stopping": None,
    }
    return TrainConfig.model_validate(values | changes)


def gradients(
    model: MultiTaskModel, prepared: Prepared, config: TrainConfig, *, cached: bool, budget: int, seed: int = 1
) -> tuple[StepResult, dict[str, torch.Tensor]]:
    """Losses and gradients of one step over all training rows."""
    model.train()
    model.zero_grad()
    source = BackboneVectors(model, prepared.store, budget, cached=cached, processes=ALONE)
    balancing = build_balancing(config.balancing, list(config.tasks), config.seed)
    result = accumulate_gradients(model, Sources(source), prepared.examples["train"], balancing, seed)
    return result, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def warmed_up(config: TrainConfig) -> tuple[MultiTaskModel, Prepared]:
    """A model whose zero-initialised weights (LoRA's B, the heads) are not zero, so that all gradients flow."""
    model, prepared = load_inputs(config, CPU)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model, prepared
