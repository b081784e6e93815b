"""What a trained module is measured against: the untrained backbone and heads on the frozen backbone.

Both rest on the same vectors, those of the backbone as it was published, which are computed once.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from manyskills.config import EarlyStoppingConfig, FrozenConfig, TrainConfig, UniformConfig
from manyskills.data.preparation import Prepared, synthetic_tasks
from manyskills.data.sampling import Phase, Sampler
from manyskills.data.text_set import gather
from manyskills.evaluation.answers import Outputs
from manyskills.evaluation.outputs import task_outputs
from manyskills.files import replace_folder_atomically, write_atomically
from manyskills.model.checkpoint import save_model
from manyskills.model.multitask import MultiTaskModel, build_model, set_class_balance
from manyskills.model.vector_cache import VectorCache, cached_vectors
from manyskills.saved import HEADS_FILE, read_tasks_file
from manyskills.tasks import SplitName
from manyskills.training.forward import Sources
from manyskills.training.loop import Announce, Trainer, positive_shares
from manyskills.training.processes import Processes
from manyskills.training.reporting import progress_bar
from manyskills.training.run_folder import RunFolder, data_digests
from manyskills.training.schedule import Schedule
from manyskills.training.tracking import NoTracker
from manyskills.training.validation import names_with_heads
from manyskills.training.vectors import PrecomputedVectors

FROZEN_EPOCHS = 20
FROZEN_BATCH = 64
FROZEN_LEARNING_RATE = 1e-3


def frozen_model(config: TrainConfig, rates: Mapping[str, float], device: torch.device) -> MultiTaskModel:
    """The run's model with nothing adapted: published backbone, untrained heads.

    Args:
        config: The run.
        rates: Share of positives in the whole training split of each classifying task, not in the rows drawn.
        device: Where it answers.
    """
    model = build_model(frozen_config(config), device)
    set_class_balance(model, rates)
    return model


def frozen_config(config: TrainConfig) -> TrainConfig:
    """The run's configuration for heads alone.

    A step costs next to nothing here, so the heads get many epochs. They are validated as often as the module is: who
    looks more often finds a higher best by luck.
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
            "early_stopping": EarlyStoppingConfig(patience=sys.maxsize, keep_task_best=True),
            "heads_first": False,
            "balancing": UniformConfig(),  # the heads share nothing: a weight would only change their learning rate
            "distillation": None,
        }
    )


def heads_alone(config: TrainConfig, prepared: Prepared) -> tuple[TrainConfig, Prepared]:
    """Configuration and data of the tasks that have heads: heads on the frozen backbone write no answers."""
    names = names_with_heads(config)
    tasks = {name: config.tasks[name] for name in names}
    without = {split: {} for split in prepared.examples}
    return config.model_copy(update={"tasks": tasks}), replace(prepared, prompts=None, prompted=without)


def rows_of_the_run(config: TrainConfig, prepared: Prepared) -> Prepared:
    """The same data with the training rows cut down to those that the run's steps will draw.

    Heads on the frozen backbone see the rows that the module sees: no more, which would not be fair to the module, and
    nothing has to be encoded that a short run never looks at.
    """
    train = prepared.all_examples("train")
    sampler = Sampler(train, config.sampling, config.batch_size, config.seed, positive_shares(config))
    total = Schedule.of(config, sum(len(part) for part in train.values())).total
    drawn = {name: np.zeros(len(part), dtype=bool) for name, part in train.items()}
    phases = [Phase(0, tuple(config.tasks))]
    for step in range(total):
        for name, rows in sampler.rows_at(step, phases).items():
            drawn[name][rows] = True
        if all(seen.all() for seen in drawn.values()):
            break
    kept = {
        name: part.take(np.flatnonzero(drawn[name])) if drawn[name].any() else part
        for name, part in prepared.examples["train"].items()
    }
    return replace(prepared, examples={**prepared.examples, "train": kept})


