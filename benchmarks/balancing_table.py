"""Train every balancing rule, and each task alone, under one budget, and print one table of validation metrics.

    python benchmarks/balancing_table.py --data path/to/data --output runs/balancing [KEY=VALUE ...] [--only NAME ...]

Trainings are those of examples/balancing.yaml: every task sees the same rows in the same order, alone or with others,
under every rule. They are kept, each with a plot of its weights and gradients: an interrupted table goes on. Everything
is measured on validation, because the default is chosen from this table; the test rows are not read. Settings of the
rules are not tuned here. Whoever trains alone chooses the best of three validations for one task, together for all of
them at once, so gains are given after the last step as well.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from manyskills.config import TrainConfig
from manyskills.config.file import load_config
from manyskills.evaluation.conflict import conflict_summary
from manyskills.evaluation.conflict_plots import plot_conflict
from manyskills.studies.fit import fit
from manyskills.training.run_folder import RunFolder

RECIPE = Path(__file__).parent.parent / "examples" / "balancing.yaml"
HEADS = {
    "clone_detection": "clones F1",
    "defect_detection": "defects acc.",
    "flaky_tests": "flaky F1",
    "code_search": "search MRR",
}
RULES: dict[str, dict[str, Any]] = {
    "uniform": {},
    "fixed": {"weights": {"clone_detection": 1, "defect_detection": 2, "flaky_tests": 1, "code_search": 1}},
    "learned_softmax": {"learning_rate": 0.05},
    "uncertainty": {},
    "dwa": {"window": 6},
    "rlw": {},
    "famo": {"every": 4},
    "coba": {"every": 4, "warmup": 3, "history": 6},
    "gls": {},
    "pcgrad": {},
    "cagrad": {},
    "mgda": {},
    "nash_mtl": {},
    "db_mtl": {},
    "gradnorm": {},
}
"""With settings where a run of 72 steps needs others than one of thousands: at the defaults, the weights of dwa, famo,
coba and learned_softmax would hardly move. `fixed` is there to show what a weight does."""
REMEDIES: dict[str, dict[str, Any]] = {
    "mtl_lora": {"method": {"name": "mtl_lora", "r": 16, "lora_alpha": 32, "target": "all-linear", "layers": "last 2"}},
    "rate_x2": {"learning_rate": 1.6e-3},
    "alternating": {"sampling": {"name": "alternating"}, "batch_size": 12, "max_steps": 288, "eval_steps": 144},
}
"""Other recipes of several tasks, under uniform."""


def main() -> None:
    """Train what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="one folder a task")
    parser.add_argument("--output", type=Path, default=Path("runs/balancing"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="names of rules and remedies; default: all")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE")
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    base = load_config(RECIPE, [f"data_dir={wanted.data}", *wanted.changes])
    names = wanted.only or [*RULES, *REMEDIES]
    found: dict[str, dict[int, Trained]] = {}
    alone: dict[int, dict[str, Trained]] = {}
    for seed in wanted.seeds:
        alone[seed] = {task: _fit(single(base, task), wanted.output / f"{task}-{seed}", seed) for task in base.tasks}
        for name in names:
            folder = wanted.output / f"{name}-{seed}"
            fitted = _fit(together(base, name), folder, seed)
            draw(folder)
            found.setdefault(name, {})[seed] = fitted
            line = {"name": name, "seed": seed, "gain": gains(fitted, alone[seed]).last, **fitted.last_primary}
            print(json.dumps(line), flush=True)
    print("\n".join(table(found, alone)))


def single(base: TrainConfig, task: str) -> dict[str, Any]:
    """One task alone: its rows of every step, which are its share of the batch."""
    return {
        "tasks": {task: base.tasks[task].model_dump()},
        "batch_size": base.batch_size // len(base.tasks),
        "conflict_steps": 0,
    } | _rest(base)


def together(base: TrainConfig, name: str) -> dict[str, Any]:
    """All tasks under a rule or another recipe."""
    changes = {"balancing": {"name": name, **RULES[name]}} if name in RULES else REMEDIES[name]
    return base.model_dump() | changes


def _rest(base: TrainConfig) -> dict[str, Any]:
    left = {"tasks", "batch_size", "conflict_steps"}
    return {key: value for key, value in base.model_dump().items() if key not in left}


@dataclass(frozen=True, slots=True)
class Trained:
    """Primary metrics at the chosen checkpoint, and metrics and losses after the last step, by task."""

    primary: dict[str, float]
    last_primary: dict[str, float]
    last_losses: dict[str, float]


def _fit(values: Mapping[str, Any], folder: Path, seed: int) -> Trained:
    config = TrainConfig.model_validate({**values, "output_dir": str(folder), "seed": seed})
    primary = fit(config, lambda _: None).primary
    last = [record for record in RunFolder(folder).read_metrics() if record["kind"] == "valid"][-1]
    return Trained(primary, last["primary"], last["valid_loss"])


def draw(folder: Path) -> None:
    """The run's weights, gradient norms and cosines: plots/conflict.png."""
    records = RunFolder(folder).read_metrics()
    plot_conflict(records, conflict_summary(records, []), folder / "plots" / "conflict.png")


@dataclass(frozen=True, slots=True)
class Gains:
    """Mean over tasks of (together - alone) / alone (Maninis et al. 2019, arXiv 1904.08918).

    Of the primary metric at the chosen checkpoints and after the last step, and of the validation loss there, where
    positive is less loss.
    """

    chosen: float
    last: float
    loss: float


def gains(together: Trained, alone: Mapping[str, Trained]) -> Gains:
    """What a task gains, on the mean, by being trained with the others."""
    tasks = list(together.primary)
    return Gains(
        chosen=mean(together.primary[t] / alone[t].primary[t] - 1 for t in tasks),
        last=mean(together.last_primary[t] / alone[t].last_primary[t] - 1 for t in tasks),
        loss=mean(1 - together.last_losses[t] / alone[t].last_losses[t] for t in tasks),
    )


def table(found: Mapping[str, Mapping[int, Trained]], alone: Mapping[int, Mapping[str, Trained]]) -> list[str]:
    """Markdown: means over seeds, with their range."""
    columns = [*HEADS.values(), "gain, chosen %", "gain, last step %", "gain in loss %"]
    lines = [f"| balancing | seeds | {' | '.join(columns)} |", "|---|---:|" + "---:|" * len(columns)]
    singles = [_cell([alone[seed][task].last_primary[task] for seed in alone]) for task in HEADS]
    lines.append(f"| each task alone | {len(alone)} | {' | '.join(singles)} | | | |")
    order = sorted(found, key=lambda name: -mean(gains(one, alone[s]).last for s, one in found[name].items()))
    for name in order:
        by_seed = found[name]
        metrics = [_cell([one.last_primary[task] for one in by_seed.values()]) for task in HEADS]
        of = [gains(one, alone[seed]) for seed, one in by_seed.items()]
        percent = [_cell([100 * value for value in values], 1) for values in
                   ([g.chosen for g in of], [g.last for g in of], [g.loss for g in of])]  # fmt: skip
        lines.append(f"| {name} | {len(by_seed)} | {' | '.join([*metrics, *percent])} |")
    return lines


def _cell(values: Sequence[float], digits: int = 3) -> str:
    spread = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


if __name__ == "__main__":
    main()
