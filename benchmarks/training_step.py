"""Time of the same training steps: manyskills, the reference recipe, Hugging Face's Trainer, sentence-transformers.

    python benchmarks/training_step.py [--data path/to/data] [--backbones minilm unixcoder-size]

All train LoRA of the same size and four heads on labelled rows that manyskills' sampler draws beforehand. Of a run's
first 50 steps, that one is measured which is most typical both in its useful tokens and in the padded tokens of
"Trainer, default". All take its rows but for `group_by_length`, which sorts over many steps: the rows of all 50 are
ordered by transformers' own function, with its own mega-batches of 50 batches, and the measured step has the batches
whose padded size is nearest the mean of all, as many as any step has, with as many rows. Texts are tokenised beforehand
for everybody, collation is measured. Before anything is measured, manyskills and the Trainer's model must give the
same losses of the step with dropout off, and everybody takes an uncounted step: manyskills the whole one, the others
(but for the reference recipe, whose network is the Trainer's) one of two rows a task. Where several steps are measured,
the reference recipe takes the first only, because each of its steps costs the same. The network of UniXcoder's size has
random weights, which cost the same time; it is measured without some of the contenders (--everyone: with them).

Useful operations are those that no contender can do without: every text of a step once, without padding
(`contenders.work.useful_operations`).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from contenders.field import OURS, Contender, common_field, seconds_a_step
from contenders.ours import LEVERS, with_lever_off
from contenders.peer import PeerOptions
from contenders.sentence import SentenceTransformers
from contenders.work import Work, draw, linear_parameters, useful_operations
from manyskills.config import TrainConfig
from manyskills.data.mining import MiningLimits
from manyskills.model.backbones import quiet
from manyskills.model.multitask import MultiTaskModel
from measuring import (
    TASKS,
    UNIXCODER_SIZE,
    Ratio,
    Table,
    backbone_name,
    bars,
    benchmark_parser,
    data_folder,
    gemm_peak,
    interleaved,
    machine,
    medians,
    own_cache,
    ratios,
    write_report,
)

SENTENCE = "sentence-transformers"


@dataclass(frozen=True, slots=True)
class Size:
    """How much work is measured.

    Attributes:
        batch_size: Labelled rows of a step, over all tasks.
        steps: How many steps one round takes.
        rows: Training rows of a task that steps are drawn from; pairs are never limited.
        max_length: Tokens of a text at most.
        leave_out: Contenders whose names contain one of these.
    """

    batch_size: int = 64
    steps: int = 1
    rows: int = 2000
    max_length: int = 512
    leave_out: tuple[str, ...] = ()


LARGE = Size(batch_size=32, leave_out=("manyskills, padded, ", "sentence-transformers"))
QUICK = Size(batch_size=8, steps=1, rows=12, max_length=64)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = benchmark_parser(__doc__, rounds=2)
    parser.add_argument("--backbones", nargs="+", default=["minilm", UNIXCODER_SIZE], help="any backbone's name")
    parser.add_argument("--batch-size", type=int, help=f"rows a step (default {Size().batch_size}, large: "
                        f"{LARGE.batch_size})")  # fmt: skip
    parser.add_argument("--steps", type=int, help=f"of a round (default {Size().steps})")
    parser.add_argument("--everyone", action="store_true", help="all contenders for the large network too")
    wanted = parser.parse_args(arguments)
    torch.set_num_threads(wanted.threads)
    with own_cache() as temporary, warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")  # the libraries' own, about each other's names
        limits = MiningLimits(train=QUICK.rows if wanted.quick else 400, valid=8, test=8, max_lines=400, max_chars=9000)
        data = data_folder(wanted.data, temporary, limits)
        found = []
        for name in wanted.backbones:
            size = QUICK if wanted.quick else LARGE if name == UNIXCODER_SIZE else Size()
            size = replace(
                size, batch_size=wanted.batch_size or size.batch_size, steps=wanted.steps or size.steps,
                leave_out=() if wanted.everyone else size.leave_out,
            )  # fmt: skip
            config = configuration(backbone_name(name, temporary), data, size)
            found.append(measure(config, size, temporary / "trainer", wanted.rounds))
    result = {"machine": machine(), "measurements": found}
    write_report("training_step", wanted.output, result, [table(one) for one in found], lambda f: plot(f, found))


def configuration(backbone: str, data: Path, size: Size) -> TrainConfig:
    """Four tasks, LoRA, everything else as by default."""
    rest = {"valid": 20, "test": 20}
    pairs = "clone_detection"  # how many pairs share a function is part of what is measured
    tasks = {name: {"limit": rest if name == pairs else {"train": size.rows, **rest}} for name in TASKS}
    return TrainConfig.model_validate({
        "backbone": {"name": backbone, "pooling": "mean"},
        "method": {"name": "lora"},
        "tasks": tasks,
        "data_dir": str(data),
        "batch_size": size.batch_size,
        "max_length": size.max_length,
    })  # fmt: skip


def measure(config: TrainConfig, size: Size, folder: Path, rounds: int) -> dict[str, Any]:
    """What every contender's steps cost, in turns."""
    work, model = draw(config, size.steps, torch.device("cpu"))
    useful = useful_operations(
        work.useful_lengths, linear_parameters(model.network), model.architecture.layers, model.architecture.hidden_size
    )
    contenders = contenders_of(work, model, folder)
    contenders = {name: one for name, one in contenders.items() if not any(part in name for part in size.leave_out)}
    _warm_up(contenders)
    peaks = [gemm_peak()]
    costs = interleaved(contenders, rounds)
    peaks.append(gemm_peak())
    a_step = seconds_a_step(contenders, costs)
    return {
        "backbone": f"{model.architecture.model_type}, {model.architecture.layers} x {model.architecture.hidden_size}",
        **asdict(size),
        "rounds": rounds,
        "rows_a_step": work.rows / size.steps,
        "texts_of_rows_a_step": work.texts_of_rows / size.steps,
        "useful_texts_a_step": len(work.useful_lengths) / size.steps,
        "useful_tokens_a_step": int(work.useful_lengths.sum()) / size.steps,
        "useful_gflop_a_step": useful / size.steps / 1e9,
        "gemm_peak_gflops": max(peaks),
        "tokens_a_step": {name: one.tokens_a_step for name, one in contenders.items()},
        "seconds_a_step": {name: [asdict(one) for one in found] for name, found in a_step.items()},
        "median_seconds_a_step": {name: asdict(one) for name, one in medians(a_step).items()},
        "times_as_long_as_manyskills": {name: asdict(one) for name, one in ratios(a_step, OURS).items()},
    }


