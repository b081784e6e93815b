import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from manyskills.cli import app as cli
from manyskills.cli import configuration
from manyskills.cli.app import run
from manyskills.config.file import load_config
from manyskills.errors import UserError
from tests.data.helpers import clone_folder, defects, write_jsonl

# Typer itself imports pydantic to read arguments: only --help and --version can do without.
HEAVY = ("torch", "transformers", "peft", "sklearn", "scipy", "numpy", "pandas", "pyarrow", "datasets", "matplotlib")
HEAVY = (*HEAVY, "pydantic", "yaml", "rich", "jinja2", "accelerate")


@pytest.fixture
def data(tmp_path):
    for split, start in {"train": 0, "valid": 1000, "test": 2000}.items():
        write_jsonl(tmp_path / "data" / "defect_detection" / f"{split}.jsonl", defects(90, start))
    clone_folder(tmp_path / "data" / "clone_detection")
    return tmp_path / "data"


@pytest.mark.parametrize(
    "code",
    [
        "import manyskills",
        "from manyskills.cli.app import run; run(['--help'])",
        "from manyskills.cli.app import run; run(['--version'])",
    ],
)
def test_light_commands_import_nothing_heavy(code):
    probe = f"import sys\n{code}\nprint('HEAVY', [name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_version_and_the_module_entry():
    done = subprocess.run([sys.executable, "-m", "manyskills", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("manyskills 0.")
    assert done.stderr == ""


def test_init_writes_once(tmp_path, capsys):
    path = tmp_path / "new" / "run.yaml"
    arguments = ["init", str(path), "--tasks", "code_search, flaky_tests", "--data", "d", "--output-dir", "o"]
    assert run(arguments) == 0
    config = load_config(path)
    assert (list(config.tasks), config.data_dir, config.output_dir) == (["code_search", "flaky_tests"], "d", "o")
    path.write_text("mine")
    assert run(arguments) == 2
    assert "is there already\n  hint: " in capsys.readouterr().err
    assert path.read_text() == "mine"
    assert run([*arguments, "--force"]) == 0
    assert load_config(path) == config
    assert [p.name for p in path.parent.iterdir()] == ["run.yaml"]


def test_init_takes_the_tasks_that_its_backbone_can_learn(tmp_path):
    assert run(["init", str(tmp_path / "run.yaml")]) == 0
    config = load_config(tmp_path / "run.yaml")
    assert list(config.tasks) == ["clone_detection", "defect_detection", "flaky_tests", "code_search"]
    assert run(["init", str(tmp_path / "writes.yaml"), "--tasks", "code_translation, code_search"]) == 0
    assert load_config(tmp_path / "writes.yaml").backbone.name == "qwen2.5-coder-0.5b-instruct"


def test_init_with_an_unknown_task_writes_nothing(tmp_path, capsys):
    assert run(["init", str(tmp_path / "run.yaml"), "--tasks", "code_serch"]) == 2
    assert "unknown task 'code_serch'\n  hint: did you mean 'code_search'?" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_config_verbs(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("tasks: [code_search]\n")
    assert run(["config", "validate", str(path)]) == 0
    assert capsys.readouterr().out == ""
    assert run(["config", "show", str(path), "method.r=3"]) == 0
    assert "  r: 3\n" in capsys.readouterr().out
    assert run(["config", "validate", str(path), "foo=3", "seed=x"]) == 2
    found = capsys.readouterr()
    assert found.err.startswith("manyskills: 2 problems in the configuration:")
    assert found.out == ""
    assert run(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]["seed"]


def test_list_tasks(capsys):
    assert run(["list", "tasks", "--json"]) == 0
    facts = {fact["name"]: fact for fact in json.loads(capsys.readouterr().out)}
    assert facts["clone_detection"]["columns"] == ["code1", "code2", "label"]
    assert facts["clone_detection"]["variants"] == []
    assert facts["code_translation"]["variants"][0] == {
        "name": "java_csharp", "source": "java", "target": "csharp", "language": "csharp",
    }  # fmt: skip
    assert run(["list", "tasks"]) == 0
    printed = capsys.readouterr().out
    assert "mrr" in printed
    assert "(java_csharp, csharp_java)" in printed


def test_data_check(data, capsys):
    assert run(["data", "check", "--data", str(data), "--tasks", "defect_detection", "--json", "--strict"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["problems"] == []
    write_jsonl(data / "defect_detection" / "test.jsonl", defects(90))
    assert run(["data", "check", "--data", str(data)]) == 0
    assert "error: 90 rows (100.0%) of test share their text with train" in capsys.readouterr().out
    assert run(["data", "check", "--data", str(data), "--strict"]) == 1


def test_data_check_of_a_configuration_counts_tokens(data, capsys, backbone_folder):
    path = data.parent / "run.yaml"
    path.write_text(
        f"tasks: [defect_detection]\ndata_dir: {data}\nbackbone: {backbone_folder('bert')}\nmax_length: 4\n"
    )
    assert run(["data", "check", str(path), "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["splits"]["train"]["lengths"]["code"]["truncated"] == 1.0
    assert run(["data", "check", str(path), "tasks.defect_detection.long=error", "--strict", "--json"]) == 1
    (report,) = json.loads(capsys.readouterr().out)
    assert report["long"] == "error" and "long texts" in {problem["kind"] for problem in report["problems"]}
    assert run(["data", "check", str(path), "max_length=500", "--tasks", "clone_detection"]) == 2
    assert "has no task 'clone_detection'" in capsys.readouterr().err


def test_data_check_tells_every_broken_file(data, capsys):
    (data / "defect_detection" / "train.jsonl").write_text("{\n")
    (data / "clone_detection" / "pairs_test.jsonl").write_text("\n")
    assert run(["data", "check", "--data", str(data)]) == 2
    err = capsys.readouterr().err
    assert "train.jsonl:1: wanted a JSON object, found broken JSON" in err
    assert "the test split of clone_detection is empty" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "check"],
        ["data", "check", "--data", "nowhere"],
        ["data", "show", "--data", "."],
        ["data", "show", "--data", ".", "--task", "nothing"],
        ["data", "show", "--data", ".", "--task", "code_search", "--split", "tset"],
        ["config", "validate", "none.yaml"],
        ["no-such-verb"],
        ["init", "--no-such-option"],
    ],
)
def test_mistakes_exit_with_2_and_without_traceback(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err
    assert "Traceback" not in found.err
    assert list(tmp_path.iterdir()) == []


def test_data_show(data, capsys):
    arguments = ["data", "show", "--data", str(data), "--task", "clone_detection", "-n", "1"]
    assert run(arguments) == 0
    assert "--- code2\n" in capsys.readouterr().out
    assert run([*arguments, "--json"]) == 0
    found = capsys.readouterr()
    assert json.loads(found.out)["id"].startswith("pairs_train.jsonl:")
    assert "1 of 2 rows" in found.err


def test_doctor(monkeypatch, capsys):
    from manyskills import doctor

    monkeypatch.setattr(doctor, "_toy_training", lambda: "passed")
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["healthy"] is True
    assert found["cores"] >= 1
    assert list(found["extras"]) == ["embedded", "quant", "track", "onnx", "inference", "bench"]
    monkeypatch.setattr(doctor, "_toy_training", lambda: "failed: RuntimeError: no")
    assert run(["doctor"]) == 2
    assert "not ready" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("what", "do this"), 2, "manyskills: what\n  hint: do this\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "manyskills: no space left on device\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, ""),
    ],
)
def test_what_goes_wrong_is_one_message(monkeypatch, capsys, error, code, said):
    def fail(*_):
        raise error

    monkeypatch.setattr("manyskills.config.file.config_schema", fail)
    assert configuration.schema
    assert run(["config", "schema"]) == code
    err = capsys.readouterr().err
    assert err.startswith(said)
    assert "Traceback" not in err


def test_debug_shows_the_traceback(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["manyskills", "config", "validate", "none.yaml", "--debug"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_mistake_of_ours_is_not_a_finding(monkeypatch, capsys):
    monkeypatch.setattr("manyskills.config.file.config_schema", lambda: 1 / 0)
    assert run(["config", "schema"]) == 2
    assert "please report it" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_message():
    command = f"{sys.executable} -m manyskills config schema | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert len(done.stdout) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_no_space_where_stdout_goes():
    command = [sys.executable, "-m", "manyskills", "config", "schema"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("manyskills: no space left on device")
    assert "Traceback" not in done.stderr
