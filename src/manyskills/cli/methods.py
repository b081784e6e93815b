"""The verb `manyskills methods`: what each method would train on a backbone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manyskills.cli.data import split_names
from manyskills.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from manyskills.config import TrainConfig
    from manyskills.model.methods.overview import MethodFacts


def methods(
    changes: Annotated[
        list[str] | None, typer.Argument(help="Other numbers, as method.key=value.", metavar="[METHOD.KEY=VALUE]...")
    ] = None,
    backbone: Annotated[str, typer.Option(help="Alias, hub id or local folder; no weights are read.")] = "minilm",
    part: Annotated[str, typer.Option(help="Of an encoder-decoder: encoder or whole.")] = "auto",
    tasks: Annotated[
        str | None, typer.Option(help="Task names, separated by commas; default: any with a head.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """List the methods: trainable parameters, storage, where each one sits and what the tasks share."""
    from manyskills.config.starter import starter_tasks
    from manyskills.model.backbones import load_backbone
    from manyskills.model.methods.overview import overview

    names = split_names(tasks) if tasks else starter_tasks()
    configs = _configurations({"name": backbone, "part": part}, names, changes or [])
    loaded = load_backbone(configs[0].backbone, weights=False)
    rows = list(overview(loaded, [config.method for config in configs], names))
    facts = [row for row in rows if not isinstance(row, UserError)]
    problems = {c.method.name: row for c, row in zip(configs, rows, strict=True) if isinstance(row, UserError)}
    if as_json:
        errors = [{"name": name, "error": problem.message, "hint": problem.hint} for name, problem in problems.items()]
        typer.echo(json.dumps([*(row.to_dict() for row in facts), *errors], indent=2))
    else:
        _print(facts, backbone, loaded.architecture.layers, len(names))
        _print_problems(problems)


def _configurations(backbone: dict[str, str], tasks: Sequence[str], changes: Sequence[str]) -> list[TrainConfig]:
    """One configuration for each method, with the changes to its numbers.

    Raises:
        UserError: A change names no method or no key of it, or a value that cannot be.
    """
    from manyskills.config.file import config_from_dict
    from manyskills.config.yaml_lines import read_yaml
    from manyskills.model.methods import METHODS

    numbers: dict[str, dict[str, Any]] = {name: {} for name in METHODS}
    for change in changes:
        dotted, equals, written = change.partition("=")
        method, dot, key = dotted.partition(".")
        if not (equals and dot and key):
            raise UserError(f"{change!r} is no change", "wanted method.key=value, such as lora.r=32")
        if method not in numbers:
            raise UserError(f"unknown method {method!r}", did_you_mean(method, METHODS))
        numbers[method][key] = read_yaml(written, lambda _, change=change: f"{change!r}").value
    return [
        config_from_dict({"backbone": backbone, "tasks": list(tasks), "method": {"name": name, **values}})
        for name, values in numbers.items()
    ]


def _print(rows: Sequence[MethodFacts], backbone: str, layers: int, tasks: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from manyskills.training.plan_text import size

    sharing = f"{tasks} tasks share the module" if tasks > 1 else "one task has the module"
    title = f"{backbone}: {rows[0].backbone:,} parameters, {layers} layers; {sharing}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for heading in ("trainable", "share", "storage", "modules"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("where it sits", "what the tasks share", "trainable parameters"):
        table.add_column(heading)
    for row in rows:
        share = f"{row.share:.2%}" if row.share >= 0.001 or not row.trainable else f"{row.share:.3%}"
        numbers = [f"{row.trainable:,}", share, size(row.storage), str(row.changed)]
        table.add_row(row.name, *numbers, row.where, row.shared, row.formula)
    Console(width=None if Console().is_terminal else 160).print(table)


def _print_problems(problems: Mapping[str, UserError]) -> None:
    """Methods that cannot be applied, those with the same reason together."""
    reasons: dict[str, list[str]] = {}
    for name, problem in problems.items():
        reasons.setdefault(str(problem), []).append(name)
    for reason, names in reasons.items():
        typer.echo(f"{', '.join(names)}: {reason}", err=True)
