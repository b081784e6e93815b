"""Memory and time of the loss over a large vocabulary: block by block against logits that are there whole.

    python benchmarks/cross_entropy_memory.py [--tokens 4096] [--threads 1]

States and an output layer of random numbers, of the sizes of Qwen2.5-Coder 0.5B and 1.5B; forward and backward pass in
float32 (on a GPU in bfloat16). Each case runs in a program of its own. On a CPU the memory is the most that the program
held at once, output layer and libraries included, and beyond what it held before the pass; on a GPU what PyTorch
allocated. The gradients of both ways are compared on a few tokens.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from manyskills.evaluation.plots import PALETTE
from manyskills.model.cross_entropy import linear_cross_entropy
from measuring import Table, benchmark_parser, machine, measured, peak_memory_of, write_report

BLOCKS, WHOLE = "blocks", "whole logits"
FROZEN, TRAINED = "frozen", "trained"
GPU = torch.cuda.is_available()


@dataclass(frozen=True, slots=True)
class Case:
    """One pass to measure."""

    way: str
    hidden_size: int
    output_layer: str
    vocabulary: int
    tokens: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = benchmark_parser(__doc__, rounds=1)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    wanted = parser.parse_args(arguments)
    torch.set_num_threads(wanted.threads)
    if wanted.memory_of:
        print(json.dumps(measure_here(Case(**json.loads(wanted.memory_of)))))
        return
    tokens, vocabulary = (64, 500) if wanted.quick else (wanted.tokens, wanted.vocabulary)
    layers = [(896, FROZEN), (1536, FROZEN), (896, TRAINED)]
    cases = [Case(way, *layer, vocabulary, tokens) for layer in layers for way in (WHOLE, BLOCKS)]
    passes = [measure(case, wanted.threads) for case in cases]
    about = {"vocabulary": vocabulary, "tokens": tokens, "gradient_difference": gradient_difference(vocabulary)}
    result = {"machine": machine(), "about": about, "passes": passes}
    write_report("cross_entropy_memory", wanted.output, result, table(result), lambda figure: plot(figure, result))


def measure(case: Case, threads: int) -> dict[str, Any]:
    """One case in a program of its own."""
    argv = ["python", __file__, "--memory-of", json.dumps(asdict(case)), "--threads", str(threads)]
    done = peak_memory_of(argv)
    return asdict(case) | {"peak_bytes": done.peak_bytes} | json.loads(done.stdout.splitlines()[-1])


def measure_here(case: Case) -> dict[str, Any]:
    """Time and memory of one forward and backward pass of this program."""
    rows, weight, targets = _tensors(case)
    if not GPU:
        before = _resident_bytes()
        cost = measured(lambda: _pass(case.way, rows, weight, targets))
        return {"cpu": cost.cpu, "wall": cost.wall, "bytes_before": before}
    _pass(case.way, rows[:64], weight, targets[:64])
    rows.grad = weight.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    cost = measured(lambda: (_pass(case.way, rows, weight, targets), torch.cuda.synchronize()))
    return {"cpu": cost.cpu, "wall": cost.wall, "bytes_before": before,
            "peak_bytes": torch.cuda.max_memory_allocated()}  # fmt: skip


def _tensors(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """States, output layer, right tokens."""
    torch.manual_seed(0)
    to = {"device": "cuda", "dtype": torch.bfloat16} if GPU else {}
    rows_RH = torch.randn(case.tokens, case.hidden_size, **to).requires_grad_()
    weight_VH = torch.empty(case.vocabulary, case.hidden_size, **to).normal_(std=case.hidden_size**-0.5)
    targets_R = torch.randint(case.vocabulary, (case.tokens,), device=rows_RH.device)
    return rows_RH, weight_VH.requires_grad_(case.output_layer == TRAINED), targets_R


def _pass(way: str, rows_RH: torch.Tensor, weight_VH: torch.Tensor, targets_R: torch.Tensor) -> None:
    """Loss and gradients; a mean, as in training."""
    if way == BLOCKS:
        total, _ = linear_cross_entropy(rows_RH, weight_VH, targets_R)
    else:
        total = F.cross_entropy(F.linear(rows_RH, weight_VH).float(), targets_R, reduction="sum")
    (total / len(targets_R)).backward()


def _resident_bytes() -> int:
    """What this program holds now; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def gradient_difference(vocabulary: int) -> float:
    """Largest difference of a gradient between both ways, as a share of the largest gradient."""
    rows_RH, weight_VH, targets_R = _tensors(Case("", 64, TRAINED, vocabulary, 32))
    found: list[torch.Tensor] = []
    for way in (BLOCKS, WHOLE):
        rows_RH.grad = weight_VH.grad = None
        _pass(way, rows_RH, weight_VH, targets_R)
        assert rows_RH.grad is not None and weight_VH.grad is not None
        found.append(torch.cat([rows_RH.grad.ravel(), weight_VH.grad.ravel()]))
    return float((found[0] - found[1]).abs().max() / found[1].abs().max())


def table(result: dict[str, Any]) -> Table:
    """For people."""
    rows: list[list[str]] = []
    for whole, blocks in _both_ways(result):
        for one in (whole, blocks):
            added, times = _added(one), _added(whole) / max(_added(one), 1)
            name = f"{one['way']}, hidden {one['hidden_size']:,}, output layer {one['output_layer']}"
            memory = [f"{one['peak_bytes'] / 2**30:.2f}", f"{added / 2**30:.2f}"]
            less = [f"{whole['peak_bytes'] / one['peak_bytes']:.1f}x", f"{times:.1f}x"]
            rows.append([name, *memory, *less, f"{one['cpu']:.1f}", f"{one['wall']:.1f}"])
    about = result["about"]
    caption = (
        f"{about['tokens']:,} tokens, vocabulary {about['vocabulary']:,}. Less: how many times as much memory whole "
        f"logits take. Largest difference of a gradient: {about['gradient_difference']:.1e} of the largest gradient."
    )
    columns = ["loss", "peak GiB", "beyond the weights", "less", "less beyond", "CPU s", "wall s"]
    return Table(columns, rows, caption)


def _added(one: dict[str, Any]) -> int:
    return one["peak_bytes"] - one["bytes_before"]


def _both_ways(result: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    passes = result["passes"]
    return list(zip(passes[::2], passes[1::2], strict=True))


def plot(figure: Figure, result: dict[str, Any]) -> None:
    """Peak memory of both ways."""
    axes = figure.subplots()
    pairs = _both_ways(result)
    for number, way in enumerate((WHOLE, BLOCKS)):
        places = [place + 0.4 * number for place in range(len(pairs))]
        values = [pair[number]["peak_bytes"] / 2**30 for pair in pairs]
        axes.bar(places, values, width=0.38, color=PALETTE[number], label=way)
    labels = [f"hidden {whole['hidden_size']:,}, {whole['output_layer']}" for whole, _ in pairs]
    axes.set_xticks([place + 0.2 for place in range(len(pairs))], labels)
    axes.set_ylabel("peak memory, GiB")
    axes.legend(frameon=False)


if __name__ == "__main__":
    main()
