"""Memory of a training step with many in-batch candidates: `step_memory: cached` against a single pass.

    python benchmarks/step_memory.py [--data path/to/data] [--backbone unixcoder-size] [--candidates 1024]

A step of code search compares every query with the answers of all others. Its memory in one pass grows with them;
cached, it is that of one chunk. Each step is the first of a program of its own, whose peak memory counts everything:
weights, optimizer and libraries. The single pass is measured up to a few candidates and extrapolated in a straight
line. Texts are cut to --max-length tokens, which decides the time of a step; the memory of a chunk depends on
token_budget. One more cached step, of few candidates, has texts of up to 512 tokens. The gradients of both ways are
compared on a small step.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from manyskills.config import TrainConfig
from manyskills.data.mining import MiningLimits
from manyskills.data.preparation import Prepared, prepare
from manyskills.data.reading import read_split
from manyskills.evaluation.plots import PALETTE
from manyskills.model.multitask import MultiTaskModel, build_model
from manyskills.tasks import get_task
from manyskills.training.balancing import build_balancing
from manyskills.training.forward import Sources
from manyskills.training.optimizer import Optimizer
from manyskills.training.processes import Processes
from manyskills.training.step import accumulate_gradients
from manyskills.training.vectors import BackboneVectors
from measuring import (
    UNIXCODER_SIZE,
    Table,
    backbone_name,
    benchmark_parser,
    data_folder,
    machine,
    measured,
    own_cache,
    peak_memory_of,
    write_report,
)

TASK = "code_search"
CPU = torch.device("cpu")
CACHED, SINGLE = "cached", "single_pass"
LONGEST = 512


@dataclass(frozen=True, slots=True)
class Case:
    """One step to measure."""

    step_memory: str
    candidates: int
    max_length: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = benchmark_parser(__doc__, rounds=1)
    parser.add_argument("--backbone", default=UNIXCODER_SIZE, help="any backbone's name, or unixcoder-size")
    parser.add_argument("--candidates", type=int, default=1024)
    parser.add_argument("--max-length", type=int, default=64, help="tokens of a text at most")
    parser.add_argument("--token-budget", type=int, default=8192)
    parser.add_argument("--attention", choices=["auto", "padded", "unpadded"], default="auto")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    wanted = parser.parse_args(arguments)
    torch.set_num_threads(wanted.threads)
    if wanted.memory_of:
        print(json.dumps(_step(wanted, Case(*json.loads(wanted.memory_of)))))
        return
    most, few = (24, (8, 16)) if wanted.quick else (wanted.candidates, (16, 32, 64))
    usual, longest = wanted.max_length, wanted.max_length + 8 if wanted.quick else LONGEST
    with own_cache() as temporary:
        wanted.data = data_folder(wanted.data, temporary, MiningLimits(train=most, valid=8, test=8))
        wanted.backbone = backbone_name(wanted.backbone, temporary)
        difference = gradient_difference(wanted, few[0])
        cases = [Case(SINGLE, count, usual) for count in few]
        cases += [Case(CACHED, few[-1], longest)] + [Case(CACHED, count, usual) for count in (few[-1], most)]
        steps = [measure(wanted, case) for case in cases]
    about = {key: getattr(wanted, key) for key in ("max_length", "token_budget", "attention")}
    result = {"machine": machine(), "about": about, "gradient_difference": difference, "steps": steps}
    result["single_pass_extrapolated_bytes"] = extrapolated(steps, most)
    write_report("step_memory", wanted.output, result, table(result), lambda figure: plot(figure, result))


def measure(wanted: argparse.Namespace, case: Case) -> dict[str, Any]:
    """One step in a program of its own."""
    argv = ["python", __file__, "--memory-of", json.dumps([case.step_memory, case.candidates, case.max_length])]
    for key in ("data", "backbone", "token_budget", "attention", "threads"):
        argv += [f"--{key.replace('_', '-')}", str(getattr(wanted, key))]
    done = peak_memory_of(argv)
    return asdict(case) | {"peak_bytes": done.peak_bytes} | json.loads(done.stdout.splitlines()[-1])


def _step(wanted: argparse.Namespace, case: Case) -> dict[str, Any]:
    """The whole step: vectors, loss, gradients, update."""
    config = _config(wanted, case)
    model, prepared = _load(config, Path(wanted.data), case.candidates)
    optimizer = Optimizer(model, config, 10)
    before = _resident_bytes()
    cost = measured(lambda: (_accumulate(model, prepared, config, case), optimizer.update(0)))
    tokens = int(prepared.store.lengths_N[prepared.used_texts("train")].sum())
    return {"tokens": tokens, "cpu": cost.cpu, "wall": cost.wall, "bytes_before": before}


def _config(wanted: argparse.Namespace, case: Case) -> TrainConfig:
    return TrainConfig.model_validate({
        "backbone": wanted.backbone, "tasks": [TASK], "data_dir": str(wanted.data), "max_length": case.max_length,
        "token_budget": wanted.token_budget, "attention": wanted.attention, "batch_size": case.candidates,
    })  # fmt: skip


def _load(config: TrainConfig, data: Path, candidates: int) -> tuple[MultiTaskModel, Prepared]:
    rows = read_split(get_task(TASK), str(data / TASK), "train", limit=candidates)
    model = build_model(config, CPU)
    prepared = prepare(
        {"train": {TASK: rows}}, config.tasks, config.max_length, model.tokenizer, model.template,
        model.architecture.max_positions, model.routes,
    )  # fmt: skip
    return model.train(), prepared


def _accumulate(model: MultiTaskModel, prepared: Prepared, config: TrainConfig, case: Case) -> float:
    """Gradients are left in the parameters; gives the loss."""
    cached, alone = case.step_memory == CACHED, Processes(0, 1, CPU)
    source = BackboneVectors(model, prepared.store, config.token_budget, cached=cached, processes=alone)
    balancing = build_balancing(config.balancing, [TASK], config.seed)
    batch = {TASK: prepared.examples["train"][TASK].take(np.arange(case.candidates))}
    return accumulate_gradients(model, Sources(source), batch, balancing, seed=1).losses[TASK]


def _resident_bytes() -> int:
    """What this program holds now: weights and libraries. 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def gradient_difference(wanted: argparse.Namespace, candidates: int) -> float:
    """Largest difference of a gradient between both ways, as a share of the largest gradient."""
    single, cached = (Case(way, candidates, wanted.max_length) for way in (SINGLE, CACHED))
    config = _config(wanted, single)
    model, prepared = _load(config, Path(wanted.data), candidates)
    found: list[torch.Tensor] = []
    for case in (single, cached):
        model.zero_grad()
        _accumulate(model, prepared, config, case)
        found.append(torch.cat([p.grad.ravel() for p in model.parameters() if p.grad is not None]))
    return float((found[0] - found[1]).abs().max() / found[0].abs().max())


