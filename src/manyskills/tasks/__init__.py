"""The tasks: built-in ones in one table here, others through the entry point group `manyskills.tasks`."""

from __future__ import annotations

from importlib.metadata import entry_points

from manyskills.errors import UserError, did_you_mean
from manyskills.tasks import (
    clone_detection,
    code_generation,
    code_search,
    code_summarization,
    code_translation,
    defect_detection,
    flaky_tests,
)
from manyskills.tasks.base import SPLITS, Example, Join, Kind, SplitName, Task, Text, Variant

__all__ = ["SPLITS", "Example", "Join", "Kind", "SplitName", "Task", "Text", "Variant", "all_tasks", "get_task"]

BUILT_IN: dict[str, Task] = {
    module.TASK.name: module.TASK
    for module in (
        clone_detection,
        defect_detection,
        flaky_tests,
        code_search,
        code_generation,
        code_summarization,
        code_translation,
    )
}


def all_tasks() -> dict[str, Task]:
    """Every known task by name; an installed package adds its own through the entry point group."""
    found = dict(BUILT_IN)
    for point in entry_points(group="manyskills.tasks"):
        if point.name not in found:
            found[point.name] = point.load()
    return found


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        UserError: There is none; the hint names the nearest.
    """
    if name in BUILT_IN:  # looking through the entry points of all installed packages takes milliseconds
        return BUILT_IN[name]
    tasks = all_tasks()
    if name not in tasks:
        raise UserError(f"unknown task {name!r}", did_you_mean(name, tasks))
    return tasks[name]
