"""Fixed wait: work goes to a thread, and the test waits a while instead of for the thread."""

from __future__ import annotations

import ast

from manyskills.data.mining.edits import Edit
from manyskills.data.mining.flakiness.subject import Subject, is_check
from manyskills.data.mining.scopes import contains


def inject(subject: Subject, flaky: bool) -> list[Edit]:
    """Move one call of the test into a thread; wait for a fixed time, or join."""
    calls = [statement for statement in subject.places if _call(statement) is not None]
    if not calls:
        return []
    statement = subject.rng.choice(calls)
    call = _call(statement)
    assert call is not None
    worker = subject.name("worker", "thread", "job", "runner")
    made, target = [], f"lambda: {subject.source.slice(call)}"
    fetched: list[str] = []
    if isinstance(statement, ast.Assign):
        box = subject.name("done", "outcome", "answers", "results")
        made, target = [f"{box} = []"], f"lambda: {box}.append({subject.source.slice(call)})"
        variable = statement.targets[0]
        assert isinstance(variable, ast.Name)
        fetched = [f"{variable.id} = {box}[0]"]
    delay = subject.pick("0.01", "0.05", "0.1", "0.2", "0.5", "1", "2")
    start, sleep, join = f"{worker}.start()", f"time.sleep({delay})", f"{worker}.join()"
    if flaky:
        orders = [
            [start, sleep, *fetched],
            [start, sleep, *fetched, join],
            [start, f"{worker}.join({delay})", *fetched],
        ]
        orders.append([start, sleep, *fetched, join])
    else:
        orders = [[start, join, *fetched], [start, join, sleep, *fetched], [sleep, start, join, *fetched]]
        patient = [f"while {worker}.is_alive():", f"    {sleep}"]
        orders.append([start, *patient, *fetched])
    chosen = subject.rng.choice(orders)
    daemon = subject.pick("", ", daemon=True")
    return [subject.replaced(statement, [*made, f"{worker} = threading.Thread(target={target}{daemon})", *chosen])]


def _call(statement: ast.stmt) -> ast.Call | None:
    """The call that a statement is, or assigns to a plain name."""
    if isinstance(statement, ast.Assign):
        plain = len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Name)
    else:
        plain = isinstance(statement, ast.Expr) and not is_check(statement)
    value = statement.value if plain and isinstance(statement, ast.Assign | ast.Expr) else None
    if not isinstance(value, ast.Call) or contains(value, ast.NamedExpr, ast.Await, ast.Yield):
        return None
    return value
