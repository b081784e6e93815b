"""Time of an epoch: LoRA on all layers, on the last K, and on the last K with the lower layers' states from disk.

    python benchmarks/activation_cache.py [--data path/to/data] [--output activation_cache.json]

The three train on the same rows in the same steps, heads, optimiser and all, in one process; rounds take turns, so
that whatever else the machine does hits all of them. MiniLM (6 layers of 384) has its own weights; the network of
UniXcoder's size (RoBERTa, 12 layers of 768) has random ones, which cost the same time. Without --data the rows are
mined from the Python standard library. The first epoch with the cache, which fills it, is measured apart.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from manyskills.config import TrainConfig
from manyskills.data.mining import MiningLimits, mine_python
from manyskills.data.sampling import Phase, Sampler
from manyskills.data.tokens import CACHE_VARIABLE
from manyskills.model.activations import training_encoder
from manyskills.training.balancing import build_balancing
from manyskills.training.loop import positive_shares
from manyskills.training.optimizer import Optimizer
from manyskills.training.processes import Processes
from manyskills.training.run import load_inputs
from manyskills.training.schedule import Schedule
from manyskills.training.step import accumulate_gradients
from manyskills.training.vectors import BackboneVectors

TASKS = ("clone_detection", "defect_detection", "flaky_tests", "code_search")
CACHE = "last K, cached"
ROBERTA = "random-roberta"
VARIANTS: dict[str, dict[str, Any]] = {
    "all layers": {},
    "last K": {"activation_cache": False},
    CACHE: {"activation_cache": True},
}


@dataclass(frozen=True)
class Seconds:
    """What an epoch took."""

    wall: float
    cpu: float


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
        self.balancing = build_balancing(config.balancing, list(config.tasks), alone.device)
        self.optimizer = Optimizer(self.model, config, self.steps)

    def run(self) -> tuple[Seconds, int]:
        """The steps of the first epoch (again), as the training loop takes them; also gives the tokens encoded."""
        tokens, wall, cpu = 0, time.perf_counter(), time.process_time()
        for step in range(self.steps):
            batch = self.sampler.at(step, [Phase(0, tuple(self.config.tasks))])
            self.model.train()
            result = accumulate_gradients(self.model, self.source, batch, self.balancing, step)
            self.optimizer.update(step)
            tokens += int(self.prepared.store.lengths_N[result.unique_N].sum())
        return Seconds(time.perf_counter() - wall, time.process_time() - cpu), tokens


def measure(backbone: str, data: Path, last: int, rows: int, rounds: int) -> dict[str, Any]:
    """Seconds of every variant's epochs, in turns."""
    variants = {name: Epochs(_config(backbone, data, last, rows, name)) for name in VARIANTS}
    filling, tokens = variants[CACHE].run()
    times: dict[str, list[Seconds]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, epochs in variants.items():
            times[name].append(epochs.run()[0])
    middle = {
        name: Seconds(median(one.wall for one in found), median(one.cpu for one in found))
        for name, found in times.items()
    }
    ratios = {
        clock: {name: getattr(middle[name], clock) / getattr(middle[CACHE], clock) for name in variants}
        for clock in ("wall", "cpu")
    }
    model = variants[CACHE].model
    return {
        "backbone": f"{model.architecture.model_type}, {model.architecture.layers} x {model.architecture.hidden_size}",
        "last": last,
        "steps": variants[CACHE].steps,
        "tokens": tokens,
        "first_epoch_with_cache": asdict(filling),
        "epochs": {name: [asdict(one) for one in found] for name, found in times.items()},
        "median": {name: asdict(one) for name, one in middle.items()},
        "times_as_long_as_cached": ratios,
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


def random_roberta(folder: Path) -> str:
    """A network of UniXcoder's size with random weights and MiniLM's tokenizer."""
    from transformers import RobertaConfig, RobertaModel

    from manyskills.config import BackboneConfig
    from manyskills.model.backbones import load_tokenizer

    tokenizer, _ = load_tokenizer(BackboneConfig(name="minilm"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 514, "pad_token_id": tokenizer.pad_token_id}
    RobertaModel(RobertaConfig(**size), add_pooling_layer=False).save_pretrained(folder)
    return str(folder)


def table(found: dict[str, Any]) -> str:
    """For people."""
    lines = [f"{found['backbone']}, K = {found['last']}, {found['tokens']:,} tokens an epoch",
             f"  {'':24}{'CPU s':>8}{'wall s':>8}{'CPU':>8}{'wall':>8}"]  # fmt: skip
    for variant, seconds in found["median"].items():
        cpu, wall = (found["times_as_long_as_cached"][clock][variant] for clock in ("cpu", "wall"))
        lines.append(f"  {variant:24}{seconds['cpu']:8.2f}{seconds['wall']:8.2f}{cpu:7.2f}x{wall:7.2f}x")
    first = found["first_epoch_with_cache"]
    lines.append(f"  {'first epoch (fills it)':24}{first['cpu']:8.2f}{first['wall']:8.2f}")
    return "\n".join([*lines, "  x: times as long as the cached epoch, medians of the rounds"])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="one folder a task; default: mined from the standard library")
    parser.add_argument("--output", type=Path, help="JSON file with every number")
    parser.add_argument("--last", type=int, default=2)
    parser.add_argument("--backbones", nargs="+", default=["minilm", ROBERTA], help="any backbone's name")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=24, help="of each task; a quarter of them for the larger network")
    parser.add_argument("--threads", type=int, default=1)
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    with tempfile.TemporaryDirectory() as temporary:
        os.environ[CACHE_VARIABLE] = f"{temporary}/cache"  # each measurement starts with an empty one
        data = wanted.data or Path(temporary) / "data"
        if wanted.data is None:
            limits = MiningLimits(train=wanted.rows, valid=8, test=8, per_module=4)
            mine_python(data, sources=[Path(os.__file__).parent], limits=limits)
        found = []
        for name in wanted.backbones:
            backbone = random_roberta(Path(temporary) / name) if name == ROBERTA else name
            rows = max(wanted.rows // 4, 4) if name == ROBERTA else wanted.rows
            found.append(measure(backbone, data, wanted.last, rows, wanted.rounds))
            print(table(found[-1]), flush=True)
    if wanted.output:
        about = {"threads": wanted.threads, "torch": torch.__version__}
        wanted.output.write_text(json.dumps(about | {"measurements": found}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
