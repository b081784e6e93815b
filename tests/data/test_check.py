import json

import pytest
from rich.console import Console

from manyskills.cli import app as cli
from manyskills.config.file import dump_config
from manyskills.data.check import check_data
from manyskills.data.check_report import print_report
from manyskills.data.rows import SplitRows
from manyskills.tasks import get_task
from tests.data.helpers import defects
from tests.training.helpers import small_config


def split_rows(task, split, rows, synthetic=None):
    named = [{"id": f"{split}:{number}"} | row for number, row in enumerate(rows, start=1)]
    return SplitRows(task, split, named, len(named), f"{split}.jsonl", "", synthetic)


def check(task_name, train, valid=None, test=None, **options):
    task = get_task(task_name)
    splits = {"train": train, "valid": valid, "test": test}
    return check_data(task, {k: split_rows(task, k, v) for k, v in splits.items() if v is not None}, **options)


def kinds(report):
    return {(problem.severity, problem.kind) for problem in report.problems}


def test_clean_data_has_no_errors():
    report = check("defect_detection", defects(90), defects(90, 1000), defects(90, 2000))
    assert report.problems == ()
    assert report.splits["train"].labels == {"0": 60, "1": 30}
    assert report.overlaps == ()
    json.dumps(report.to_dict())


def test_missing_splits_are_errors():
    assert kinds(check("defect_detection", defects(9))) == {("error", "missing split")}


def test_leakage_ignores_white_space():
    other = [{"code": "def f3(x):   return\n\n x + 3", "label": 0}]
    report = check("defect_detection", defects(90), defects(90, 1000), other + defects(90, 2000))
    (overlap,) = report.overlaps
    assert (overlap.earlier, overlap.later, overlap.what, overlap.rows) == ("train", "test", "text", 1)
    assert overlap.examples == ("test test:1 = train train:4",)
    assert kinds(report) == {("error", "leakage")}
    assert report.errors[0].message == "1 rows (1.1%) of test share their text with train"


def test_duplicates_and_contradictions():
    twice = [*defects(90), {"code": "def f0(x):\n return x + 0", "label": 0}, defects(1)[0]]
    report = check("defect_detection", twice, defects(90, 1000), defects(90, 2000))
    assert (report.splits["train"].duplicates, report.splits["train"].contradictions) == (2, 1)
    assert kinds(report) == {("warning", "duplicates"), ("warning", "contradictory labels")}


def test_mirrored_pairs_are_the_same_pair():
    def pair(a, b, label=1):
        return {"code1": f"f{a}", "code2": f"f{b}", "label": label}

    train = [pair(1, 2), pair(2, 1), pair(3, 4, 0)]
    report = check("clone_detection", train, [pair(4, 3, 0), pair(8, 9)], [pair(1, 6), pair(6, 7, 0)])
    assert report.splits["train"].duplicates == 1
    found = {(o.earlier, o.later, o.what): o.rows for o in report.overlaps}
    assert found == {("train", "valid", "pair"): 1, ("train", "valid", "a text of the pair"): 1} | {
        ("train", "test", "a text of the pair"): 1
    }
    assert ("error", "leakage") in kinds(report)
    assert ("warning", "leakage") in kinds(report)
    assert report.splits["train"].lengths["code1 and code2"].texts == 4


def test_searches():
    docstring = "Return the sum of all given numbers."
    train = [
        {
            "query": "return the sum of all given numbers",
            "code": f'def total(xs):\n    """{docstring}"""\n    return sum(xs)',
        },
        {"query": "sort things", "code": "sorted(things)"},
        {"query": "sort things", "code": "things.sort()"},
    ]
    report = check(
        "code_search", train, [{"query": "sort things", "code": "a()"}], [{"query": "q", "code": "sorted(things)"}]
    )
    assert kinds(report) == {
        ("error", "answer in the input"),
        ("warning", "ambiguous query"),
        ("warning", "leakage"),
        ("error", "leakage"),
    }
    assert next(p for p in report.problems if p.kind == "answer in the input").examples == ("train:1",)


def test_balance():
    one = [{"code": f"f{i}", "label": 0} for i in range(50)]
    rare = [{"code": f"g{i}", "label": int(i == 0)} for i in range(50)]
    even = [{"code": f"h{i}", "label": i % 2} for i in range(80)]
    assert kinds(check("flaky_tests", one, rare, even)) == {
        ("error", "one label"),
        ("warning", "rare label"),
        ("warning", "few positives"),
        ("warning", "label shift"),
    }


