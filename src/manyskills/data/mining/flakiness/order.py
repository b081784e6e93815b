"""Unordered collections: the test relies on the order of a set of strings, which changes from process to process."""

from __future__ import annotations

import ast

from manyskills.data.mining.edits import Edit
from manyskills.data.mining.flakiness.subject import Subject

_ORDER_FREE = frozenset(
    {"assertCountEqual", "assertItemsEqual", "sorted", "set", "frozenset", "len", "sum", "max", "min"}
)


def inject(subject: Subject, flaky: bool) -> list[Edit]:
    """Send a list of the test's own strings through a set, or assert something of a new set."""
    ways = [_own_list, _own_list, _new_set]
    for way in subject.rng.sample(ways, len(ways)):
        edits = way(subject, flaky)
        if edits:
            return edits
    return []


def _own_list(subject: Subject, flaky: bool) -> list[Edit]:
    tree = subject.tree
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _name(node.func) in _ORDER_FREE
        for child in ast.walk(node)
    }
    lists = [
        (node, strings)
        for statement in tree.body
        for node in ast.walk(statement)
        if isinstance(node, ast.List) and isinstance(node.ctx, ast.Load) and id(node) not in skipped
        if (strings := _strings(node)) is not None
    ]
    if not lists:
        return []
    chosen, strings = subject.rng.choice(lists)
    written = subject.source.slice(chosen)
    inside = written[1:-1]
    if flaky:
        text = subject.pick(f"list({{{inside}}})", f"list(set({written}))", f"[*{{{inside}}}]")
    elif strings == sorted(strings):
        text = subject.pick(f"sorted({{{inside}}})", f"sorted(set({written}))", f"list(dict.fromkeys({written}))")
    else:  # the test wants its own order back
        text = subject.pick(f"sorted({{{inside}}}, key={written}.index)", f"list(dict.fromkeys({written}))")
    return [subject.source.replace(chosen, text)]


def _strings(node: ast.List) -> list[str] | None:
    """The different strings, two at least, that a list holds; None if it holds anything else."""
    values = [part.value for part in node.elts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return values if 1 < len(values) == len(node.elts) == len(set(values)) else None


def _new_set(subject: Subject, flaky: bool) -> list[Edit]:
    words = sorted(subject.words(subject.rng.randint(2, 4)))
    tags, listed = subject.name("tags", "keys", "names", "labels"), subject.name("ordered", "found", "got")
    made = f"{tags} = {{{', '.join(repr(word) for word in words)}}}"
    joined, first = repr(",".join(words)), repr(words[0])
    sort = f"{listed} = {subject.pick(f'sorted({tags})', f'sorted(list({tags}))')}"
    unsorted = f"{listed} = list({tags})"
    if flaky:
        ways = [
            [unsorted, subject.check("assertEqual", listed, repr(words))],
            [unsorted, subject.check("assertEqual", f"{listed}[0]", first)],
            [sort, subject.check("assertEqual", f"','.join({tags})", joined)],
            [subject.check("assertEqual", f"next(iter({tags}))", first)],
        ]
    else:
        ways = [
            [sort, subject.check("assertEqual", listed, repr(words))],
            [unsorted, subject.check("assertIn", first, listed)],
            [sort, subject.check("assertEqual", f"','.join({listed})", joined)],
            [unsorted, subject.check("assertEqual", f"len({listed})", str(len(words)))],
        ]
    way = subject.rng.choice(ways)
    return subject.around([made], way) if subject.rng.random() < 0.5 else subject.inserted([made, *way])


def _name(called: ast.expr) -> str:
    return called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
