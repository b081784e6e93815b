"""The verbs that train, measure and answer: `train`, `evaluate`, `predict`; `generate` is in a file of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from manyskills.cli.data import split_names
from manyskills.cli.generation import answers_text, rows_to_answer
from manyskills.errors import UserError
from manyskills.files import write_atomically

if TYPE_CHECKING:
    from manyskills.code_model import CodeModel
    from manyskills.data.rows import Row

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
RunArgument = Annotated[
    Path, typer.Argument(help="A run folder, its best/ folder, or what `export` made of it.", metavar="RUN")
]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", "-j", help="ONNX graphs: threads that encode; default: all cores.", min=1),
]


def train(
    config: Annotated[Path, typer.Argument(help="The YAML file.", metavar="CONFIG")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes, as key.sub=value.", metavar="[KEY=VALUE]...")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue what is in output_dir.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove a former run in output_dir first.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what the run would cost, and stop.")] = False,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Nothing on stderr but errors.")] = False,
) -> None:
    """Train one module for several tasks, and measure it."""
    from manyskills.config.file import load_config

    wanted = load_config(config, overrides or [])
    if dry_run:
        _print_plan(wanted, as_json)
        return
    from manyskills.training.reporting import announcer
    from manyskills.training.run import train as train_run

    run = train_run(wanted, resume=resume, overwrite=overwrite, announce=announcer(quiet=quiet) if quiet else None)
    if not run.results:  # a helper process of several
        return
    if as_json:
        typer.echo(json.dumps(run.results, indent=2))
    else:
        _print_results(run.results)
        if not quiet:
            typer.echo(f"the module is in {run.path / 'best'}; plots in {run.path / 'plots'}", err=True)


def evaluate(
    run: RunArgument,
    data: Annotated[Path | None, typer.Option(help="A folder with one folder a task; default: the run's.")] = None,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    tasks: Annotated[str | None, typer.Option(help="Task names, separated by commas; default: all.")] = None,
    limit: Annotated[int | None, typer.Option(help="Rows of each task at most, drawn at random.", min=1)] = None,
    jobs: Jobs = None,
    as_json: AsJson = False,
) -> None:
    """Measure a trained module, with the thresholds that were chosen on validation."""
    from manyskills.api import load

    model = load(run, jobs=jobs)
    names = split_names(tasks) if tasks else None
    scores = model.evaluate(data, split=split, tasks=names, limit=limit)  # pyright: ignore[reportArgumentType]
    results = {
        "tasks": {
            name: {
                "primary_metric": model.tasks[name].primary_metric,
                "synthetic": model.synthetic.get(name),
                "systems": {"module": {split: found.to_dict()}},
            }
            for name, found in scores.items()
        }
    }
    if as_json:
        typer.echo(json.dumps(results, indent=2))
    else:
        _print_scores(model, scores)


def predict(
    run: RunArgument,
    file: Annotated[str, typer.Argument(help="Rows as .jsonl, .csv or .parquet, or - for JSON lines on stdin.")] = "-",
    task: Annotated[str | None, typer.Option("--task", "-t", help="Which task; needed if there are several.")] = None,
    candidates: Annotated[Path | None, typer.Option(help="Searches: the functions to rank, rows with `code`.")] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="Searches: answers a query.", min=1)] = 10,
    variant: Annotated[
        str | None, typer.Option(help="Tasks that write: language or direction of all rows; default: each says it.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file instead of stdout.")] = None,
    jobs: Jobs = None,
) -> None:
    """Answer for each row, as JSON lines."""
    from manyskills.api import load
    from manyskills.data.reading import read_rows_for_prediction
    from manyskills.tasks import Kind

    model = load(run, jobs=jobs)
    name = _the_task(model, task)
    if model.tasks[name].kind is Kind.GENERATE:
        _put(answers_text(model, name, rows_to_answer(model, name, file, variant), None), output)
        return
    if variant is not None:
        raise UserError(f"{name} has no variants", "leave --variant out")
    rows = read_rows_for_prediction(model.tasks[name], file, columns=model.config.tasks[name].columns)
    if model.tasks[name].kind is Kind.EMBED:
        lines = _search(model, name, rows, candidates, top_k)
    else:
        lines = _classify(model, name, rows)
    _put("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), output)


def _put(text: str, output: Path | None) -> None:
    if output is None:
        sys.stdout.write(text)
    else:
        write_atomically(output, text)


def _the_task(model: CodeModel, task: str | None) -> str:
    if task is not None:
        return model.require(task).name
    if len(model.tasks) > 1:
        raise UserError("this module knows several tasks", f"choose one with --task: {', '.join(model.tasks)}")
    return next(iter(model.tasks))


def _classify(model: CodeModel, task: str, rows: list[Row]) -> list[dict[str, Any]]:
    threshold = model.thresholds.get(task, 0.5)
    return [
        {"id": row["id"], "probability": round(float(p), 6), "prediction": int(p >= threshold)}
        for row, p in zip(rows, model.predict_proba(task, rows), strict=True)
    ]


def _search(model: CodeModel, task: str, rows: list[Row], candidates: Path | None, top_k: int) -> list[dict[str, Any]]:
    from manyskills.data.reading import read_rows_for_prediction

    known = model.tasks[task]
    query, answer = known.inputs
    if candidates is None:
        raise UserError(
            f"{task} ranks candidates, and there are none", f"--candidates FILE with rows that hold {answer!r}"
        )
    columns = model.config.tasks[task].columns
    found = read_rows_for_prediction(known, str(candidates), columns=columns, inputs=(answer,))
    ranked = model.search_many([row[query] for row in rows], [row[answer] for row in found], top_k=top_k, task=task)
    return [
        {"id": row["id"], "query": row[query],
         "results": [{"id": found[index]["id"], "score": round(score, 6)} for index, score in best]}
        for row, best in zip(rows, ranked, strict=True)
    ]  # fmt: skip


def _print_results(results: dict[str, Any]) -> None:
    from rich.console import Console

    from manyskills.evaluation.table import print_table

    print_table(results, Console())


def _print_scores(model: CodeModel, scores: dict[str, Any]) -> None:
    """Every metric of every task, on stdout."""
    from rich.console import Console

    from manyskills.evaluation.scores_table import print_scores

    print_scores(scores, model.synthetic, Console())


def _print_plan(config: Any, as_json: bool) -> None:
    from manyskills.training.plan import make_plan
    from manyskills.training.plan_text import plan_text

    plan = make_plan(config)
    typer.echo(json.dumps(plan.to_dict(), indent=2) if as_json else plan_text(plan))
