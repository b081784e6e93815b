"""The comparison of an export with its module, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from manyskills.evaluation.results import METRIC_LABELS

if TYPE_CHECKING:
    from rich.console import Console


def print_summary(summary: Mapping[str, Any], console: Console) -> None:
    """Files with their sizes; the metrics and vectors of the module and of what was made of it."""
    for name, size in summary["files"].items():
        if size >= 1e5:
            console.print(f"{name}: {size / 1e6:.1f} MB")
    checks = summary["checks"]
    if checks is None:
        console.print("not compared with the module")
        return
    if any(check["tasks"] for check in checks.values()):
        _print_metrics(checks, console)
    for precision, check in checks.items():
        found = check["vectors"]
        console.print(
            f"{precision}: vectors of {found['texts']} texts differ by {found['max_difference']:.2g} at most "
            f"({found['relative_difference']:.2g} of the largest component); cosine {found['mean_cosine']:.6f} in the "
            f"mean, {found['min_cosine']:.6f} at least",
            soft_wrap=True,
        )
    for task, reason in next(iter(checks.values()))["not_measured"].items():
        console.print(f"{task}: metric not compared ({reason})")


def _print_metrics(checks: Mapping[str, Any], console: Console) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("task", no_wrap=True)
    table.add_column("metric")
    for name in ("rows", "module", *checks):
        table.add_column(name, justify="right")
    first = next(iter(checks.values()))["tasks"]
    for task, entry in first.items():
        exported = (f"{check['tasks'][task]['exported']:.4f}" for check in checks.values())
        label = METRIC_LABELS.get(entry["metric"], entry["metric"])
        table.add_row(task, label, f"{entry['rows']:,}", f"{entry['module']:.4f}", *exported)
    console.print(table)
