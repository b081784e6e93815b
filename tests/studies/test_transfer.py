"""The negative transfer report on run folders written by hand, and on two real ones."""

from __future__ import annotations

import json

import numpy as np
import pytest

from manyskills.errors import UserError
from manyskills.studies.runs import read_answers, read_run
from manyskills.studies.transfer import transfer
from manyskills.studies.transfer_plot import plot_transfer
from manyskills.studies.transfer_report import Transfer
from manyskills.studies.transfer_text import gain_text, p_text, render_markdown, task_sentences
from tests.studies.helpers import change_json, write_lines, write_run
from tests.training.helpers import small_config

ROWS = 60
LABELS = [int(n % 3 == 0) for n in range(ROWS)]


def wrong_on(*places):
    """Decisions that are right but for these rows."""
    return [1 - label if n in places else label for n, label in enumerate(LABELS)]


def ranks(first):
    return [first if n % 2 else 1.0 for n in range(ROWS)]


@pytest.fixture
def folders(tmp_path):
    """Two multi-task runs, worse at flaky tests, better at search and equal at defects; three single-task runs."""
    multi = [
        write_run(
            tmp_path / f"multi{seed}",
            {
                "flaky_tests": wrong_on(*range(3 + seed, 28)),
                "defect_detection": wrong_on(1, 2, 3),
                "code_search": ranks(2.0),
            },
            seed=seed,
        )
        for seed in (0, 1)
    ]
    single = [
        write_run(tmp_path / "flaky", {"flaky_tests": wrong_on(50)}),
        write_run(tmp_path / "defect", {"defect_detection": wrong_on(1, 2, 3)}),
        write_run(tmp_path / "search", {"code_search": ranks(4.0)}),
    ]
    return multi, single


def f1(decisions):
    hits = sum(label and answer for label, answer in zip(LABELS, decisions, strict=True))
    return 2 * hits / (sum(LABELS) + sum(decisions))


def test_values_verdicts_and_gain(folders):
    report = transfer(*folders)
    flaky, defect, search = report.tasks
    together = [f1(wrong_on(*range(start, 28))) for start in (3, 4)]
    assert flaky.multi_values == pytest.approx(together)
    assert flaky.comparison.difference.value == pytest.approx(np.mean(together) - f1(wrong_on(50)))
    assert flaky.range_over_runs == pytest.approx((min(together) - f1(wrong_on(50)), max(together) - f1(wrong_on(50))))
    assert [task.verdict for task in report.tasks] == ["hurts", "no difference found", "helps"]
    assert [task.on_these_runs for task in report.tasks] == [True, False, True], "alone there is one seed only"
    assert (defect.comparison.p_value, defect.corrected_p) == (1.0, 1.0)
    assert search.comparison.difference.value == pytest.approx(0.75 - 0.625)
    assert (search.comparison.better, search.comparison.worse) == (30, 0)
    smallest = 1 / 10_001
    assert search.comparison.p_value == pytest.approx(smallest)
    assert max(flaky.corrected_p, search.corrected_p) <= 3 * 3 * smallest
    gains = [np.mean(together) / f1(wrong_on(50)) - 1, 0, 0.75 / 0.625 - 1]
    assert report.relative_gain.value == pytest.approx(np.mean(gains))
    assert report.relative_gain.low < report.relative_gain.value < report.relative_gain.high
    assert any("one seed only for flaky_tests, defect_detection, code_search alone" in note for note in report.notes)


@pytest.mark.parametrize(("second", "words"), [(2.0, "helps"), (4.0, "helps on these runs")])
def test_a_verdict_is_about_the_recipe_only_where_every_pair_of_runs_agrees(second, words, tmp_path):
    defect = {"defect_detection": wrong_on(1)}
    ranks_by_seed = [ranks(1.0), ranks(second)]
    multi = [write_run(tmp_path / f"m{n}", defect | {"code_search": ranks_by_seed[n]}, seed=n) for n in (0, 1)]
    single = [write_run(tmp_path / f"s{n}", {"code_search": ranks(4.0)}, seed=n) for n in (0, 1)]
    report = transfer(multi, [*single, write_run(tmp_path / "d", defect)])
    assert report.tasks[1].verdict == "helps"
    assert report.tasks[1].verdict_words == words
    assert f"| {words} |" in render_markdown(report)


