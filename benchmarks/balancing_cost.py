"""Time of a training step under each balancing rule, as a multiple of a step under `uniform`.

    python benchmarks/balancing_cost.py [--data path/to/data] [--backbone minilm]

Each contender is the training loop itself, with four tasks on the same rows. A rule that measures something every so
many steps is timed with and without the measurement, and its cost is the mean over these steps at the default settings.
The same is done for measuring the tasks' gradients, which a run does every `conflict_steps` steps whatever the rule.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch
from matplotlib.figure import Figure

from manyskills.config import BalancingConfig, TrainConfig
from manyskills.data.mining import MiningLimits
from manyskills.model.backbones import quiet
from manyskills.training.loop import Trainer
from manyskills.training.processes import Processes
from manyskills.training.reporting import progress_bar
from manyskills.training.run import build_trainer, load_inputs
from manyskills.training.run_folder import RunFolder
from manyskills.training.tracking import NoTracker
from measuring import (
    TASKS,
    Cost,
    Table,
    backbone_name,
    bars,
    benchmark_parser,
    data_folder,
    interleaved,
    machine,
    own_cache,
    write_report,
)

UNIFORM, MEASURED, WITH = "uniform", "uniform, gradients measured", ", with its measurement"
LIMITS = {"rules on losses": 1.03, "rules on gradients": 1.3}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = benchmark_parser(__doc__, rounds=3)
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--batch-size", type=int, default=64, help="labelled rows of a step, over all tasks")
    wanted = parser.parse_args(arguments)
    torch.set_num_threads(wanted.threads)
    with own_cache() as temporary, warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        rows = 12 if wanted.quick else 400
        limits = MiningLimits(train=rows, valid=20, test=8, max_lines=400, max_chars=9000)
        data = data_folder(wanted.data, temporary, limits)
        backbone, batch_size = backbone_name(wanted.backbone, temporary), 8 if wanted.quick else wanted.batch_size
        config = configuration(backbone, data, batch_size, rows, 64 if wanted.quick else 256)
        found = measure(config, temporary, wanted.rounds)
    result = {"machine": machine(), **found}
    write_report("balancing_cost", wanted.output, result, [table(found)], lambda figure: plot(figure, found))


def configuration(backbone: str, data: Path, batch_size: int, rows: int, max_length: int) -> TrainConfig:
    """Four tasks, LoRA, everything else as by default."""
    return TrainConfig.model_validate({
        "backbone": {"name": backbone, "pooling": "mean"},
        "tasks": {name: {"limit": {"train": rows, "valid": 20, "test": 8}} for name in TASKS},
        "data_dir": str(data),
        "batch_size": batch_size,
        "max_length": max_length,
        "max_steps": 1000,
        "conflict_steps": 0,
    })  # fmt: skip


def measure(config: TrainConfig, folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of a step, and how many times those of a uniform step it takes."""
    contenders, every = {}, {}
    for name in rule_names():
        trainer = _trainer(config, name, folder)
        contenders[name] = _plain(trainer)
        needs = trainer.rule.needs
        if period := needs.repeat_every or needs.validation_every:
            contenders[name + WITH], every[name] = _measuring(trainer), period
    watched = _trainer(config.model_copy(update={"conflict_steps": 1}), UNIFORM, folder)
    contenders[MEASURED] = _plain(watched)
    for one in contenders.values():
        one()
    costs = interleaved(contenders, rounds)
    ratios = {name: _ratio(costs, name, every.get(name)) for name in contenders if not name.endswith(WITH)}
    logged = 1 + (ratios[MEASURED]["cpu"] - 1) / config.logging_steps
    return {
        "rounds": rounds,
        "batch_size": config.batch_size,
        "every": every,
        "on_gradients": [name for name in rule_names() if _on_gradients(config, name)],
        "seconds_a_step": {name: [asdict(cost) for cost in found] for name, found in costs.items()},
        "times_a_uniform_step": ratios,
        "uniform_with_default_conflict_steps": logged,
    }


def rule_names() -> list[str]:
    """All rules; `fixed` is `uniform` with other numbers."""
    models = get_args(get_args(BalancingConfig)[0])
    return [model.model_fields["name"].default for model in models if model.model_fields["name"].default != "fixed"]


def _trainer(config: TrainConfig, rule: str, folder: Path) -> Trainer:
    output = folder / f"{rule}-{config.conflict_steps}"
    output.mkdir()
    values = config.model_dump() | {"balancing": {"name": rule}, "output_dir": str(output)}
    wanted, processes = TrainConfig.model_validate(values), Processes.current()
    model, prepared = load_inputs(wanted, processes.device, ("train", "valid"))
    return build_trainer(
        wanted, model, prepared, RunFolder(output), processes, None, lambda _: None, tracker=NoTracker()
    )


def _plain(trainer: Trainer) -> Callable[[], None]:
    """The first step again and again: step 1 measures nothing that comes every so many steps."""
    return lambda: _take(trainer, 1)


def _measuring(trainer: Trainer) -> Callable[[], None]:
    return lambda: _take(trainer, 0)


def _take(trainer: Trainer, step: int) -> None:
    trainer.progress.step = step
    with progress_bar(1, "", hidden=True) as bar:
        trainer.step(bar)


def _on_gradients(config: TrainConfig, rule: str) -> bool:
    from manyskills.training.balancing import build_balancing

    balancing = TrainConfig.model_validate(config.model_dump() | {"balancing": {"name": rule}}).balancing
    return build_balancing(balancing, list(config.tasks), 0).on_gradients


def _ratio(costs: Mapping[str, Sequence[Cost]], name: str, every: int | None) -> dict[str, Any]:
    """CPU time relative to a uniform step of the same round: median, least, most."""
    rounds = []
    for number, uniform in enumerate(costs[UNIFORM]):
        seconds = costs[name][number].cpu
        if every:
            seconds += (costs[name + WITH][number].cpu - seconds) / every
        rounds.append(seconds / uniform.cpu)
    return {"cpu": median(rounds), "range": [min(rounds), max(rounds)]}


def table(found: Mapping[str, Any]) -> Table:
    """For people."""
    rows = []
    for name, ratio in found["times_a_uniform_step"].items():
        kind = "rules on gradients" if name in found["on_gradients"] else "rules on losses"
        limit = "" if name == MEASURED else f"{LIMITS[kind]:.2f}x"
        every = found["every"].get(name, "")
        low, high = ratio["range"]
        rows.append(
            (name, kind.removeprefix("rules "), str(every), f"{ratio['cpu']:.3f}x ({low:.3f}-{high:.3f})", limit)
        )
    caption = (
        f"CPU time of a step with {found['batch_size']} labelled rows of four tasks, median of {found['rounds']} "
        f"interleaved rounds. A run under uniform that measures gradients every 10 steps: "
        f"{found['uniform_with_default_conflict_steps']:.3f}x."
    )
    return Table(("rule", "works on", "measures every", "times a uniform step", "limit"), rows, caption)


def plot(figure: Figure, found: Mapping[str, Any]) -> None:
    """How many times a uniform step each takes."""
    figure.set_size_inches(8.5, 5.5)
    values = {name: ratio["cpu"] for name, ratio in found["times_a_uniform_step"].items()}
    bars(figure.subplots(), values, "A training step of four tasks", "CPU time, uniform = 1", marked=UNIFORM)


if __name__ == "__main__":
    main()
