"""A trained module on disk without its weights: the names of its files, and `tasks.json`.

Nothing here needs torch: a module that is an ONNX graph is described by the same file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from manyskills import __version__
from manyskills.config import TrainConfig
from manyskills.data.frames import Frame, Frames
from manyskills.errors import UserError

HEADS_FILE, TASKS_FILE = "heads.safetensors", "tasks.json"
GRAPH_FACTS_FILE = "onnx.json"
"""Marks a folder whose network is an ONNX graph, not weights for torch."""

OWN_FOLDER = "."
"""As the backbone's name: the folder that tasks.json is in, if there is a config.json beside it."""

FORMAT = 1


@dataclass(frozen=True, slots=True)
class SavedTasks:
    """What `tasks.json` holds: enough to build the model again and to answer with it.

    Attributes:
        config: The run's configuration (backbone, method, tasks, lengths).
        thresholds: Probability from which each classifying task says yes; chosen on validation.
        synthetic: Tasks whose labels were made by a program, with how.
        step: Updates that the weights had seen.
        prompts: What stands around the sources and answers of the tasks whose answers are written, by task and variant.
    """

    config: TrainConfig
    thresholds: dict[str, float]
    synthetic: dict[str, str]
    step: int = 0
    prompts: Frames = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The content of `tasks.json`."""
        return {
            "format": FORMAT,
            "manyskills": __version__,
            "config": self.config.model_dump(mode="json"),
            "thresholds": self.thresholds,
            "synthetic": self.synthetic,
            "step": self.step,
            "prompts": {
                task: {name: frame.to_list() for name, frame in by_variant.items()}
                for task, by_variant in self.prompts.items()
            },
        }


def read_tasks_file(folder: Path) -> SavedTasks:
    """Read `tasks.json`.

    Raises:
        UserError: It is absent, broken, or of a newer format.
    """
    path = folder / TASKS_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] > FORMAT:
            newer = f"{path} was written by manyskills {content['manyskills']}, this is {__version__}"
            raise UserError(newer, "upgrade manyskills")
        config = _with_own_backbone(TrainConfig.model_validate(content["config"]), folder)
        prompts = _frames(content.get("prompts", {}))  # folders that were written before there were any load as well
        return SavedTasks(config, content["thresholds"], content["synthetic"], content["step"], prompts)
    except FileNotFoundError as error:
        wanted = f"{folder} holds no trained module: {TASKS_FILE} is missing"
        raise UserError(wanted, "give a run folder, or its best/ folder") from error
    except ValidationError as error:
        first = error.errors()[0]
        wrong = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise UserError(f"{path} is not what manyskills writes: {wrong}", _RESTORE) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not what manyskills writes: {error}", _RESTORE) from error


def _frames(content: Any) -> Frames:
    return {
        task: {name: Frame.from_list(texts) for name, texts in by_variant.items()}
        for task, by_variant in content.items()
    }


_RESTORE = "restore the file, load it with the version that wrote it, or train again"


def _with_own_backbone(config: TrainConfig, folder: Path) -> TrainConfig:
    """The configuration with the backbone's folder, if it is one, found from wherever the module is loaded.

    An exported folder is its own backbone, wherever it has been moved to. A relative name was given in the folder where
    the run was started, which is above the run's own.
    """
    name = config.backbone.name
    if name == OWN_FOLDER:
        found = folder if (folder / "config.json").is_file() else None
    elif "/" not in name or Path(name).is_absolute() or (Path(name) / "config.json").is_file():
        found = None  # an alias, or a folder that is where it is said to be
    else:
        above = (parent / name for parent in folder.resolve().parents)
        found = next((place for place in above if (place / "config.json").is_file()), None)
    if found is None:
        return config
    return config.model_copy(update={"backbone": config.backbone.model_copy(update={"name": str(found)})})


def saved_step(folder: Path) -> int | None:
    """The step of the weights in a folder; None if there are none."""
    return read_tasks_file(folder).step if (folder / TASKS_FILE).is_file() else None


def refuse_difference(expected: set[str], found: set[str], path: Path) -> None:
    """A file must hold exactly the weights that the model has.

    Raises:
        UserError: Some are missing or unexpected.
    """
    missing, unexpected = sorted(expected - found), sorted(found - expected)
    if missing or unexpected:
        what = [f"{len(names)} {kind} (first: {names[0]})"
                for kind, names in (("missing", missing), ("unexpected", unexpected)) if names]  # fmt: skip
        raise UserError(f"{path}: weights do not match the model: {', '.join(what)}",
                        "the file belongs to another backbone, method or set of tasks")  # fmt: skip
