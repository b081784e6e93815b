"""The verbs `manyskills study …`: comparisons of several runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from manyskills.studies.transfer_report import Transfer

app = typer.Typer(help="Compare runs: which tasks help each other.", no_args_is_help=True, rich_markup_mode=None)


class SeveralSingles(TyperCommand):
    """Lets --single take all folders up to the next option, so that a shell's `runs/single_*` can follow it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the flag before each of its folders."""
        spread: list[str] = []
        taking = False
        for argument in args:
            if argument.startswith("-"):
                taking = argument == "--single"
                spread += [] if taking else [argument]
            else:
                spread += ["--single", argument] if taking else [argument]
        return super().parse_args(ctx, spread)


@app.command(cls=SeveralSingles)
def transfer(
    multi: Annotated[
        list[Path], typer.Argument(help="Finished runs of several tasks that differ in their seed.", metavar="RUN...")
    ],
    single: Annotated[
        list[Path],
        typer.Option("--single", help="Finished runs of one task each: one folder or several.", metavar="RUN..."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write transfer.json, .md and .png into this folder.", metavar="FOLDER"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Tell for every task whether learning it together with the others hurts or helps it, and what was measured."""
    from manyskills.studies.transfer import transfer as compare_runs

    report = compare_runs(multi, single)
    if output is not None:
        _write_transfer(report, output)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        from rich.console import Console

        from manyskills.studies.transfer_text import print_report

        print_report(report, Console())
    if output is not None:
        typer.echo(f"the report is in {output}", err=True)


@app.command()
def grouping(
    config: Annotated[Path, typer.Argument(help="The YAML file of the training.", metavar="CONFIG")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes, as key.sub=value.", metavar="[KEY=VALUE]...")
    ] = None,
    share: Annotated[float, typer.Option(help="Length of the joint run that is measured.", min=0.01, max=1)] = 0.4,
    verify: Annotated[int, typer.Option(help="Train so many of the best partitions, and compare.", min=0)] = 0,
    tolerance: Annotated[
        float, typer.Option(help="Fewer groups are advised where the loss is within this share of the best.", min=0)
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Nothing on stderr but errors.")] = False,
) -> None:
    """Predict which tasks to train together from one short joint run, which is kept in <output_dir>-grouping."""
    from manyskills.config.file import load_config
    from manyskills.studies.grouping import grouping as study
    from manyskills.training.reporting import announcer

    wanted = load_config(config, overrides or [])
    found = study(wanted, announcer(quiet=quiet), share=share, verify=verify, tolerance=tolerance)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    from rich.console import Console

    from manyskills.studies.grouping import study_folder
    from manyskills.studies.grouping_report import print_grouping

    print_grouping(found, Console())
    if not quiet:
        typer.echo(f"all figures are in {study_folder(wanted) / 'grouping.json'}", err=True)


def _write_transfer(report: Transfer, folder: Path) -> None:
    from manyskills.files import write_atomically
    from manyskills.studies.transfer_plot import plot_transfer
    from manyskills.studies.transfer_text import render_markdown

    write_atomically(folder / "transfer.json", json.dumps(report.to_dict(), indent=2) + "\n")
    write_atomically(folder / "transfer.md", render_markdown(report))
    plot_transfer(report, folder / "transfer.png")
