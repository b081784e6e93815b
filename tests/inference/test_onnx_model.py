"""An exported folder answers as the module it was made from, without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import manyskills
from manyskills.cli.app import run
from manyskills.errors import UserError
from manyskills.export.graph import quantize_graph
from manyskills.export.run import Wish, export
from manyskills.inference import encoding
from manyskills.inference.onnx_model import OnnxModel
from manyskills.model.checkpoint import save_model
from tests.training.helpers import small_config, warmed_up

TASKS = ["clone_detection", "defect_detection", "flaky_tests", "code_search"]
TEXTS = [
    "a",
    "",
    "def b(): pass",
    "a",
    "total = 0\nfor i in range(10):\n    total += i\n" * 9,
    "größer 名前",
    "a\ud800",
]
PAIRS = [{"code1": "def a(): return 1", "code2": "def b(): return 1"}, {"code1": "x = 1", "code2": "y = 2\n" * 60}]


@pytest.fixture(scope="module")
def graph(exported):
    return manyskills.load(exported)


@pytest.fixture(scope="module")
def module(trained_run):
    return manyskills.load(trained_run.path)


@pytest.fixture(scope="module")
def readings(backbone_folder, data_dir, tmp_path_factory):
    """Module and graph of tasks that read long texts each in its own way."""
    tasks = {
        "clone_detection": {"read": "joint"}, "defect_detection": {"long": "error", "head_hidden": 7},
        "flaky_tests": {"long": "window", "max_length": 20}, "code_search": {"head_hidden": 9},
    }  # fmt: skip
    config = small_config(backbone_folder("roberta"), data_dir, tasks=tasks, max_length=60)
    model, _ = warmed_up(config)
    folder = tmp_path_factory.mktemp("readings")
    (folder / "best").mkdir()
    save_model(model, folder / "best", config, {"clone_detection": 0.4})
    export(folder / "best", folder / "graph", Wish("onnx", check=False))
    return manyskills.load(folder / "best"), manyskills.load(folder / "graph")


def test_knows_what_the_module_knows(graph, module, exported):
    assert isinstance(graph, OnnxModel)
    assert isinstance(graph, manyskills.CodeModel)
    assert list(graph.tasks) == TASKS
    assert (graph.thresholds, graph.synthetic) == (module.thresholds, module.synthetic)
    assert graph.folder == exported
    assert graph.config.max_length == module.config.max_length
    assert graph.jobs == encoding.usable_cores() >= 1


def test_the_same_vectors(graph, module):
    for task in (None, "code_search"):
        found_ND, wanted_ND = graph.encode(TEXTS, task=task), module.encode(TEXTS, task=task)
        assert found_ND.dtype == np.float32
        np.testing.assert_allclose(found_ND, wanted_ND, atol=1e-4 * np.abs(wanted_ND).max())
    assert graph.encode([]).shape == module.encode([]).shape
    assert graph.encode([], task="code_search").shape == module.encode([], task="code_search").shape


def test_the_same_answers(graph, module, data_dir):
    for task in ("defect_detection", "flaky_tests"):
        rows = [json.loads(line) for line in (data_dir / task / "test.jsonl").read_text().splitlines()]
        np.testing.assert_allclose(graph.predict_proba(task, rows), module.predict_proba(task, rows), atol=1e-5)
        assert graph.predict(task, rows) == module.predict(task, rows)
    found_E = graph.predict_proba("clone_detection", PAIRS)
    np.testing.assert_allclose(found_E, module.predict_proba("clone_detection", PAIRS), atol=1e-5)
    assert graph.predict_proba("clone_detection", []).shape == (0,)
    candidates = [f"def add(a):\n    return a + {n}" for n in range(7)]
    found_Q, wanted_Q = (m.search_many(["add 3", "x"], candidates, top_k=4) for m in (graph, module))
    for found, wanted in zip(found_Q, wanted_Q, strict=True):
        assert [index for index, _ in found] == [index for index, _ in wanted]
        assert [score for _, score in found] == pytest.approx([score for _, score in wanted], abs=1e-5)


def test_the_same_evaluation(graph, module, data_dir):
    found, wanted = (m.evaluate(data_dir, split="valid", samples=5) for m in (graph, module))
    assert list(found) == TASKS
    for task, scores in wanted.items():
        for metric, estimate in scores.to_dict()["metrics"].items():
            assert found[task].to_dict()["metrics"][metric] == pytest.approx(estimate, abs=1e-4), (task, metric)


def test_long_texts_and_joint_pairs(readings):
    module, graph = readings
    long = "value = other + 1\n" * 40
    for act in (
        lambda m: m.encode(["a", long]),
        lambda m: m.encode(["a", long], task="code_search"),
        lambda m: m.predict_proba("clone_detection", [*PAIRS, {"code1": long, "code2": long}]),
        lambda m: m.predict_proba("flaky_tests", [{"code": long}, {"code": "x"}]),
        lambda m: m.predict_proba("defect_detection", [{"code": "x = 1"}]),
    ):
        np.testing.assert_allclose(act(graph), act(module), atol=1e-4 * max(np.abs(act(module)).max(), 1))
    for rows in ([{"code": "x"}, {"code": long}], [{"code": long, "id": "mine"}]):
        with pytest.raises(UserError) as wanted:
            module.predict("defect_detection", rows)
        with pytest.raises(UserError) as found:
            graph.predict("defect_detection", rows)
        assert str(found.value) == str(wanted.value)


@pytest.mark.parametrize(
    "act",
    [
        lambda m: m.predict("defect_detectoin", []),
        lambda m: m.predict("code_search", [{"query": "a"}]),
        lambda m: m.encode("text"),
        lambda m: m.encode(["a"], task="flaky_tests"),
        lambda m: m.search("a", ["b"], task="flaky_tests"),
        lambda m: m.predict("flaky_tests", [{"code": "x"}, {"cod": "x"}]),
        lambda m: m.evaluate("nowhere"),
        lambda m: m.evaluate(split="tset"),
    ],
)
def test_the_same_mistakes(act, graph, module):
    with pytest.raises(UserError) as wanted:
        act(module)
    with pytest.raises(UserError) as found:
        act(graph)
    assert str(found.value) == str(wanted.value)


def test_vectors_do_not_depend_on_the_number_of_jobs(exported, graph, monkeypatch):
    monkeypatch.setattr(encoding, "CHUNK_TOKENS", 64)
    texts = [f"def f{n}(a):\n    return a + {n}\n" * (n % 5 + 1) for n in range(30)]
    one, three = (manyskills.load(exported, jobs=jobs).encode(texts) for jobs in (1, 3))
    np.testing.assert_array_equal(one, three)


def test_eight_bits_answer_much_alike(exported, module, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "small")
    quantize_graph(folder / "model.onnx", folder / "model.int8.onnx")
    facts = json.loads((folder / "onnx.json").read_text())
    (folder / "onnx.json").write_text(json.dumps(facts | {"graph": "model.int8.onnx"}))
    found_ND, wanted_ND = manyskills.load(tmp_path / "small").encode(TEXTS), module.encode(TEXTS)
    lengths_N = np.linalg.norm(found_ND, axis=1) * np.linalg.norm(wanted_ND, axis=1)
    cosine_N = (found_ND * wanted_ND).sum(1) / lengths_N
    assert cosine_N.min() > 0.95
    assert not np.allclose(found_ND, wanted_ND, atol=1e-5)


WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers", "peft"):
    sys.modules[name] = None  # importing it fails
import manyskills
from manyskills.cli.app import run
folder, data = sys.argv[1:]
model = manyskills.load(folder, jobs=2)
model.predict("clone_detection", [{"code1": "a", "code2": "b"}])
model.search("a", ["b", "c"])
model.evaluate(data, samples=5)
rows = f"{data}/flaky_tests/test.jsonl"
codes = [run(["predict", folder, rows, "-t", "flaky_tests", "-j", "2"]), run(["evaluate", folder, "--data", data])]
sys.exit(codes != [0, 0])
"""


