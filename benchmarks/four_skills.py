"""Four answers about every function of a repository: one module with four heads against four single-task models.

    python benchmarks/four_skills.py [--data path/to/data] [--module path/to/run]

A scan asks of each function whether it clones the next one, is defective, is flaky, and for its place in the search
index. Four single-task models read every function four times; one shared module reads it once for four heads. All five
have the same merged weights and run the same code, so that their answers must agree. Tokenisation is measured too: each
model has a tokenizer of its own. Models are loaded before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from manyskills.data.mining import MiningLimits
from manyskills.data.tokens import TextTable, tokenize
from manyskills.export.run import Wish
from manyskills.model.checkpoint import load_model
from manyskills.model.encoding import encode_texts
from manyskills.model.heads import BinaryHead
from manyskills.model.multitask import MultiTaskModel
from manyskills.tasks import Kind, get_task
from measuring import (
    TASKS,
    Table,
    backbone_name,
    bars,
    benchmark_parser,
    data_folder,
    interleaved,
    machine,
    medians,
    own_cache,
    ratios,
    write_report,
)
from modules import exported, functions, make_module

SHARED, SINGLE = "one module, four heads", "four single-task models"
ALL = "all tasks"

Answers = dict[str, np.ndarray]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = benchmark_parser(__doc__, rounds=3)
    parser.add_argument("--backbone", default="minilm", help="any backbone's name, or unixcoder-size")
    parser.add_argument("--module", type=Path, help="a finished run of four tasks")
    parser.add_argument("--max-length", type=int, default=512, help="tokens of a text at most")
    parser.add_argument("--functions", type=int, default=100)
    wanted = parser.parse_args(arguments)
    torch.set_num_threads(wanted.threads)
    count = 16 if wanted.quick else wanted.functions
    with own_cache() as temporary:
        data = data_folder(wanted.data, temporary, MiningLimits(train=count, valid=8, test=8))
        backbone = backbone_name(wanted.backbone, temporary)
        module = wanted.module or make_module(temporary / "best", backbone, data, wanted.max_length, rows=8)
        wishes = {ALL: Wish(check=False)} | {name: Wish(task=name, check=False) for name in TASKS}
        folders = exported(module, temporary, wishes)
        models = {name: load_model(folder, torch.device("cpu")) for name, folder in folders.items()}
        found = measure(models, functions(data, count), wanted.max_length, wanted.rounds)
    result = {"machine": machine(), "functions": count} | found
    write_report("four_skills", wanted.output, result, table(result), lambda figure: plot(figure, result))


def measure(models: Mapping[str, MultiTaskModel], texts: Sequence[str], limit: int, rounds: int) -> dict[str, Any]:
    """Costs of both ways, and the largest difference of an answer."""
    answers: dict[str, Answers] = {}

    def shared() -> None:
        answers[SHARED] = scan(models[ALL], texts, limit)

    def single() -> None:
        by_task = [scan(models[name], texts, limit) for name in TASKS]
        answers[SINGLE] = {name: answer for found in by_task for name, answer in found.items()}

    costs = interleaved({SHARED: shared, SINGLE: single}, rounds)
    return {
        "seconds": {name: asdict(cost) for name, cost in medians(costs).items()},
        "times_as_long": {name: asdict(ratio) for name, ratio in ratios(costs, SHARED).items()},
        "largest_differences": {
            name: float(np.abs(answers[SHARED][name] - answers[SINGLE][name]).max()) for name in TASKS
        },
    }


@torch.no_grad()
def scan(model: MultiTaskModel, texts: Sequence[str], limit: int) -> Answers:
    """What each head of a model says of every text: probabilities, of pairs with the next text, or unit vectors."""
    table = TextTable()
    index_N = np.array([table.add(text, limit) for text in texts])
    store = tokenize(table.entries, model.tokenizer, model.template, use_cache=False)
    vectors_ND = encode_texts(model, store, index_N, token_budget=8192)
    own_N = torch.arange(len(texts))
    rows = {Kind.CLASSIFY: own_N[:, None], Kind.PAIR: torch.stack([own_N, own_N.roll(-1)], dim=1)}
    found: Answers = {}
    for name in model.task_configs:
        head = model.head(name)
        sides_NP = head.sides(vectors_ND)
        if isinstance(head, BinaryHead):
            sides_NP = head.probabilities(sides_NP, rows[get_task(name).kind])
        found[name] = sides_NP.numpy()
    return found


def table(result: dict[str, Any]) -> Table:
    """For people."""
    rows = []
    for name, seconds in result["seconds"].items():
        ratio = result["times_as_long"][name]
        span = f"{ratio['cpu_range'][0]:.2f}-{ratio['cpu_range'][1]:.2f}"
        cells = [f"{seconds['cpu']:.1f}", f"{seconds['wall']:.1f}", f"{ratio['cpu']:.2f}x", span]
        rows.append([name, *cells, f"{ratio['wall']:.2f}x"])
    worst = max(result["largest_differences"].values())
    caption = f"{result['functions']} functions, four answers each; largest difference of an answer: {worst:.1e}."
    return Table(["", "CPU s", "wall s", "as long (CPU)", "rounds", "as long (wall)"], rows, caption)


def plot(figure: Figure, result: dict[str, Any]) -> None:
    """CPU seconds."""
    values = {name: seconds["cpu"] for name, seconds in result["seconds"].items()}
    bars(figure.subplots(), values, "Four answers a function", "CPU seconds", marked=SHARED)


if __name__ == "__main__":
    main()
