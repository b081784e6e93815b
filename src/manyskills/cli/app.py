"""The command line. Importing this must stay light: `--help` answers in under 0.3 s, so verbs import what they need.

stdout carries data, stderr carries talk; exit codes are 0 (fine), 1 (findings) and 2 (error).
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from manyskills import __version__
from manyskills.cli import configuration, export, generation, methods, pretraining, study, training
from manyskills.cli import data as data_verbs
from manyskills.errors import UserError
from manyskills.files import is_no_space, write_atomically

app = typer.Typer(
    name="manyskills",
    help="One parameter-efficient module for many code tasks: train it, measure it, use it.",
    no_args_is_help=True,
    rich_markup_mode=None,  # Rich takes longer to import than everything else of --help together
    pretty_exceptions_enable=False,
)
list_app = typer.Typer(help="List what there is to choose from.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_verbs.app, name="data")
app.add_typer(configuration.app, name="config")
app.add_typer(list_app, name="list")
app.add_typer(study.app, name="study")
for verb in (
    methods.methods, training.train, training.evaluate, training.predict, generation.generate, export.export,
    pretraining.pretrain,
):  # fmt: skip
    app.command()(verb)

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def main() -> None:
    """Run the command line; mistakes that a user can mend are one message on stderr and exit code 2."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1 or os.environ.get("MANYSKILLS_DEBUG", "") not in ("", "0")
    sys.exit(run(arguments, debug=debug))


def run(arguments: list[str], *, debug: bool = False) -> int:
    """Run one command and return its exit code."""
    try:
        typer.main.get_command(app)(args=arguments, prog_name="manyskills")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1 if stop.code else 0
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        code = 1
    except Exception as error:  # noqa: BLE001 - whatever it is, the exit code may not be 1, which means findings
        code = _explain(error, debug)
    return _flushed(code)


def _explain(error: Exception, debug: bool) -> int:
    known = isinstance(error, UserError) or is_no_space(error)
    if debug or not known:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, UserError):
        print(f"manyskills: {error}", file=sys.stderr)
    elif known:
        print("manyskills: no space left on device\n  hint: free some space and run again", file=sys.stderr)
    else:
        print("manyskills: this is a mistake of ours; please report it with the lines above", file=sys.stderr)
    return 2


def _flushed(code: int) -> int:
    """Write what is left in stdout now: a reader that has gone (`| head`) is no reason for a message at exit."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code or 1
    except OSError as error:
        if not is_no_space(error):
            raise
        print("manyskills: no space left on device where stdout goes", file=sys.stderr)
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    return code


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"manyskills {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False,
) -> None:
    """One parameter-efficient module for many code tasks: train it, measure it, use it."""


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="The configuration to write.")] = Path("manyskills.yaml"),
    tasks: Annotated[
        str | None, typer.Option(help="Task names, separated by commas; default: those that any backbone can learn.")
    ] = None,
    data: Annotated[str, typer.Option(help="The folder that holds one folder a task.")] = "data",
    output_dir: Annotated[str, typer.Option(help="The run folder.")] = "runs/run",
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Write a commented configuration."""
    from manyskills.config.starter import starter_config, starter_tasks

    if path.exists() and not force:
        raise UserError(f"{path} is there already", "choose another name, or replace it with --force")
    names = data_verbs.split_names(tasks) if tasks else starter_tasks()
    write_atomically(path, starter_config(names, data, output_dir, str(path)))
    typer.echo(f"wrote {path}; next: manyskills data check {path}", err=True)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Tell about this machine and installation, and train a toy for a few seconds."""
    import json

    from manyskills.doctor import examine

    findings = examine()
    if as_json:
        typer.echo(json.dumps(findings.to_dict(), indent=2))
    else:
        typer.echo(findings.text())
    if not findings.healthy:
        raise typer.Exit(2)


@list_app.command("tasks")
def list_tasks(as_json: AsJson = False) -> None:
    """List the tasks, their columns, variants and metrics."""
    import json

    from manyskills.tasks import all_tasks

    facts = [
        {
            "name": task.name,
            "kind": task.kind.value,
            "columns": [*task.inputs, *([task.label] if task.label else [])],
            "metric": task.primary_metric,
            "description": task.description,
            "variants": [
                {"name": v.name, "source": v.source, "target": v.target, "language": v.language} for v in task.variants
            ],
        }
        for task in all_tasks().values()
    ]
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for fact in facts:
        columns = ", ".join(fact["columns"])
        variants = ", ".join(variant["name"] for variant in fact["variants"])
        about = fact["description"] + (f" ({variants})" if variants else "")
        typer.echo(f"{fact['name']:<18} {fact['kind']:<9} {columns:<22} {fact['metric']:<9} {about}")


if __name__ == "__main__":
    main()
