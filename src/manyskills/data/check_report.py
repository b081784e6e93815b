"""Prints what `check_data` found, for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from manyskills.data.check_texts import Lengths, Percentiles
from manyskills.data.check_types import SplitReport, TaskDataReport

COLOURS = {"error": "red", "warning": "yellow"}
PRINTED = 3
"""Examples of a problem; `--json` has more."""


def print_report(reports: Sequence[TaskDataReport], console: Console) -> None:
    """A table of each task's splits and the list of its problems."""
    for report in reports:
        console.print(_table(report))
        for overlap in report.overlaps:
            if overlap.what.startswith("group"):
                shared = (
                    f"{overlap.share:.0%} of {overlap.later} rows have a {overlap.what} that {overlap.earlier} has too"
                )
                console.print(f"  [dim]note[/dim]: {escape(shared)}", soft_wrap=True)
        for problem in report.problems:
            colour = COLOURS[problem.severity]
            console.print(f"  [{colour}]{problem.severity}[/]: {escape(problem.message)}", soft_wrap=True)
            for example in problem.examples[:PRINTED]:
                console.print(f"    [dim]{escape(example)}[/dim]", soft_wrap=True)
        if not report.problems:
            console.print("  no problems")
        console.print()


def _table(report: TaskDataReport) -> Table:
    made = f" (synthetic labels: {report.synthetic})" if report.synthetic else ""
    table = Table(title=escape(report.task + made), title_justify="left", title_style="bold")
    for heading in ("split", "rows", "label 1", "same again", "both labels", "column", "texts", "characters", "tokens"):
        table.add_column(heading, justify="left" if heading in ("split", "column") else "right")
    table.add_column(f"over {report.max_length}" if report.max_length else "cut", justify="right")
    for split, part in report.splits.items():
        for index, (name, lengths) in enumerate(part.lengths.items()):
            cut = _cut(lengths, report.max_length)
            tokens = _shown(lengths.tokens) if lengths.tokens else "-"
            about = _about(split, part) if index == 0 else [""] * 5
            table.add_row(*about, name, f"{lengths.texts:,}", _shown(lengths.characters), tokens, cut)
    table.caption = f"characters and tokens: 5 % / median / 95 % / longest, of distinct texts{_fate(report)}"
    table.caption_justify = "left"
    return table


def _cut(lengths: Lengths, usual: int | None) -> str:
    """The share over the limit, which is told where it is not that of the heading."""
    if lengths.truncated is None:
        return "-"
    return f"{lengths.truncated:.1%}" + (f" over {lengths.limit}" if lengths.limit != usual else "")


def _fate(report: TaskDataReport) -> str:
    """What becomes of texts over the limit."""
    if report.max_length is None:
        return ""
    what = {"truncate": "lose their end", "window": "are read in windows", "error": "are refused"}[report.long]
    return f"; those over {report.max_length} {what}"


def _about(split: str, part: SplitReport) -> list[str]:
    positive = part.labels.get("1", 0)
    label = f"{positive:,} ({positive / part.rows:.1%})" if part.labels else "-"
    return [split, f"{part.rows:,}", label, f"{part.duplicates:,}", f"{part.contradictions:,}" if part.labels else "-"]


def _shown(values: Percentiles) -> str:
    return f"{values.p5}/{values.p50}/{values.p95}/{values.max}"
