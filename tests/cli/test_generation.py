"""`generate`, and `predict` of tasks that write, from the command line."""

from __future__ import annotations

import io
import json
import sys

import pytest

from manyskills.cli.app import run
from manyskills.code_model import CodeModel

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def folder(writing_module):
    return str(writing_module("lora"))


@pytest.fixture(scope="module")
def rows(seven_dir):
    return str(seven_dir / "code_translation" / "test.jsonl")


def _lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_predict_writes_as_in_training(folder, rows, tmp_path, capsys):
    asked = [folder, rows, "-t", "code_translation", "--variant", "java_csharp"]
    assert run(["generate", *asked]) == 0
    written = capsys.readouterr()
    lines = _lines(written.out)
    assert [line["id"] for line in lines] == [f"t{n}:java_csharp" for n in range(200, 208)]
    assert all(line.keys() == {"id", "variant", "prediction"} for line in lines)
    assert {line["variant"] for line in lines} == {"java_csharp"}
    assert run(["predict", *asked]) == 0
    assert capsys.readouterr().out == written.out
    assert run(["predict", *asked, "-o", str(tmp_path / "a.jsonl")]) == 0
    assert (tmp_path / "a.jsonl").read_text() == written.out


def test_rows_on_stdin(folder, monkeypatch, capsys):
    typed = '{"id": "one", "java": "int f();"}\n{"csharp": "int g(); é"}\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed.encode()), encoding="utf-8"))
    assert run(["generate", folder, "-t", "code_translation", "--max-new-tokens", "3"]) == 0
    first, second = _lines(capsys.readouterr().out)
    assert (first["id"], first["variant"], second["variant"]) == ("one:java_csharp", "java_csharp", "csharp_java")


def test_interrupted_and_resumed_is_the_same_file(folder, rows, tmp_path, monkeypatch, capsys):
    whole, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    asked = ["generate", folder, rows, "-t", "code_translation", "--variant", "csharp_java", "--samples", "3",
             "--temperature", "0.9", "--seed", "4"]  # fmt: skip
    assert run([*asked, "-o", str(whole)]) == 0
    assert "8 rows answered" in capsys.readouterr().err
    lines = _lines(whole.read_text())
    assert [(line["id"], line["sample"]) for line in lines[:4]] == [
        ("t200:csharp_java", 0), ("t200:csharp_java", 1), ("t200:csharp_java", 2), ("t201:csharp_java", 0),
    ]  # fmt: skip

    generate = CodeModel.generate

    def interrupted(self, task, rows, *, done, **options):
        def stop(position, texts):
            done(position, texts)
            if position == 5:
                raise KeyboardInterrupt

        return generate(self, task, rows, done=stop, **options)

    monkeypatch.setattr(CodeModel, "generate", interrupted)
    assert run([*asked, "-o", str(torn)]) == 130
    monkeypatch.undo()
    assert 0 < len(_lines(torn.read_text())) < 24
    with torn.open("a") as file:
        file.write('{"id": "t207", "vari')
    assert run([*asked, "-o", str(torn), "--resume"]) == 0
    assert " were there" in capsys.readouterr().err
    assert torn.read_bytes() == whole.read_bytes()
    assert run([*asked, "-o", str(torn), "--resume"]) == 0
    assert "0 rows answered, 8 were there" in capsys.readouterr().err
    assert run([*asked, "-o", str(torn)]) == 2
    assert "--resume goes on with it, --overwrite removes it" in capsys.readouterr().err
    assert run([*asked, "--top-k", "2", "-o", str(torn), "--resume"]) == 2
    assert "was written with other top_k: 0, now 2" in capsys.readouterr().err
    assert torn.read_bytes() == whole.read_bytes()


def test_a_yes_no_task_answered_with_text_is_predicted(folder, seven_dir, capsys):
    file = str(seven_dir / "defect_detection" / "test.jsonl")
    assert run(["predict", folder, file, "-t", "defect_detection"]) == 0
    lines = _lines(capsys.readouterr().out)
    assert len(lines) == 10
    assert all(line["prediction"] == int(line["probability"] >= 0.4) for line in lines)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "{run}", "{rows}"], "knows several tasks that write\n  hint: choose one with --task: code_trans"),
        (
            ["generate", "{run}", "{rows}", "-t", "defect_detection"],
            "defect_detection does not write\n  hint: many",
        ),
        (["generate", "{run}", "{rows}", "-t", "code_trans"], "was not trained on 'code_trans'"),
        (["generate", "{run}", "{rows}", "-t", "code_translation"], "nothing tells whether this row is"),
        (["generate", "{run}", "{rows}", "-t", "code_translation", "--variant", "java"], "unknown variant 'java'"),
        (["generate", "{run}", "nowhere.jsonl", "-t", "code_translation"], "nowhere.jsonl"),
        (["generate", "{run}", "{rows}", "-t", "code_translation", "--samples", "2"], "without drawing are all alike"),
        (["generate", "{run}", "{rows}", "-t", "code_translation", "--stop", "line"], "wanted one of end, function"),
        (["generate", "{run}", "{rows}", "-t", "code_translation", "--top-p", "2"], "top_p: wanted more than 0"),
        (["generate", "{run}", "{rows}", "--resume"], "--resume is about a file"),
        (
            [
                "generate",
                "{run}",
                "{rows}",
                "-t",
                "code_translation",
                "--variant",
                "java_csharp",
                "--max-new-tokens",
                "500",
            ],
            "answers may have 500: no room for the text to read\n  hint: lower max_new_tokens",
        ),
        (
            [
                "generate",
                "{run}",
                "{rows}",
                "-t",
                "code_translation",
                "--variant",
                "java_csharp",
                "-o",
                "/proc/no/a.jsonl",
            ],
            "cannot write /proc/no/a.jsonl: No such file",
        ),
        (
            ["generate", "{run}", "{rows}", "-t", "code_translation", "--temperature", "inf"],
            "temperature: wanted 0, or",
        ),
        (["generate", "{vectors}", "{rows}"], "this module writes nothing"),
        (["predict", "{run}", "{rows}", "-t", "code_search", "--variant", "x"], "code_search has no variants"),
        (["generate", "nowhere"], "nowhere is not a folder"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(arguments, said, folder, rows, trained_run, tmp_path, monkeypatch,
                                                  capsys):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    places = {"run": folder, "rows": rows, "vectors": trained_run.path}
    assert run([argument.format(**places) for argument in arguments]) == 2
    found = capsys.readouterr()
    assert said in found.err
    assert found.out == ""
    assert "Traceback" not in found.err
    assert not list(tmp_path.iterdir())