def extrapolated(steps: Sequence[dict[str, Any]], candidates: int) -> float:
    """Peak memory of a single pass with so many candidates: the straight line through those that were measured."""
    single = [step for step in steps if step["step_memory"] == SINGLE]
    slope, start = np.polyfit([step["tokens"] for step in single], [step["peak_bytes"] for step in single], 1)
    tokens = next(step["tokens"] for step in steps if step["candidates"] == candidates)
    return float(start + slope * tokens)


def table(result: dict[str, Any]) -> Table:
    """For people."""
    rows = []
    for step in result["steps"]:
        memory = [f"{step['peak_bytes'] / 2**30:.2f}", f"{step['bytes_before'] / 2**30:.2f}"]
        cells = [f"{step['tokens']:,}", *memory, f"{step['cpu']:.1f}", f"{step['wall']:.1f}"]
        name = f"{step['step_memory']}, {step['candidates']:,} candidates"
        longer = step["max_length"] != result["about"]["max_length"]
        rows.append([f"{name} of up to {step['max_length']} tokens" if longer else name, *cells])
    most, about = result["steps"][-1]["candidates"], result["about"]
    caption = (
        f"Texts of at most {about['max_length']} tokens where nothing else is said, token_budget "
        f"{about['token_budget']:,}. A single pass with {most:,} candidates "
        f"would take {result['single_pass_extrapolated_bytes'] / 2**30:.1f} GiB (extrapolated). "
        f"Largest difference of a gradient: {result['gradient_difference']:.1e} of the largest gradient."
    )
    return Table(["step", "tokens", "peak GiB", "before the step", "CPU s", "wall s"], rows, caption)


def plot(figure: Figure, result: dict[str, Any]) -> None:
    """Peak memory over candidates."""
    axes = figure.subplots()
    for colour, way in enumerate((SINGLE, CACHED)):
        usual = result["about"]["max_length"]
        steps = [step for step in result["steps"] if step["step_memory"] == way and step["max_length"] == usual]
        memory = [step["peak_bytes"] / 2**30 for step in steps]
        axes.plot([step["candidates"] for step in steps], memory, "o-", color=PALETTE[colour], label=way)
    axes.set(xscale="log", yscale="log", xlabel="in-batch candidates", ylabel="peak memory, GiB")
    axes.legend(frameon=False)


if __name__ == "__main__":
    main()
