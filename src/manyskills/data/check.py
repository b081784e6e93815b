"""Looks for what makes figures worthless: leakage between splits, duplicates, wrong balance, truncation, given answers.

Texts are compared after runs of white space became one blank; each distinct text is looked at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from manyskills.data.check_texts import Lengths, TextKeys, answer_inside, measure
from manyskills.data.long_texts import Long
from manyskills.data.rows import Row, SplitRows
from manyskills.tasks.base import SPLITS, Kind, SplitName, Task, Text

EXAMPLES = 5
GROUP_COLUMNS = ("project", "repo")
FEW_POSITIVES = 30
RARE = 0.05
SHIFT = 0.1
MANY_TRUNCATED = 0.1
ONE_TEXT = "a text of the pair"

RowKey = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something found; an error makes a figure wrong, a warning makes it doubtful."""

    severity: Literal["error", "warning"]
    kind: str
    message: str
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SplitReport:
    """One split.

    Attributes:
        rows: How many were looked at.
        source: Where they came from.
        labels: Rows by label.
        duplicates: Rows that say the same as an earlier one (mirrored pairs too).
        contradictions: Distinct inputs that occur with both labels.
        lengths: Of its distinct texts, by column.
        groups: Distinct values of the group column, if there is one.
    """

    rows: int
    source: str
    labels: dict[str, int]
    duplicates: int
    contradictions: int
    lengths: dict[str, Lengths]
    groups: int | None


@dataclass(frozen=True, slots=True)
class Overlap:
    """What two splits share: `rows` of the later one occur in the earlier one."""

    earlier: SplitName
    later: SplitName
    what: str
    rows: int
    share: float
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TaskDataReport:
    """What `check_data` found for one task; `long` is what will be done with texts over `max_length`."""

    task: str
    synthetic: str | None
    max_length: int | None
    long: Long
    splits: dict[SplitName, SplitReport]
    overlaps: tuple[Overlap, ...]
    problems: tuple[Problem, ...] = field(default=())

    @property
    def errors(self) -> list[Problem]:
        """The problems that make figures wrong."""
        return [problem for problem in self.problems if problem.severity == "error"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


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
    overlaps = tuple(_overlaps(task, splits, keyed))
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
    column = _group_column(data.rows)
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
        message = f"{split}: {_count(report.duplicates, report.rows)} repeat an earlier row"
        yield Problem("warning", "duplicates", message, _pairs(repeats.duplicates))
    if repeats.contradictions:
        message = f"{split}: {report.contradictions:,} distinct inputs occur with both labels"
        yield Problem("warning", "contradictory labels", message, _pairs(repeats.contradictions))
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
        message = f"{split}: {_count(len(over), len(rows))} hold over {max_length} tokens, which long=error refuses"
        yield Problem("error", "long texts", message, tuple(over[:EXAMPLES]))


def _balance_problems(split: SplitName, report: SplitReport) -> Iterator[Problem]:
    positives = report.labels.get("1", 0)
    if len(report.labels) == 1:
        (label,) = report.labels
        yield Problem("error", "one label", f"{split}: every row has label {label}")
    elif positives / report.rows < RARE:
        message = f"{split}: only {_count(positives, report.rows)} are positive"
        yield Problem("warning", "rare label", f"{message}; accuracy says little, look at F1 and average precision")
    if split != "train" and 0 < positives < FEW_POSITIVES:
        yield Problem("warning", "few positives", f"{split}: {positives} positive rows; intervals will be wide")


def _search_problems(task: Task, split: SplitName, rows: list[Row], keyed: list[RowKey]) -> Iterator[Problem]:
    query, answer = task.inputs
    inside = [row["id"] for row in rows if answer_inside(row[query], row[answer])]
    if inside:
        severity = "error" if len(inside) / len(rows) > RARE else "warning"
        message = f"{split}: the {query} stands verbatim inside the {answer} of {_count(len(inside), len(rows))}"
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


def _overlaps(
    task: Task, splits: Mapping[SplitName, SplitRows], keyed: Mapping[SplitName, list[RowKey]]
) -> Iterator[Overlap]:
    present: list[SplitName] = [split for split in SPLITS if split in splits]
    for index, earlier in enumerate(present):
        for later in present[index + 1 :]:
            for what, view in _views(task):
                known: dict[Any, str] = {}
                for row, key in zip(splits[earlier].rows, keyed[earlier], strict=True):
                    for part in view(row, key):
                        known.setdefault(part, row["id"])
                yield from _overlap(earlier, later, what, known, splits[later].rows, keyed[later], view)


def _overlap(
    earlier: SplitName,
    later: SplitName,
    what: str,
    known: dict[Any, str],
    rows: list[Row],
    keyed: list[RowKey],
    view: _View,
) -> Iterator[Overlap]:
    count, examples = 0, []
    for row, key in zip(rows, keyed, strict=True):
        shared = next((part for part in view(row, key) if part in known), None)
        if shared is not None:
            count += 1
            if len(examples) < EXAMPLES:
                examples.append(f"{later} {row['id']} = {earlier} {known[shared]}")
    if count:
        yield Overlap(earlier, later, what, count, count / len(rows), tuple(examples))


_View = Callable[[Row, RowKey], tuple[Any, ...]]


def _views(task: Task) -> list[tuple[str, _View]]:
    """What of a row may not be in two splits (`group` is told, not blamed: some benchmarks split inside projects)."""
    views: list[tuple[str, _View]] = []
    if task.kind is Kind.CLASSIFY:
        views.append(("text", lambda _, key: key))
    elif task.kind is Kind.PAIR:
        views += [("pair", lambda _, key: (key,)), (ONE_TEXT, lambda _, key: key)]
    else:
        views += [(task.inputs[0], lambda _, key: (key[0],)), (task.inputs[1], lambda _, key: (key[1],))]
    for column in GROUP_COLUMNS:
        views.append((f"group ({column})", lambda row, _, column=column: (row[column],) if row.get(column) else ()))
    return views


def _leak(task: Task, overlap: Overlap) -> Problem:
    mild = overlap.what == ONE_TEXT or (task.kind is Kind.EMBED and overlap.what == task.inputs[0])
    shared = overlap.what if overlap.what == ONE_TEXT else f"their {overlap.what}"
    message = f"{overlap.rows:,} rows ({overlap.share:.1%}) of {overlap.later} share {shared} with {overlap.earlier}"
    return Problem("warning" if mild else "error", "leakage", message, overlap.examples)


def _group_column(rows: list[Row]) -> str | None:
    return next((name for name in GROUP_COLUMNS if rows and name in rows[0]), None)


def _count(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} rows ({part / whole:.1%})"


def _pairs(ids: list[tuple[str, str]]) -> tuple[str, ...]:
    return tuple(f"{later} = {first}" for first, later in ids[:EXAMPLES])
