"""Unseeded randomness: what the test asserts depends on a draw."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable

from manyskills.data.mining.edits import Edit
from manyskills.data.mining.flakiness.subject import Subject, is_check


def inject(subject: Subject, flaky: bool) -> list[Edit]:
    """Draw a number that the test writes down, shuffle a list of it, or assert a sample's statistic."""
    ways = [_drawn_number, _shuffled_list, _statistic]
    for way in subject.rng.sample(ways, len(ways)):
        edits = way(subject, flaky)
        if edits:
            return edits
    return []


def _drawn_number(subject: Subject, flaky: bool) -> list[Edit]:
    sites = [
        (statement, node.value, node)
        for statement in subject.places
        if isinstance(statement, ast.Assign | ast.Expr) and not is_check(statement)
        for node in ast.walk(statement)
        if isinstance(node, ast.Constant) and type(node.value) is int and 2 <= node.value <= 60
    ]
    if not sites:
        return []
    statement, value, number = subject.rng.choice(sites)
    high = value + subject.rng.randint(1, 20)
    seed = _seed(subject, lambda generator: flaky or generator.randint(1, high) == value)
    if seed is None:
        return []
    if subject.rng.random() < 0.5:  # the module's generator: it matters whether the seed comes first
        draw = subject.source.replace(number, f"random.randint(1, {high})")
        place = subject.before if not flaky else subject.after
        only = flaky and subject.rng.random() < 0.3
        return [draw] if only else [draw, place(statement, [f"random.seed({seed})"])]
    generator = subject.name("rng", "generator", "rand", "r")
    made = f"{generator} = random.Random({'' if flaky else seed})"
    return [subject.before(statement, [made]), subject.source.replace(number, f"{generator}.randint(1, {high})")]


def _seed(subject: Subject, fits: Callable[[random.Random], bool]) -> int | None:
    """A seed with which the draws come out as the test wants them, so that the seeded test passes as before."""
    seeds = (subject.rng.randint(0, 9999) for _ in range(1000))
    return next((seed for seed in seeds if fits(random.Random(seed))), None)


def _shuffled_list(subject: Subject, flaky: bool) -> list[Edit]:
    lists = [
        (statement, target.id, statement.value.elts)
        for statement in subject.places[:-1]
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.List)
        if len(statement.targets) == 1 and isinstance(target := statement.targets[0], ast.Name)
        if 2 <= len(statement.value.elts) <= 5
    ]
    if not lists:
        return []
    statement, name, parts = subject.rng.choice(lists)
    sortable = _is_sorted(parts)
    seed = _seed(subject, lambda generator: flaky or _keeps_order(generator, len(parts)))
    shuffle, sort = f"random.shuffle({name})", f"{name}.sort()"
    if flaky:
        ways = [[shuffle], [shuffle, f"random.seed({seed})"], [f"random.Random().shuffle({name})"]]
        ways += [[sort, shuffle]] if sortable else []
    else:
        ways = (
            [[f"random.seed({seed})", shuffle], [f"random.Random({seed}).shuffle({name})"]] if seed is not None else []
        )
        ways += [[shuffle, sort]] if sortable else []
    return [subject.after(statement, subject.rng.choice(ways))] if ways else []


def _keeps_order(generator: random.Random, count: int) -> bool:
    numbers = list(range(count))
    generator.shuffle(numbers)
    return numbers == sorted(numbers)


def _is_sorted(parts: list[ast.expr]) -> bool:
    """Whether the list is written in order, so that sorting brings it back."""
    values = [part.value for part in parts if isinstance(part, ast.Constant) and type(part.value) in (int, str)]
    alike = len(values) == len(parts) and len({type(value) for value in values}) == 1
    return alike and values == sorted(values)  # pyright: ignore[reportCallIssue, reportArgumentType] (of one type)


def _statistic(subject: Subject, flaky: bool) -> list[Edit]:
    sample, generator = subject.name("sample", "draws", "points"), subject.name("rng", "generator")
    count, bound = subject.rng.choice([10, 20, 50, 100, 500]), subject.pick("0.1", "0.2", "0.3", "0.5")
    seed = _seed(subject, lambda drawn: abs(sum(drawn.gauss(0, 1) for _ in range(count)) / count) < float(bound))
    made = f"{sample} = [{generator}.gauss(0, 1) for _ in range({count})]"
    mean = subject.check("assertLess", f"abs(sum({sample}) / len({sample}))", bound)
    size = subject.check("assertEqual", f"len({sample})", str(count))
    seeded, unseeded = f"{generator} = random.Random({seed})", f"{generator} = random.Random()"
    if flaky:
        return subject.inserted([unseeded, made, *([size] if subject.rng.random() < 0.3 else []), mean])
    return subject.inserted([unseeded, made, size] if subject.rng.random() < 0.5 else [seeded, made, mean])
