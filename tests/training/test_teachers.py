"""Runs as teachers: what they are asked, what they answer, and that a run learns it."""

from __future__ import annotations

import gc
import json
import weakref

import numpy as np
import pytest
import torch

from manyskills.api import load
from manyskills.config import TrainConfig
from manyskills.data.sampling import Phase, Sampler
from manyskills.data.text_set import gather
from manyskills.errors import UserError
from manyskills.training import loop, teachers
from manyskills.training import run as run_module
from manyskills.training.distillation import annealed
from manyskills.training.forward import task_losses
from manyskills.training.plan import make_plan
from manyskills.training.run import load_inputs, train
from manyskills.training.teachers import find_teachers, rows_to_ask, teach
from tests.training.helpers import ALONE, CPU, TASKS, small_config

SEARCH, DEFECTS = "code_search", "defect_detection"


@pytest.fixture(scope="module")
def teacher(backbone_folder, data_dir, tmp_path_factory):
    """A run of three tasks on another backbone, with another template, length limit, pair reading and class balance."""
    config = small_config(
        backbone_folder("llama"), data_dir, tmp_path_factory.mktemp("teacher") / "run", max_length=24, baselines=[],
        tasks={SEARCH: {"head_hidden": 8}, DEFECTS: {"positive_weight": 3.0}, "clone_detection": {"read": "joint"}},
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run_module, "write_plots", lambda *_: None)
        return train(config, announce=lambda _: None).path


@pytest.fixture
def student(backbone_folder, data_dir, tmp_path, teacher):
    def make(*tasks, **changes):
        distillation = {"teachers": {name: str(teacher) for name in tasks or (SEARCH,)}, **changes.pop("how", {})}
        values = {"baselines": [], "distillation": distillation, **changes}
        return small_config(backbone_folder("bert"), data_dir, tmp_path / "run", **values)

    return make


def _taught(config):
    model, prepared = load_inputs(config, CPU)
    return model, prepared, teach(config, prepared, ALONE, lambda _: None)


def test_a_classifying_teachers_answers_are_those_that_it_gives_anybody(student, teacher):
    _, prepared, taught = _taught(student(DEFECTS, "clone_detection", max_steps=40))
    for name in (DEFECTS, "clone_detection"):
        teaching = taught.examples["train"][name].teaching
        assert teaching is not None
        rows = prepared.rows["train"][name].rows
        if name == "clone_detection":  # read_split keeps ids, the code is in the functions
            texts = [example.texts for example in prepared.rows["train"][name].examples()]
            rows = [{"code1": a, "code2": b} for a, b in texts]
        expected = load(teacher, device="cpu").predict_proba(name, rows)
        found = torch.sigmoid(torch.from_numpy(teaching.answers())).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert taught.examples["train"][SEARCH].teaching is None
    assert taught.examples["valid"] is prepared.examples["valid"]


def test_a_search_teacher_answers_with_its_own_sides(student, teacher):
    _, prepared, taught = _taught(student(SEARCH, max_steps=40))
    teaching = taught.examples["train"][SEARCH].teaching
    assert teaching is not None
    module = load(teacher, device="cpu")
    rows = prepared.rows["train"][SEARCH].rows
    queries, codes = (module.encode([row[key] for row in rows], task=SEARCH) for key in ("query", "code"))
    answers = teaching.answers()
    scale = np.linalg.norm(answers[:, 0], axis=1)
    np.testing.assert_allclose(answers[:, 0] / scale[:, None], queries, atol=1e-5)
    np.testing.assert_allclose(answers[:, 1], codes, atol=1e-5)
    assert scale == pytest.approx(scale[0])
    assert 15 < scale[0] < 25, "the teacher's own scale"


@pytest.mark.parametrize("stopping", [None, {"patience": 1}, {"patience": 2}])
@pytest.mark.parametrize("sampling", ["round_robin", "alternating", "temperature"])
def test_only_rows_that_the_run_may_draw_are_asked(stopping, sampling, student):
    config = student(max_steps=5, eval_steps=1, batch_size=4, early_stopping=stopping, sampling=sampling)
    _, prepared = load_inputs(config, CPU)
    train_examples = prepared.examples["train"]
    asked = rows_to_ask(config, train_examples, [SEARCH])[SEARCH]
    sampler = Sampler(train_examples, config.sampling, 4, config.seed)

    def drawn(*phases):
        steps = (sampler.rows_at(step, phases).get(SEARCH, []) for step in range(5))
        return set(np.concatenate([np.asarray(rows, dtype=int) for rows in steps]).tolist())

    everybody = Phase(0, tuple(TASKS))
    first = 5 if stopping is None else stopping["patience"]
    assert drawn(everybody) <= drawn(everybody, Phase(first, (SEARCH,))) == set(asked.tolist())
    assert len(asked) < 24
    for others in ((SEARCH, "flaky_tests"), (SEARCH, "clone_detection", DEFECTS)):
        assert drawn(everybody, Phase(first, others), Phase(first + 1, (SEARCH,))) <= set(asked.tolist())


