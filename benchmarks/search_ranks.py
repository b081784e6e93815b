"""Ranks of code search at AdvTest's size, 19,210 queries x 19,210 candidates: counting in blocks against a full sort.

    python benchmarks/search_ranks.py [--sizes 384 768]

The vectors are random, in the shape that trained ones have: a direction that all share, a few hundred directions of
topics, and a query that lies near its answer. One in fifty candidates equals another. Components are multiples of
1/256, so that every inner product is exact in float32 in whatever order it is summed up: equal scores are then equal in
both ways, and ranks must agree to the last digit. The full sort gives tied candidates the mean of the places that they
occupy, the rule of `manyskills.evaluation.ranking.ranks`; it goes through the queries in blocks too, since all scores
with their order would take 4.4 GB. Peak memory is that of a program of its own, vectors and libraries included.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

from manyskills.evaluation.ranking import ranking_metrics, ranks
from measuring import (
    Table,
    bars,
    benchmark_parser,
    interleaved,
    machine,
    medians,
    peak_memory_of,
    ratios,
    write_report,
)

ADVTEST = 19_210
GRID = 256
SORT, OURS = "full sort", "counting in blocks"
SORTED_BLOCK = 256
"""Queries whose scores are sorted at a time."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = benchmark_parser(__doc__, rounds=2)
    parser.add_argument("--sizes", type=int, nargs="+", default=[384, 768], help="of the vectors")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    wanted = parser.parse_args(arguments)
    count = 400 if wanted.quick else ADVTEST
    with threadpool_limits(wanted.threads):  # both work in NumPy
        if wanted.memory_of:
            print(json.dumps(ranking_metrics(ranks(*vectors(count, wanted.memory_of, seed=0)))))
            return
        found = {str(size): measure(count, size, wanted) for size in wanted.sizes}
    result = {"machine": machine(), "queries": count, "candidates": count, "sizes": found}
    write_report("search_ranks", wanted.output, result, table(result), lambda figure: plot(figure, result))


def vectors(count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """queries_QD, candidates_CD and answers_Q; lengths are about 1, components multiples of 1 / GRID."""
    rng = np.random.default_rng(seed)
    shared_D, topics_KD = rng.standard_normal(size, np.float32), rng.standard_normal((256, size), np.float32)
    mixed_CD = rng.standard_normal((count, len(topics_KD)), np.float32) @ topics_KD / len(topics_KD) ** 0.5
    candidates_CD = shared_D + mixed_CD + 0.5 * rng.standard_normal((count, size), np.float32)
    copies = rng.choice(count, count // 50, replace=False)
    candidates_CD[copies] = candidates_CD[rng.integers(count, size=len(copies))]
    queries_QD = candidates_CD + 7 * rng.standard_normal((count, size), np.float32)
    return _on_grid(queries_QD), _on_grid(candidates_CD), np.arange(count)


def _on_grid(vectors_ND: np.ndarray) -> np.ndarray:
    unit_ND = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return np.round(unit_ND * GRID) / np.float32(GRID)


def sorted_ranks(queries_QD: np.ndarray, candidates_CD: np.ndarray, answers_Q: np.ndarray) -> np.ndarray:
    """Ranks from each query's candidates in order, tied ones at the mean of their places."""
    found_Q = np.empty(len(queries_QD))
    for start in range(0, len(queries_QD), SORTED_BLOCK):
        part = slice(start, start + SORTED_BLOCK)
        scores_bC = queries_QD[part] @ candidates_CD.T
        order_bC = np.argsort(-scores_bC, axis=1, kind="stable")
        sorted_bC = np.take_along_axis(scores_bC, order_bC, axis=1)
        own_b1 = np.take_along_axis(scores_bC, answers_Q[part][:, None], axis=1)
        equal_bC = sorted_bC == own_b1
        first_b = equal_bC.argmax(axis=1) + 1
        found_Q[part] = first_b + (equal_bC.sum(axis=1) - 1) / 2
    return found_Q


def measure(count: int, size: int, wanted: argparse.Namespace) -> dict[str, Any]:
    """Time, peak memory and agreement at one size of vectors."""
    given = vectors(count, size, seed=0)
    answers: dict[str, np.ndarray] = {}
    costs = interleaved(
        {
            SORT: lambda: answers.update({SORT: sorted_ranks(*given)}),
            OURS: lambda: answers.update({OURS: ranks(*given)}),
        },
        wanted.rounds,
    )
    argv = ["python", __file__, "--memory-of", str(size), "--threads", str(wanted.threads)]
    done = peak_memory_of(argv + ["--quick"] * wanted.quick)
    return {
        "seconds": {name: asdict(cost) for name, cost in medians(costs).items()},
        "times_as_long": {name: asdict(ratio) for name, ratio in ratios(costs, OURS).items()},
        "peak_bytes": done.peak_bytes,
        "different_ranks": int((answers[OURS] != answers[SORT]).sum()),
        "tied_answers": int((answers[SORT] % 1 != 0).sum()),
        "metrics": json.loads(done.stdout),
    }


def table(result: dict[str, Any]) -> Table:
    """For people."""
    rows = []
    for size, found in result["sizes"].items():
        for name, seconds in found["seconds"].items():
            memory = f"{found['peak_bytes'] / 2**30:.2f} GiB" if name == OURS else ""
            ratio = f"{found['times_as_long'][name]['cpu']:.3g}x"
            cells = [f"{seconds['cpu']:.1f}", f"{seconds['wall']:.1f}", ratio, memory]
            rows.append([f"{size} dimensions, {name}", *cells])
    different = sum(found["different_ranks"] for found in result["sizes"].values())
    first = next(iter(result["sizes"].values()))
    caption = (
        f"{result['queries']:,} queries x {result['candidates']:,} candidates; {different} ranks differ; "
        f"{first['tied_answers']:,} answers share an even number of places; MRR {first['metrics']['mrr']:.3f}."
    )
    return Table(["", "CPU s", "wall s", "times ours (CPU)", "peak memory"], rows, caption)


def plot(figure: Figure, result: dict[str, Any]) -> None:
    """Wall time by way and size."""
    axes = figure.subplots()
    values = {
        f"{name}, {size}": seconds["wall"]
        for size, found in result["sizes"].items()
        for name, seconds in found["seconds"].items()
    }
    bars(axes, values, f"Ranks of {result['queries']:,} queries", "seconds")


if __name__ == "__main__":
    main()
