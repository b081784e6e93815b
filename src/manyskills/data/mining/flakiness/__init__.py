"""Root causes of flakiness, injected into real tests: one file a cause.

Each cause comes in pairs of variants: one that makes the test flaky and one that uses the same words without harm (the
thread is joined, the generator is seeded, the set is sorted), often differing in order alone. Edits are of the text,
so layout and comments stay. Root causes after Luo et al. 2014 ("An Empirical Analysis of Flaky Tests").
"""

from __future__ import annotations

import ast
import random
import re
from dataclasses import dataclass

from manyskills.data.mining.edits import apply_edits
from manyskills.data.mining.flakiness import clocks, order, randomness, state, waits
from manyskills.data.mining.flakiness.subject import Cause, Subject
from manyskills.data.mining.functions import Function, compiles, parse_function

__all__ = ["CAUSES", "Injected", "inject", "is_suspect", "is_test"]

CAUSES: dict[str, Cause] = {
    "fixed wait": waits.inject,
    "unseeded randomness": randomness.inject,
    "wall clock": clocks.inject,
    "unordered collection": order.inject,
    "shared state": state.inject,
}

# Real tests with these may be flaky already: they get neither label.
_SUSPECT = re.compile(
    r"sleep|random|shuffle|\btime\(|\btime\.|monotonic|perf_counter|now\(|today\(|[tT]hread|socket|subprocess|environ"
    r"|urlopen|timeout|\bhash\(|\bglobal\b|Process|asyncio|tempfile|listdir|glob\("
)


@dataclass(frozen=True, slots=True)
class Injected:
    """A test with a root cause in it, or with its harmless look-alike."""

    code: str
    cause: str


def is_test(function: Function) -> bool:
    """A test function or method that asserts something itself."""
    if not function.name.startswith("test"):
        return False
    return re.search(r"\bassert|\bself\.fail\w*\(|\braises\(", function.code) is not None


def is_suspect(function: Function) -> bool:
    """Whether the test has something in it that could already make it flaky."""
    return _SUSPECT.search(function.code) is not None


def inject(function: Function, rng: random.Random, *, flaky: bool) -> Injected | None:
    """The test with a root cause of flakiness, or with what only looks like one; None if none fits.

    The result parses, compiles, and differs in its syntax tree.
    """
    tree = parse_function(function.code)
    if isinstance(tree, ast.AsyncFunctionDef) or any(isinstance(n, ast.Yield | ast.YieldFrom) for n in ast.walk(tree)):
        return None
    for cause in rng.sample(sorted(CAUSES), len(CAUSES)):
        edits = CAUSES[cause](Subject(function, tree, rng), flaky)
        if not edits:
            continue
        code = apply_edits(function.code, edits)
        if compiles(code) and ast.dump(parse_function(code)) != ast.dump(tree):
            return Injected(code, cause)
    return None
