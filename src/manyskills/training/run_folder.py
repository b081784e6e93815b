"""The run folder: what is where, and writing it so that a kill at any instant loses nothing that resuming needs."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manyskills.config import TrainConfig
from manyskills.config.file import dump_config, load_config
from manyskills.data.preparation import SplitTable
from manyskills.errors import UserError
from manyskills.files import clear_errors, recover_folder, remove_stale, write_atomically

LIBRARIES = (
    "manyskills", "torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy", "scikit-learn",
)  # fmt: skip
OURS = frozenset({
    "best", "last", "best_by_task", "plots", "predictions", "baselines", "trackers",
    "config.yaml", "environment.json", "metrics.jsonl", "results.json", "README.md",
})  # fmt: skip
"""Everything a run writes at the top of its folder."""


Digests = dict[str, dict[str, str]]
"""Content hash by split, then task."""


class RunFolder:
    """One training on disk.

    Args:
        path: The run's output_dir.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.best, self.last = self.path / "best", self.path / "last"
        self.best_by_task, self.plots = self.path / "best_by_task", self.path / "plots"
        self.predictions, self.baselines = self.path / "predictions", self.path / "baselines"
        self.config_file, self.metrics_file = self.path / "config.yaml", self.path / "metrics.jsonl"
        self.environment_file = self.path / "environment.json"
        self.results_file, self.card_file = self.path / "results.json", self.path / "README.md"

    @property
    def finished(self) -> bool:
        """Whether the run came to its end: the results are the last thing written."""
        return self.results_file.is_file()

    def check(self, config: TrainConfig, *, resume: bool, overwrite: bool) -> None:
        """Whether `open` will work, without writing anything: said before data are read.

        Raises:
            UserError: As `open`, but for what depends on the data.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"output_dir {self.path} is a file", "choose another output_dir")
        if resume and overwrite:
            raise UserError("--resume and --overwrite contradict each other", "give one of them")
        if self.path.is_dir() and any(self.path.iterdir()):
            if overwrite:
                self._refuse_foreign()
            elif resume:
                if self.config_file.is_file():
                    self.refuse_changes(config)
            else:
                state = "a finished run" if self.finished else "files already"
                hint = "--resume continues it, --overwrite starts anew, output_dir=... goes elsewhere"
                raise UserError(f"output_dir {self.path} holds {state}", hint)

    def open(self, config: TrainConfig, digests: Digests, *, resume: bool, overwrite: bool) -> None:
        """Make the folder ready for a new or a continued run.

        Args:
            config: The run.
            digests: Content hashes of its data.
            resume: Continue what is there.
            overwrite: Remove what is there.

        Raises:
            UserError: It holds something and neither flag was given, or it was started with another configuration or
                other data.
        """
        self.check(config, resume=resume, overwrite=overwrite)
        if self.path.is_dir() and any(self.path.iterdir()):
            if overwrite:
                self._clear()
            else:
                self._continue(config, digests)
        content = environment() | {"data": digests}
        write_atomically(self.environment_file, json.dumps(content, indent=2) + "\n")
        write_atomically(self.config_file, dump_config(config))

    def _refuse_foreign(self) -> None:
        """Only a folder that a run has made, and that nothing else was put into, may be cleared."""
        if not self.environment_file.is_file():
            what = f"output_dir {self.path} was not made by a run: environment.json is missing"
            raise UserError(what, "choose another output_dir, or remove the folder yourself")
        foreign = sorted(path.name for path in self.path.iterdir() if not _is_ours(path))
        if foreign:
            what = f"output_dir {self.path} holds things that no run wrote: {', '.join(foreign[:5])}"
            raise UserError(what, "choose another output_dir, or remove them yourself")

    def _clear(self) -> None:
        """Remove a former run."""
        # first: a half-cleared folder must not look finished, nor like something that can be continued
        self.results_file.unlink(missing_ok=True)
        self.config_file.unlink(missing_ok=True)
        rest = [path for path in self.path.iterdir() if path != self.environment_file]
        for path in [*rest, self.environment_file]:  # the mark of a run goes last, so that a kill leaves no ruin
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)

    def _continue(self, config: TrainConfig, digests: Digests) -> None:
        remove_stale(self.path)
        if not self.config_file.is_file():
            if any(not _is_ours(path) for path in self.path.iterdir()):
                raise UserError(f"{self.path} is not a run folder: config.yaml is missing", "choose another output_dir")
            self._clear()  # what is left of a run whose removal was interrupted
            return
        self.refuse_other_data(digests)
        for folder in (self.best, self.last):
            recover_folder(folder)

    def refuse_other_data(self, digests: Digests) -> None:
        """Make sure that a run was started with these data, if it says with which.

        Raises:
            UserError: It was not.
        """
        try:
            before = json.loads(self.environment_file.read_text(encoding="utf-8"))["data"]
        except (OSError, ValueError, KeyError):  # written before digests were, or lost: nothing to compare with
            return
        changed = [
            f"{name} ({split})"
            for split, of in digests.items()
            if split in before  # a study's training reads no test rows; it may be finished as a run
            for name in of
            if before[split].get(name) != of[name]
        ]
        if changed:
            hint = "restore the data it was started with, or choose another output_dir"
            raise UserError(f"{self.path}: the data of {', '.join(changed)} is not what the run was started with", hint)

    def refuse_changes(self, config: TrainConfig) -> None:
        """Make sure that the run was started with this configuration; where it is written may differ.

        Raises:
            UserError: It was not; the message names the keys.
        """
        before, now = load_config(self.config_file).model_dump(), config.model_dump()
        ignored = {"output_dir", "report_to", "push_to_hub", "hub_model_id", "hub_private"}
        changed = [key for key in now if before[key] != now[key] and key not in ignored]
        if list(before["tasks"]) != list(now["tasks"]) and "tasks" not in changed:
            changed.append("tasks (their order)")  # a routed method knows its tasks by their places
        if changed:
            hint = "resume with the configuration it was started with, or choose another output_dir"
            raise UserError(f"{self.config_file}: the run was started with other values of {', '.join(changed)}", hint)

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        with clear_errors(self.metrics_file), self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def trim_metrics(self, step: int) -> None:
        """Drop the lines of steps that will be done again, and a line that a kill cut short."""
        kept = [record for record in self.read_metrics() if record["step"] <= step]
        write_atomically(self.metrics_file, "".join(json.dumps(record) + "\n" for record in kept))

    def read_metrics(self) -> list[dict[str, Any]]:
        """All complete lines of metrics.jsonl."""
        if not self.metrics_file.is_file():
            return []
        records: list[dict[str, Any]] = []
        for line in self.metrics_file.read_bytes().split(b"\n"):
            try:
                records += [json.loads(line)] if line else []
            except ValueError:  # the last line of a killed process
                break
        return records


def _is_ours(path: Path) -> bool:
    return path.name.removesuffix(".old") in OURS or ".tmp-" in path.name


def environment() -> dict[str, Any]:
    """Versions and device class that a result depends on; nothing that names the machine or its user."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def data_digests(rows: SplitTable) -> Digests:
    """The content hash of every split that was used."""
    return {split: {name: part.digest for name, part in by_task.items()} for split, by_task in rows.items()}
