"""The verb `pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def pretrain(
    config: Annotated[Path, typer.Argument(help="The YAML file.", metavar="CONFIG")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes, as key.sub=value.", metavar="[KEY=VALUE]...")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue what is in output_dir.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove a former one in output_dir first.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what it would cost, and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Nothing on stderr but errors.")] = False,
) -> None:
    """Train a small backbone from scratch, tokenizer included, on code from disk."""
    import json

    from manyskills.config.file import read_config
    from manyskills.config.pretraining import PretrainConfig

    wanted = read_config(PretrainConfig, config, overrides or [])
    if dry_run:
        from manyskills.pretraining.plan import make_plan

        plan = make_plan(wanted)
        typer.echo(json.dumps(plan.to_dict(), indent=2) if as_json else plan.text())
        return
    from manyskills.pretraining.run import pretrain as run
    from manyskills.training.reporting import announcer

    folder = run(wanted, resume=resume, overwrite=overwrite, announce=announcer(quiet=quiet) if quiet else None)
    summary = json.loads((folder / "pretraining.json").read_text(encoding="utf-8"))
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        _print_summary(summary)
    if not quiet:
        typer.echo(f"the backbone is in {folder}; use it with backbone={folder}", err=True)


def _print_summary(summary: dict) -> None:
    typer.echo(f"{summary['architecture']}: {summary['parameters']:,} parameters, {summary['steps']:,} steps")
    typer.echo(f"loss of the last record: {summary['train'][-1]['loss']:.3f}")
    if summary["valid"]:
        typer.echo(f"held-out perplexity: {summary['valid'][-1]['perplexity']:.2f}")
