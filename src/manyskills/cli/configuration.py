"""The verbs `manyskills config …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Show and check configurations.", no_args_is_help=True, rich_markup_mode=None)

Config = Annotated[Path, typer.Argument(help="A YAML configuration.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key.sub=value, as many as you like.", show_default=False)]


@app.command()
def show(config: Config, overrides: Overrides = None) -> None:
    """Print a configuration with every key, defaults and overrides included."""
    from manyskills.config.file import dump_config, load_config

    typer.echo(dump_config(load_config(config, overrides or ())), nl=False)


@app.command()
def validate(config: Config, overrides: Overrides = None) -> None:
    """Check a configuration; every mistake is shown at once."""
    from manyskills.config.file import load_config

    load_config(config, overrides or ())
    typer.echo(f"{config} is fine", err=True)


@app.command()
def schema() -> None:
    """Print the JSON schema of configurations, for editors."""
    import json

    from manyskills.config.file import config_schema

    typer.echo(json.dumps(config_schema(), indent=2, ensure_ascii=False))
