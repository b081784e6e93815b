"""What makes figures of generating tasks worthless, and is found."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from manyskills.cli.app import run
from manyskills.data.check_report import print_report
from manyskills.data.check_written import PromptLimits, check_generating
from manyskills.data.reading import check_rows
from manyskills.data.rows import SplitRows
from manyskills.tasks import SPLITS, get_task
from tests.data.helpers import write_jsonl


def check(name, train, valid=None, test=None, **options):
    task = get_task(name)
    splits = {
        split: SplitRows(task, split, check_rows(task, rows, labels_required=True), len(rows), "memory", "")
        for split, rows in (("train", train), ("valid", valid), ("test", test))
        if rows is not None
    }
    return check_generating(task, splits, **options)


def functions(count, start=0, language="python"):
    return [
        {
            "id": f"f{n}",
            "language": language,
            "code": f"def f{n}(x):\n    return x + {n}",
            "summary": f"Adds the number {n} to x.",
        }
        for n in range(start, start + count)
    ]


def kinds(report):
    return {(problem.severity, problem.kind) for problem in report.problems}


def found(report, kind):
    return [problem for problem in report.problems if problem.kind == kind]


def test_clean_data():
    report = check("code_summarization", functions(9), functions(9, 100), functions(9, 200))
    assert (report.problems, report.overlaps) == ((), ())
    assert list(report.splits["train"].lengths) == ["python: code", "python: summary"]
    json.dumps(report.to_dict())


def test_a_docstring_that_was_left_in():
    told = functions(30)
    for row in told[:2]:
        row["code"] = f'def f(x):\n    """{row["summary"]} More."""\n    return x'
    (problem,) = found(check("code_summarization", told, functions(9, 100), functions(9, 200)), "answer in the input")
    assert (problem.severity, problem.examples) == ("error", ("f0", "f1"))
    assert problem.message == "train, python: the summary stands verbatim inside the code of 2 of 30 rows (6.7%)"
    (mild,) = found(check("code_summarization", told + functions(30, 300)), "answer in the input")
    assert mild.severity == "warning"


def test_a_description_that_holds_its_code_or_stands_in_it():
    rows = [
        {"nl": f"Write number {n} into x now.", "code": f"total = {n}; other = total + {n}", "language": "java"}
        for n in range(9)
    ]
    rows[0]["nl"] = f"Write this: {rows[0]['code']}"
    rows[1]["code"] = f"/** {rows[1]['nl']} */ x = 1;"
    report = check("code_generation", rows, rows[2:4], rows[4:6])
    assert found(report, "answer in the input")[0].examples == ("row:1",)
    assert found(report, "input in the answer")[0].examples == ("row:2",)


def test_translated_code_may_be_alike_but_not_the_same():
    rows = [
        {"id": f"r{n}", "java": f"int getNumber{n}() {{ }}", "csharp": f"int GetNumber{n}() {{}}"} for n in range(9)
    ]
    assert kinds(check("code_translation", rows[:3], rows[3:6], rows[6:])) == set()
    rows[0]["csharp"] = rows[0]["java"]
    report = check("code_translation", rows[:3], rows[3:6], rows[6:])
    assert kinds(report) == {("error", "nothing to change")}
    assert [p.examples for p in report.problems] == [("r0:java_csharp",), ("r0:csharp_java",)]


def test_leaks_of_code_are_errors_and_of_sentences_warnings():
    same_code = functions(1) + functions(8, 100)
    same_code[0]["summary"] = "Something else entirely."
    same_sentence = functions(9, 200)
    same_sentence[0]["summary"] = "Adds the number 0   to x."
    report = check("code_summarization", functions(9), same_code, same_sentence)
    assert {(o.earlier, o.later, o.what) for o in report.overlaps} == {
        ("train", "valid", "python: code"),
        ("train", "test", "python: summary"),
    }
    assert kinds(report) == {("error", "leakage"), ("warning", "leakage")}
    assert report.errors[0].message == "1 rows (11.1%) of valid share their python: code with train"
    turned = [{"nl": row["summary"], "code": row["code"], "language": "python"} for row in functions(9)]
    other = [dict(row, code=f"{row['code']} + 1") for row in turned]
    assert kinds(check("code_generation", turned, other, [])) >= {("warning", "leakage")}


def test_variants_are_looked_at_by_themselves():
    report = check("code_summarization", functions(9), functions(9, language="java"), functions(9, 200))
    assert report.overlaps == (), "the same text in two languages is no leak"
    assert {p.message for p in found(report, "missing variant")} == {
        "train: there is no row of java",
        "valid: there is no row of python",
        "test: there is no row of java",
    }


def test_repeats_ambiguity_and_short_answers():
    rows = [*functions(9), *functions(1), functions(1)[0] | {"summary": "Wow!"}]
    report = check("code_summarization", [row | {"id": f"{n}"} for n, row in enumerate(rows)])
    assert report.splits["train"].duplicates == 1
    assert found(report, "duplicates")[0].examples == ("9 = 0",)
    assert found(report, "short answer")[0].examples == ("10",)
    assert found(report, "ambiguous input")[0].examples == ("0", "9", "10")
    assert ("error", "missing split") in kinds(report)


@pytest.mark.parametrize(("long", "problem"), [("truncate", "truncation"), ("error", "long texts")])
def test_prompts_are_counted_with_their_frame_and_answers_with_their_end(long, problem, capsys):
    rows = [{"id": f"r{n}", "language": "java", "code": "c" * n, "summary": "s " * n} for n in range(1, 11)]
    limits = PromptLimits(prompt=12, answer=20, frames={"java": 4})
    options = {"lengths": lambda texts: [len(text) for text in texts], "limits": limits, "long": long}
    report = check("code_summarization", rows, **options)
    lengths = report.splits["train"].lengths
    assert lengths["java: code"].tokens.max == 14
    assert (lengths["java: code"].truncated, lengths["java: code"].limit) == (0.2, 12)
    assert lengths["java: summary"].tokens.max == 21
    assert lengths["java: summary"].truncated == 0.1
    assert len(found(report, problem)) == (1 if long == "truncate" else 2)
    print_report([report], Console(width=150))
    printed = capsys.readouterr().out
    assert "10.0% over 20" in printed
    assert "over 12" in printed


def test_the_verb_finds_folders_with_short_names_and_counts_with_the_backbone(tmp_path, capsys, backbone_folder):
    for number, split in enumerate(SPLITS):
        rows = [{"java": f"int a{n} ;", "csharp": f"INT b{n} ;"} for n in range(number * 9, number * 9 + 9)]
        write_jsonl(tmp_path / "data" / "translation" / f"{split}.jsonl", rows)
    assert run(["data", "check", "--data", str(tmp_path / "data"), "--json", "--strict"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["splits"]["train"]["rows"] == 18
    path = tmp_path / "run.yaml"
    path.write_text(
        f"tasks: {{code_translation: {{variants: [csharp_java], max_new_tokens: 5}}}}\ndata_dir: {tmp_path / 'data'}\n"
        f"backbone: {backbone_folder('qwen2')}\nmax_length: 70\n"
    )
    assert run(["data", "check", str(path), "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    lengths = report["splits"]["train"]["lengths"]
    assert list(lengths) == ["csharp_java: csharp", "csharp_java: java"]
    assert (lengths["csharp_java: csharp"]["limit"], lengths["csharp_java: java"]["limit"]) == (70, 5)
    assert lengths["csharp_java: java"]["truncated"] == 1.0
    assert run(["data", "show", str(path), "-t", "code_translation", "-n", "1"]) == 0
    shown = capsys.readouterr().out
    assert "csharp_java\n--- csharp\n" in shown
    assert run(["data", "check", str(path), "tasks.code_translation.variants=[jav]"]) == 2
    assert "has no variant 'jav'" in capsys.readouterr().err
