"""What a trained module is measured against: the untrained backbone and heads on the frozen backbone.

Both rest on the same vectors, those of the backbone as it was published, which are computed once.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from manyskills.config import EarlyStoppingConfig, FrozenConfig, TrainConfig
from manyskills.data.preparation import Prepared, positive_rates
from manyskills.data.text_set import gather
from manyskills.evaluation.outputs import Outputs, task_outputs
from manyskills.model.encoding import encode_texts
from manyskills.model.multitask import MultiTaskModel, build_model, set_class_balance
from manyskills.tasks import SplitName
from manyskills.training.loop import Announce, Trainer
from manyskills.training.processes import Processes
from manyskills.training.reporting import progress_bar
from manyskills.training.run_folder import RunFolder
from manyskills.training.tracking import NoTracker
from manyskills.training.vectors import PrecomputedVectors

FROZEN_EPOCHS = 30
FROZEN_BATCH = 256
FROZEN_VALIDATIONS = 30
FROZEN_PATIENCE = 8
FROZEN_LEARNING_RATE = 2e-3


def frozen_model(config: TrainConfig, prepared: Prepared, device: torch.device) -> MultiTaskModel:
    """The run's model with nothing adapted: published backbone, untrained heads."""
    model = build_model(frozen_config(config), device)
    set_class_balance(model, positive_rates(prepared.examples["train"]))
    return model


def frozen_config(config: TrainConfig) -> TrainConfig:
    """The run's configuration for heads alone.

    A step costs next to nothing here, so the heads get every chance: many epochs, small validation intervals, and
    early stopping by task.
    """
    return config.model_copy(
        update={
            "method": FrozenConfig(),
            "output_dir": str(Path(config.output_dir) / "baselines" / "frozen"),
            "num_train_epochs": FROZEN_EPOCHS,
            "max_steps": None,
            "batch_size": FROZEN_BATCH,
            "learning_rate": FROZEN_LEARNING_RATE,
            "head_learning_rate": None,
            "eval_steps": None,
            "save_steps": None,
            "early_stopping": EarlyStoppingConfig(patience=FROZEN_PATIENCE),
        }
    )


def base_vectors(
    model: MultiTaskModel, config: TrainConfig, prepared: Prepared, splits: list[SplitName]
) -> PrecomputedVectors:
    """Vectors of every text of these splits, each encoded once, with a progress bar."""
    indices_S = np.unique(np.concatenate([prepared.used_texts(split) for split in splits]))
    total = int(prepared.store.lengths_N[indices_S].sum())
    with progress_bar(total, "frozen backbone", unit="token") as bar:
        vectors_SD = encode_texts(model, prepared.store, indices_S, config.token_budget, report=bar.update)
    return PrecomputedVectors(vectors_SD, indices_S, model.device)


def split_outputs(
    model: MultiTaskModel, prepared: Prepared, source: PrecomputedVectors, split: SplitName
) -> dict[str, Outputs]:
    """Answers on a split from vectors that are there already."""
    examples = prepared.examples[split]
    return task_outputs(model, examples, source.forward(gather(examples).unique_N, 0).cpu())


def train_frozen(
    config: TrainConfig, prepared: Prepared, source: PrecomputedVectors, model: MultiTaskModel, announce: Announce
) -> Path:
    """Train the heads on precomputed vectors.

    Returns:
        The folder of the best heads.
    """
    from manyskills.training.schedule import Schedule

    rows = sum(len(part) for part in prepared.examples["train"].values())
    alone = frozen_config(config)
    schedule = Schedule.of(alone, rows)
    alone = alone.model_copy(update={"eval_steps": max(1, schedule.total // FROZEN_VALIDATIONS)})
    folder = RunFolder(alone.output_dir)
    folder.open(alone, resume=folder.path.exists(), overwrite=False)
    process = Processes(0, 1, model.device)
    trainer = Trainer(alone, model, prepared, source, folder, process, NoTracker(), announce)
    with progress_bar(schedule.total, "frozen heads") as bar:
        trainer.run(bar)
    return folder.best
