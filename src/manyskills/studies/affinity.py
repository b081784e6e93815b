"""Task affinity, measured while one joint run trains: what a step of one task does to the others.

Shape legend: K tasks, P parameters of the shared module, M measured steps, D size of a projection.

At a measured step each task's gradient is known twice: for the step's own examples (g), and for those of the step
after, which the weights have not seen yet (f). A task's own step is what AdamW would take for it alone,
-rate g_k / sqrt(s_k) with s_k the mean of g_k^2 so far. To first order it lowers the loss of task j by

    A_kj = rate <f_j, g_k / sqrt(s_k)> / L_j.

Because f and g rest on different examples, noise does not pass for progress, not even where k is j. A_kj is the mean
over the ways to choose the two gradients so that they do: f and g may change places, and two tasks' examples differ
anyway. Gradients are kept as projections that keep inner products, so that a run of any size leaves a small file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from manyskills.errors import UserError
from manyskills.evaluation.bootstrap import Floats
from manyskills.files import write_atomically
from manyskills.training.loop import Moment

SKETCH = 4096
"""Numbers that a gradient is projected to."""


class Sketch:
    """A random projection that keeps inner products: each parameter is added, with a random sign, to one of D cells
    (count sketch; Charikar et al. 2002, Weinberger et al. 2009, arXiv 0902.2206).

    Args:
        parameters: P.
        size: D; a shorter vector is left as it is.
        seed: Of cells and signs.
    """

    def __init__(self, parameters: int, size: int = SKETCH, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.size = size if parameters > size else 0
        self._cells_P = torch.randint(size, (parameters,), generator=generator)
        self._signs_P = torch.randint(2, (parameters,), generator=generator).mul_(2).sub_(1).float()

    def __call__(self, values_KP: torch.Tensor) -> torch.Tensor:
        """Projections of some vectors, shape (K, D), float32, on the CPU."""
        values_KP = values_KP.detach().float().cpu()
        if not self.size:
            return values_KP.clone()
        found_KD = torch.zeros(len(values_KP), self.size)
        return found_KD.index_add_(1, self._cells_P, values_KP * self._signs_P)


class AffinityRecorder:
    """Watches a joint run and keeps what was measured, a file a measured step.

    Args:
        folder: For the files; those of a run that continues are written again with the same content.
        lookahead_every: Measured steps between those at which each task's own step is tried out; 0 is never.
    """

    def __init__(self, folder: Path, lookahead_every: int) -> None:
        self.folder, self.lookahead_every = folder, lookahead_every
        self._squares_KP: torch.Tensor | None = None
        self._seen = 0
        self._sketch: Sketch | None = None

    def __call__(self, moment: Moment) -> None:
        """Measure."""
        values_KP = moment.gradients.values_KP
        if self._sketch is None:
            self._sketch = Sketch(values_KP.shape[1])
            self._squares_KP = torch.zeros_like(values_KP)
        assert self._squares_KP is not None
        self._seen += 1
        self._squares_KP += values_KP.square()
        scale_KP = (self._squares_KP / self._seen).sqrt_().add_(1e-8)
        own_KP = values_KP / scale_KP
        fresh_KP = moment.fresh_gradients().values_KP
        record: dict[str, Any] = {
            "step": moment.step + 1,
            "tasks": list(moment.gradients.tasks),
            "losses": moment.losses,
            "rate": moment.rate,
            "energies": values_KP.square().sum(1).tolist(),
        }
        if self.lookahead_every and self._seen % self.lookahead_every == 0:
            record["lookahead"] = _try_out(moment, own_KP)
        rows = {"own": values_KP, "own_steps": own_KP, "fresh": fresh_KP, "fresh_steps": fresh_KP / scale_KP}
        arrays = {name: self._sketch(rows_KP).numpy() for name, rows_KP in rows.items()}
        self._write(record, arrays)

    def _write(self, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        content = save(dict(arrays), metadata={"record": json.dumps(record)})
        write_atomically(self.folder / f"{record['step']:08d}.safetensors", content)


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
        lookahead_KK: Mean of the steps that were tried out; None if none was.
        energies_K: Mean squared length of each task's gradient.
    """

    tasks: tuple[str, ...]
    steps: tuple[int, ...]
    cosines_KK: Floats
    transfer_MKK: Floats
    lookahead_KK: Floats | None
    energies_K: Floats


def read_affinity(folder: Path) -> Affinity:
    """What an `AffinityRecorder` wrote.

    Raises:
        UserError: There is nothing, or a file is broken.
    """
    records, cosines, transfers = [], [], []
    for path in sorted(folder.glob("*.safetensors")):
        record, arrays = _read(path)
        if record["step"] == 1 or not all(record["energies"]):
            continue  # a head that starts at zero sends nothing back at first
        losses_K = np.array([record["losses"][task] for task in record["tasks"]])
        transfers.append(record["rate"] * _progress(arrays) / losses_K)
        units_KD = arrays["own"] / np.linalg.norm(arrays["own"], axis=1, keepdims=True)
        cosines.append(units_KD @ units_KD.T)
        records.append(record)
    if not records:
        raise UserError(f"{folder} holds no measured step", "lower conflict_steps, or train more steps")
    tried = [record["lookahead"] for record in records if "lookahead" in record]
    return Affinity(
        tasks=tuple(records[0]["tasks"]),
        steps=tuple(record["step"] for record in records),
        cosines_KK=np.mean(cosines, axis=0),
        transfer_MKK=np.array(transfers, dtype=np.float64),
        lookahead_KK=np.mean(tried, axis=0) if tried else None,
        energies_K=np.mean([record["energies"] for record in records], axis=0),
    )


def _progress(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """<gradient of task j, own step of task k>, row k, column j, over pairs that rest on different examples."""
    crossed_KK = (arrays["own_steps"] @ arrays["fresh"].T + arrays["fresh_steps"] @ arrays["own"].T) / 2
    same_KK = (arrays["own_steps"] @ arrays["own"].T + arrays["fresh_steps"] @ arrays["fresh"].T) / 2
    return np.where(np.eye(len(crossed_KK), dtype=bool), crossed_KK, (crossed_KK + same_KK) / 2)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        with safe_open(path, framework="np") as file:
            record = json.loads((file.metadata() or {})["record"])
            return record, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        hint = "remove the folder of the joint run and start again"
        raise UserError(f"{path} cannot be read: {error}", hint) from error