def _warm_up(contenders: dict[str, Contender]) -> None:
    """Small steps of all, and a whole one of ours: the first also pays for the memory that all then use again."""
    for one in contenders.values():
        if one.warm_up is not None:
            one.warm_up()
    contenders[OURS]()


def contenders_of(work: Work, model: MultiTaskModel, folder: Path) -> dict[str, Contender]:
    """All that can run here."""
    ours, *others = common_field(work, model, folder, PeerOptions())
    contenders, steps = [ours], len(work.batches)
    for name, lever in LEVERS.items():
        variant = with_lever_off(work, lever)
        contenders.append(Contender(f"{OURS}, {name}", variant.run, variant.counter, steps, variant.warm_up))
    contenders += others
    if find_spec("sentence_transformers") is None:
        print("sentence-transformers is left out: it is not installed (pip install manyskills[bench])", file=sys.stderr)
    else:
        other = SentenceTransformers(work, model, folder)
        contenders.append(Contender(SENTENCE, other.run, other.counter, steps, other.warm_up))
    return {one.name: one for one in contenders}


def table(found: dict[str, Any]) -> Table:
    """For people."""
    rows = []
    for name, cost in found["median_seconds_a_step"].items():
        ratio = Ratio(**found["times_as_long_as_manyskills"][name])
        speed = found["useful_gflop_a_step"] / cost["wall"]
        rows.append((
            name,
            f"{cost['cpu']:.2f}",
            f"{cost['wall']:.2f}",
            f"{1000 * cost['cpu'] / found['rows_a_step']:.0f}",
            f"{found['tokens_a_step'][name]:,.0f}",
            f"{speed:.1f}",
            f"{speed / found['gemm_peak_gflops']:.0%}",
            f"{ratio.cpu:.2f}x ({ratio.cpu_range[0]:.2f}-{ratio.cpu_range[1]:.2f})",
            f"{ratio.wall:.2f}x ({ratio.wall_range[0]:.2f}-{ratio.wall_range[1]:.2f})",
        ))  # fmt: skip
    columns = (found["backbone"], "CPU s a step", "wall s a step", "CPU ms a row", "tokens a step",
               "useful GFLOP/s", "of peak", "CPU", "wall")  # fmt: skip
    caption = (
        f"{found['rows_a_step']:.0f} labelled rows a step name {found['texts_of_rows_a_step']:.0f} texts, of which "
        f"{found['useful_texts_a_step']:.0f} differ: {found['useful_tokens_a_step']:,.0f} useful tokens. "
        f"Median of {found['rounds']} rounds of {found['steps']} steps; x: times as long as manyskills, with the "
        f"smallest and the largest round. Peak: {found['gemm_peak_gflops']:.0f} GFLOP/s, a float32 matrix product."
    )
    return Table(columns, rows, caption)


def plot(figure: Figure, found: Sequence[dict[str, Any]]) -> None:
    """How many times as much CPU time each contender takes."""
    figure.set_size_inches(8.5, 3.6 * len(found))
    for axes, one in zip(figure.subplots(len(found), squeeze=False)[:, 0], found, strict=True):
        values = {name: ratio["cpu"] for name, ratio in one["times_as_long_as_manyskills"].items()}
        bars(axes, values, one["backbone"], "CPU time, manyskills = 1", marked=OURS)


if __name__ == "__main__":
    main()
