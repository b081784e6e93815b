"""Where a run's measurements go besides metrics.jsonl: nowhere, or to the trackers that accelerate knows."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from manyskills.config import TrainConfig
from manyskills.errors import UserError, require_extra


class Tracker(Protocol):
    """Takes measurements."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Note these values at a step."""
        ...

    def close(self) -> None:
        """Write what is still held."""
        ...


class NoTracker:
    """Takes them and does nothing: the default never prompts and never calls out."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class AccelerateTracker:
    """One or more of accelerate's trackers.

    Args:
        config: `report_to` and what is noted as the run's hyper-parameters.
        folder: Where trackers that write files write.

    Raises:
        UserError: A tracker's package is not installed.
    """

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        from accelerate import Accelerator

        require_trackers(config)
        self._accelerator = Accelerator(log_with=list(config.report_to), project_dir=str(folder))
        self._accelerator.init_trackers("manyskills", config=dict(flatten(config.model_dump(mode="json"))))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """To every tracker."""
        self._accelerator.log(dict(values), step=step)

    def close(self) -> None:
        """Finish every tracker."""
        self._accelerator.end_training()


def require_trackers(config: TrainConfig) -> None:
    """Make sure that what `report_to` asks for can be had, before anything is written.

    Raises:
        UserError: A tracker's package is not installed; the hint is the pip command.
    """
    for name in () if config.report_to == "none" else config.report_to:
        if name == "tensorboard":
            require_extra(name, "track")
        else:
            try:
                importlib.import_module(name)
            except ImportError as error:
                raise UserError(f"{name} is not installed, and report_to asks for it", f"pip install {name}") from error


def build_tracker(config: TrainConfig, folder: Path) -> Tracker:
    """What `report_to` asks for."""
    return NoTracker() if config.report_to == "none" else AccelerateTracker(config, folder)


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted names and plain values; what is neither number, text nor truth value is written as text."""
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat += flatten(value, f"{name}.")
        else:
            flat.append((name, value if isinstance(value, (int, float, str, bool)) else str(value)))
    return flat


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a metrics record under dotted names."""
    return {
        name: float(value)
        for name, value in flatten(record)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and name != "step"
    }
