"""Time of an epoch: LoRA on all layers, on the last K, and on the last K with the lower layers' states from disk.

    python benchmarks/activation_cache.py [--data path/to/data]

The three train on the same rows in the same steps, heads, optimiser and all, in one process; rounds take turns, so
that whatever else the machine does hits all of them. MiniLM (6 layers of 384) has its own weights; the network of
UniXcoder's size (RoBERTa, 12 layers of 768) has random ones, which cost the same time. Without --data the rows are
mined from the Python standard library. The first epoch with the cache, which fills it, is measured apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from manyskills.config import TrainConfig
from manyskills.data.mining import MiningLimits
from manyskills.data.sampling import Phase, Sampler
from manyskills.model.activations import training_encoder
from manyskills.training.balancing import build_balancing
from manyskills.training.forward import Sources
from manyskills.training.loop import positive_shares
from manyskills.training.optimizer import Optimizer
from manyskills.training.processes import Processes
from manyskills.training.run import load_inputs
from manyskills.training.schedule import Schedule
from manyskills.training.step import accumulate_gradients
from manyskills.training.vectors import BackboneVectors
from measuring import (
    TASKS,
    UNIXCODER_SIZE,
    Table,
    backbone_name,
    bars,
    benchmark_parser,
    data_folder,
    interleaved,
    machine,
    measured,
    medians,
    own_cache,
    ratios,
    write_report,
)

CACHE = "last K, cached"
VARIANTS: dict[str, dict[str, Any]] = {
    "all layers": {},
    "last K": {"activation_cache": False},
    CACHE: {"activation_cache": True},
}


class Epochs:
    """One variant: a model that trains for an epoch at a time."""

    def __init__(self, config: TrainConfig) -> None:
        alone = Processes(0, 1, torch.device("cpu"))
        self.config = config
        self.model, self.prepared = load_inputs(config, alone.device)
        encoder = training_encoder(config, self.model, self.prepared.store, lambda _: None)
        assert (encoder is None) == (not config.activation_cache)
        store = self.prepared.store
        self.source = BackboneVectors(
            self.model, store, config.token_budget, cached=False, processes=alone, encoder=encoder
        )
        train = self.prepared.examples["train"]
        self.steps = Schedule.of(config, sum(len(part) for part in train.values())).total
        self.sampler = Sampler(train, config.sampling, config.batch_size, config.seed, positive_shares(config))
        self.balancing = build_balancing(config.balancing, list(config.tasks), config.seed)
        self.optimizer = Optimizer(self.model, config, self.steps)
        self.tokens = 0

    def run(self) -> None:
        """The steps of the first epoch (again), as the training loop takes them."""
        self.tokens = 0
        for step in range(self.steps):
            batch = self.sampler.at(step, [Phase(0, tuple(self.config.tasks))])
            self.model.train()
            result = accumulate_gradients(self.model, Sources(self.source), batch, self.balancing, step)
            self.optimizer.update(step)
            self.tokens += int(self.prepared.store.lengths_N[result.unique_N].sum())


def measure(backbone: str, data: Path, last: int, rows: int, rounds: int) -> dict[str, Any]:
    """Seconds of every variant's epochs, in turns."""
    variants = {name: Epochs(_config(backbone, data, last, rows, name)) for name in VARIANTS}
    filling = measured(variants[CACHE].run)
    costs = interleaved({name: epochs.run for name, epochs in variants.items()}, rounds)
    model = variants[CACHE].model
    return {
        "backbone": f"{model.architecture.model_type}, {model.architecture.layers} x {model.architecture.hidden_size}",
        "last": last,
        "steps": variants[CACHE].steps,
        "tokens": variants[CACHE].tokens,
        "first_epoch_with_cache": asdict(filling),
        "epochs": {name: [asdict(one) for one in found] for name, found in costs.items()},
        "median": {name: asdict(one) for name, one in medians(costs).items()},
        "times_as_long_as_cached": {name: asdict(one) for name, one in ratios(costs, CACHE).items()},
    }


def _config(backbone: str, data: Path, last: int, rows: int, variant: str) -> TrainConfig:
    return TrainConfig.model_validate({
        "backbone": {"name": backbone, "pooling": "mean"},
        "method": {"name": "lora", "layers": "all" if variant == "all layers" else f"last {last}"},
        "tasks": {name: {"limit": rows} for name in TASKS},
        "data_dir": str(data),
        "num_train_epochs": 1,
        "batch_size": 32,
        "activation_cache": False,
    } | VARIANTS[variant])  # fmt: skip


def table(found: dict[str, Any]) -> Table:
    """For people."""
    rows = []
    for variant, seconds in found["median"].items():
        ratio = found["times_as_long_as_cached"][variant]
        times = (f"{ratio['cpu']:.2f}x", f"{ratio['wall']:.2f}x")
        rows.append((variant, f"{seconds['cpu']:.2f}", f"{seconds['wall']:.2f}", *times))
    first = found["first_epoch_with_cache"]
    rows.append(("first epoch (fills the cache)", f"{first['cpu']:.2f}", f"{first['wall']:.2f}", "", ""))
    caption = (
        f"K = {found['last']}, {found['tokens']:,} tokens an epoch; x: times as long as the cached epoch, medians of "
        "the rounds."
    )
    return Table((found["backbone"], "CPU s", "wall s", "CPU", "wall"), rows, caption)


def plot(figure: Figure, found: Sequence[dict[str, Any]]) -> None:
    """CPU seconds of an epoch."""
    figure.set_size_inches(8, 2.2 * len(found))
    for axes, one in zip(figure.subplots(len(found), squeeze=False)[:, 0], found, strict=True):
        values = {name: seconds["cpu"] for name, seconds in one["median"].items()}
        bars(axes, values, one["backbone"], "CPU seconds an epoch", marked=CACHE)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = benchmark_parser(__doc__, rounds=2)
    parser.add_argument("--last", type=int, default=2)
    parser.add_argument("--backbones", nargs="+", default=["minilm", UNIXCODER_SIZE], help="any backbone's name")
    parser.add_argument("--rows", type=int, default=24, help="of each task; a quarter of them for the larger network")
    wanted = parser.parse_args(arguments)
    torch.set_num_threads(wanted.threads)
    rows = 8 if wanted.quick else wanted.rows
    with own_cache() as temporary:
        data = data_folder(wanted.data, temporary, MiningLimits(train=rows, valid=8, test=8, per_module=4))
        found = []
        for name in wanted.backbones:
            share = max(rows // 4, 4) if name == UNIXCODER_SIZE else rows
            found.append(measure(backbone_name(name, temporary), data, wanted.last, share, wanted.rounds))
    result = {"machine": machine(), "measurements": found}
    write_report("activation_cache", wanted.output, result, [table(one) for one in found], lambda f: plot(f, found))


if __name__ == "__main__":
    main()
