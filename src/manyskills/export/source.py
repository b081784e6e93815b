"""The trained module as it is exported: in float32 on the CPU, for the tasks that are wanted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from manyskills.config import (
    BackboneConfig,
    FixedConfig,
    LoraConfig,
    MethodConfig,
    QloraConfig,
    TrainConfig,
    UniformConfig,
)
from manyskills.data.prompts import written
from manyskills.errors import UserError, did_you_mean
from manyskills.files import complete_folder
from manyskills.model.checkpoint import load_model
from manyskills.model.methods import METHODS
from manyskills.model.multitask import MultiTaskModel, stored_as
from manyskills.saved import SavedTasks, read_tasks_file

CPU = torch.device("cpu")
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Source:
    """What is exported.

    Attributes:
        folder: Where it was loaded from.
        saved: Its tasks file, for the wanted tasks.
        model: In float32, with heads for the wanted tasks; with those of all tasks where the method is routed, because
            a route is a task's number among them.
    """

    folder: Path
    saved: SavedTasks
    model: MultiTaskModel

    @property
    def tasks(self) -> list[str]:
        """The wanted tasks."""
        return list(self.saved.config.tasks)

    @property
    def quantized(self) -> bool:
        """Whether the frozen weights are kept in 4 bits."""
        return stored_as(self.saved.config).quantize is not None

    @property
    def writing(self) -> list[str]:
        """Those of the wanted tasks whose answers are written."""
        return [name for name, config in self.saved.config.tasks.items() if written(name, config)]


def load_source(run: Path, task: str | None) -> Source:
    """Load a trained module.

    Args:
        run: A run folder, or a folder such as its best/.
        task: The only task that is wanted; None: all.

    Raises:
        UserError: There is no trained module, it does not know the task, its files do not fit together, or each task
            has an update of its own and none was chosen.
    """
    if not run.is_dir():
        raise UserError(f"{run} is not a folder", "give a run folder, or its best/ folder")
    folder = complete_folder(run / "best") or run
    saved = read_tasks_file(folder)
    known = saved.config.tasks
    if task is not None and task not in known:
        raise UserError(f"this module was not trained on {task!r}", did_you_mean(task, known))
    wanted = [task] if task else list(known)
    if METHODS[saved.config.method.name].routed and len(wanted) > 1:
        what = f"with {saved.config.method.name} each task has an update of its own"
        raise UserError(what, f"choose one with --task: {', '.join(known)}")
    return _load(folder, saved, wanted)


def in_full_precision(source: Source) -> Source:
    """The same module without 4-bit weights: each is the float32 number that its code stands for.

    A quantised network computes with these very numbers, so its answers stay what they were. An update cannot be added
    to the codes themselves: it would be rounded to them.

    Args:
        source: Its network is quantised.
    """
    every = read_tasks_file(source.folder)
    method = _without_codes(every.config.method)
    config = _with_backbone(every.config, quantize=None).model_copy(update={"method": method})
    full = _load(source.folder, replace(every, config=config), source.tasks)
    for name, weight in _numbers_of_codes(source.model.backbone):
        full.model.backbone.get_submodule(name).weight.data.copy_(weight)  # pyright: ignore
    return full


def for_tasks(saved: SavedTasks, tasks: Sequence[str]) -> SavedTasks:
    """A tasks file for some of its tasks."""
    changes: dict[str, object] = {"tasks": _only(saved.config.tasks, tasks)}
    if isinstance(saved.config.balancing, FixedConfig):  # it weighs tasks that may be gone
        changes["balancing"] = UniformConfig()
    return replace(
        saved,
        config=saved.config.model_copy(update=changes),
        thresholds=_only(saved.thresholds, tasks),
        synthetic=_only(saved.synthetic, tasks),
        prompts=_only(saved.prompts, tasks),
    )


def in_float32(config: TrainConfig) -> TrainConfig:
    """The configuration with float32 weights and arithmetic."""
    return _with_backbone(config, dtype="float32").model_copy(update={"bf16": False})


def _load(folder: Path, saved: SavedTasks, tasks: Sequence[str]) -> Source:
    """Load with every head that the folder holds, keep the wanted ones; in the layout that a graph is traced through,
    which is no business of who loads what is written."""
    padded = in_float32(saved.config).model_copy(update={"attention": "padded"})
    model = load_model(folder, CPU, replace(saved, config=padded))
    if not METHODS[model.method.name].routed:
        model.heads = nn.ModuleDict({name: model.head(name) for name in tasks if name in model.heads})
        model.task_configs = _only(model.task_configs, tasks)
        model.frames = _only(model.frames, tasks)
    if model.architecture.family == "encoder_decoder":  # said out loud: what made it so may be a task that is left out
        saved = replace(saved, config=_with_backbone(saved.config, part="whole"))
    return Source(folder, for_tasks(saved, tasks), model)


def _with_backbone(config: TrainConfig, **changes: Any) -> TrainConfig:
    backbone: BackboneConfig = config.backbone.model_copy(update=changes)
    return config.model_copy(update={"backbone": backbone})


def _without_codes(method: MethodConfig) -> MethodConfig:
    """QLoRA on full-precision weights is LoRA."""
    if isinstance(method, QloraConfig):
        return LoraConfig.model_validate(method.model_dump() | {"name": "lora"})
    return method


def _numbers_of_codes(network: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and float32 weight of each 4-bit linear layer."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn.modules import Linear4bit

    for name, module in network.named_modules():
        if isinstance(module, Linear4bit):
            codes: Any = module.weight
            yield name, dequantize_4bit(codes.data, codes.quant_state).float()


def _only(by_task: Mapping[str, _Value], tasks: Sequence[str]) -> dict[str, _Value]:
    return {name: by_task[name] for name in tasks if name in by_task}
