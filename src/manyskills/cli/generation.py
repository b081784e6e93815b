"""The verb that writes: `generate`."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manyskills.errors import UserError

if TYPE_CHECKING:
    from manyskills.answer_file import AnswerFile
    from manyskills.code_model import CodeModel
    from manyskills.data.rows import Row
    from manyskills.model.decoding.options import Decoding

REPORT_SECONDS = 10
"""Time between two lines about what is done."""


def generate(
    run: Annotated[Path, typer.Argument(help="A run folder, its best/ folder, or its merged export.", metavar="RUN")],
    file: Annotated[str, typer.Argument(help="Rows as .jsonl, .csv or .parquet, or - for JSON lines on stdin.")] = "-",
    task: Annotated[str | None, typer.Option("--task", "-t", help="Which task; needed if several write.")] = None,
    variant: Annotated[str | None, typer.Option(help="Language or direction of all rows; default: each says.")] = None,
    samples: Annotated[int, typer.Option(help="Answers to each row; needs --temperature.", min=1)] = 1,
    temperature: Annotated[float, typer.Option(help="0: the likeliest tokens; else tokens are drawn.", min=0)] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens with this probability together.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Draw from so many likeliest tokens; 0: all.", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="Of draws.", min=0)] = 0,
    num_beams: Annotated[int | None, typer.Option(help="Beams; default: as in training.", min=1)] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Of an answer; default: as in training.", min=1)] = None,
    stop: Annotated[str, typer.Option(help="end: at the end token; function: also behind the first function.")] = "end",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file instead of stdout.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Answer only rows that the file lacks.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
) -> None:
    """Write an answer to each row, as JSON lines."""
    from manyskills.api import load
    from manyskills.asking import decoding_for

    if output is None and (resume or overwrite):
        raise UserError(f"{'--resume' if resume else '--overwrite'} is about a file", "name one with --output")
    model = load(run)
    name = writing_task(model, task)
    decoding = decoding_for(
        model.config.tasks[name], max_new_tokens=max_new_tokens, num_beams=num_beams, temperature=temperature,
        top_p=top_p, top_k=top_k, samples=samples, seed=seed, stop=stop,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    rows = rows_to_answer(model, name, file, variant)
    if output is None:
        sys.stdout.write(answers_text(model, name, rows, decoding))
    else:
        _into_file(model, name, rows, decoding, output, resume=resume, overwrite=overwrite)


def writing_task(model: CodeModel, task: str | None) -> str:
    """The generating task that is meant.

    Raises:
        UserError: The module does not know it, it writes nothing, or several do and none was chosen.
    """
    from manyskills.tasks import Kind

    writing = [name for name, known in model.tasks.items() if known.kind is Kind.GENERATE]
    if task is not None:
        if model.require(task).name not in writing:
            others = f"; what writes here: {', '.join(writing)}" if writing else ""
            raise UserError(f"{task} does not write", f"manyskills predict answers it{others}")
        return task
    if not writing:
        raise UserError("this module writes nothing", "manyskills predict answers its tasks")
    if len(writing) > 1:
        raise UserError("this module knows several tasks that write", f"choose one with --task: {', '.join(writing)}")
    return writing[0]


def rows_to_answer(model: CodeModel, task: str, file: str, variant: str | None) -> list[Row]:
    """Rows of a generating task to predict on."""
    from manyskills.data.reading import read_rows_for_prediction

    columns = model.config.tasks[task].columns
    return read_rows_for_prediction(
        model.tasks[task], file, columns=columns, variants=model.variants(task), variant=variant
    )


def answers_text(model: CodeModel, task: str, rows: list[Row], decoding: Decoding | None) -> str:
    """JSON lines in the order of the rows; without a decoding as in training."""
    from manyskills.answer_file import answer_lines

    options = {} if decoding is None else asdict(decoding)
    found = model.generate(task, rows, **options)
    return "".join(
        answer_lines(row, [answer] if isinstance(answer, str) else answer)
        for row, answer in zip(rows, found, strict=True)
    )


def _into_file(
    model: CodeModel, task: str, rows: list[Row], decoding: Decoding, output: Path, *, resume: bool, overwrite: bool
) -> None:
    from manyskills.answer_file import AnswerFile, module_digest, rows_digest

    sources = {variant.name: variant.source for variant in model.tasks[task].variants}
    options = {
        "task": task,
        **asdict(decoding),
        "module": module_digest(model.folder, model.config.backbone.name),
        "rows": rows_digest(rows, sources),
    }
    answers = AnswerFile(output, options, decoding.samples)
    there = answers.open(resume=resume, overwrite=overwrite)
    missing = [row for row in rows if row["id"] not in there]
    try:
        model.generate(task, missing, **asdict(decoding), done=_Progress(answers, missing))
    finally:
        answers.close()
    answers.finish(rows)
    kept = f", {len(there)} were there" if there else ""
    typer.echo(f"{output}: {len(missing)} rows answered{kept}", err=True)


class _Progress:
    """Writes a row's answers, and tells now and then how far it is."""

    def __init__(self, answers: AnswerFile, rows: list[Row]) -> None:
        self.answers, self.rows = answers, rows
        self.count, self.told = 0, time.monotonic()

    def __call__(self, position: int, texts: list[str]) -> None:
        self.answers.add(self.rows[position], texts)
        self.count += 1
        if time.monotonic() > self.told + REPORT_SECONDS:
            self.told = time.monotonic()
            typer.echo(f"{self.count} of {len(self.rows)} rows", err=True)