def test_the_order_of_the_folders_does_not_matter(tmp_path):
    """Runs of one seed change answers with each other."""
    defect = {"defect_detection": wrong_on(1)}
    multi = [write_run(tmp_path / f"m{n}", defect | {"flaky_tests": wrong_on(n, 7, 30)}, seed=n) for n in range(3)]
    single = [write_run(tmp_path / f"s{n}", {"flaky_tests": wrong_on(n, n + 20, 45, 48)}, seed=n) for n in range(3)]
    alone = write_run(tmp_path / "d", defect)
    assert transfer(multi, [*single, alone]) == transfer(multi[::-1], [single[1], alone, single[2], single[0]])


def test_runs_whose_means_differ_though_no_row_does_on_average(tmp_path):
    """F1 of the mean over runs is no mean over rows: two middling runs against a good and a bad one."""
    defect = {"defect_detection": wrong_on(1)}
    wrong = [*range(3, 60, 3)]
    halves = [wrong[::2], wrong[1::2]]
    multi = [write_run(tmp_path / f"m{n}", defect | {"flaky_tests": wrong_on(*halves[n])}, seed=n) for n in (0, 1)]
    single = [write_run(tmp_path / f"s{n}", {"flaky_tests": wrong_on(*(wrong * n))}, seed=n) for n in (0, 1)]
    flaky = transfer(multi, [*single, write_run(tmp_path / "d", defect)]).tasks[1]
    assert (flaky.comparison.better, flaky.comparison.worse) == (0, 0)
    assert flaky.comparison.difference.value > 0.1
    assert flaky.comparison.p_value < 1
    assert "none of 60 rows is answered better or worse on average over the runs" in task_sentences(flaky)


def test_rows_are_paired_by_id_whatever_their_order(folders):
    before = transfer(*folders)
    path = folders[1][0] / "predictions" / "flaky_tests.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[::-1]))
    assert transfer(*folders) == before


def test_json_and_back(folders):
    report = transfer(*folders)
    written = json.dumps(report.to_dict(), allow_nan=False)
    assert Transfer.from_dict(json.loads(written)) == report


