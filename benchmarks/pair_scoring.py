"""Scoring a pair set of BigCloneBench's shape: every function encoded once, against both sides of every pair.

    python benchmarks/pair_scoring.py [--data path/to/data] [--backbone minilm] [--whole]

Peers encode both sides of each pair, in batches padded to 512 tokens as the reference recipe does and in batches padded
to their longest text. They are measured on a sample of the pairs and scaled linearly. Ours encodes each distinct text
once, measured on a sample of the texts and scaled by tokens, and scores all pairs from the vectors, measured whole. A
later evaluation of the same module reads the vectors from disk instead; that is measured whole, fingerprint of the
weights included. Tokenisation is done before, for everybody. Peak memory is that of a program of its own that reads,
encodes and scores; --whole makes it encode every text instead of the sample, whose vectors then stand for the others.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from clone_pairs import FUNCTIONS, PAIRS, REFERENCE_LENGTH, TASK, PairSet, load_pairs, score_both_sides, write_pairs
from manyskills.data.mining import MiningLimits
from manyskills.evaluation.answers import Probabilities
from manyskills.evaluation.outputs import task_outputs
from manyskills.model.encoding import encode_texts
from manyskills.model.vector_cache import cached_vectors, vector_cache
from measuring import (
    Cost,
    Table,
    backbone_name,
    bars,
    benchmark_parser,
    data_folder,
    interleaved,
    machine,
    medians,
    own_cache,
    peak_memory_of,
    ratios,
    write_report,
)

FIXED, DYNAMIC, OURS = "both sides, padded to 512", "both sides, padded to the batch", "each text once, split head"
AGAIN = "vectors from disk, split head"
ENCODE, SCORE = "each text once", "split head, all pairs"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is there, and how much of it is measured."""

    functions: int = FUNCTIONS
    pairs: int = PAIRS
    sample_pairs: int = 24
    sample_texts: int = 200


QUICK = Sizes(functions=200, pairs=3_000, sample_pairs=8, sample_texts=20)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = benchmark_parser(__doc__, rounds=3)
    parser.add_argument("--backbone", default="minilm", help="any backbone's name, or unixcoder-size")
    parser.add_argument("--max-length", type=int, default=512, help="tokens of a text at most")
    parser.add_argument("--whole", action="store_true", help="encode every text in the measurement of memory")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    wanted = parser.parse_args(arguments)
    torch.set_num_threads(wanted.threads)
    sizes = QUICK if wanted.quick else Sizes()
    if wanted.memory_of:
        print(json.dumps(_evaluate(wanted.memory_of, wanted, sizes)))
        return
    with own_cache() as temporary:
        limits = MiningLimits(train=sizes.functions, valid=8, test=8)
        folder, backbone = temporary / "pairs", backbone_name(wanted.backbone, temporary)
        write_pairs(data_folder(wanted.data, temporary, limits), folder, sizes.functions, sizes.pairs, seed=0)
        wanted.backbone = backbone
        memory = _memory(folder, wanted)
        found = measure(load_pairs(folder, backbone, wanted.max_length), sizes, wanted.rounds)
    result = {"machine": machine(), "sizes": asdict(sizes)} | found | {"memory": memory}
    write_report("pair_scoring", wanted.output, result, table(result), lambda figure: plot(figure, result))


def measure(pairs: PairSet, sizes: Sizes, rounds: int) -> dict[str, Any]:
    """Seconds for all pairs, and the largest difference of scores on the sample."""
    rng = np.random.default_rng(1)
    texts_E2, lengths_N = pairs.examples.texts_EK, pairs.store.lengths_N
    sample_S2 = texts_E2[rng.choice(len(texts_E2), min(sizes.sample_pairs, len(texts_E2)), replace=False)]
    used_N = np.unique(texts_E2)
    some_N = rng.choice(used_N, min(sizes.sample_texts, len(used_N)), replace=False)
    given_ND = torch.randn(len(used_N), pairs.model.architecture.hidden_size)
    keep_vectors(pairs, used_N, given_ND)
    width = max(REFERENCE_LENGTH if _positions(pairs) >= REFERENCE_LENGTH else 0, int(lengths_N.max()))
    costs = interleaved(
        {
            FIXED: lambda: score_both_sides(pairs, sample_S2, 8, width),
            DYNAMIC: lambda: score_both_sides(pairs, sample_S2, 8, None),
            ENCODE: lambda: encode_texts(pairs.model, pairs.store, some_N, pairs.token_budget),
            SCORE: lambda: task_outputs(pairs.model, {TASK: pairs.examples}, given_ND),
            AGAIN: lambda: task_outputs(pairs.model, {TASK: pairs.examples}, kept_vectors(pairs, used_N)),
        },
        rounds,
    )
    per_pair = len(texts_E2) / len(sample_S2)
    per_text = float(lengths_N[used_N].sum() / lengths_N[some_N].sum())
    whole = {name: [_scaled(cost, per_pair) for cost in costs[name]] for name in (FIXED, DYNAMIC)}
    encoding = [_scaled(cost, per_text) for cost in costs[ENCODE]]
    whole[OURS] = [_sum(a, b) for a, b in zip(encoding, costs[SCORE], strict=True)]
    whole[AGAIN] = costs[AGAIN]
    parts = {ENCODE: encoding, SCORE: costs[SCORE]}
    return {
        "distinct_texts": len(used_N),
        "mean_tokens": float(lengths_N[used_N].mean()),
        "seconds": {name: asdict(cost) for name, cost in medians(whole | parts).items()},
        "times_as_long": {name: asdict(ratio) for name, ratio in ratios(whole, OURS).items()},
        "largest_difference_of_scores": _largest_difference(pairs, sample_S2, width),
    }  # fmt: skip


