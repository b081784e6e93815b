"""The verbs `manyskills data …`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manyskills.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from manyskills.config import TaskConfig
    from manyskills.data.check import TaskDataReport
    from manyskills.data.check_written import PromptLimits
    from manyskills.data.rows import SplitRows
    from manyskills.data.tokens import Template
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
    options: TaskConfig
    max_length: int | None = None
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
    counter = TokenCounter.of(backbone) if backbone else None
    reports, failures = [], []
    for name, source in sources.tasks.items():
        limited = replace(source, max_length=(max_length or source.max_length) if counter else None)
        report = _report(name, limited, counter, failures)
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
    columns, variants = source.options.columns, source.options.variants
    found = read_split(
        get_task(task), source.place, known[split], columns=columns, variants=variants, limit=rows, seed=seed
    )
    for row in found.rows:
        typer.echo(json.dumps(row, ensure_ascii=False) if as_json else _for_people(found.task, row))
    typer.echo(f"{len(found.rows)} of {found.total:,} rows of {found.source}", err=True)


@dataclass(frozen=True, slots=True)
class TokenCounter:
    """Counts tokens as a backbone's tokenizer does."""

    tokenizer: Any
    template: Template
    family: str

    @classmethod
    def of(cls, backbone: str) -> TokenCounter:
        """That of a backbone.

        Raises:
            UserError: There is no such backbone.
        """
        from transformers import AutoConfig

        from manyskills.config import BackboneConfig
        from manyskills.model.backbones import ENCODER_DECODERS, load_tokenizer, resolve

        tokenizer, template = load_tokenizer(BackboneConfig.model_validate({"name": backbone}))
        kind = AutoConfig.from_pretrained(resolve(backbone), trust_remote_code=False).model_type
        return cls(tokenizer, template, "encoder_decoder" if kind in ENCODER_DECODERS else "decoder")

    def lengths(self, texts: list[Text]) -> list[int]:
        """Of texts, or of pairs that are read jointly, special tokens included."""
        return self._count(texts, self.template)

    def plain_lengths(self, texts: list[Text]) -> list[int]:
        """Of texts without anything around them, as they stand in prompts and answers."""
        from manyskills.data.prompts import plain_text
        from manyskills.data.tokens import Template

        with plain_text(self.tokenizer):
            return self._count(texts, Template((), (), ()))

    def limits(self, task: Task, source: Source) -> PromptLimits | None:
        """What a generating task's prompts and answers may have; none without a limit.

        Raises:
            UserError: The task's instruction is wrong.
        """
        from manyskills.data.check_written import PromptLimits
        from manyskills.data.prompts import FrameIds, frames

        if source.max_length is None:
            return None
        around = frames(task, source.options, self.tokenizer, self.family)
        tokens = {name: FrameIds.of(frame, self.tokenizer).length for name, frame in around.items()}
        return PromptLimits(source.max_length, source.options.max_new_tokens, tokens)

    def _count(self, texts: list[Text], template: Template) -> list[int]:
        from manyskills.data.tokens import Entry, tokenize

        store = tokenize([Entry(text, 1 << 30) for text in texts], self.tokenizer, template, use_cache=False)
        return store.full_lengths_N.tolist()


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
    from manyskills.config import TaskConfig
    from manyskills.data.finding import task_folder
    from manyskills.tasks import all_tasks

    wanted = split_names(tasks) if tasks else None
    if config is not None and data is None:
        return _sources_of_config(config, overrides or [], wanted)
    if config is not None or data is None:
        raise UserError("wanted a configuration or --data, one of the two", "manyskills data check --data FOLDER")
    folder = Path(data)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}", "--data names the folder that holds one folder a task")
    places = {name: task_folder(folder, task) for name, task in all_tasks().items()}
    names = wanted or [name for name, place in places.items() if place.is_dir()]
    if not names:
        raise UserError(f"{folder} holds no folder of a task", f"it may hold {', '.join(all_tasks())}")
    return Sources({name: Source(str(places[name]), TaskConfig()) for name in names}, None)


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
        joint = get_task(name).kind is Kind.PAIR and (options.read == "joint" or options.answer == "text")
        found[name] = Source(task_source(config, name), options, limit, joint)
    return Sources(found, config.backbone.name)


def _report(
    name: str,
    source: Source,
    counter: TokenCounter | None,
    failures: list[UserError],
) -> TaskDataReport | None:
    """One task's report, or none if its data cannot be read; the reasons go to `failures`."""
    from manyskills.data.check import check_data
    from manyskills.data.check_written import check_generating
    from manyskills.data.reading import available_splits, read_split
    from manyskills.tasks import Kind, get_task

    task, options = get_task(name), source.options
    splits: dict[SplitName, SplitRows] = {}
    before = len(failures)
    try:
        available = available_splits(task, source.place)
    except UserError as error:
        failures.append(error)
        return None
    for split in available:
        try:
            splits[split] = read_split(task, source.place, split, columns=options.columns, variants=options.variants)
        except UserError as error:
            failures.append(error)
    if len(failures) > before:
        return None
    if task.kind is Kind.GENERATE:
        lengths = counter.plain_lengths if counter else None
        limits = counter.limits(task, source) if counter else None
        return check_generating(task, splits, lengths=lengths, limits=limits, long=options.long)
    lengths = counter.lengths if counter else None
    return check_data(
        task, splits, lengths=lengths, max_length=source.max_length, long=options.long, joint=source.joint
    )


def _all_failures(failures: list[UserError]) -> UserError:
    if len(failures) == 1:
        return failures[0]
    hints = dict.fromkeys(failure.hint for failure in failures if failure.hint)
    return UserError("\n".join(failure.message for failure in failures), "; ".join(hints) or None)


def _for_people(task: Task, row: Mapping[str, object]) -> str:
    label = f", {task.label} {row[task.label]}" if task.label else ""
    variant = next((variant for variant in task.variants if variant.name == row["variant"]), None)
    columns = (variant.source, variant.target) if variant else task.inputs
    parts = [f"=== {row['id']}{label}{f', {variant.name}' if variant else ''}"]
    parts += [part for name in columns for part in (f"--- {name}", str(row[name]))]
    return "\n".join(parts)


def _console() -> Console:
    """Where reports go; a pipe or a file has no width of its own."""
    import sys

    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=150)
