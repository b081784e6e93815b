"""Looks for what makes figures worthless: leakage between splits, duplicates, wrong balance, truncation, given answers.

Texts are compared after runs of white space became one blank; each distinct text is looked at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from manyskills.data.check_overlap import View, find_overlaps, group_views
from manyskills.data.check_texts import Lengths, TextKeys, answer_inside, measure
from manyskills.data.check_types import (
    EXAMPLES,
    MANY,
    MANY_TRUNCATED,
    Overlap,
    Problem,
    RowKey,
    SplitReport,
    TaskDataReport,
    group_column,
    pairs,
    share_of,
)
from manyskills.data.long_texts import Long
from manyskills.data.rows import Row, SplitRows
from manyskills.tasks.base import SPLITS, Kind, SplitName, Task, Text

FEW_POSITIVES = 30
RARE = 0.05
SHIFT = 0.1
ONE_TEXT = "a text of the pair"


def check_data(
    task: Task,
    splits: Mapping[SplitName, SplitRows],
    *,
    lengths: Callable[[list[Text]], list[int]] | None = None,
    max_length: int | None = None,
    long: Long = "truncate",
    joint: bool = False,
) -> TaskDataReport:
    """Check the splits of a task against each other and by themselves, in time linear in their size.

    `check_generating` does the same for a generating task.

    Args:
        task: Whose data.
        splits: Those there are; a missing one is a problem.
        lengths: Counts the tokens of texts; none: only characters are counted.
        max_length: Tokens that the model will see.
        long: What will be done with longer texts.
        joint: The two texts of a pair will be read as one, which is what the limit is for.
    """
    keys = TextKeys()
    keyed: dict[SplitName, list[RowKey]] = {
        split: [_row_key(task, row, keys) for row in data.rows] for split, data in splits.items()
    }
    read_keys, read = _joint(task, splits) if joint else (keys, keyed)
    tokens = read_keys.token_lengths(lengths) if lengths else None
    reports: dict[SplitName, SplitReport] = {}
    problems: list[Problem] = [
        Problem("error", "missing split", f"there is no {split} split") for split in SPLITS if split not in splits
    ]
    for split, data in splits.items():
        repeats = _repeats(data.rows, keyed[split], task)
        measured = {
            name: measure(wanted, read_keys, tokens, max_length) for name, wanted in _columns(task, read[split], joint)
        }
        reports[split] = _split_report(task, data, repeats, measured)
        problems += _split_problems(task, split, data.rows, keyed[split], repeats, reports[split])
        if long == "truncate":
            problems += _truncation_problems(split, reports[split])
        elif long == "error" and tokens and max_length:
            problems += _long_text_problems(split, data.rows, read[split], tokens, max_length)
    problems += _label_shift(task, reports)
    overlaps = tuple(find_overlaps({split: data.rows for split, data in splits.items()}, keyed, _views(task)))
    problems += [_leak(task, overlap) for overlap in overlaps if not overlap.what.startswith("group")]
    synthetic = next((data.synthetic for data in splits.values() if data.synthetic), None)
    ordered = tuple(sorted(problems, key=lambda problem: problem.severity))
    return TaskDataReport(task.name, synthetic, max_length, long, reports, overlaps, ordered)


def _row_key(task: Task, row: Row, keys: TextKeys) -> RowKey:
    key = tuple(keys.key(row[name]) for name in task.inputs)
    return tuple(sorted(key)) if task.symmetric else key


def _joint(task: Task, splits: Mapping[SplitName, SplitRows]) -> tuple[TextKeys, dict[SplitName, list[RowKey]]]:
    """Keys of pairs that are read as one text, and each row's."""
    first, second = task.inputs
    keys = TextKeys()
    return keys, {s: [(keys.key((row[first], row[second])),) for row in data.rows] for s, data in splits.items()}


@dataclass(frozen=True, slots=True)
class _Repeats:
    duplicates: list[tuple[str, str]]
    contradictions: list[tuple[str, str]]


def _repeats(rows: list[Row], keyed: list[RowKey], task: Task) -> _Repeats:
    """Pairs of ids (the first row and a later one) that say the same, or the opposite."""
    first: dict[RowKey, Row] = {}
    found = _Repeats([], [])
    against: set[RowKey] = set()
    for row, key in zip(rows, keyed, strict=True):
        earlier = first.setdefault(key, row)
        if earlier is row:
            continue
        found.duplicates.append((earlier["id"], row["id"]))
        if task.label and earlier.get(task.label) != row.get(task.label) and key not in against:
            against.add(key)
            found.contradictions.append((earlier["id"], row["id"]))
    return found


def _columns(task: Task, keyed: list[RowKey], joint: bool) -> Iterator[tuple[str, set[int]]]:
    """The texts of which lengths are told together, and what they are called."""
    if joint or task.symmetric:
        yield (" with " if joint else " and ").join(task.inputs), {k for key in keyed for k in key}
    else:
        yield from ((name, {key[index] for key in keyed}) for index, name in enumerate(task.inputs))


