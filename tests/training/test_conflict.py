"""When a run warns of its tasks, and when it must not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from manyskills.data.sampling import Phase
from manyskills.data.text_set import Examples
from manyskills.tasks import get_task
from manyskills.training import forward
from manyskills.training.balancing import TaskLoss
from manyskills.training.conflict import RECENT, WINDOW, Watch, clear_drop, metric_rows
from manyskills.training.progress import Progress
from manyskills.training.run import train
from tests.training.helpers import TASKS, small_config

ROWS = {"a": 1000, "b": 1000, "c": 1000}
CHANCE = {"a": 1.0, "b": 1.0, "c": 1.0}
ONE = {"a": 1.0, "b": 1.0, "c": 1.0}


def _kinds(watch):
    return [(warning.kind, warning.task) for warning in watch.warnings]


def _steps(watch, weights, active="abc"):
    said = []
    for step, now in enumerate(weights, start=1):
        said += watch.weighed(step, now) + watch.stepped(step, list(now), tuple(active))
    return said


def _measures(watch, norms, factors=ONE, losses=CHANCE):
    return [
        warning
        for step, now in enumerate(norms, start=1)
        for warning in watch.measured(step, now, factors, losses)
    ]  # fmt: skip


def _validations(watch, values, rows=ROWS):
    return [
        warning
        for step, row in enumerate(values)
        for warning in watch.validated(10 * step, dict(zip("abc", row, strict=True)), rows)
    ]


def test_a_collapsed_weight_is_announced_once():
    watch = Watch()
    said = _steps(watch, [{"a": 0.994, "b": 0.006}] * 20)
    assert [warning.step for warning in said] == [RECENT]
    assert said[0].sentence == (
        "warning: step 5: the weight of b has collapsed to 0.60%; it is hardly trained any more "
        "(balancing=uniform does not do this)"
    )
    assert _kinds(watch) == [("collapse", "b")]
    pushed_away = Watch()
    _steps(pushed_away, [{"a": 0.9, "b": -0.1}] * RECENT)
    assert _kinds(pushed_away) == [("collapse", "b")]


@pytest.mark.parametrize(
    "weights",
    [
        [{"a": 0.5, "b": 0.5}] * 30,
        [{"a": 0.985, "b": 0.015}] * 30,
        [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}] * 30,  # a rule on gradients may leave out a task for a step
        [{"a": 1.0, "b": 0.0}] * (RECENT - 1),
        [{"a": 1.0}] * 30,
    ],
)
def test_weights_that_are_no_collapse(weights):
    assert _steps(Watch(), weights, active="a") == []


def test_a_short_gradient_starves():
    watch = Watch()
    said = _measures(watch, [{"a": 1.0, "b": 1.0, "c": 0.05}] * 12)
    assert [(warning.kind, warning.task, warning.step) for warning in said] == [("starvation", "c", RECENT)]
    assert "its gradient makes 2.44% of the update, an equal share is 33%" in said[0].text


def test_what_counts_is_the_length_in_the_update():
    norms = [{"a": 1.0, "b": 1.0, "c": 0.05}] * 6
    assert _measures(Watch(), norms, factors={"a": 0.05, "b": 0.05, "c": 1.0}) == []
    watch = Watch()
    _measures(watch, [ONE] * 6, factors={"a": 1.0, "b": 1.0, "c": 0.01})
    assert _kinds(watch) == [("starvation", "c")]


@pytest.mark.parametrize(
    "norms",
    [
        [ONE] * 12,
        [{"a": 1.0, "b": 1.0, "c": 0.12}] * 12,
        [{"a": 1.0, "b": 1.0, "c": 0.01}] * (RECENT - 1),
        [{"a": 1.0, "b": 1.0, "c": 0.01}, ONE] * 12,
        [{"a": 0.01}, {"b": 1.0}, {"c": 9.0}] * 12,  # steps of one task each
        [{"a": 0.0, "b": 0.0, "c": 0.0}] * 12,
        [{"a": float("nan"), "b": 1.0, "c": 1.0}] * 12,
    ],
)
def test_gradients_that_do_not_starve(norms):
    assert _measures(Watch(), norms) == []


def test_a_task_that_is_learnt_does_not_starve():
    norms = [{"a": 1.0, "b": 1.0, "c": 0.01}] * 12
    assert _measures(Watch(), norms, losses={"a": 0.5, "b": 0.5, "c": 0.01}) == []
    assert len(_measures(Watch(), norms, losses={"a": 0.5, "b": 0.5, "c": 0.5})) == 1


def test_absence_from_a_step_is_not_counted_as_a_short_gradient():
    watch = Watch()
    said = _measures(watch, [{"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 1.0, "c": 0.01}] * RECENT)
    assert [warning.step for warning in said] == [2 * RECENT]


def _drawn(every, others=("a", "b")):
    return [
        dict.fromkeys([*others, "c"] if step % every == 0 else others, 0.4)
        for step in range(2 * WINDOW)
    ]  # fmt: skip


def test_a_task_that_is_hardly_drawn_starves():
    said = _steps(Watch(), _drawn(every=25))
    assert [(warning.kind, warning.task, warning.step) for warning in said] == [("starvation", "c", WINDOW)]
    assert "c starves: it was in 2 of the last 50 steps" in said[0].sentence
    assert "sampling=round_robin" in said[0].hint


def test_sampling_that_does_not_starve():
    assert _steps(Watch(), _drawn(every=10)) == []
    assert _steps(Watch(), _drawn(every=25), active="ab") == [], "a task that stopped is not drawn on purpose"
    assert _steps(Watch(), _drawn(every=25)[: WINDOW - 1]) == []
    tasks = "abcdefghijkl"
    in_turn = [{tasks[step % len(tasks)]: 1.0} for step in range(200)]
    assert _steps(Watch(), in_turn, active=tasks) == []


def test_a_task_that_worsens_while_the_others_improve():
    watch = Watch()
    said = _validations(watch, [(0.5, 0.5, 0.5), (0.6, 0.7, 0.5), (0.65, 0.6, 0.5), (0.7, 0.6, 0.5), (0.75, 0.5, 0.5)])
    assert [(warning.kind, warning.task, warning.step) for warning in said] == [("worsening", "b", 30)]
    assert said[0].text == "b has worsened from 0.7000 at step 10 to 0.6000, while a improved"
    assert "keep_task_best" in said[0].hint


@pytest.mark.parametrize(
    "values",
    [
        [(0.5, 0.7, 0.5), (0.6, 0.6, 0.6), (0.7, 0.7, 0.7), (0.8, 0.6, 0.8), (0.9, 0.7, 0.9)],  # not twice in a row
        [(0.5, 0.7, 0.5), (0.6, 0.68, 0.6), (0.7, 0.68, 0.7), (0.8, 0.68, 0.8)],  # no more than noise
        [(0.5, 0.5, 0.5), (0.7, 0.7, 0.7), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)],  # everything worsens
        [(0.5, 0.5, 0.5), (0.6, 0.7, 0.6), (0.6, 0.6, 0.6), (0.6, 0.6, 0.6)],  # the others only stand still
        [(0.5, 0.5, 0.5), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)],
    ],
)
def test_validations_that_are_no_worsening(values):
    assert _validations(Watch(), values) == []


def test_one_task_alone_cannot_be_hurt():
    watch = Watch()
    for step, value in enumerate([0.5, 0.9, 0.5, 0.4]):
        watch.validated(step, {"a": value}, {"a": 1000})
    watch.stepped(1, ["a"], ("a",))
    watch.weighed(1, {"a": 1.0})
    watch.measured(1, {"a": 1.0}, {"a": 1.0}, {"a": 1.0})
    assert _kinds(watch) == []


def test_few_rows_need_a_greater_fall():
    fall = [(0.5, 0.9, 0.5), (0.6, 0.75, 0.6), (0.7, 0.75, 0.7)]
    assert len(_validations(Watch(), fall)) == 1
    assert _validations(Watch(), fall, {"a": 20, "b": 20, "c": 20}) == []
    assert clear_drop(1.0, 8) > 0.2, "a perfect score on few rows is no certainty"
    assert clear_drop(0.8, 10**6) == 0.02
    assert clear_drop(0.5, 0) > 0.5


@pytest.mark.parametrize("rows", [100, 1000])
def test_noise_does_not_warn(rows):
    """A task that stands still, of whose answers one in six changes by chance between two validations."""
    generator, warned = np.random.default_rng(0), 0
    for _ in range(60):
        margins, watch = generator.normal(0.8, 1, rows), Watch()
        for step in range(11):
            right = margins + generator.normal(0, 0.5, rows) > 0
            watch.validated(step, {"a": float(right.mean()), "b": step / 20, "c": step / 20}, ROWS | {"a": rows})
        warned += len(watch.warnings)
    assert warned <= 2


def test_what_a_metric_rests_on():
    texts_EK, labels_E = np.zeros((4, 1), dtype=np.int64), np.array([1, 0, 0, 0], dtype=np.float32)
    examples = {
        "flaky_tests": Examples(get_task("flaky_tests"), texts_EK, labels_E),
        "defect_detection": Examples(get_task("defect_detection"), texts_EK, labels_E),
        "code_search": Examples(get_task("code_search"), texts_EK, None),
    }
    assert metric_rows(examples) == {"flaky_tests": 1, "defect_detection": 4, "code_search": 4}


@pytest.mark.parametrize("cut", [1, 4, 7, 55])
def test_a_resumed_run_neither_repeats_nor_forgets(cut):
    """Through the JSON of a checkpoint, wherever the run is cut."""

    def feed(progress, steps):
        said = []
        for step in steps:
            primary = {"a": step / 100, "b": 0.9 - step / 100}
            weights = {"a": 0.995, "b": 0.005} | ({} if step % 30 else {"c": 0.5})
            said += progress.watch.stepped(step, list(weights), "abc") + progress.watch.weighed(step, weights)
            said += progress.watch.measured(step, {"a": 1.0, "b": 0.01}, ONE, CHANCE)
            said += progress.watch.validated(step, primary, ROWS)
        return said

    whole, parts = Progress([Phase(0, ("a", "b", "c"))]), Progress([Phase(0, ("a", "b", "c"))])
    expected = feed(whole, range(1, 80))
    said = feed(parts, range(1, cut))
    parts = Progress.from_dict(json.loads(json.dumps(parts.to_dict())))
    said += feed(parts, range(cut, 80))
    assert said == expected
    assert parts == whole
    assert {kind for kind, _ in _kinds(whole.watch)} == {"collapse", "starvation", "worsening"}


def test_a_run_writes_the_entry_the_plot_and_the_card(backbone_folder, data_dir, tmp_path):
    said: list[str] = []
    config = small_config(
        backbone_folder("bert"), data_dir, tmp_path / "run", max_steps=12, eval_steps=6, conflict_steps=2, baselines=[],
        balancing={"name": "fixed", "weights": dict(zip(TASKS, (1, 1, 1, 0.001), strict=True))},
    )  # fmt: skip
    run = train(config, announce=said.append)
    conflict = run.results["conflict"]
    assert conflict["steps"] == 7, "the first step, and every second one"
    assert conflict["weights"] == pytest.approx(dict(zip(TASKS, np.array([1, 1, 1, 0.001]) / 3.001, strict=True)))
    assert set(conflict["norms"]) == set(TASKS)
    assert sum(len(row) for row in conflict["cosines"].values()) == 6
    assert all(-1 <= value <= 1 for row in conflict["cosines"].values() for value in row.values())
    assert ("collapse", "code_search") in [(warning["kind"], warning["task"]) for warning in conflict["warnings"]]
    assert len([sentence for sentence in said if "has collapsed" in sentence]) == 1
    assert (run.path / "plots" / "conflict.png").stat().st_size > 1000
    card = (run.path / "README.md").read_text()
    assert "compared in 7 steps" in card
    assert "the weight of code_search has collapsed to 0.03%" in card


def test_a_single_task_has_no_conflict(backbone_folder, data_dir, tmp_path):
    config = small_config(
        backbone_folder("bert"), data_dir, tmp_path / "run", tasks=["code_search"], max_steps=2, baselines=[]
    )
    run = train(config, announce=lambda _: None)
    assert run.results["conflict"] == {
        "steps": 0, "cosines": {}, "negative": {}, "norms": {}, "weights": {"code_search": 1.0}, "warnings": []
    }  # fmt: skip
    assert not (run.path / "plots" / "conflict.png").exists()
    assert "## Conflict" not in Path(run.path / "README.md").read_text()


def _trained(backbone_folder, data_dir, tmp_path, **changes):
    """What a short run wrote of its steps, and what it announced."""
    said: list[str] = []
    options = {"max_steps": 12, "eval_steps": 12, "baselines": []} | changes
    run = train(small_config(backbone_folder("bert"), data_dir, tmp_path / "run", **options), announce=said.append)
    records = map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["kind"] == "train"], said


def test_a_weight_of_0_is_meant_and_no_collapse(backbone_folder, data_dir, tmp_path):
    weights = dict(zip(TASKS, (1, 1, 1, 0), strict=True))
    balancing = {"name": "fixed", "weights": weights}
    records, said = _trained(backbone_folder, data_dir, tmp_path, conflict_steps=1, balancing=balancing)
    assert {record["weights"]["code_search"] for record in records} == {0.0}
    assert not [sentence for sentence in said if sentence.startswith("warning: ") and "code_search" in sentence]


def test_a_small_factor_of_a_long_gradient_is_no_collapse(backbone_folder, data_dir, tmp_path, monkeypatch):
    losses = forward.task_losses

    def one_is_long(*given):
        found = losses(*given)
        long = found["defect_detection"]
        return found | {"defect_detection": TaskLoss(1e5 * long.value, long.chance)}

    monkeypatch.setattr(forward, "task_losses", one_is_long)
    records, said = _trained(backbone_folder, data_dir, tmp_path, heads_first=True, balancing="nash_mtl")
    assert max(record["weights"]["defect_detection"] for record in records) < 0.01
    assert not [sentence for sentence in said if "has collapsed" in sentence]


def test_norms_are_those_of_scaled_losses_whatever_is_balanced(backbone_folder, data_dir, tmp_path):
    found = {}
    for losses in ("scaled", "raw"):
        records, _ = _trained(
            backbone_folder, data_dir, tmp_path / losses, max_steps=1, heads_first=True,
            balancing={"name": "uniform", "losses": losses},
        )  # fmt: skip
        found[losses] = records[0]["gradient_norms"]
    assert found["raw"] == pytest.approx(found["scaled"], rel=1e-4)
    assert min(found["raw"].values()) > 0


def test_gradients_that_would_fill_the_memory_are_announced_as_not_measured(
    backbone_folder, data_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr("manyskills.training.loop.MEASURED", 10)  # says so
    monkeypatch.setattr("manyskills.training.measuring.MEASURED", 10)  # does so
    options = {"backbone_folder": backbone_folder, "data_dir": data_dir, "max_steps": 2}
    for name, changes, expected in [
        ("default", {}, 1), ("asked", {"conflict_steps": 1}, 0), ("rule", {"balancing": "pcgrad"}, 0)
    ]:  # fmt: skip
        records, said = _trained(tmp_path=tmp_path / name, **options, **changes)
        sentences = [sentence for sentence in said if "gradients are not measured" in sentence]
        assert len(sentences) == expected
        assert all("conflict_steps=1 measures them" in sentence for sentence in sentences)
        assert ("gradient_norms" in records[0]) != bool(expected)