def test_text_and_plot(folders, tmp_path):
    report = transfer(*folders)
    text = render_markdown(report)
    assert "| flaky_tests | F1 |" in text
    assert "| hurts on these runs |" in text
    assert "corrected < 0.001: hurts on these runs (" in task_sentences(report.tasks[0])
    assert "| no difference found |" in text
    assert "A verdict is one on these runs where a side has one seed only" in text
    assert "defect_detection: no row is answered better or worse (0.950 accuracy): p 1, no difference found." in text
    assert "of 60 rows 30 differ, 30 for the better" in text
    assert gain_text(report) in text
    for name in ("one.png", "two.png"):
        plot_transfer(report, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_a_metric_that_is_undefined_or_zero_is_said_not_hidden(tmp_path):
    none, all_ = [0] * 6, [1] * 6
    multi = write_run(tmp_path / "multi", {"flaky_tests": none, "defect_detection": none}, labels=none)
    single = [
        write_run(tmp_path / "flaky", {"flaky_tests": all_}, labels=none),
        write_run(tmp_path / "defect", {"defect_detection": all_}, labels=none),
    ]
    # labels=none is empty of positives: F1 together is 0/0, alone 0; accuracy alone is 0
    report = transfer([multi], single)
    assert report.tasks[0].comparison.difference.value is None
    assert report.tasks[0].verdict == "no difference found"
    assert report.relative_gain.value is None
    assert "undefined" in gain_text(report)
    assert "undefined" in task_sentences(report.tasks[0])
    json.dumps(report.to_dict(), allow_nan=False)
    plot_transfer(report, tmp_path / "plot.png")


@pytest.mark.parametrize(
    ("p", "text"), [(0.00001, "< 0.001"), (0.0123, "0.012"), (0.0499, "0.0499"), (0.05, "0.05"), (0.126, "0.13")]
)
def test_p_is_not_rounded_over_the_level(p, text):
    assert p_text(p) == text


def break_ids(multi, single):
    path = single[0] / "predictions" / "flaky_tests.jsonl"
    path.write_text(path.read_text().replace('"r7"', '"other"'))


def break_labels(multi, single):
    labels = [1 - label if n == 3 else label for n, label in enumerate(LABELS)]
    path = single[0] / "predictions" / "flaky_tests.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    write_lines(path, [line | {"label": label} for line, label in zip(lines, labels, strict=True)])
    value = 2 * 19 / (sum(labels) + sum(wrong_on(50)))
    place = ("tasks", "flaky_tests", "systems", "module", "test", "metrics", "f1", "value")
    change_json(single[0] / "results.json", *place, value=value)


def drop_a_row(multi, single):
    path = single[2] / "predictions" / "code_search.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    mrr = np.mean([1 / rank for rank in ranks(4.0)[:-1]])
    place = ("tasks", "code_search", "systems", "module", "test", "metrics", "mrr", "value")
    change_json(single[2] / "results.json", *place, value=mrr)


def name_twice(multi, single):
    path = single[0] / "predictions" / "flaky_tests.jsonl"
    path.write_text(path.read_text().replace('"r7"', '"r8"'))


def other_test_rows(multi, single):
    change_json(single[0] / "results.json", "data", "test", "flaky_tests", value="other")


def other_training_rows(multi, single):
    change_json(single[1] / "results.json", "data", "train", "defect_detection", value="other")


def limited_test_rows(multi, single):
    limit = {"flaky_tests": {"limit": {"train": None, "valid": None, "test": 60}}}
    change_json(multi[1] / "results.json", "data", "test", "flaky_tests", value="other")
    for run in multi:
        names = ("defect_detection", "code_search")
        change_json(run / "results.json", "config", "tasks", value=limit | {name: {} for name in names})


def other_settings(multi, single):
    change_json(multi[1] / "results.json", "config", "learning_rate", value=0.5)


def same_seed(multi, single):
    change_json(multi[1] / "results.json", "config", "seed", value=0)


def stale_predictions(multi, single):
    place = ("tasks", "flaky_tests", "systems", "module", "test", "metrics", "f1", "value")
    change_json(multi[1] / "results.json", *place, value=0.123)


def other_metric(multi, single):
    change_json(single[0] / "results.json", "tasks", "flaky_tests", "primary_metric", value="accuracy")


def area_metric(multi, single):
    for run in (*multi, single[0]):
        change_json(run / "results.json", "tasks", "flaky_tests", "primary_metric", value="roc_auc")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (break_ids, "answer different rows: r7 is only in the latter"),
        (break_labels, "have different labels for row r3"),
        (drop_a_row, "answer different rows: q59 is only in the latter"),
        (name_twice, "names a row twice"),
        (other_test_rows, "the test rows of flaky_tests differ"),
        (other_training_rows, "the train rows of defect_detection differ"),
        (limited_test_rows, "limit.test"),
        (other_settings, r"differ in learning_rate \(0.001 against 0.5\)"),
        (same_seed, "have the same tasks and the same seed, 0"),
        (stale_predictions, "results.json says 0.1230"),
        (other_metric, "measures flaky_tests by accuracy"),
        (area_metric, "roc_auc is no metric of decisions"),
        (lambda multi, single: (multi[0] / "results.json").unlink(), "holds no finished run"),
        (lambda multi, single: (multi[0] / "results.json").write_text("{}"), "is not what manyskills writes"),
        (lambda multi, single: (single[0] / "predictions" / "flaky_tests.jsonl").unlink(), "is missing"),
        (lambda multi, single: (single[0] / "predictions" / "flaky_tests.jsonl").write_text("x"), "is not what"),
        (lambda multi, single: single.pop(), "there is no single-task run of code_search"),
        (lambda multi, single: single.append(multi[0]), "holds 3 tasks"),
        (lambda multi, single: multi.append(single[0]), "holds one task"),
        (lambda multi, single: multi.append(multi[0]), "is given twice"),
        (lambda multi, single: multi.append(multi[0] / "nowhere"), "is not a folder"),
        (lambda multi, single: multi.clear(), "there is no multi-task run"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(damage, said, folders):
    damage(*folders)
    with pytest.raises(UserError, match=said):
        transfer(*folders)


def test_training_rows_that_a_limit_draws_by_seed_may_differ(folders):
    multi, single = folders
    limits = {task: {"limit": {"train": 50}} for task in ("flaky_tests", "defect_detection", "code_search")}
    for run in (*multi, *single):
        change_json(run / "results.json", "config", "tasks", value=limits)
    for task in limits:
        change_json(multi[1] / "results.json", "data", "train", task, value="those of seed 1")
    assert len(transfer(multi, single).tasks) == 3


def test_other_settings_of_the_single_task_runs_are_told(folders):
    multi, single = folders
    change_json(single[0] / "results.json", "config", "learning_rate", value=0.5)
    change_json(single[0] / "results.json", "config", "sampling", value={"name": "proportional"})
    found = [note for note in transfer(multi, single).notes if "flaky_tests: " in note]
    assert found == [
        "flaky_tests: the multi-task and the single-task runs also differ in learning_rate (0.001 against 0.5)"
    ]


@pytest.mark.parametrize(
    ("sampling", "batch_size", "told"),
    [
        ({"name": "round_robin"}, 4, False),
        ({"name": "round_robin"}, 6, True),
        ({"name": "proportional"}, 6, False),
        ({"name": "alternating"}, 4, True),
    ],
)
def test_the_part_of_the_batch_is_no_other_setting(sampling, batch_size, told, tmp_path):
    """Of 8 rows a step flaky tests have 4 where tasks have equal shares, 6 where they have three times the rows."""
    answers = {"flaky_tests": wrong_on(1), "defect_detection": wrong_on(2)}
    multi = write_run(tmp_path / "multi", answers, config={"sampling": sampling})
    change_json(multi / "results.json", "tasks", "flaky_tests", "rows", "train", value=300)
    single = [
        write_run(tmp_path / "flaky", {"flaky_tests": wrong_on(3)}, config={"batch_size": batch_size}),
        write_run(tmp_path / "defect", {"defect_detection": wrong_on(2)}),
    ]
    notes = [note for note in transfer([multi], single).notes if note.startswith("flaky_tests: ")]
    said = f"flaky_tests: the multi-task and the single-task runs also differ in batch_size (8 against {batch_size})"
    assert notes == ([said] if told else [])


def test_trained_runs(trained_run, backbone_folder, data_dir, tmp_path):
    """The runs that training writes, end to end."""
    from manyskills.training.run import train

    single = []
    for task in trained_run.results["tasks"]:
        changes = {"tasks": [task], "max_steps": 2, "eval_steps": 1, "baselines": []}
        single.append(train(small_config(backbone_folder("bert"), data_dir, tmp_path / task, **changes)).path)
    report = transfer([trained_run.path], single)
    assert [found.task for found in report.tasks] == list(trained_run.results["tasks"])
    for found in report.tasks:
        written = trained_run.results["tasks"][found.task]["systems"]["module"]["test"]["metrics"]
        assert found.multi_values[0] == pytest.approx(written[found.comparison.metric]["value"])
        facts = found.multi_facts[0]
        assert facts.best_step == trained_run.results["training"]["best_step"]
        assert facts.rows_seen == facts.best_step * 16 / 4
        assert facts.lost_by_sharing >= 0
        assert facts.weight is not None
        assert found.single_facts[0].rows_seen == found.single_facts[0].best_step * 16
        assert len(facts.cosines) == (3 if facts.measured_steps else 0)
    assert all(found.task in render_markdown(report) for found in report.tasks)
    assert sum("also differ in max_steps (12 against 2), eval_steps (4 against 1)" in n for n in report.notes) == 4


def test_texts_are_no_decisions(tmp_path):
    run = write_run(tmp_path / "run", {"flaky_tests": [0, 1, 1]})
    found = read_run(run)
    found.results["tasks"]["flaky_tests"]["kind"] = "generate"
    with pytest.raises(UserError, match="flaky_tests is answered with texts"):
        read_answers(found, "flaky_tests")