def test_the_loss_of_a_step_is_the_labels_and_the_teachers(student):
    config = student(SEARCH, DEFECTS, max_steps=40, how={"weight": 0.8})
    model, prepared, taught = _taught(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.eval().heads.parameters():  # an untrained head's answers cost as much whoever is right
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    vectors_ND = torch.randn(200, 32, generator=generator)

    def losses(examples, done=0.0):
        texts = gather(annealed(examples["train"], config.distillation, done))
        with torch.no_grad():
            found = task_losses(model, texts, vectors_ND[: len(texts.unique_N)])
        return {name: loss.value.item() for name, loss in found.items()}, {n: loss.chance for n, loss in found.items()}

    labels, chance = losses(prepared.examples)
    (start, same), (half, _), (end, _) = (losses(taught.examples, done) for done in (0, 0.5, 1))
    assert end == pytest.approx(labels)
    assert same == chance
    for name in TASKS:
        if name in (SEARCH, DEFECTS):
            assert start[name] != pytest.approx(labels[name], rel=1e-3)
            assert half[name] == pytest.approx((start[name] + labels[name]) / 2, rel=1e-5)
        else:
            assert start[name] == labels[name]


def test_a_student_comes_to_answer_as_its_teacher(student, teacher):
    """With wrong labels it could not come from anywhere else."""
    how = {"weight": 1.0, "anneal": False}
    tasks = {DEFECTS: {"head_dropout": 0.0}}
    config = student(DEFECTS, tasks=tasks, how=how, max_steps=60, eval_steps=60, method="full", learning_rate=5e-3)
    _, prepared, taught = _taught(config)
    teaching = taught.examples["train"][DEFECTS].teaching
    assert teaching is not None
    rows = prepared.rows["train"][DEFECTS].rows
    expected = torch.sigmoid(torch.from_numpy(teaching.answers())).numpy()
    train(config, announce=lambda _: None)
    found = load(f"{config.output_dir}/last", device="cpu").predict_proba(DEFECTS, rows)
    assert np.corrcoef(found, expected)[0, 1] > 0.9


@pytest.mark.parametrize("memory", ["cached", "single_pass"])
def test_a_killed_run_with_teachers_continues_to_the_same_weights(memory, student, monkeypatch, tmp_path):
    monkeypatch.setattr(run_module, "write_plots", lambda *_: None)
    config = student(
        SEARCH, DEFECTS, "clone_detection", step_memory=memory, max_steps=4, eval_steps=2, batch_size=8,
        early_stopping={"patience": 1}, method={"name": "lora", "r": 2, "lora_dropout": 0.2},
    )  # fmt: skip
    whole = config.model_copy(update={"output_dir": str(tmp_path / "whole")})
    train(whole, announce=lambda _: None)
    real, calls = loop.accumulate_gradients, []

    def dying(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "accumulate_gradients", dying)
        with pytest.raises(KeyboardInterrupt):
            train(config, announce=lambda _: None)
    train(config, resume=True, announce=lambda _: None)
    for name in ("adapter_model.safetensors", "heads.safetensors"):
        assert (tmp_path / "run" / "last" / name).read_bytes() == (tmp_path / "whole" / "last" / name).read_bytes()


def test_heads_on_the_frozen_backbone_learn_from_labels_alone(student):
    config = student(baselines=["frozen"], heads_first=True, max_steps=2)
    results = train(config, announce=lambda _: None).results
    alone = json.loads((run_module.RunFolder(config.output_dir).baselines / "frozen/best/tasks.json").read_text())
    assert alone["config"]["distillation"] is None
    assert results["config"]["distillation"]["teachers"].keys() == {SEARCH}


def test_a_teacher_that_cannot_teach_is_refused_before_anything_is_written(student, teacher, tmp_path):
    def refused(config, said):
        for start in (train, make_plan):
            with pytest.raises(UserError, match=said):
                start(config)
        assert not (tmp_path / "run").exists()

    refused(student(how={"teachers": {SEARCH: str(tmp_path / "none")}}), "teachers.code_search: .*none is not a folder")
    refused(student(how={"teachers": {SEARCH: str(tmp_path)}}), "teachers.code_search: .* holds no trained module")
    unknown = student(how={"teachers": {"flaky_tests": str(teacher)}})
    refused(unknown, "teachers.flaky_tests: the run in .* was not trained on flaky_tests, only on code_search")


def test_a_teacher_for_a_task_that_the_run_does_not_have_is_refused(student):
    values = student().model_dump() | {"tasks": ["flaky_tests"]}
    with pytest.raises(ValueError, match=r"distillation.teachers: code_search is no task of this run"):
        TrainConfig.model_validate(values)


def test_a_checkpoint_folder_may_teach(student, teacher):
    config = student(how={"teachers": {SEARCH: str(teacher / "last")}})
    assert find_teachers(config) == {SEARCH: teacher / "last"}
    assert find_teachers(student()) == {SEARCH: teacher / "best"}


def test_a_teacher_is_in_memory_only_while_it_answers(student, monkeypatch):
    held, real = [], teachers.load_model

    def watched(*arguments):
        model = real(*arguments)
        held.append(weakref.ref(model))
        return model

    monkeypatch.setattr(teachers, "load_model", watched)
    _taught(student(SEARCH, DEFECTS, "clone_detection"))
    gc.collect()
    assert [reference() for reference in held] == [None] * 3
