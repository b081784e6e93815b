"""The verbs `manyskills config …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from manyskills.errors import UserError, did_you_mean

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
def schema(
    verb: Annotated[str, typer.Option("--for", help="train or pretrain: the verb that reads them.")] = "train",
) -> None:
    """Print the JSON schema of configurations, for editors."""
    import json

    from manyskills.config import TrainConfig
    from manyskills.config.file import config_schema
    from manyskills.config.pretraining import PretrainConfig

    models = {"train": TrainConfig, "pretrain": PretrainConfig}
    if verb not in models:
        raise UserError(f"--for {verb}: no such verb has configurations", did_you_mean(verb, models))
    typer.echo(json.dumps(config_schema(models[verb]), indent=2, ensure_ascii=False))
