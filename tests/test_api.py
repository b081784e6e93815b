"""The Python interface on a module that was trained for a moment."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest

import manyskills
from manyskills.errors import UserError
from manyskills.model import vector_cache
from manyskills.model.encoding import WholeBackbone
from tests.training.helpers import small_config

TASKS = ["clone_detection", "defect_detection", "flaky_tests", "code_search"]


@pytest.fixture(scope="module")
def model(trained_run):
    return manyskills.load(trained_run.path)


def _test_rows(data_dir, task):
    return [json.loads(line) for line in (data_dir / task / "test.jsonl").read_text().splitlines()]


def test_knows_what_it_was_trained_for(model, trained_run):
    assert list(model.tasks) == TASKS
    assert set(model.thresholds) == set(TASKS) - {"code_search"}
    assert model.folder == trained_run.path / "best"
    assert model.config.output_dir == str(trained_run.path)


@pytest.mark.parametrize("task", ["defect_detection", "flaky_tests"])
def test_answers_are_those_of_the_runs_own_predictions(task, model, trained_run, data_dir):
    rows = _test_rows(data_dir, task)
    written = [
        json.loads(line) for line in (trained_run.path / "predictions" / f"{task}.jsonl").read_text().splitlines()
    ]
    np.testing.assert_allclose(model.predict_proba(task, rows), [line["probability"] for line in written], atol=2e-6)
    assert model.predict(task, rows) == [line["prediction"] for line in written]
    assert [line["id"] for line in written] == [row["id"] for row in rows]


def test_each_row_is_answered_for_itself(model, data_dir):
    rows = [{"code": row["code"]} for row in _test_rows(data_dir, "defect_detection")]
    together = model.predict_proba("defect_detection", [*rows, rows[0], *rows[::-1]])
    alone = [float(model.predict_proba("defect_detection", [row])[0]) for row in rows]
    np.testing.assert_allclose(together, [*alone, alone[0], *alone[::-1]], atol=1e-6)
    assert together.dtype == np.float64


def test_pairs_are_given_as_texts_and_have_no_order(model):
    rows = [{"code1": "def a(): return 1", "code2": "def b(): return 1"}, {"code1": "x = 1", "code2": "x = 1"}]
    swapped = [{"code1": row["code2"], "code2": row["code1"]} for row in rows]
    found = model.predict_proba("clone_detection", rows)
    np.testing.assert_allclose(found, model.predict_proba("clone_detection", swapped), atol=1e-6)
    assert set(model.predict("clone_detection", rows)) <= {0, 1}


def test_evaluation_gives_the_runs_results(model, trained_run, data_dir):
    for found in (model.evaluate(samples=20), model.evaluate(data_dir, samples=20)):
        assert list(found) == TASKS
        for task, scores in found.items():
            expected = trained_run.results["tasks"][task]["systems"]["module"]["test"]
            assert scores.to_dict()["threshold"] == expected["threshold"]
            for metric, estimate in scores.to_dict()["metrics"].items():
                assert estimate == pytest.approx(expected["metrics"][metric], abs=1e-5), (task, metric)


def test_evaluation_encodes_nothing_twice(trained_run, tmp_path, monkeypatch):
    model = manyskills.load(trained_run.path)
    monkeypatch.setattr(vector_cache, "cache_folder", lambda: tmp_path)
    expected = model.evaluate(samples=5)
    assert not (tmp_path / "vectors").exists(), "so few tokens cost less than reading the weights"
    monkeypatch.setattr(vector_cache, "LEAST_TOKENS_ON_CPU", 1)
    assert model.evaluate(samples=5) == expected
    monkeypatch.setattr(WholeBackbone, "__call__", None)
    assert manyskills.load(trained_run.path).evaluate(samples=5) == expected
    assert set(model.evaluate(split="test", tasks=["flaky_tests"], samples=5)) == {"flaky_tests"}
    with pytest.raises(TypeError):
        model.evaluate(split="valid", samples=5)


def test_evaluation_of_some_tasks_some_rows_another_split(model):
    found = model.evaluate(split="valid", tasks=["flaky_tests"], limit=4, samples=5)
    assert list(found) == ["flaky_tests"]
    assert found["flaky_tests"].rows == 4


def test_vectors(model):
    vectors = model.encode(["a", "def b(): pass", "a"])
    assert vectors.shape == (3, 32)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert not np.allclose(vectors[0], vectors[1])
    np.testing.assert_allclose(vectors[1], model.encode(["def b(): pass"])[0], atol=1e-5)
    units = model.encode(["a", "b"], task="code_search")
    np.testing.assert_allclose(np.linalg.norm(units, axis=1), 1, rtol=1e-5)


def test_search_ranks_by_inner_product(model):
    candidates = [f"def add(a):\n    return a + {n}" for n in range(7)]
    found = model.search("add 3 to a number", candidates, top_k=4)
    query, vectors = (
        model.encode(["add 3 to a number"], task="code_search")[0],
        model.encode(candidates, task="code_search"),
    )
    scores = vectors @ query
    assert [index for index, _ in found] == np.argsort(-scores, kind="stable")[:4].tolist()
    assert [score for _, score in found] == pytest.approx(sorted(scores.tolist(), reverse=True)[:4], abs=1e-6)
    many = model.search_many(["x", "add 3 to a number"], candidates, top_k=4)
    assert [index for index, _ in many[1]] == [index for index, _ in found]
    assert len(model.search("x", candidates, top_k=100)) == 7


def test_nothing_asked_nothing_answered(model):
    assert model.predict("defect_detection", []) == []
    assert model.predict_proba("clone_detection", []).shape == (0,)
    assert model.encode([]).shape == (0, 32)
    assert model.encode([], task="code_search").shape == (0, 32)
    assert model.search("a", []) == []
    assert model.search_many([], ["a"]) == []


def test_a_text_with_half_a_surrogate_pair_has_a_vector(model):
    assert np.isfinite(model.encode(["a\ud800b", ""])).all()


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda m: m.predict("defect_detectoin", []), "was not trained on 'defect_detectoin'(.|\n)*'defect_detection'"),
        (lambda m: m.predict("code_search", [{"query": "a"}]), "ranks, it does not classify"),
        (lambda m: m.encode(["a"], task="flaky_tests"), "no vectors of its own"),
        (lambda m: m.search("a", ["b"], task="flaky_tests"), "no vectors of its own"),
        (lambda m: m.predict("flaky_tests", [{"code": "x"}, {"cod": "x"}]), "row 2: wanted column 'code'"),
        (lambda m: m.predict("flaky_tests", [{"code": 3}]), "row 1: wanted text"),
        (lambda m: m.evaluate("nowhere"), "nowhere"),
        (lambda m: m.evaluate(tasks=["nothing"]), "was not trained on 'nothing'"),
    ],
)
def test_mistakes_are_one_sentence(act, said, model):
    with pytest.raises(UserError, match=said):
        act(model)


def test_what_is_no_module(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        manyskills.load(tmp_path / "none")
    with pytest.raises(UserError, match="holds no trained module"):
        manyskills.load(tmp_path)


def test_loading_changes_nothing_in_a_run_that_goes_on(trained_run, tmp_path):
    """Between the two renames of a swap best/ is called best.old/; a reader must leave that to the writer."""
    run = shutil.copytree(trained_run.path, tmp_path / "run")
    (run / "best").rename(run / "best.old")
    (run / "best.tmp-99999999").mkdir()
    before = sorted(path.name for path in run.iterdir())
    assert list(manyskills.load(run).tasks) == TASKS
    assert sorted(path.name for path in run.iterdir()) == before


def test_train_takes_a_dictionary_and_a_file(backbone_folder, data_dir, tmp_path):
    values = {
        "backbone": backbone_folder("bert"), "tasks": ["defect_detection"], "data_dir": str(data_dir),
        "output_dir": str(tmp_path / "one"), "method": "frozen", "max_length": 40, "max_steps": 1, "baselines": [],
        "bootstrap_samples": 5,
    }  # fmt: skip
    one = manyskills.train(values)
    (tmp_path / "run.yaml").write_text(json.dumps(values | {"output_dir": str(tmp_path / "two")}))
    two = manyskills.train(tmp_path / "run.yaml")
    assert one.results["tasks"] == two.results["tasks"]
    with pytest.raises(UserError, match="holds a finished run"):
        manyskills.train(values)
    assert manyskills.train(values, overwrite=True).results["tasks"] == one.results["tasks"]


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_pairs_read_jointly(family, backbone_folder, data_dir, tmp_path):
    tasks = {"clone_detection": {"read": "joint"}, "defect_detection": {}}
    config = small_config(
        backbone_folder(family), data_dir, tmp_path / "run", tasks=tasks, max_length=60, max_steps=2, eval_steps=2
    )
    run = manyskills.train(config)
    model = manyskills.load(run.path)
    pair = {"code1": "def work(x): return x", "code2": "def other(y): return y + 1"}
    one, swapped, other = model.predict_proba(
        "clone_detection", [pair, {"code1": pair["code2"], "code2": pair["code1"]}, pair | {"code2": "z"}]
    )
    assert len({one, swapped, other}) == 3, "read in one sequence, order and either side count"
    assert model.predict("defect_detection", [{"code": "x"}])[0] in (0, 1)
    expected = run.results["tasks"]["clone_detection"]["systems"]["module"]["test"]["metrics"]["f1"]["value"]
    assert model.evaluate(samples=0)["clone_detection"].metrics["f1"].value == pytest.approx(expected, abs=1e-6)


def test_a_search_cannot_be_read_jointly(backbone_folder, data_dir, tmp_path):
    config = small_config(backbone_folder("bert"), data_dir, tmp_path / "run", tasks={"code_search": {"read": "joint"}})
    with pytest.raises(UserError, match=r"tasks\.code_search\.read"):
        manyskills.train(config)
    assert not (tmp_path / "run").exists()


def test_encoding_without_a_task_stays_within_the_backbone(backbone_folder, data_dir, tmp_path):
    config = small_config(
        backbone_folder("bert"), data_dir, tmp_path / "run", tasks={"defect_detection": {"max_length": 20}},
        max_length=500, max_steps=1, method="frozen", baselines=[],
    )  # fmt: skip
    model = manyskills.load(manyskills.train(config).path)
    assert np.isfinite(model.encode(["a b " * 400])).all()


class _Hub:
    """Takes calls in place of the hub."""

    def __init__(self, fail=None):
        self.calls, self.fail = [], fail

    def __call__(self, **_):
        return self

    def __getattr__(self, name):
        def call(*arguments, **options):
            if name == self.fail:
                raise OSError("Couldn't reach the hub\nmore")
            self.calls.append((name, arguments, options))
            return f"https://huggingface.co/{arguments[0]}" if arguments else None

        return call


def test_upload(model, monkeypatch, trained_run):
    hub = _Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", hub)
    assert model.push_to_hub("me/module") == "https://huggingface.co/me/module"
    (_, _, create), (_, _, folder), (_, _, tasks), (_, _, card) = hub.calls
    assert [name for name, *_ in hub.calls] == ["create_repo", "upload_folder", "upload_file", "upload_file"]
    assert folder["ignore_patterns"] == [tasks["path_in_repo"]] == ["tasks.json"]
    assert str(trained_run.path.parent) not in tasks["path_or_fileobj"].decode(), "no path of this machine"
    assert json.loads(tasks["path_or_fileobj"])["config"]["tasks"].keys() == model.tasks.keys()
    assert create["private"] is True
    assert folder["repo_id"] == card["repo_id"] == "me/module"
    assert {path.name for path in folder["folder_path"].iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "heads.safetensors", "tasks.json"
    }  # fmt: skip
    assert card["path_or_fileobj"] == trained_run.path / "README.md"
    assert card["path_in_repo"] == "README.md"


def test_upload_takes_no_readme_of_the_surroundings(trained_run, tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("my secret project")
    copy = shutil.copytree(trained_run.path / "best", tmp_path / "module")
    hub = _Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", hub)
    manyskills.load(copy).push_to_hub("me/module")
    assert [name for name, *_ in hub.calls] == ["create_repo", "upload_folder", "upload_file"]
    assert hub.calls[-1][2]["path_in_repo"] == "tasks.json"


@pytest.mark.parametrize("where", ["create_repo", "upload_folder", "upload_file"])
def test_a_hub_that_refuses_is_one_sentence(where, model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", _Hub(where))
    with pytest.raises(UserError) as error:
        model.push_to_hub("me/module", private=False)
    assert error.value.message == "me/module cannot be uploaded: Couldn't reach the hub"
    assert "hf auth login" in str(error.value.hint)


def test_uploading_without_the_hubs_library_is_one_sentence(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="me/module: uploading to the hub needs huggingface_hub, which is not") as error:
        model.push_to_hub("me/module")
    assert "pip install huggingface_hub" in str(error.value.hint)
