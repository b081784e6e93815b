"""Writing answers: tokens a second of our loop against transformers' `generate`, with the same network.

    python benchmarks/generation.py [--data path/to/data --module runs/translate] [--rows 64] [--threads 1]

Greedy, the same prompts for all. transformers answers them in the batches that ours makes (sorted by length, longest
first, within a token budget), and eight at a time in the order of the file. Contenders take turns; before anything is
measured their answers are compared. Tokens are those of the answers up to their ends, not what is read or computed
behind an end.

Without --module the network is a small decoder with random weights, and the prompts ask for summaries of functions of
Python's standard library. Random weights never choose the end token, so there every 64th word of the vocabulary ends
an answer too: for all contenders, and some answers reach the limit.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from contenders.field import OURS
from contenders.generation import Answering, OurAnswers, TransformersAnswers
from manyskills.config import TrainConfig
from manyskills.data.frames import frames, written
from manyskills.data.mining import MiningLimits
from manyskills.model.checkpoint import load_model
from manyskills.model.multitask import MultiTaskModel, build_model
from manyskills.row_reader import RowReader
from manyskills.saved import SavedTasks, read_tasks_file
from manyskills.tasks import SPLITS, Kind, get_task
from measuring import (
    Cost,
    Table,
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
from writing_training import QUICK, SIZES, random_network

SORTED, IN_ORDER = "transformers, the same batches", "transformers, 8 in the file's order"
SUMMARIES = "code_summarization"
LIMITS = MiningLimits(train=200, valid=20, test=200, max_modules=400)
EVERY = 64
"""One in so many words ends an answer of the random network."""
SAME = 0.9
"""Share of answers that must be the same: a token that is as probable as another turns on the last digit."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = benchmark_parser(__doc__, rounds=3)
    parser.add_argument("--module", type=Path, help="run folder of a decoder that writes; default: random weights")
    parser.add_argument("--rows", type=int, default=64, help="prompts (default 64)")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="of an answer at most (default 128)")
    wanted = parser.parse_args(arguments)
    if wanted.module is not None and wanted.data is None:
        parser.error("--module: the test rows of its task are needed, give --data")
    torch.set_num_threads(wanted.threads)
    with own_cache() as temporary:
        if wanted.module is None:
            result = measure(random_work(wanted, temporary), wanted.rounds)
        else:
            result = measure(trained_work(wanted), wanted.rounds)
    result = {"machine": machine(), "module": str(wanted.module or "random weights")} | result
    write_report("generation", wanted.output, result, table(result), lambda figure: plot(figure, result))


def random_work(wanted: argparse.Namespace, temporary: Path) -> Answering:
    """A small decoder that knows nothing, asked for summaries."""
    data = with_summaries(temporary)
    backbone = random_network(QUICK if wanted.quick else SIZES["4m"], temporary / "network", data)
    config = TrainConfig.model_validate({
        "backbone": backbone,
        "method": "full",
        "tasks": {SUMMARIES: {"max_new_tokens": 8 if wanted.quick else wanted.max_new_tokens}},
        "data_dir": str(data),
        "max_length": 256,
    })  # fmt: skip
    model = build_model(config, device()).eval()
    assert model.language_model is not None and model.language_model.generation_config is not None
    words = model.language_model.config.get_text_config().vocab_size
    model.language_model.generation_config.eos_token_id = [model.tokenizer.eos_token_id, *range(0, words, EVERY)]
    made = frames(get_task(SUMMARIES), config.tasks[SUMMARIES], model.tokenizer, model.architecture.family)
    return work_of(model, SavedTasks(config, {}, {}, prompts={SUMMARIES: made}), SUMMARIES, data, wanted)


def trained_work(wanted: argparse.Namespace) -> Answering:
    """What a run learned to write first of all."""
    folder = wanted.module / "best"
    saved = read_tasks_file(folder)
    task = next(name for name in saved.config.tasks if get_task(name).kind is Kind.GENERATE and written_by(saved, name))
    return work_of(load_model(folder, device(), saved), saved, task, wanted.data, wanted)


def written_by(saved: SavedTasks, name: str) -> bool:
    """Whether the module writes this task's answers."""
    return written(name, saved.config.tasks[name])


