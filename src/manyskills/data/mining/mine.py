"""Training data for the four analysis tasks from the Python code on the machine."""

from __future__ import annotations

import platform
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from manyskills.data.mining.functions import Function, extract_functions
from manyskills.data.mining.limits import MiningLimits, MiningReport, SplitCount
from manyskills.data.mining.miners import CloneMiner, DefectMiner, FlakyMiner, Miner, SearchMiner, Turn
from manyskills.data.mining.sources import Module, digest, find_modules
from manyskills.data.mining.writer import card, check_empty, jsonl, write_folder
from manyskills.data.rows import Row
from manyskills.errors import UserError
from manyskills.tasks.base import SPLITS, SplitName

Progress = Callable[[str], None]


class _Collection:
    """What one task has gathered so far."""

    def __init__(self, miner: Miner, limits: MiningLimits, seed: int) -> None:
        self.miner, self._limits, self._seed = miner, limits, seed
        self.rows: dict[SplitName, list[Row]] = {split: [] for split in SPLITS}
        self._claimed: set[str] = set()

    def room(self, split: SplitName) -> int:
        return self._limits.rows(split) - len(self.rows[split])

    @property
    def is_full(self) -> bool:
        return all(self.has_enough(split) for split in SPLITS)

    def has_enough(self, split: SplitName) -> bool:
        return self.room(split) < (2 if self.miner.task == CloneMiner.task else 1)

    def add(self, module: Module, split: SplitName, functions: Sequence[Function]) -> None:
        if self.has_enough(split):
            return
        rng = random.Random(digest(self._seed, self.miner.task, module.name))
        chosen = rng.sample(functions, len(functions))
        if self.miner.task != SearchMiner.task:
            chosen = chosen[: 2 * self._limits.per_module]  # some will not do
        room = min(self.room(split), self._limits.per_module)
        self.rows[split] += self.miner.rows(chosen, Turn(split, len(self.rows[split]), room, rng, self._claim))

    def _claim(self, text: str) -> bool:
        key = digest("".join(text.split()))
        if key in self._claimed:
            return False
        self._claimed.add(key)
        return True

    def shuffled(self, split: SplitName) -> list[Row]:
        """Not by module: whoever reads a prefix should see many."""
        rows = self.rows[split]
        return random.Random(digest(self._seed, self.miner.task, split)).sample(rows, len(rows))


def mine_python(
    output_dir: Path,
    *,
    sources: Sequence[Path] | None = None,
    seed: int = 0,
    limits: MiningLimits = MiningLimits(),  # noqa: B008 (frozen)
    progress: Progress | None = None,
) -> MiningReport:
    """Write one folder of training data for each of the four analysis tasks.

    The same sources and seed give the same bytes. A module's functions are all in one split, in every task, and no
    text is in two splits of a task. Code is only parsed, never run.

    Args:
        output_dir: New or empty; it appears whole or not at all.
        sources: Folders or files, each of them one project; the standard library and the installed packages if None.
        seed: Decides order, splits and every random choice.
        limits: How much to mine.
        progress: Called with a line for people from time to time.

    Raises:
        UserError: Too little code for three splits with both labels, `output_dir` is in use, or cannot be written.
    """
    say = progress or (lambda _: None)
    check_empty(output_dir)
    modules = find_modules(sources, seed)
    miners: list[Miner] = [CloneMiner(), DefectMiner(), FlakyMiner(limits.flaky_share), SearchMiner()]
    collections = [_Collection(miner, limits, seed) for miner in miners]
    read = 0
    for from_tests in (False, True):
        of_kind = [collection for collection in collections if collection.miner.from_tests == from_tests]
        read += _collect(of_kind, (m for m in modules if m.is_test == from_tests), limits, seed, say)
    counts = {collection.miner.task: _counts(collection) for collection in collections}
    _check(counts)
    source = "the Python standard library and installed packages" if sources is None else "named folders"
    files: dict[str, str] = {}
    for collection in collections:
        files |= _files(collection, counts[collection.miner.task], source, seed)
    write_folder(output_dir, files)
    say(f"wrote {output_dir}")
    return MiningReport(output_dir, counts, read, _warnings(counts, limits))