def _split_report(task: Task, data: SplitRows, repeats: _Repeats, lengths: dict[str, Lengths]) -> SplitReport:
    labels = Counter(str(row[task.label]) for row in data.rows) if task.label else Counter[str]()
    column = group_column(data.rows)
    groups = len({row.get(column) for row in data.rows}) if column else None
    return SplitReport(
        len(data.rows),
        data.source,
        dict(sorted(labels.items())),
        len(repeats.duplicates),
        len(repeats.contradictions),
        lengths,
        groups,
    )


def _split_problems(
    task: Task, split: SplitName, rows: list[Row], keyed: list[RowKey], repeats: _Repeats, report: SplitReport
) -> Iterator[Problem]:
    if repeats.duplicates:
        message = f"{split}: {share_of(report.duplicates, report.rows)} repeat an earlier row"
        yield Problem("warning", "duplicates", message, pairs(repeats.duplicates))
    if repeats.contradictions:
        message = f"{split}: {report.contradictions:,} distinct inputs occur with both labels"
        yield Problem("warning", "contradictory labels", message, pairs(repeats.contradictions))
    if task.label:
        yield from _balance_problems(split, report)
    if task.kind is Kind.EMBED:
        yield from _search_problems(task, split, rows, keyed)


def _truncation_problems(split: SplitName, report: SplitReport) -> Iterator[Problem]:
    for name, length in report.lengths.items():
        if length.truncated is not None and length.truncated > MANY_TRUNCATED:
            yield Problem(
                "warning", "truncation", f"{split}: {length.truncated:.0%} of {name} are longer than the limit"
            )


def _long_text_problems(
    split: SplitName, rows: list[Row], keyed: list[RowKey], tokens: list[int], max_length: int
) -> Iterator[Problem]:
    over = [row["id"] for row, key in zip(rows, keyed, strict=True) if any(tokens[text] > max_length for text in key)]
    if over:
        message = f"{split}: {share_of(len(over), len(rows))} hold over {max_length} tokens, which long=error refuses"
        yield Problem("error", "long texts", message, tuple(over[:EXAMPLES]))


def _balance_problems(split: SplitName, report: SplitReport) -> Iterator[Problem]:
    positives = report.labels.get("1", 0)
    if len(report.labels) == 1:
        (label,) = report.labels
        yield Problem("error", "one label", f"{split}: every row has label {label}")
    elif positives / report.rows < RARE:
        message = f"{split}: only {share_of(positives, report.rows)} are positive"
        yield Problem("warning", "rare label", f"{message}; accuracy says little, look at F1 and average precision")
    if split != "train" and 0 < positives < FEW_POSITIVES:
        yield Problem("warning", "few positives", f"{split}: {positives} positive rows; intervals will be wide")


def _search_problems(task: Task, split: SplitName, rows: list[Row], keyed: list[RowKey]) -> Iterator[Problem]:
    query, answer = task.inputs
    inside = [row["id"] for row in rows if answer_inside(row[query], row[answer])]
    if inside:
        severity = "error" if len(inside) / len(rows) > MANY else "warning"
        message = f"{split}: the {query} stands verbatim inside the {answer} of {share_of(len(inside), len(rows))}"
        yield Problem(severity, "answer in the input", message, tuple(inside[:EXAMPLES]))
    answers: dict[int, set[int]] = {}
    for key in keyed:
        answers.setdefault(key[0], set()).add(key[1])
    several = {key for key, texts in answers.items() if len(texts) > 1}
    if several:
        examples = tuple(row["id"] for row, key in zip(rows, keyed, strict=True) if key[0] in several)[:EXAMPLES]
        message = (
            f"{split}: {len(several):,} distinct {query} texts have more than one {answer}; only one counts as right"
        )
        yield Problem("warning", "ambiguous query", message, examples)


def _label_shift(task: Task, reports: Mapping[SplitName, SplitReport]) -> Iterator[Problem]:
    shares = {split: report.labels.get("1", 0) / report.rows for split, report in reports.items() if task.label}
    if shares and max(shares.values()) - min(shares.values()) > SHIFT:
        said = ", ".join(f"{split} {share:.0%}" for split, share in shares.items())
        yield Problem("warning", "label shift", f"the share of positive rows differs between splits: {said}")


def _views(task: Task) -> list[tuple[str, View]]:
    """What of a row may not be in two splits."""
    views: list[tuple[str, View]] = []
    if task.kind is Kind.CLASSIFY:
        views.append(("text", lambda _, key: key))
    elif task.kind is Kind.PAIR:
        views += [("pair", lambda _, key: (key,)), (ONE_TEXT, lambda _, key: key)]
    else:
        views += [(task.inputs[0], lambda _, key: (key[0],)), (task.inputs[1], lambda _, key: (key[1],))]
    return views + group_views()


def _leak(task: Task, overlap: Overlap) -> Problem:
    mild = overlap.what == ONE_TEXT or (task.kind is Kind.EMBED and overlap.what == task.inputs[0])
    shared = overlap.what if overlap.what == ONE_TEXT else f"their {overlap.what}"
    message = f"{overlap.rows:,} rows ({overlap.share:.1%}) of {overlap.later} share {shared} with {overlap.earlier}"
    return Problem("warning" if mild else "error", "leakage", message, overlap.examples)
