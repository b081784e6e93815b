"""Train every balancing rule, and each task alone, under one budget, and print one table of validation metrics.

    python benchmarks/balancing_table.py --data path/to/data --output runs/balancing [KEY=VALUE ...] [--only NAME ...]

Trainings are those of examples/balancing.yaml: every task sees the same rows in the same order, alone or with others,
under every rule. They are kept: an interrupted table goes on. Everything is measured on validation, because the default
is chosen from this table; the test rows are not read. Settings of the rules are not tuned here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from manyskills.config import TrainConfig
from manyskills.config.file import load_config
from manyskills.studies.fit import Fit, fit

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
    "famo": {},
    "coba": {},
    "gls": {},
    "pcgrad": {},
    "cagrad": {},
    "mgda": {},
    "nash_mtl": {},
    "db_mtl": {},
    "gradnorm": {},
}
"""With settings where a run of 72 steps needs others than one of thousands: the averages of dwa and the weights of
learned_softmax would hardly move."""
REMEDIES: dict[str, dict[str, Any]] = {
    "mtl_lora": {"method": {"name": "mtl_lora", "r": 16, "lora_alpha": 32, "target": "all-linear", "layers": "last 2"}},
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
    found: dict[str, dict[int, Fit]] = {}
    alone: dict[int, dict[str, Fit]] = {}
    for seed in wanted.seeds:
        alone[seed] = {task: _fit(single(base, task), wanted.output / f"{task}-{seed}", seed) for task in base.tasks}
        for name in names:
            fitted = _fit(together(base, name), wanted.output / f"{name}-{seed}", seed)
            found.setdefault(name, {})[seed] = fitted
            print(
                json.dumps({"name": name, "seed": seed, "gain": gain(fitted, alone[seed]), **fitted.primary}),
                flush=True,
            )
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


def _fit(values: Mapping[str, Any], folder: Path, seed: int) -> Fit:
    return fit(TrainConfig.model_validate({**values, "output_dir": str(folder), "seed": seed}), lambda _: None)


def gain(fitted: Fit, alone: Mapping[str, Fit]) -> float:
    """Mean over tasks of (together - alone) / alone of the primary metric (Maninis et al. 2019, arXiv 1904.08918)."""
    return mean(
        (value - alone[task].primary[task]) / alone[task].primary[task] for task, value in fitted.primary.items()
    )


def loss_gain(fitted: Fit, alone: Mapping[str, Fit]) -> float:
    """The same of the validation loss, the other way round: positive is better."""
    base = {task: one.losses[task] for task, one in alone.items()}
    return mean((base[task] - value) / base[task] for task, value in fitted.losses.items())


def table(found: Mapping[str, Mapping[int, Fit]], alone: Mapping[int, Mapping[str, Fit]]) -> list[str]:
    """Markdown: means over seeds, with their range."""
    columns = [*HEADS.values(), "gain over single %", "gain in loss %"]
    lines = [f"| balancing | seeds | {' | '.join(columns)} |", "|---|---:|" + "---:|" * len(columns)]
    singles = [_cell([alone[seed][task].primary[task] for seed in alone]) for task in HEADS]
    lines.append(f"| each task alone | {len(alone)} | {' | '.join(singles)} | 0 | 0 |")
    for name, by_seed in found.items():
        metrics = [_cell([fitted.primary[task] for fitted in by_seed.values()]) for task in HEADS]
        gains = [_cell([100 * measure(fitted, alone[seed]) for seed, fitted in by_seed.items()], 1)
                 for measure in (gain, loss_gain)]  # fmt: skip
        lines.append(f"| {name} | {len(by_seed)} | {' | '.join([*metrics, *gains])} |")
    return lines


def _cell(values: Sequence[float], digits: int = 3) -> str:
    spread = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


if __name__ == "__main__":
    main()
