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


def _write_transfer(report: Transfer, folder: Path) -> None:
    from manyskills.files import write_atomically
    from manyskills.studies.transfer_plot import plot_transfer
    from manyskills.studies.transfer_text import render_markdown

    write_atomically(folder / "transfer.json", json.dumps(report.to_dict(), indent=2) + "\n")
    write_atomically(folder / "transfer.md", render_markdown(report))
    plot_transfer(report, folder / "transfer.png")
