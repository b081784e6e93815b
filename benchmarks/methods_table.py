"""Train every method under one budget and print one table: metrics, trainable share, time and memory.

    python benchmarks/methods_table.py --data path/to/data --output runs/methods [--workers 2] [KEY=VALUE ...]

Each run is a process of its own, so its peak memory is its own. Finished runs are kept: an interrupted table goes on.
Learning rates are the usual ones of each method, set beforehand and not tuned here; steps, rows and lengths are those
of examples/methods.yaml for all. Runs with the same seed see the same rows in the same order.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

RECIPE = Path(__file__).parent.parent / "examples" / "methods.yaml"
COST = "cost.json"
METRICS = ("clone_detection", "defect_detection", "flaky_tests", "code_search")


@dataclass(frozen=True)
class Setting:
    """A method with its numbers, and the seeds it is trained with."""

    name: str
    changes: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)


THREE = (0, 1, 2)
LORA = ("method.name=lora", "learning_rate=8e-4")
BESIDE = {"floor": "TF-IDF floor", "untrained": "untrained", "frozen": "frozen, heads alone"}
"""Measured in a run of their own, so that no method's cost holds them."""
SETTINGS = (
    Setting("beside", (*LORA, f"baselines=[{','.join(BESIDE)}]")),
    Setting("lora", LORA, THREE),
    Setting("serial_adapter", ("method.name=serial_adapter", "learning_rate=5e-4"), THREE),
    Setting("full", ("method.name=full", "learning_rate=3e-5"), THREE),
    Setting("parallel_adapter", ("method.name=parallel_adapter", "learning_rate=5e-4")),
    Setting("prefix_tuning", ("method.name=prefix_tuning", "learning_rate=5e-3")),
    Setting("mtl_lora", ("method.name=mtl_lora", "learning_rate=8e-4")),
    Setting("dora", ("method.name=dora", "learning_rate=8e-4")),
    Setting("ia3", ("method.name=ia3", "learning_rate=5e-3")),
    Setting("lora_all_linear", (*LORA, "method.target=all-linear")),
    Setting("lora_last_2", (*LORA, "method.layers=last 2")),
    Setting("qlora", ("method.name=qlora", "learning_rate=8e-4")),
)


def main() -> None:
    """Train what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="one folder a task")
    parser.add_argument("--output", type=Path, default=Path("runs/methods"))
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--only", nargs="*", help="names of settings; default: all")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE")
    wanted = parser.parse_args()
    settings = [s for s in SETTINGS if not wanted.only or s.name in wanted.only]
    order = sorted(((seed, s) for s in settings for seed in s.seeds), key=lambda pair: pair[0])
    wanted.output.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(wanted.workers) as pool:
        done = list(pool.map(lambda pair: _train(pair[1], pair[0], wanted.data, wanted.output, wanted.changes), order))
    if not all(done):
        print("some runs failed: see the logs in", wanted.output, file=sys.stderr)
    for split in ("valid", "test"):
        print(f"\n{split}\n")
        print("\n".join(_table(settings, wanted.output, split)))


def _train(setting: Setting, seed: int, data: Path, output: Path, changes: Sequence[str]) -> bool:
    folder = output / f"{setting.name}-{seed}"
    values = [f"data_dir={data}", f"output_dir={folder}", f"seed={seed}", *setting.changes, *changes]
    if (folder / COST).is_file() and json.loads((folder / COST).read_text(encoding="utf-8"))["values"] == values:
        return True
    command = [sys.executable, "-m", "manyskills", "train", str(RECIPE), *values, "--json", "--overwrite"]
    started = time.perf_counter()
    with (output / f"{setting.name}-{seed}.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    print(f"{setting.name} seed {seed}: exit {process.returncode}, {seconds:.0f} s", file=sys.stderr)
    if process.returncode:
        return False
    cost = {
        "values": values,
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 1024,
    }
    (folder / COST).write_text(json.dumps(cost) + "\n", encoding="utf-8")
    return True


def _table(settings: Sequence[Setting], output: Path, split: str) -> list[str]:
    heads = [f"{name} {metric}" for name, metric in zip(METRICS, ("F1", "acc.", "F1", "MRR"), strict=True)]
    lines = [
        f"| method | seeds | {' | '.join(heads)} | share % | train s | CPU s a run | peak MiB |",
        "|---|---:|" + "---:|" * (len(heads) + 4),
    ]
    for setting in settings:
        runs = [r for seed in setting.seeds if (r := _read(output / f"{setting.name}-{seed}")) is not None]
        if not runs:
            continue
        if setting.name == "beside":
            for system, label in BESIDE.items():
                values = _metrics(runs, system, split)
                lines.append(f"| {label} | {len(runs)} | {' | '.join(values)} | 0 | | | |")
            continue
        trained = [run["training"] for run, _ in runs]
        shared, whole = trained[0]["trainable_shared"], trained[0]["backbone_parameters"]
        share = 100 * shared / (whole if shared == whole else whole + shared)
        numbers = [
            f"{share:.2f}",
            f"{median(t['seconds'] for t in trained):.0f}",
            f"{median(cost['cpu_seconds'] for _, cost in runs):.0f}",
            f"{median(cost['peak_mib'] for _, cost in runs):.0f}",
        ]
        lines.append(f"| {setting.name} | {len(runs)} | {' | '.join([*_metrics(runs, 'module', split), *numbers])} |")
    return lines


def _metrics(runs: Sequence[tuple[dict[str, Any], dict[str, Any]]], system: str, split: str) -> list[str]:
    """Mean, with the range over seeds where there are several; costs are medians."""
    cells = []
    for task in METRICS:
        entries = [run["tasks"][task] for run, _ in runs]
        found = [e["systems"][system][split]["metrics"][e["primary_metric"]]["value"] for e in entries]
        spread = f" ({min(found):.3f}-{max(found):.3f})" if len(found) > 1 else ""
        cells.append(f"{mean(found):.3f}{spread}")
    return cells


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    if not (folder / COST).is_file():
        return None
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return results, json.loads((folder / COST).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