def test_nothing_needs_torch(exported, data_dir):
    command = [sys.executable, "-c", WITHOUT_TORCH, str(exported), str(data_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"prediction": ' in done.stdout


def test_from_the_command_line(exported, trained_run, data_dir, capsys):
    rows = str(data_dir / "flaky_tests" / "test.jsonl")
    answers = []
    for folder in (exported, trained_run.path):
        assert run(["predict", str(folder), rows, "-t", "flaky_tests"]) == 0
        answers.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    for found, wanted in zip(*answers, strict=True):
        assert (found["id"], found["prediction"]) == (wanted["id"], wanted["prediction"])
        assert found["probability"] == pytest.approx(wanted["probability"], abs=1e-5)
    assert run(["predict", str(exported), rows, "-t", "flaky_tests", "--jobs", "0"]) == 2
    assert run(["predict", str(trained_run.path), rows, "-t", "flaky_tests", "-j", "2"]) == 2
    assert "jobs is for exported ONNX graphs" in capsys.readouterr().err


def test_where_and_how_many(exported):
    assert manyskills.load(exported, device="cpu", jobs=2).predict("flaky_tests", [{"code": "x"}])[0] in (0, 1)
    with pytest.raises(UserError, match="answers on the CPU"):
        manyskills.load(exported, device="cuda")
    with pytest.raises(UserError, match="wanted 1 or more, found 0"):
        manyskills.load(exported, jobs=0)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("onnx.json", "{}", r"onnx\.json is not what an export writes"),
        ("onnx.json", '{"format": 99}', "format 99, known is 1"),
        ("model.onnx", None, r"model\.onnx is missing"),
        ("model.onnx", "no graph", r"model\.onnx cannot be run: "),
        ("tokenizer.json", None, r"tokenizer\.json is missing"),
        ("tokenizer.json", "{", r"tokenizer\.json is broken"),
        ("heads.safetensors", None, r"heads\.safetensors is missing"),
        ("tasks.json", None, r"tasks\.json is missing"),
    ],
)
def test_broken_folders(file, content, said, exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "graph")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(UserError, match=said):
        manyskills.load(folder)


def test_onnxruntime_is_named_where_it_is_missing(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r'onnxruntime is not installed(.|\n)*pip install "manyskills\[inference\]"'):
        manyskills.load(exported)
