"""A training of a study: as a run's, but measured on validation alone, because studies choose and test rows do not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from manyskills.config import TrainConfig
from manyskills.data.preparation import read_tasks
from manyskills.files import write_atomically
from manyskills.training.loop import Announce
from manyskills.training.measuring import Watcher
from manyskills.training.processes import Processes
from manyskills.training.progress import Progress
from manyskills.training.reporting import progress_bar
from manyskills.training.run import VECTORS_FILE, begin, build_trainer, load_inputs
from manyskills.training.run_folder import RunFolder, data_digests
from manyskills.training.teachers import teach
from manyskills.training.tracking import NoTracker

FIT_FILE = "fit.json"


@dataclass(frozen=True, slots=True)
class Fit:
    """What a training of a study came to.

    Attributes:
        primary: Each task's primary validation metric at the shared best checkpoint.
        losses: Each task's validation loss there, 1 at chance level.
        best_step: Where it was.
        steps: Updates done.
        tokens: That the updates encoded.
        seconds: That they took.
    """

    primary: dict[str, float]
    losses: dict[str, float]
    best_step: int
    steps: int
    tokens: int
    seconds: float


def fit(config: TrainConfig, announce: Announce, watcher: Watcher | None = None) -> Fit:
    """Train a configuration in its output_dir, or read what an earlier call left there.

    A training that was interrupted goes on after its last validation; one that is finished is not repeated.

    Args:
        config: Its tasks, its output_dir.
        announce: Gets sentences for people.
        watcher: Is shown each measured step's gradients.

    Raises:
        UserError: Something is wrong with configuration, data or backbone, or the folder holds another training.
    """
    config = config.model_copy(update={"baselines": []})
    folder = RunFolder(config.output_dir)
    done = folder.path / FIT_FILE
    folder.check(config, resume=folder.path.exists(), overwrite=False)
    if done.is_file():
        folder.refuse_other_data(data_digests(read_tasks(config, ("train", "valid"))))
        return Fit(**json.loads(done.read_text(encoding="utf-8")))
    processes = Processes.current()
    model, prepared = load_inputs(config, processes.device, ("train", "valid"))
    taught = teach(config, prepared, processes, announce)
    folder.open(config, data_digests(prepared.rows), resume=folder.path.exists(), overwrite=False)
    base = begin(config, model, prepared, folder, processes, announce)
    trainer = build_trainer(
        config, model, taught, folder, processes, base, announce, tracker=NoTracker(), watcher=watcher
    )
    with progress_bar(trainer.schedule.total, folder.path.name) as bar:
        progress = trainer.run(bar)
    (folder.baselines / VECTORS_FILE).unlink(missing_ok=True)
    found = _read(progress, folder.read_metrics())
    write_atomically(done, json.dumps(asdict(found), indent=2) + "\n")
    return found


def _read(progress: Progress, records: Sequence[Mapping[str, Any]]) -> Fit:
    best = next(r for r in records if r["kind"] == "valid" and r["step"] == progress.best_step)
    return Fit(
        primary=best["primary"],
        losses=best["valid_loss"],
        best_step=progress.best_step,
        steps=progress.step,
        tokens=progress.tokens,
        seconds=round(progress.seconds, 3),
    )