def device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def work_of(model: MultiTaskModel, saved: SavedTasks, task: str, data: Path, wanted: argparse.Namespace) -> Answering:
    """Prompts of test rows, drawn at random."""
    one = model.architecture
    if one.family != "decoder":
        raise SystemExit(f"generation: wanted a decoder, and the module is of the family {one.family}")
    reader = RowReader(saved, model.tokenizer, model.template, one.max_positions, model.routes, one.family)
    rows = reader.split(task, data, "test", 9 if wanted.quick else wanted.rows).rows
    longest = saved.config.tasks[task].max_new_tokens
    longest = min(longest, wanted.max_new_tokens)
    return Answering(model, reader.prompts(task, rows), longest, saved.config.token_budget)


def with_summaries(temporary: Path) -> Path:
    """Functions and first lines of their docstrings from the standard library, as rows of code_summarization."""
    data = data_folder(None, temporary, LIMITS)
    target = data / SUMMARIES
    target.mkdir()
    for split in SPLITS:
        lines = (data / "code_search" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        kept = [{"id": row["id"], "code": row["code"], "summary": row["query"]} for row in rows]
        (target / f"python_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    return data


def measure(work: Answering, rounds: int) -> dict[str, Any]:
    """What everybody's answers cost, in turns.

    Raises:
        AssertionError: The answers differ.
    """
    ours = OurAnswers(work)
    peers = {
        SORTED: TransformersAnswers(work, work.sorted_batches()),
        IN_ORDER: TransformersAnswers(work, work.batches_in_order(8)),
    }
    field = {OURS: ours} | peers
    computed: dict[str, int] = {}
    for name, one in field.items():  # warms up, too
        before = work.counter.tokens
        one.run()
        computed[name] = work.counter.tokens - before
    same = {name: share_of_same(ours.answers, one.answers) for name, one in field.items()}
    if min(same.values()) < SAME:
        raise AssertionError(f"answers differ: {same}")
    costs = interleaved({name: one.run for name, one in field.items()}, rounds)
    tokens = peers[SORTED].written
    return {
        "parameters": work.model.backbone_parameters,
        "prompts": len(work.prompts),
        "prompt_tokens": sum(map(len, work.prompts)),
        "answer_tokens": tokens,
        "max_new_tokens": work.max_new_tokens,
        "token_budget": work.token_budget,
        "rounds": rounds,
        "same_answers": same,
        "tokens_read": computed,
        "seconds": {name: [asdict(cost) for cost in found] for name, found in costs.items()},
        "tokens_a_second": speeds(tokens, medians(costs)),
        "times_as_long_as_manyskills": {name: asdict(one) for name, one in ratios(costs, OURS).items()},
    }


def share_of_same(one: Sequence[str], other: Sequence[str]) -> float:
    """Of answers that are the same to the last character."""
    return sum(mine == its for mine, its in zip(one, other, strict=True)) / len(one)


def speeds(tokens: int, costs: Mapping[str, Cost]) -> dict[str, dict[str, float]]:
    """Answer tokens a second, by either clock."""
    return {name: {"cpu": tokens / cost.cpu, "wall": tokens / cost.wall} for name, cost in costs.items()}


def table(result: Mapping[str, Any]) -> Table:
    """For people."""
    rows = []
    for name, ratio in result["times_as_long_as_manyskills"].items():
        speed = result["tokens_a_second"][name]
        rows.append((
            name, f"{result['tokens_read'][name]:,}", f"{speed['cpu']:,.0f}", f"{speed['wall']:,.0f}",
            f"{ratio['cpu']:.2f} ({ratio['cpu_range'][0]:.2f}-{ratio['cpu_range'][1]:.2f})", f"{ratio['wall']:.2f}",
            f"{result['same_answers'][name]:.0%}",
        ))  # fmt: skip
    columns = (
        f"{result['parameters'] / 1e6:,.1f} million parameters", "tokens read", "answer tokens a CPU second",
        "a second", "times ours, CPU", "wall", "same answers",
    )  # fmt: skip
    caption = (
        f"{result['module']}: {result['prompts']} prompts of {result['prompt_tokens']:,} tokens, answers of "
        f"{result['answer_tokens']:,}, at most {result['max_new_tokens']} each. Median of {result['rounds']} rounds, "
        "with the smallest and the largest. Tokens read: all that the network is given, padding and what stands behind "
        "an end included."
    )
    return Table(columns, rows, caption)


def plot(figure: Figure, result: Mapping[str, Any]) -> None:
    """Answer tokens a second."""
    values = {name: speed["cpu"] for name, speed in result["tokens_a_second"].items()}
    bars(figure.subplots(), values, "Greedy answers", "answer tokens a CPU second", marked=OURS)


if __name__ == "__main__":
    main()
