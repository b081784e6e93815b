"""The verbs `manyskills data …`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manyskills.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rich.console import Console

    from manyskills.data.check import TaskDataReport
    from manyskills.data.long_texts import Long
    from manyskills.data.rows import SplitRows
    from manyskills.tasks import SplitName, Task
    from manyskills.tasks.base import Text

app = typer.Typer(help="Look at data and check it.", no_args_is_help=True, rich_markup_mode=None)

Config = Annotated[Path | None, typer.Argument(help="A YAML configuration; or give --data.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(help="key.sub=value, as many as you like.", show_default=False)]
Data = Annotated[str | None, typer.Option(help="The folder that holds one folder a task.")]


@dataclass(frozen=True, slots=True)
class Source:
    """Where the data of a task is, and what the configuration says about reading it."""

    place: str
    columns: Mapping[str, str]
    max_length: int | None = None
    long: Long = "truncate"
    joint: bool = False


@dataclass(frozen=True, slots=True)
class Sources:
    """The data of several tasks, and the backbone that will count its tokens."""

    tasks: dict[str, Source]
    backbone: str | None


@app.command()
def check(
    config: Config = None,
    overrides: Overrides = None,
    data: Data = None,
    tasks: Annotated[str | None, typer.Option(help="Only these, separated by commas.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Count tokens as this backbone does.")] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="Tokens the model will see.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 if anything makes figures wrong.")] = False,
) -> None:
    """Find duplicates, leakage between splits, imbalance, long texts and given answers.

    Token counts need a backbone: the configuration's, or --backbone.
    """
    import json

    sources = _sources(config, overrides, data, tasks)
    backbone = backbone or sources.backbone
    lengths = token_lengths(backbone) if backbone else None
    reports, failures = [], []
    for name, source in sources.tasks.items():
        limited = replace(source, max_length=(max_length or source.max_length) if lengths else None)
        report = _report(name, limited, lengths, failures)
        reports += [report] if report else []
    if as_json:
        typer.echo(json.dumps([report.to_dict() for report in reports], indent=2, ensure_ascii=False))
    else:
        from manyskills.data.check_report import print_report

        print_report(reports, _console())
    if failures:
        raise _all_failures(failures)
    if strict and any(report.errors for report in reports):
        raise typer.Exit(1)


@app.command()
def show(
    config: Config = None,
    overrides: Overrides = None,
    task: Annotated[str, typer.Option("--task", "-t", help="Whose rows.", show_default=False)] = "",
    data: Data = None,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "train",
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="How many, drawn at random.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Print rows as the program reads them."""
    import json

    from manyskills.data.reading import read_split
    from manyskills.tasks import SPLITS, get_task

    known: dict[str, SplitName] = {name: name for name in SPLITS}
    if split not in known:
        raise UserError(f"unknown split {split!r}", did_you_mean(split, SPLITS))
    if not task:
        raise UserError("data show wants --task", "`manyskills list tasks` names them")
    source = _sources(config, overrides, data, task).tasks[task]
    found = read_split(get_task(task), source.place, known[split], columns=source.columns, limit=rows, seed=seed)
    for row in found.rows:
        typer.echo(json.dumps(row, ensure_ascii=False) if as_json else _for_people(found.task, row))
    typer.echo(f"{len(found.rows)} of {found.total:,} rows of {found.source}", err=True)


def token_lengths(backbone: str) -> Callable[[list[Text]], list[int]]:
    """Counts tokens of texts, or of pairs that are read jointly, as a backbone's tokenizer does, special ones included.

    Raises:
        UserError: There is no such backbone.
    """
    from manyskills.config import BackboneConfig
    from manyskills.data.tokens import Entry, tokenize
    from manyskills.model.backbones import load_tokenizer

    tokenizer, template = load_tokenizer(BackboneConfig.model_validate({"name": backbone}))

    def count(texts: list[Text]) -> list[int]:
        store = tokenize([Entry(text, 1 << 30) for text in texts], tokenizer, template, use_cache=False)
        return store.full_lengths_N.tolist()

    return count


def split_names(names: str) -> list[str]:
    """Task names from a list with commas, each checked.

    Raises:
        UserError: One is unknown, or there is none.
    """
    from manyskills.tasks import get_task

    found = [get_task(name.strip()).name for name in names.split(",") if name.strip()]
    if not found:
        raise UserError("wanted task names, found none", "`manyskills list tasks` names them")
    return list(dict.fromkeys(found))


def _sources(config: Path | None, overrides: list[str] | None, data: str | None, tasks: str | None) -> Sources:
    from manyskills.tasks import all_tasks

    wanted = split_names(tasks) if tasks else None
    if config is not None and data is None:
        return _sources_of_config(config, overrides or [], wanted)
    if config is not None or data is None:
        raise UserError("wanted a configuration or --data, one of the two", "manyskills data check --data FOLDER")
    folder = Path(data)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}", "--data names the folder that holds one folder a task")
    names = wanted or [name for name in all_tasks() if (folder / name).is_dir()]
    if not names:
        raise UserError(f"{folder} holds no folder of a task", f"it may hold {', '.join(all_tasks())}")
    return Sources({name: Source(str(folder / name), {}) for name in names}, None)


def _sources_of_config(path: Path, overrides: list[str], wanted: list[str] | None) -> Sources:
    from manyskills.config.file import load_config
    from manyskills.data.preparation import task_source
    from manyskills.tasks import Kind, get_task

    config = load_config(path, overrides)
    for name in wanted or ():
        if name not in config.tasks:
            raise UserError(f"{path} has no task {name!r}", did_you_mean(name, config.tasks))
    found: dict[str, Source] = {}
    for name in wanted or config.tasks:
        options = config.tasks[name]
        limit = options.max_length or config.max_length
        joint = options.read == "joint" and get_task(name).kind is Kind.PAIR
        found[name] = Source(task_source(config, name), options.columns, limit, options.long, joint)
    return Sources(found, config.backbone.name)


def _report(
    name: str,
    source: Source,
    lengths: Callable[[list[Text]], list[int]] | None,
    failures: list[UserError],
) -> TaskDataReport | None:
    """One task's report, or none if its data cannot be read; the reasons go to `failures`."""
    from manyskills.data.check import check_data
    from manyskills.data.reading import available_splits, read_split
    from manyskills.tasks import get_task

    task = get_task(name)
    splits: dict[SplitName, SplitRows] = {}
    before = len(failures)
    try:
        available = available_splits(task, source.place)
    except UserError as error:
        failures.append(error)
        return None
    for split in available:
        try:
            splits[split] = read_split(task, source.place, split, columns=source.columns)
        except UserError as error:
            failures.append(error)
    if len(failures) > before:
        return None
    return check_data(task, splits, lengths=lengths, max_length=source.max_length, long=source.long, joint=source.joint)


def _all_failures(failures: list[UserError]) -> UserError:
    if len(failures) == 1:
        return failures[0]
    hints = dict.fromkeys(failure.hint for failure in failures if failure.hint)
    return UserError("\n".join(failure.message for failure in failures), "; ".join(hints) or None)


def _for_people(task: Task, row: Mapping[str, object]) -> str:
    label = f", {task.label} {row[task.label]}" if task.label else ""
    parts = [f"=== {row['id']}{label}"]
    parts += [part for name in task.inputs for part in (f"--- {name}", str(row[name]))]
    return "\n".join(parts)


def _console() -> Console:
    """Where reports go; a pipe or a file has no width of its own."""
    import sys

    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=150)