def test_lengths_and_truncation():
    rows = [{"code": "x" * n, "label": n % 2} for n in range(1, 101)]
    report = check("defect_detection", rows, lengths=lambda texts: [len(text) // 2 for text in texts], max_length=40)
    lengths = report.splits["train"].lengths["code"]
    assert (lengths.texts, lengths.characters.p50, lengths.characters.max) == (100, 51, 100)
    assert lengths.tokens.max == 50
    assert lengths.truncated == 0.19
    assert ("warning", "truncation") in kinds(report)


@pytest.mark.parametrize(
    ("long", "problem", "told"),
    [
        ("truncate", ("warning", "truncation"), "those over 40 lose their end"),
        ("window", None, "those over 40 are read in windows"),
        ("error", ("error", "long texts"), "those over 40 are refused"),
    ],
)
def test_long_texts_are_a_problem_only_where_something_is_lost_or_refused(long, problem, told, capsys):
    rows = [{"code": "x" * n, "label": n % 2} for n in range(1, 101)]
    count = {"lengths": lambda texts: [len(text) // 2 for text in texts], "max_length": 40}
    report = check("defect_detection", rows, rows[::-1], rows[::-1], **count, long=long)
    found = kinds(report) & {("warning", "truncation"), ("error", "long texts")}
    assert found == ({problem} if problem else set())
    assert report.splits["train"].lengths["code"].truncated == 0.19
    if long == "error":
        first = next(p for p in report.problems if p.kind == "long texts")
        assert first.message == "train: 19 of 100 rows (19.0%) hold over 40 tokens, which long=error refuses"
        assert first.examples[0] == "train:82"
    print_report([report], Console(width=150))
    assert told in capsys.readouterr().out


def test_a_pair_that_is_read_jointly_is_one_text():
    def pair(*sizes):
        return {"code1": "a" * sizes[0], "code2": "b" * sizes[1], "label": 1}

    def count(texts):
        return [sum(map(len, [text] if isinstance(text, str) else text)) for text in texts]

    rows = [pair(5, 5), pair(6, 5), pair(5, 6), pair(3, 3), pair(3, 3)]
    options = {"lengths": count, "max_length": 10, "long": "error"}
    assert not [p for p in check("clone_detection", rows, **options).problems if p.kind == "long texts"]
    report = check("clone_detection", rows, **options, joint=True)
    (problem,) = (p for p in report.problems if p.kind == "long texts")
    assert problem.message == "train: 2 of 5 rows (40.0%) hold over 10 tokens, which long=error refuses"
    assert problem.examples == ("train:2", "train:3")
    lengths = report.splits["train"].lengths["code1 with code2"]
    assert (lengths.texts, lengths.tokens.max, lengths.characters.max) == (4, 11, 11)
    assert report.splits["train"].duplicates == 1
    assert check("clone_detection", rows, **options | {"long": "truncate"}, joint=True).splits["train"].lengths == (
        report.splits["train"].lengths
    )


def test_what_training_refuses_is_an_error(backbone_folder, data_dir, tmp_path, capsys):
    """Each function alone is within the limit."""
    task = {"clone_detection": {"read": "joint", "long": "error"}}
    config = small_config(backbone_folder("bert"), data_dir, tmp_path / "run", tasks=task, max_length=45)
    (tmp_path / "run.yaml").write_text(dump_config(config))
    assert cli.run(["train", str(tmp_path / "run.yaml"), "--dry-run"]) == 2
    assert "wanted at most 45 tokens" in capsys.readouterr().err
    assert cli.run(["data", "check", str(tmp_path / "run.yaml"), "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["splits"]["train"]["lengths"]["code1 with code2"]["tokens"]["max"] > 45
    assert any(p["kind"] == "long texts" for p in report["problems"])
    assert cli.run(["data", "check", str(tmp_path / "run.yaml"), "tasks.clone_detection.read=separate", "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert not any(p["kind"] == "long texts" for p in report["problems"])


def test_groups_are_told_not_blamed():
    train = [row | {"project": "p"} for row in defects(90)]
    report = check("defect_detection", train, [r | {"project": "p"} for r in defects(90, 1000)], defects(90, 2000))
    assert [(o.what, o.share) for o in report.overlaps] == [("group (project)", 1.0)]
    assert report.problems == ()
    assert report.splits["train"].groups == 1


def test_the_report_is_printed(capsys):
    report = check("defect_detection", [*defects(9), {"code": "[red]", "label": 1}], defects(9))
    print_report([report], Console(width=150, no_color=True))
    out = capsys.readouterr().out
    assert "defect_detection" in out
    assert "error: 9 rows (100.0%) of valid share their text with train" in out