def base_vectors(
    model: MultiTaskModel,
    config: TrainConfig,
    prepared: Prepared,
    splits: Sequence[SplitName],
    *,
    processes: Processes | None = None,
    keep: Path | None = None,
    cache: VectorCache | None = None,
) -> PrecomputedVectors:
    """Vectors of every text of these splits, each encoded once, with a progress bar.

    Split by split and validation first: without a cache, that split is cut into the same chunks as in training and
    gives the same numbers, to the last bit.

    With a cache, a vector may have been computed in another run's chunks and differ in the last digits from one that is
    computed here. A run that was killed before `keep` was written still goes on with the same numbers: a split's new
    vectors enter the cache together or not at all, so of each split either all are there or the same ones are missing
    as the first time, and those are computed in the same chunks. This assumes that no other run adds vectors of these
    texts between the two starts, and that none of the folder is removed.

    Args:
        model: Gives the vectors.
        config: The run.
        prepared: Its texts.
        splits: Which ones.
        processes: Share the work.
        keep: A file that a resumed run reads instead of encoding again.
        cache: The vectors that other runs computed, of this very model.
    """
    order = sorted(splits, key=lambda split: split != "valid")
    indices_S = np.unique(np.concatenate([prepared.used_texts(split) for split in order]))
    if keep is not None and (kept := _kept_vectors(keep, prepared, indices_S)) is not None:
        return PrecomputedVectors(kept, indices_S, model.device)
    vectors_SD = torch.zeros(len(indices_S), model.architecture.hidden_size)
    done_S = np.zeros(len(indices_S), dtype=bool)
    total = int(prepared.store.lengths_N[indices_S].sum())
    share = processes.share if processes else (0, 1)
    with progress_bar(total // share[1], "frozen backbone", unit="token", hidden=share[0] > 0) as bar:
        for split in order:
            rows_N = np.searchsorted(indices_S, prepared.used_texts(split))
            rows_N = rows_N[~done_S[rows_N]]
            vectors_SD[torch.from_numpy(rows_N)] = cached_vectors(
                model, prepared.store, indices_S[rows_N], config.token_budget, cache,
                processes=processes, report=bar.update,
            )  # fmt: skip
            done_S[rows_N] = True
    if keep is not None and share[0] == 0:
        content = {"vectors": vectors_SD, "indices": torch.from_numpy(indices_S)}
        write_atomically(keep, save(content, metadata={"content": _content(prepared, indices_S)}))
    return PrecomputedVectors(vectors_SD, indices_S, model.device)


def _kept_vectors(path: Path, prepared: Prepared, indices_S: np.ndarray) -> torch.Tensor | None:
    """The vectors of an earlier start of this run, if they are of these very texts."""
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        if (file.metadata() or {}).get("content") != _content(prepared, indices_S):
            return None
        return file.get_tensor("vectors")


def _content(prepared: Prepared, indices_S: np.ndarray) -> str:
    """A hash of the token sequences."""
    digest = hashlib.sha256(indices_S.tobytes())
    digest.update(np.ascontiguousarray(prepared.store.ids_T).tobytes())
    digest.update(prepared.store.starts_S.tobytes())
    digest.update(prepared.store.sequences_N.tobytes())
    return digest.hexdigest()


def split_outputs(
    model: MultiTaskModel, prepared: Prepared, source: PrecomputedVectors, split: SplitName
) -> dict[str, Outputs]:
    """Answers on a split from vectors that are there already."""
    examples = prepared.examples[split]
    return task_outputs(model, examples, source.forward(gather(examples).unique_N, 0).cpu())


def train_frozen(
    config: TrainConfig,
    prepared: Prepared,
    rates: Mapping[str, float],
    source: PrecomputedVectors,
    processes: Processes,
    announce: Announce,
) -> Path:
    """Train the heads on precomputed vectors, in the run's sub-folder baselines/frozen.

    Args:
        config: The run.
        prepared: Its data, cut down to the rows that it will draw.
        rates: Share of positives in the whole training split.
        source: Vectors of the training and validation texts.
        processes: Each does the same; only the main one writes.
        announce: Gets sentences for people.

    Returns:
        The folder of the best heads.
    """
    announce("training heads on the frozen backbone")
    run_rows = sum(len(part) for part in prepared.all_examples("train").values())
    run = Schedule.of(config, run_rows)
    config, prepared = heads_alone(config, prepared)
    model = frozen_model(config, rates, processes.device)
    alone = frozen_config(config)
    rows = sum(len(part) for part in prepared.examples["train"].values())
    total = Schedule.of(alone, rows).total
    alone = alone.model_copy(update={"eval_steps": math.ceil(total / math.ceil(run.total / run.eval_steps))})
    folder = RunFolder(alone.output_dir)
    if processes.is_main:
        folder.open(alone, data_digests(prepared.rows), resume=folder.path.exists(), overwrite=False)
    processes.wait()
    trainer = Trainer(alone, model, prepared, Sources(source), folder, processes, NoTracker(), lambda _: None)
    with progress_bar(total, "frozen heads", hidden=not processes.is_main) as bar:
        progress = trainer.run(bar)
    values = "  ".join(f"{name} {task.best:.4f}" for name, task in progress.tasks.items())
    announce(f"frozen backbone, each task's best on validation: {values}")
    if processes.is_main:
        _combine_best(folder, alone, model, prepared)
    processes.wait()
    return folder.best


def _combine_best(folder: RunFolder, config: TrainConfig, model: MultiTaskModel, prepared: Prepared) -> None:
    """Heads on a frozen backbone share nothing, so each task's best is kept, whenever it was."""
    thresholds: dict[str, float] = {}
    for name in config.tasks:
        saved = load_file(folder.best_by_task / name / HEADS_FILE)
        own = {key.removeprefix(f"{name}."): value for key, value in saved.items() if key.startswith(f"{name}.")}
        model.head(name).load_state_dict(own)
        thresholds |= {
            task: value
            for task, value in read_tasks_file(folder.best_by_task / name).thresholds.items()
            if task == name
        }
    synthetic = synthetic_tasks(prepared.rows)
    replace_folder_atomically(lambda target: save_model(model, target, config, thresholds, synthetic), folder.best)
