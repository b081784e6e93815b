"""The verb `export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="A run folder, or its best/ folder.", metavar="RUN")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to make.", metavar="FOLDER")],
    format: Annotated[
        str,
        typer.Option(
            "--format", "-f", help="merged: stand-alone Hugging Face folder; lora: adapter of peft; onnx: graph."
        ),
    ] = "merged",
    task: Annotated[str | None, typer.Option("--task", "-t", help="Only this task; mtl_lora needs one.")] = None,
    int8: Annotated[bool, typer.Option("--int8", help="onnx: weights in 8 bits.")] = False,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Compare the export with the module.")] = True,
    data: Annotated[
        Path | None, typer.Option(help="For the comparison: a folder with one folder a task; default: the run's.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Validation rows of each task at most, drawn at random.", min=1)] = 200,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Nothing on stderr but errors.")] = False,
) -> None:
    """Turn a trained module into files for use elsewhere, and compare them with it."""
    from manyskills.export.run import Wish
    from manyskills.export.run import export as export_run
    from manyskills.training.reporting import announcer

    wish = Wish(format, task, int8, check, data, limit)  # pyright: ignore[reportArgumentType] - checked there
    summary = export_run(run, output, wish, overwrite=overwrite, announce=announcer(quiet=quiet))
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
        return
    from rich.console import Console

    from manyskills.export.report import print_summary

    print_summary(summary, Console())
    if not quiet:
        typer.echo(f"the export is in {output}", err=True)
