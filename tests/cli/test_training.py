"""`train`, `evaluate` and `predict` from the command line: data on stdout, talk on stderr, exit codes."""

from __future__ import annotations

import io
import json
import sys

import pytest

from manyskills.cli.app import run
from manyskills.config.file import dump_config
from tests.training.helpers import small_config


@pytest.fixture(scope="module")
def folder(trained_run):
    return str(trained_run.path)


@pytest.fixture
def config_file(backbone_folder, data_dir, tmp_path):
    def write(**changes):
        config = small_config(backbone_folder("bert"), data_dir, tmp_path / "run", **changes)
        (tmp_path / "run.yaml").write_text(dump_config(config))
        return str(tmp_path / "run.yaml")

    return write


def _lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_train_evaluate_predict(config_file, data_dir, tmp_path, capsys):
    assert run(["train", config_file(baselines=["untrained"]), "--json", "max_steps=2", "eval_steps=2"]) == 0
    trained = capsys.readouterr()
    results = json.loads(trained.out)
    assert results == json.loads((tmp_path / "run" / "results.json").read_text())
    assert "validation at step 2" in trained.err
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {
        "config.yaml", "environment.json", "metrics.jsonl", "results.json", "predictions", "plots", "best", "last",
        "README.md",
    }  # fmt: skip
    assert not [path for path in tmp_path.rglob("*") if path.suffix in {".pkl", ".pt", ".pth", ".bin", ".pickle"}]

    assert run(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    for task, entry in evaluated["tasks"].items():
        found, expected = (r["tasks"][task]["systems"]["module"]["test"] for r in (evaluated, results))
        assert entry["primary_metric"] == results["tasks"][task]["primary_metric"]
        for metric in expected["metrics"]:
            value = expected["metrics"][metric]["value"]
            assert found["metrics"][metric]["value"] == pytest.approx(value, abs=1e-5), (task, metric)

    rows = data_dir / "flaky_tests" / "test.jsonl"
    assert run(["predict", str(tmp_path / "run"), str(rows), "--task", "flaky_tests"]) == 0
    predicted = capsys.readouterr()
    assert predicted.err == ""
    written = _lines((tmp_path / "run" / "predictions" / "flaky_tests.jsonl").read_text())
    for line, expected in zip(_lines(predicted.out), written, strict=True):
        assert line.keys() == {"id", "probability", "prediction"}
        assert (line["id"], line["prediction"]) == (expected["id"], expected["prediction"])
        assert line["probability"] == pytest.approx(expected["probability"], abs=2e-6)


def test_quiet_says_nothing(config_file, capsys):
    assert run(["train", config_file(baselines=[], method="frozen"), "--quiet", "max_steps=1"]) == 0
    found = capsys.readouterr()
    assert found.err == ""
    assert "clone_detection" in found.out


def test_rows_on_stdin(folder, monkeypatch, capsys):
    rows = '{"id": "one", "code": "int f();"}\n{"code": "int g(); é"}\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(rows.encode()), encoding="utf-8"))
    assert run(["predict", folder, "-t", "defect_detection"]) == 0
    first, second = _lines(capsys.readouterr().out)
    assert first["id"] == "one"
    assert 0 <= second["probability"] <= 1


def test_pairs_by_id_beside_their_functions(folder, data_dir, capsys):
    assert (
        run(["predict", folder, str(data_dir / "clone_detection" / "pairs_test.jsonl"), "-t", "clone_detection"]) == 0
    )
    assert len(_lines(capsys.readouterr().out)) == 10


def test_search_and_an_output_file(folder, data_dir, tmp_path, capsys):
    queries = data_dir / "code_search" / "test.jsonl"
    output = tmp_path / "new" / "answers.jsonl"
    arguments = ["predict", folder, str(queries), "-t", "code_search", "--candidates", str(queries), "-k", "3"]
    assert run([*arguments, "-o", str(output)]) == 0
    assert capsys.readouterr().out == ""
    lines = _lines(output.read_text())
    assert len(lines) == 10
    for line in lines:
        scores = [found["score"] for found in line["results"]]
        assert len(scores) == 3
        assert scores == sorted(scores, reverse=True)
        assert all(found["id"].startswith("s") for found in line["results"])
    assert run(arguments) == 0
    assert capsys.readouterr().out == output.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["predict", "{run}", "{rows}"], "knows several tasks\n  hint: choose one with --task: clone_detection,"),
        (["predict", "{run}", "{rows}", "-t", "flaky"], "was not trained on 'flaky'\n  hint: "),
        (["predict", "{run}", "{queries}", "-t", "code_search"], "ranks candidates, and there are none"),
        (["predict", "{run}", "nowhere.jsonl", "-t", "flaky_tests"], "nowhere.jsonl"),
        (["predict", "{run}", "{empty}", "-t", "flaky_tests"], "wanted rows of flaky_tests, found none"),
        (["predict", "{run}", "{broken}", "-t", "flaky_tests"], "broken.jsonl:2: wanted a JSON object"),
        (["predict", "{rows}", "-t", "flaky_tests"], "is not a folder"),
        (["evaluate", "nowhere"], "nowhere is not a folder"),
        (["evaluate", "{run}", "--split", "tset"], "unknown split 'tset'"),
        (["evaluate", "{run}", "--tasks", "flaky_tests, nothing"], "unknown task 'nothing'"),
        (["evaluate", "{run}", "--data", "nowhere"], "there is no folder nowhere"),
        (["evaluate", "{run}", "--limit", "0"], "limit"),
        (["train", "nowhere.yaml"], "there is no configuration nowhere.yaml"),
        (["train", "{run}/config.yaml"], "holds a finished run"),
        (["train", "{run}/config.yaml", "--resume", "--overwrite"], "contradict"),
        (["train", "{run}/config.yaml", "--resume", "seed=4"], "other values of seed"),
        (["train", "{run}/config.yaml", "tasks=[nothing]"], "unknown task"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(arguments, said, folder, data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"code": "x"}\n{"code": \n')
    places = {
        "run": folder, "rows": data_dir / "flaky_tests" / "test.jsonl", "empty": tmp_path / "empty.jsonl",
        "broken": tmp_path / "broken.jsonl", "queries": data_dir / "code_search" / "test.jsonl",
    }  # fmt: skip
    before = sorted(tmp_path.iterdir())
    assert run([argument.format(**places) for argument in arguments]) == 2
    found = capsys.readouterr()
    assert said in found.err
    assert found.out == ""
    assert "Traceback" not in found.err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("as_json", [False, True])
def test_dry_run_writes_nothing(as_json, config_file, tmp_path, capsys):
    config = config_file(method={"name": "lora", "r": 2})
    assert run(["train", config, "--dry-run", *(["--json"] if as_json else [])]) == 0
    found = capsys.readouterr()
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]
    if as_json:
        plan = json.loads(found.out)
        assert plan["steps"] == 6
        assert plan["method"]["trainable"] == 2 * 2 * (2 * 32 + 2 * 32)
        assert plan["tasks"]["defect_detection"]["truncation"]["cut"] == 17
        assert plan["estimated_memory"]["cached"] <= plan["estimated_memory"]["single_pass"]
    else:
        assert "6 steps, a validation every 3" in found.out
        assert "are cut at 40 tokens" in found.out


def test_dry_run_of_full_fine_tuning_counts_what_trains(config_file, capsys):
    assert run(["train", config_file(method="full"), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["method"]["trainable"] == plan["method"]["backbone"]
    assert plan["method"]["share"] == 1


def test_a_wrong_plan_is_the_runs_mistake_too(config_file, capsys):
    assert run(["train", config_file(max_length=999), "--dry-run"]) == 2
    assert "the backbone reads 80 at most" in capsys.readouterr().err


def test_upload_after_a_run(config_file, tmp_path, monkeypatch, capsys):
    pushed = []
    monkeypatch.setattr("manyskills.hub.upload", lambda folder, repo, private: pushed.append((folder, repo, private)))
    arguments = ["push_to_hub=true", "hub_model_id=me/module", "max_steps=1"]
    assert run(["train", config_file(method="frozen", baselines=[]), *arguments]) == 0
    assert pushed == [(tmp_path / "run" / "best", "me/module", True)]