def keep_vectors(pairs: PairSet, used_N: np.ndarray, vectors_ND: torch.Tensor) -> None:
    """Put vectors on disk, as an evaluation before would have done; texts that are cut to the same tokens share one."""
    cache = vector_cache(pairs.model, int(pairs.store.lengths_N[used_N].sum()))
    assert cache is not None, "so few texts are not kept: take more functions"
    rows = {key: row for row, key in enumerate(cache.keys(pairs.store, used_N))}
    cache.add(list(rows), vectors_ND[list(rows.values())])


def kept_vectors(pairs: PairSet, used_N: np.ndarray) -> torch.Tensor:
    """The vectors from disk."""
    cache = vector_cache(pairs.model, int(pairs.store.lengths_N[used_N].sum()))
    return cached_vectors(pairs.model, pairs.store, used_N, pairs.token_budget, cache)


def _largest_difference(pairs: PairSet, sample_S2: np.ndarray, width: int) -> float:
    vectors_ND = encode_texts(pairs.model, pairs.store, np.unique(sample_S2), pairs.token_budget)
    sample = type(pairs.examples)(pairs.examples.task, sample_S2, None)
    answer = task_outputs(pairs.model, {TASK: sample}, vectors_ND)[TASK]
    assert isinstance(answer, Probabilities)
    return float(np.abs(answer.probabilities_E - score_both_sides(pairs, sample_S2, 8, width)).max())


def _positions(pairs: PairSet) -> int:
    return pairs.model.architecture.max_positions or sys.maxsize


def _scaled(cost: Cost, factor: float) -> Cost:
    return Cost(cost.cpu * factor, cost.wall * factor)


def _sum(a: Cost, b: Cost) -> Cost:
    return Cost(a.cpu + b.cpu, a.wall + b.wall)


def _memory(folder: Path, wanted: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of a program that reads, encodes and scores."""
    argv = ["python", __file__, "--memory-of", str(folder), "--backbone", wanted.backbone]
    argv += ["--max-length", str(wanted.max_length), "--threads", str(wanted.threads)]
    argv += ["--quick"] * wanted.quick + ["--whole"] * wanted.whole
    done = peak_memory_of(argv)
    return {"peak_bytes": done.peak_bytes} | json.loads(done.stdout)


def _evaluate(folder: Path, wanted: argparse.Namespace, sizes: Sizes) -> dict[str, Any]:
    """All that an evaluation does; without --whole the longest texts are encoded, and theirs stand for all vectors."""
    pairs = load_pairs(folder, wanted.backbone, wanted.max_length)
    used_N = np.unique(pairs.examples.texts_EK)
    longest_N = used_N[np.argsort(-pairs.store.lengths_N[used_N], kind="stable")]
    encoded_N = used_N if wanted.whole else longest_N[: sizes.sample_texts // 2]
    vectors_ND = encode_texts(pairs.model, pairs.store, encoded_N, pairs.token_budget)
    vectors_ND = vectors_ND.repeat(-(-len(used_N) // len(encoded_N)), 1)[: len(used_N)]
    answer = task_outputs(pairs.model, {TASK: pairs.examples}, vectors_ND)[TASK]
    assert isinstance(answer, Probabilities)
    return {"encoded_texts": len(encoded_N), "scored_pairs": len(answer.probabilities_E)}


def table(result: dict[str, Any]) -> Table:
    """For people."""
    rows = []
    for name, seconds in result["seconds"].items():
        ratio = result["times_as_long"].get(name)
        share = f"{ratio['cpu']:.3g}x" if ratio else ""
        span = f"{ratio['cpu_range'][0]:.3g}-{ratio['cpu_range'][1]:.3g}" if ratio else ""
        rows.append([name, f"{seconds['cpu']:,.1f}", f"{seconds['wall']:,.1f}", share, span])
    caption = (
        f"{result['sizes']['pairs']:,} pairs of {result['distinct_texts']:,} distinct texts "
        f"({result['mean_tokens']:.0f} tokens on average). Peers: {result['sizes']['sample_pairs']} pairs, scaled. "
        f"Largest difference of scores: {result['largest_difference_of_scores']:.1e}. Peak memory of ours: "
        f"{result['memory']['peak_bytes'] / 2**30:.2f} GiB with {result['memory']['encoded_texts']:,} texts encoded."
    )
    return Table(["all pairs", "CPU s", "wall s", "times ours (CPU)", "rounds"], rows, caption)


def plot(figure: Figure, result: dict[str, Any]) -> None:
    """CPU seconds on a logarithmic axis."""
    axes = figure.subplots()
    values = {name: result["seconds"][name]["cpu"] for name in (FIXED, DYNAMIC, OURS, AGAIN)}
    bars(axes, values, f"Scoring {result['sizes']['pairs']:,} pairs", "CPU seconds (logarithmic)", marked=OURS)
    axes.set_xscale("log")


if __name__ == "__main__":
    main()
