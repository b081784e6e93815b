"""How cost grows: a training step and an evaluation with rows, length and tasks, a search with its candidates.

    python benchmarks/growth.py [--backbone minilm]

The texts are random tokens of one length, so that what varies is nothing but the number on the axis. A row of each of
four tasks needs each text: a pair of it and the next, two classes, a query and its answer. Exponent: the slope of a
straight line through the logarithms; 1 is linear. The memory of a search is what it allocates beyond the vectors.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from manyskills.config import TrainConfig
from manyskills.data.text_set import Examples, gather
from manyskills.data.tokens import TokenStore
from manyskills.evaluation.outputs import task_outputs
from manyskills.evaluation.plots import MARKERS, PALETTE
from manyskills.evaluation.ranking import ranks
from manyskills.model.encoding import encode_texts
from manyskills.model.multitask import MultiTaskModel, build_model
from manyskills.tasks import Kind, get_task
from manyskills.training.balancing import build_balancing
from manyskills.training.forward import Sources
from manyskills.training.processes import Processes
from manyskills.training.step import accumulate_gradients
from manyskills.training.vectors import BackboneVectors
from measuring import (
    TASKS,
    Cost,
    Table,
    backbone_name,
    benchmark_parser,
    interleaved,
    machine,
    medians,
    own_cache,
    write_report,
)

CPU = torch.device("cpu")
STEP, EVALUATION, SEARCH = "training step", "evaluation", "search"
ROWS, LENGTH, COUNT, CANDIDATES = "rows of each task", "tokens of a text", "tasks", "candidates"


@dataclass(frozen=True, slots=True)
class Sizes:
    """What varies, and what the others are meanwhile."""

    rows: tuple[int, ...] = (8, 16, 32, 64)
    lengths: tuple[int, ...] = (64, 128, 256, 512)
    tasks: tuple[int, ...] = (1, 2, 3, 4)
    candidates: tuple[int, ...] = (1_000, 4_000, 16_000, 64_000)
    usual_rows: int = 16
    usual_length: int = 128
    queries: int = 500
    vector_size: int = 384


QUICK = Sizes((4, 8), (16, 32), (1, 4), (100, 400), usual_rows=4, usual_length=16, queries=20)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = benchmark_parser(__doc__, rounds=2)
    parser.add_argument("--backbone", default="minilm", help="any backbone's name, or unixcoder-size")
    wanted = parser.parse_args(arguments)
    torch.set_num_threads(wanted.threads)
    sizes = QUICK if wanted.quick else Sizes()
    with own_cache() as temporary:
        backbone = backbone_name(wanted.backbone, temporary)
        values = {"backbone": backbone, "tasks": list(TASKS), "max_length": max(sizes.lengths)}
        config = TrainConfig.model_validate(values)
        found = measure(config, sizes, wanted.rounds)
    result = {"machine": machine(), "sizes": asdict(sizes), "growth": found, "memory": search_memory(sizes)}
    write_report("growth", wanted.output, result, table(result), lambda figure: plot(figure, result))


def measure(config: TrainConfig, sizes: Sizes, rounds: int) -> dict[str, dict[str, dict[int, dict[str, float]]]]:
    """By what varies and by what is measured: size -> median cost."""
    model = build_model(config, CPU)
    everything = {
        ROWS: {n: (n, sizes.usual_length, len(TASKS)) for n in sizes.rows},
        LENGTH: {n: (sizes.usual_rows, n, len(TASKS)) for n in sizes.lengths},
        COUNT: {n: (sizes.usual_rows, sizes.usual_length, n) for n in sizes.tasks},
    }
    found: dict[str, dict[str, dict[int, dict[str, float]]]] = {}
    _work(model, config, *everything[ROWS][sizes.rows[0]])[STEP]()  # warms up
    for axis, points in everything.items():
        work = {
            (what, n): call for n, point in points.items() for what, call in _work(model, config, *point).items()
        }  # fmt: skip
        found[axis] = _by_size(work, rounds)
    search = {(SEARCH, n): _search(n, sizes) for n in sizes.candidates}
    return found | {CANDIDATES: _by_size(search, rounds)}


def _by_size(
    work: Mapping[tuple[str, int], Callable[[], object]], rounds: int
) -> dict[str, dict[int, dict[str, float]]]:
    named = {f"{what}, {size}": call for (what, size), call in work.items()}
    middle: dict[str, Cost] = medians(interleaved(named, rounds))
    found: dict[str, dict[int, dict[str, float]]] = {}
    for what, size in work:
        found.setdefault(what, {})[size] = asdict(middle[f"{what}, {size}"])
    return found


def _work(model: MultiTaskModel, config: TrainConfig, rows: int, length: int, tasks: int) -> dict[str, Any]:
    """A step and an evaluation of the first tasks on so many texts of that length."""
    store, batch = _store(model, rows, length), {name: _examples(name, rows) for name in TASKS[:tasks]}
    alone = Processes(0, 1, CPU)
    source = BackboneVectors(model, store, config.token_budget, cached=False, processes=alone)
    balancing = build_balancing(config.balancing, list(batch), config.seed)

    def step() -> None:
        model.train()
        accumulate_gradients(model, Sources(source), batch, balancing, seed=0)
        model.zero_grad()

    def evaluation() -> None:
        vectors_ND = encode_texts(model, store, gather(batch).unique_N, config.token_budget)
        task_outputs(model, batch, vectors_ND)

    return {STEP: step, EVALUATION: evaluation}


def _store(model: MultiTaskModel, texts: int, length: int) -> TokenStore:
    rng = np.random.default_rng(0)
    ids_T = rng.integers(3, len(model.tokenizer), size=texts * length, dtype=np.int32)
    starts_S = np.arange(texts + 1, dtype=np.int64) * length
    return TokenStore(ids_T, starts_S, np.full(texts, length, np.int32), np.zeros(texts, np.int64))


def _examples(name: str, texts: int) -> Examples:
    task, own_N = get_task(name), np.arange(texts)
    texts_NK = own_N[:, None] if task.kind is Kind.CLASSIFY else np.stack([own_N, np.roll(own_N, -1)], axis=1)
    return Examples(task, texts_NK, None if task.kind is Kind.EMBED else (own_N % 2).astype(np.float32))


def _search(candidates: int, sizes: Sizes) -> Callable[[], object]:
    rng = np.random.default_rng(0)
    candidates_CD = rng.standard_normal((candidates, sizes.vector_size), np.float32)
    answers_Q = rng.integers(candidates, size=sizes.queries)
    return lambda: ranks(candidates_CD[answers_Q], candidates_CD, answers_Q)


def search_memory(sizes: Sizes) -> dict[int, int]:
    """Bytes that a search allocates at most, by number of candidates; `ranks` works in NumPy, which reports them."""
    found: dict[int, int] = {}
    for candidates in sizes.candidates:
        search = _search(candidates, sizes)
        tracemalloc.start()
        search()
        found[candidates] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return found


def exponent(costs: Mapping[int, Mapping[str, float]]) -> float:
    """Slope of CPU seconds over size, both as logarithms."""
    return float(np.polyfit(np.log(list(costs)), np.log([cost["cpu"] for cost in costs.values()]), 1)[0])


def table(result: dict[str, Any]) -> Table:
    """For people."""
    rows = []
    for axis, by_what in result["growth"].items():
        for what, costs in by_what.items():
            first, last = min(costs), max(costs)
            seconds = [f"{costs[size]['cpu']:.3g}" for size in (first, last)]
            rows.append([f"{what}: {axis}", f"{first:,}", f"{last:,}", *seconds, f"{exponent(costs):.2f}"])
    memory = ", ".join(f"{count:,}: {size / 2**20:.0f} MiB" for count, size in result["memory"].items())
    caption = f"Memory of a search by candidates, {result['sizes']['queries']} queries: {memory}."
    return Table(["grows with", "from", "to", "CPU s", "CPU s then", "exponent"], rows, caption)


def plot(figure: Figure, result: dict[str, Any]) -> None:
    """One small logarithmic plot for each thing that varies."""
    figure.set_size_inches(12, 3.4)
    for axes, (axis, by_what) in zip(figure.subplots(1, len(result["growth"])), result["growth"].items(), strict=True):
        for number, (what, costs) in enumerate(by_what.items()):
            seconds = [cost["cpu"] for cost in costs.values()]
            axes.plot(list(costs), seconds, marker=MARKERS[number], color=PALETTE[number], label=what)
        axes.set(xscale="log", yscale="log", xlabel=axis)
        axes.legend(frameon=False, fontsize=8)
    figure.supylabel("CPU seconds")


if __name__ == "__main__":
    main()
