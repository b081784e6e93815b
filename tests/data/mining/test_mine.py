"""Mining as a whole, on small source trees: what is written, splits, determinism, errors."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from manyskills.data.mining import MiningLimits, mine_python
from manyskills.data.mining.sources import default_sources, find_modules
from manyskills.errors import UserError

LIMITS = MiningLimits(train=24, valid=8, test=8)
TASKS = {"clone_detection", "defect_detection", "flaky_tests", "code_search"}
SPLITS = ("train", "valid", "test")

VERBS = ["count", "merge", "split", "render", "parse", "check", "fold", "trim", "pack", "sort"]
NOUNS = ["words", "lines", "nodes", "edges", "rows", "files", "users", "paths", "keys", "blocks"]


def code_module(rng):
    parts = ["import os\n"]
    for _ in range(5):
        verb, noun = rng.choice(VERBS), rng.choice(NOUNS)
        a, b = rng.randint(2, 10_000), rng.randint(2, 10_000)
        parts.append(
            f"def {verb}_{noun}_{a}(items, {noun}, limit={a}):\n"
            f'    """{verb.title()} all {noun} of the items up to the limit {a}."""\n'
            f"    if items is None or limit < {b}:\n        return {b}\n"
            f"    found = []\n    for item in items:  # each\n        if item.{verb} > limit:\n"
            f"            found.append(item.{noun}(limit, {noun}))\n    return found[{rng.randint(0, 9)}:limit]\n"
        )
    return "\n\n".join(parts)


def module_of_tests(rng):
    parts = []
    for number in range(5):
        noun, a = rng.choice(NOUNS), rng.randint(2, 10_000)
        parts.append(
            f"def test_{noun}_{a}_{number}():\n    names = ['{noun}', '{rng.choice(VERBS)}']\n"
            f"    {noun} = make({a}, names)\n    assert {noun}.size == {a}\n"
        )
    return "\n\n".join(parts)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    rng = random.Random(0)
    for project in ("alpha", "beta"):
        (root / project / "tests").mkdir(parents=True)
        for number in range(16):
            (root / project / f"m{number}.py").write_text(code_module(rng))
            (root / project / "tests" / f"test_m{number}.py").write_text(module_of_tests(rng))
        (root / project / "broken.py").write_text("def f(:")
        (root / project / "__pycache__").mkdir()
        (root / project / "__pycache__" / "x.py").write_text(code_module(rng))
    # The same file twice: its functions must not be in two splits.
    for number in range(6):
        (root / "beta" / f"copy{number}.py").write_text((root / "alpha" / "m0.py").read_text())
    return root


@pytest.fixture(scope="module")
def sources(tree):
    return [tree / "alpha", tree / "beta"]


@pytest.fixture(scope="module")
def mined(tmp_path_factory, sources):
    folder = tmp_path_factory.mktemp("out") / "mined"
    lines = []
    return folder, mine_python(folder, sources=sources, limits=LIMITS, progress=lines.append), lines


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts_by_split(folder, task):
    if task != "clone_detection":
        read = {split: rows(folder / task / f"{split}.jsonl") for split in SPLITS}
        return {split: [row[key] for row in read[split] for key in ("code", "query") if key in row] for split in SPLITS}
    functions = {row["id"]: row["code"] for row in rows(folder / task / "functions.jsonl")}
    pairs = {split: rows(folder / task / f"pairs_{split}.jsonl") for split in SPLITS}
    return {split: [functions[pair[key]] for pair in pairs[split] for key in ("id1", "id2")] for split in SPLITS}


def test_layout_and_columns(mined):
    folder, report, lines = mined
    assert {path.name for path in folder.iterdir()} == TASKS
    names = {"clone_detection": {"functions.jsonl", *(f"pairs_{split}.jsonl" for split in SPLITS)}}
    columns = {
        "defect_detection": {"id", "code", "label", "project", "mutation"},
        "flaky_tests": {"id", "code", "label", "project", "root_cause", "look_alike_of"},
        "code_search": {"id", "query", "code", "project"},
    }
    for task in TASKS:
        expected = names.get(task, {f"{split}.jsonl" for split in SPLITS}) | {"dataset.json"}
        assert {path.name for path in (folder / task).iterdir()} == expected
        if task in columns:
            assert all(set(row) == columns[task] for row in rows(folder / task / "train.jsonl"))
            ids = [row["id"] for split in SPLITS for row in rows(folder / task / f"{split}.jsonl")]
            assert len(set(ids)) == len(ids)
        card = json.loads((folder / task / "dataset.json").read_text())
        assert (card["synthetic"] is None) == (task == "code_search")
        for split in SPLITS:
            count = report.counts[task][split]
            assert card["counts"][split] == {"rows": count.rows, "positive": count.positive}
    assert report.warnings == ()
    assert report.modules > 0
    assert lines[-1].startswith("wrote")


def test_labels(mined):
    folder, report, _ = mined
    for split in SPLITS:
        assert report.counts["clone_detection"][split].positive * 2 == report.counts["clone_detection"][split].rows
        assert report.counts["defect_detection"][split].positive * 2 == report.counts["defect_detection"][split].rows
        assert report.counts["flaky_tests"][split].positive * 4 == report.counts["flaky_tests"][split].rows
        for row in rows(folder / "flaky_tests" / f"{split}.jsonl"):
            assert (row["root_cause"] is not None) == (row["label"] == 1)
        for pair in rows(folder / "clone_detection" / f"pairs_{split}.jsonl"):
            same = pair["id1"].removesuffix("#rewritten") == pair["id2"].removesuffix("#rewritten")
            assert same == (pair["label"] == 1)


def test_one_side_of_a_clone_pair_tells_nothing(mined):
    folder = mined[0]
    pairs = rows(folder / "clone_detection" / "pairs_train.jsonl")
    by_label = {0: [], 1: []}
    for pair in pairs:
        rewritten = [key for key in (pair["id1"], pair["id2"]) if key.endswith("#rewritten")]
        assert len(rewritten) == 1
        by_label[pair["label"]] += rewritten
    assert sorted(by_label[0]) == sorted(by_label[1])


@pytest.mark.parametrize("task", sorted(TASKS))
def test_no_text_in_two_splits_and_every_text_compiles(mined, task):
    texts = texts_by_split(mined[0], task)
    seen = {split: {"".join(text.split()) for text in texts[split]} for split in SPLITS}
    assert not seen["train"] & seen["valid"] and not seen["train"] & seen["test"] and not seen["valid"] & seen["test"]
    for text in (text for split in SPLITS for text in texts[split] if text.startswith("def ")):
        compile(text, "<mined>", "exec")
    assert not any("__pycache__" in text for split in SPLITS for text in texts[split])


def test_a_module_is_in_one_split_in_every_task(mined):
    split_of = {}
    for task in TASKS - {"clone_detection"}:
        for split in SPLITS:
            for row in rows(mined[0] / task / f"{split}.jsonl"):
                assert split_of.setdefault(row["id"].split(":")[0], split) == split


def test_queries_do_not_stand_in_the_code(mined):
    for row in rows(mined[0] / "code_search" / "train.jsonl"):
        assert row["query"] not in row["code"]
        assert "# each" in row["code"]  # comments stay


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_same_bytes_in_another_process_with_other_hashes_and_locale(mined, sources, tmp_path, hash_seed):
    script = (
        "import sys; from pathlib import Path; from manyskills.data.mining import *\n"
        f"mine_python(Path({str(tmp_path / 'again')!r}), sources=[Path(p) for p in sys.argv[1:]],"
        f" limits={LIMITS!r})\nassert 'torch' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "LC_ALL": "C", "PYTHONUTF8": "0"}
    subprocess.run([sys.executable, "-c", script, *map(str, sources)], check=True, env=environment)
    assert contents(tmp_path / "again") == contents(mined[0])


def test_another_seed_gives_other_data(mined, sources, tmp_path):
    mine_python(tmp_path / "other", sources=sources, limits=LIMITS, seed=1)
    assert contents(tmp_path / "other") != contents(mined[0])


def test_too_little_code_is_an_error_and_leaves_nothing(tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "m.py").write_text(code_module(random.Random(1)))
    with pytest.raises(UserError, match="too little code") as error:
        mine_python(tmp_path / "out" / "mined", sources=[tmp_path / "small"], limits=LIMITS)
    assert error.value.hint is not None
    assert not (tmp_path / "out").exists()


def test_no_tests_are_named_as_the_reason(tree, tmp_path):
    (tmp_path / "code").mkdir()
    for path in (tree / "alpha").glob("m*.py"):
        (tmp_path / "code" / path.name).write_text(path.read_text())
    with pytest.raises(UserError, match="flaky_tests") as error:
        mine_python(tmp_path / "mined", sources=[tmp_path / "code"], limits=LIMITS)
    assert "test suites" in (error.value.hint or "")


def test_fewer_rows_than_asked_for_is_a_warning(sources, tmp_path):
    limits = MiningLimits(train=400, valid=100, test=100)
    report = mine_python(tmp_path / "mined", sources=sources, limits=limits)
    assert any(warning.startswith("flaky_tests: the code at hand gave only") for warning in report.warnings)


def test_a_folder_in_use_and_a_missing_source_are_errors(sources, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="empty folder"):
        mine_python(tmp_path / "used", sources=sources, limits=LIMITS)
    with pytest.raises(UserError, match="no such file"):
        mine_python(tmp_path / "new", sources=[tmp_path / "nowhere"], limits=LIMITS)
    assert [path.name for path in tmp_path.iterdir()] == ["used"]


def test_a_full_disk_leaves_nothing_behind(sources, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("manyskills.data.mining.writer.os.fsync", fail)
    with pytest.raises(UserError, match="No space left"):
        mine_python(tmp_path / "mined", sources=sources, limits=LIMITS)
    assert list(tmp_path.iterdir()) == []


def test_projects_take_turns(tree, tmp_path):
    (tmp_path / "single.py").write_text("x = 1")
    modules = find_modules([tree / "alpha", tree / "beta", tmp_path / "single.py"], seed=0)
    assert {module.project for module in modules[:3]} == {"alpha", "beta", "single"}
    assert {module.project for module in modules[3:5]} == {"alpha", "beta"}
    assert {module.name for module in modules if module.is_test} >= {"alpha.tests.test_m0", "beta.tests.test_m3"}
    assert len({module.name for module in modules}) == len(modules)


def test_default_sources_leave_this_package_out():
    found = default_sources()
    assert "json" in {path.name for path in found}
    assert "manyskills" not in {path.name for path in found}
    assert all(isinstance(path, Path) for path in found)
