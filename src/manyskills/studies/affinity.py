"""Task affinity, measured while one joint run trains: what a step of one task does to the others.

Shape legend: K tasks, P parameters of the shared module, M measured steps.

At a measured step each task's gradient is known twice: for the step's own examples (g), and for those of the step
after (f), which the step has not seen. A task's own step is what AdamW would take for it alone, -rate g_k / sqrt(s_k)
with s_k the mean of g_k^2 so far. To first order it lowers the loss of task j by

    A_kj = rate <f_j, g_k / sqrt(s_k)> / L_j.

Because f and g rest on different examples, noise does not pass for progress, not even where k is j. A_kj is the mean
over the ways to choose the two gradients so that they do: f and g may change places, and two tasks' examples differ
anyway. All that is kept of a step are inner products, which are exact: random projections to some thousand numbers, as
Li et al. 2024 (arXiv 2409.06091) keep them, would add an error as large as what is measured here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from manyskills.errors import UserError
from manyskills.evaluation.bootstrap import Floats
from manyskills.files import clear_errors, write_atomically
from manyskills.training.measuring import MEASURED, Moment


class AffinityRecorder:
    """Watches a joint run and keeps what was measured, a line a measured step.

    A step that lacks a task, or that is followed by one that does, is passed over.

    Args:
        path: The file; a run that starts anew writes it anew.
        tasks: All tasks of the run.
        lookahead_every: Measured steps between those at which each task's own step is tried out; 0 is never.
    """

    def __init__(self, path: Path, tasks: Sequence[str], lookahead_every: int) -> None:
        self.path, self.tasks, self.lookahead_every = path, tuple(tasks), lookahead_every
        self._squares_KP: torch.Tensor | None = None
        self._seen = 0

    def __call__(self, moment: Moment) -> None:
        """Measure.

        Raises:
            UserError: The shared module is so large that its gradients would not fit into memory beside the run.
        """
        own_KP = moment.gradients.values_KP
        if moment.step == 0:
            self._begin(own_KP.numel())
        if moment.gradients.tasks != self.tasks or not own_KP.any(dim=1).all():
            return  # a head that starts at zero sends nothing back at first
        fresh = moment.fresh_gradients()
        if fresh.tasks != self.tasks:
            return
        self._squares_KP = own_KP.square() if self._squares_KP is None else self._squares_KP + own_KP.square()
        self._seen += 1
        scale_KP = (self._squares_KP / self._seen).sqrt_().add_(1e-8)
        losses_K = np.array([moment.losses[task] for task in self.tasks])
        factors_K = np.array([moment.factors[task] for task in self.tasks])
        energies_K = own_KP.square().sum(1).double().cpu().numpy() * factors_K**2
        record: dict[str, Any] = {
            "step": moment.step + 1,
            "tasks": self.tasks,
            "energies": energies_K.tolist(),
            "cosines": _products(*[torch.nn.functional.normalize(own_KP, dim=1)] * 2).tolist(),
            "transfer": (moment.rate * _progress(own_KP, fresh.values_KP, scale_KP) / losses_K).tolist(),
        }
        if self.lookahead_every and self._seen % self.lookahead_every == 0:
            record["lookahead"] = _try_out(moment, own_KP / scale_KP)
        with clear_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _begin(self, values: int) -> None:
        if values > MEASURED:
            problem = f"{len(self.tasks)} tasks' gradients on this module are {values:,} numbers, and several copies"
            raise UserError(f"{problem} are needed", "choose a method that trains less, such as lora")
        self._squares_KP, self._seen = None, 0
        write_atomically(self.path, "")


def _try_out(moment: Moment, own_KP: torch.Tensor) -> list[list[float]]:
    """Lookahead affinity (Fifty et al. 2021, arXiv 2109.04617, eq. 1): by task (row), what its own step takes off each
    task's loss, as a share of it, on examples that are new to the weights. Weights are put back."""
    parameters = moment.gradients.parameters
    sizes = [p.numel() for p in parameters]
    before = [p.detach().clone() for p in parameters]
    base = moment.fresh_losses()
    rows: list[list[float]] = []
    for own_P in own_KP:
        steps = [moment.rate * part for part in own_P.split(sizes)]
        _put(parameters, [value - step.view_as(value) for value, step in zip(before, steps, strict=True)])
        after = moment.fresh_losses()
        rows.append([1 - after[task] / base[task] for task in moment.gradients.tasks])
    _put(parameters, before)
    return rows


@torch.no_grad()
def _put(parameters: Sequence[torch.nn.Parameter], values: Sequence[torch.Tensor]) -> None:
    for p, value in zip(parameters, values, strict=True):
        p.copy_(value)


@dataclass(frozen=True, slots=True)
class Affinity:
    """What a joint run measured.

    Attributes:
        tasks: Names, in the order of rows and columns.
        steps: Measured steps.
        cosines_KK: Mean cosine of gradients for the same step's examples.
        transfer_MKK: A_kj of each measured step.
        lookahead_MKK: What trying each task's own step out gave, of the steps in which this was done.
        energies_MK: Squared length of each task's gradient as it enters the update.
    """

    tasks: tuple[str, ...]
    steps: tuple[int, ...]
    cosines_KK: Floats
    transfer_MKK: Floats
    lookahead_MKK: Floats
    energies_MK: Floats


def read_affinity(path: Path) -> Affinity:
    """What an `AffinityRecorder` wrote.

    Raises:
        UserError: There is nothing, or the file is broken.
    """
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        by_step = {record["step"]: record for record in records}  # a run that was continued measured some again
        tried = [record["lookahead"] for record in by_step.values() if "lookahead" in record]
        if not by_step:
            hint = "give more of the steps to the joint run with --share, or every task a larger part of the batch"
            raise UserError(f"{path} holds no measured step in which all tasks take part", hint)
        return Affinity(
            tasks=tuple(records[0]["tasks"]),
            steps=tuple(by_step),
            cosines_KK=np.mean([record["cosines"] for record in by_step.values()], axis=0),
            transfer_MKK=np.array([record["transfer"] for record in by_step.values()]),
            lookahead_MKK=np.array(tried),
            energies_MK=np.array([record["energies"] for record in by_step.values()]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "remove the folder of the joint run and start the study again"
        raise UserError(f"{path} cannot be read: {error}", hint) from error


def _progress(own_KP: torch.Tensor, fresh_KP: torch.Tensor, scale_KP: torch.Tensor) -> Floats:
    """<gradient of task j, own step of task k>, row k, column j, over pairs that rest on different examples."""
    own_steps_KP, fresh_steps_KP = own_KP / scale_KP, fresh_KP / scale_KP
    crossed_KK = (_products(own_steps_KP, fresh_KP) + _products(fresh_steps_KP, own_KP)) / 2
    same_KK = (_products(own_steps_KP, own_KP) + _products(fresh_steps_KP, fresh_KP)) / 2
    return np.where(np.eye(len(crossed_KK), dtype=bool), crossed_KK, (crossed_KK + same_KK) / 2)


def _products(left_KP: torch.Tensor, right_KP: torch.Tensor) -> Floats:
    return (left_KP @ right_KP.T).double().cpu().numpy()