def _collect(
    collections: Sequence[_Collection], modules: Iterable[Module], limits: MiningLimits, seed: int, say: Progress
) -> int:
    read = 0
    for module in modules:
        if read == limits.max_modules or all(collection.is_full for collection in collections):
            break
        split = split_of(module, limits, seed)
        if all(collection.has_enough(split) for collection in collections):
            continue
        functions = extract_functions(module, limits)
        read += 1
        for collection in collections:
            collection.add(module, split, functions)
        if read % 25 == 0:
            say(f"{read} modules read: {', '.join(_state(collection, limits) for collection in collections)}")
    return read


def _state(collection: _Collection, limits: MiningLimits) -> str:
    rows = sum(len(rows) for rows in collection.rows.values())
    return f"{collection.miner.task} {rows}/{sum(limits.rows(split) for split in SPLITS)}"


def split_of(module: Module, limits: MiningLimits, seed: int) -> SplitName:
    """The split that all functions of a module are in, in every task; sizes follow the limits."""
    sizes = [limits.rows(split) for split in SPLITS]
    place = int(digest(seed, "split", module.name)[:12], 16) / 16**12 * sum(sizes)
    return "train" if place < sizes[0] else "valid" if place < sizes[0] + sizes[1] else "test"


def _counts(collection: _Collection) -> dict[SplitName, SplitCount]:
    labelled = collection.miner.synthetic is not None
    return {
        split: SplitCount(len(rows), sum(row["label"] for row in rows) if labelled else None)
        for split, rows in collection.rows.items()
    }


def _check(counts: dict[str, dict[SplitName, SplitCount]]) -> None:
    for task, splits in counts.items():
        for split, count in splits.items():
            one_sided = count.positive is not None and not 0 < count.positive < count.rows
            if count.rows == 0 or one_sided:
                found = f"{count.rows} rows" + (
                    "" if count.positive is None else f", {count.positive} of them positive"
                )
                raise UserError(
                    f"{task}: too little code for a {split} split with rows of both labels, found {found}",
                    "mine more code: name further source folders"
                    + (" with test suites" if task == FlakyMiner.task else ""),
                )


def _warnings(counts: dict[str, dict[SplitName, SplitCount]], limits: MiningLimits) -> tuple[str, ...]:
    short = []
    for task, splits in counts.items():
        missing: list[SplitName] = [split for split in SPLITS if splits[split].rows < limits.rows(split) - 1]
        if missing:
            found = ", ".join(f"{splits[split].rows} of {limits.rows(split)} {split} rows" for split in missing)
            short.append(f"{task}: the code at hand gave only {found}")
    return tuple(short)


def _files(collection: _Collection, counts: dict[SplitName, SplitCount], source: str, seed: int) -> dict[str, str]:
    task = collection.miner.task
    content = {
        "synthetic": collection.miner.synthetic,
        "source": source,
        "split": "by module",
        "counts": {split: {"rows": count.rows, "positive": count.positive} for split, count in counts.items()},
        "seed": seed,
        "python": platform.python_version(),
    }
    files = {f"{task}/dataset.json": card(content)}
    if task != CloneMiner.task:
        return files | {f"{task}/{split}.jsonl": jsonl(collection.shuffled(split)) for split in SPLITS}
    functions: dict[str, str] = {}
    for split in SPLITS:
        pairs = collection.shuffled(split)
        for pair in pairs:
            functions |= {pair["id1"]: pair["code1"], pair["id2"]: pair["code2"]}
        bare = ({key: value for key, value in pair.items() if key not in ("code1", "code2")} for pair in pairs)
        files[f"{task}/pairs_{split}.jsonl"] = jsonl(bare)
    return files | {f"{task}/functions.jsonl": jsonl({"id": key, "code": code} for key, code in functions.items())}
