"""The trained module on disk: a peft adapter folder, `heads.safetensors` and `tasks.json`.

Everything is safetensors or JSON. Loading fails on any missing or unexpected weight: a head that is silently random
after loading is the field's most frequent complaint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from manyskills.config import TrainConfig
from manyskills.errors import UserError
from manyskills.model.methods import ADAPTER_NAME
from manyskills.model.multitask import OUTPUT_HEAD, MultiTaskModel, build_model
from manyskills.saved import (
    GRAPH_FACTS_FILE,
    HEADS_FILE,
    TASKS_FILE,
    SavedTasks,
    read_tasks_file,
    refuse_difference,
)

ADAPTER_FILE, FULL_FILE = "adapter_model.safetensors", "model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"


def save_model(
    model: MultiTaskModel,
    folder: Path,
    config: TrainConfig,
    thresholds: Mapping[str, float] | None = None,
    synthetic: Mapping[str, str] | None = None,
    *,
    step: int = 0,
) -> None:
    """Write the shared module, the heads and the tasks into an existing, empty folder."""
    shared = shared_state(model)
    if model.has_adapter:
        model.backbone.peft_config[ADAPTER_NAME].save_pretrained(str(folder))  # pyright: ignore
        save_file(shared, folder / ADAPTER_FILE, metadata={"format": "pt"})
    elif shared:
        save_file(shared, folder / FULL_FILE, metadata={"format": "pt"})
    saved = SavedTasks(config, dict(thresholds or {}), dict(synthetic or {}), step, model.frames)
    save_heads(model.heads, saved, folder)


def save_heads(heads: nn.Module, saved: SavedTasks, folder: Path) -> None:
    """Write heads and tasks: what a folder holds besides the shared module."""
    save_file(_contiguous(heads.state_dict()), folder / HEADS_FILE, metadata={"format": "pt"})
    (folder / TASKS_FILE).write_text(json.dumps(saved.to_dict(), indent=2) + "\n", encoding="utf-8")


def load_model(folder: Path, device: torch.device, saved: SavedTasks | None = None) -> MultiTaskModel:
    """Build the model of a saved folder and load its weights.

    Raises:
        UserError: A file is missing or broken, the backbone cannot be loaded, or weights are missing or unexpected.
    """
    if (folder / GRAPH_FACTS_FILE).is_file():
        what = f"{folder} holds an ONNX graph, and no weights for torch"
        raise UserError(what, "load the run, or what `manyskills export --format merged` made of it")
    saved = saved or read_tasks_file(folder)
    config = saved.config
    if config.attention == "unpadded":  # what a run insisted on may not be possible here, and the answers are the same
        config = config.model_copy(update={"attention": "auto"})
    model = build_model(config, device)
    load_weights(model, folder)
    model.frames = saved.prompts
    return model.eval()


def load_weights(model: MultiTaskModel, folder: Path) -> None:
    """Load shared module and heads into a model of the same configuration.

    Raises:
        UserError: As `load_model`.
    """
    if model.has_adapter:
        _refuse_other_adapter(model, folder / ADAPTER_CONFIG_FILE)
    if model.trains_backbone:
        name = ADAPTER_FILE if model.has_adapter else FULL_FILE
        _load_exactly(_read(folder / name), set(shared_state(model)), folder / name, model)
    heads = _read(folder / HEADS_FILE)
    expected = set(model.heads.state_dict())
    refuse_difference(expected, set(heads), folder / HEADS_FILE)
    with _explained(folder / HEADS_FILE):
        model.heads.load_state_dict(heads)


_NO_NUMBERS = {"base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "task_type", "peft_version"}
"""Keys of an adapter's configuration that do not change its answers. Which modules it is in is told by its weights."""


def _refuse_other_adapter(model: MultiTaskModel, path: Path) -> None:
    """Numbers that change the answers but no shape, such as a scale or the order of tasks, must be the same.

    Raises:
        UserError: They are not, or the file is missing or broken.
    """
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}", "restore the file or train again") from error
    here = model.backbone.peft_config[ADAPTER_NAME].to_dict()  # pyright: ignore
    compared = (key for key in here if key in saved and key not in _NO_NUMBERS and not key.endswith("_modules"))
    for key in compared:
        mine = list(here[key]) if isinstance(here[key], (set, tuple)) else here[key]
        if mine != saved[key]:
            found = f"{path}: {key} is {saved[key]}, {TASKS_FILE} makes it {mine}"
            raise UserError(found, "the adapter belongs to another configuration: restore both files from one run")


def shared_state(model: MultiTaskModel) -> dict[str, torch.Tensor]:
    """The trainable weights of the shared module under the names they are saved by; peft's own for adapters."""
    if model.has_adapter:
        from peft import get_peft_model_state_dict

        return _contiguous(get_peft_model_state_dict(model.backbone, save_embedding_layers=False))  # pyright: ignore
    return _contiguous({name: p.detach() for name, p in model.shared_parameters()})


def _load_exactly(state: dict[str, torch.Tensor], expected: set[str], path: Path, model: MultiTaskModel) -> None:
    refuse_difference(expected, set(state), path)
    with _explained(path):
        if model.has_adapter:
            from peft import set_peft_model_state_dict

            set_peft_model_state_dict(model.backbone, state, adapter_name=ADAPTER_NAME)
        else:
            model.backbone.load_state_dict(state, strict=False)  # names were compared above; frozen buffers not saved
            if model.output_head is not None:
                names = [name for name in state if name.startswith(OUTPUT_HEAD)]
                model.output_head.load_state_dict({name.removeprefix(OUTPUT_HEAD): state[name] for name in names})


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns torch's report on shapes that differ into one sentence."""
    try:
        yield
    except RuntimeError as error:
        wanted = f"{path} does not fit the backbone: {str(error).splitlines()[-1].strip()}"
        raise UserError(wanted, "load it with the backbone it was trained on") from error


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing", "restore the file or train again") from error
    except SafetensorError as error:
        raise UserError(f"{path} is broken: {error}", "restore the file or train again") from error


def _contiguous(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
