"""What a step holds: a function of seed, step and phases alone that draws every row once an epoch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from manyskills.config import AlternatingConfig, ProportionalConfig, RoundRobinConfig, TemperatureConfig
from manyskills.data.prompted import PromptExamples
from manyskills.data.sampling import Phase, Sampler, apportion, task_shares
from manyskills.data.text_set import Examples
from manyskills.tasks import get_task

SIZES = {"defect_detection": 48, "flaky_tests": 16, "code_search": 24, "clone_detection": 32}
ALL = tuple(SIZES)
MIXED = [RoundRobinConfig(), ProportionalConfig(), TemperatureConfig(temperature=2.0, cap=30)]
IN_TURN = [AlternatingConfig(), AlternatingConfig(temperature=2.0, cap=30), AlternatingConfig(temperature=1.0)]
RULES = [*MIXED, *IN_TURN]


def rule_id(rule):
    return f"{rule.name}-{getattr(rule, 'temperature', '')}"


def make_examples(sizes=SIZES, positive_rate=0.25):
    """Row n of a task holds the texts 2n and 2n + 1, so that drawn texts tell which rows were drawn."""
    found = {}
    for name, size in sizes.items():
        task = get_task(name)
        texts = np.arange(2 * size).reshape(size, 2)[:, : len(task.inputs)]
        labels = (np.arange(size) < positive_rate * size).astype(np.float32) if task.label else None
        found[name] = Examples(task, texts, labels)
    return found


def rows_of(batch, name):
    return (batch[name].texts_EK[:, 0] // 2).tolist() if name in batch else []


def sampler_of(rule=RULES[0], batch_size=16, seed=0, sizes=SIZES, **shares):
    return Sampler(make_examples(sizes), rule, batch_size, seed, shares)


WHOLE_RUN = (Phase(0, ALL),)


def drawn(sampler, steps, phases=WHOLE_RUN):
    return [{name: rows_of(sampler.at(step, phases), name) for name in ALL} for step in steps]


@pytest.mark.parametrize("rule", RULES, ids=rule_id)
def test_a_step_is_a_function_of_seed_and_step(rule):
    phases = (Phase(0, ALL), Phase(7, ALL[:2]), Phase(11, ALL[1:2]))
    expected = drawn(sampler_of(rule), range(25), phases)
    backwards = drawn(sampler_of(rule), range(24, -1, -1), phases)[::-1]
    again = [drawn(sampler_of(rule), [step], phases)[0] for step in (0, 24, 3)]
    assert expected == backwards
    assert again == [expected[0], expected[24], expected[3]]
    assert expected != drawn(sampler_of(rule, seed=1), range(25), phases)


def test_what_comes_later_does_not_change_earlier_steps():
    before = drawn(sampler_of(), range(8))
    after = drawn(sampler_of(), range(8), (Phase(0, ALL), Phase(8, ALL[:1])))
    assert before == after


@pytest.mark.parametrize("name", ALL)
def test_each_epoch_holds_each_row_once_and_in_another_order(name):
    steps = drawn(sampler_of(batch_size=32), range(3 * SIZES[name] // 8))  # 8 rows of each task a step
    rows = [row for step in steps for row in step[name]]
    epochs = [rows[start : start + SIZES[name]] for start in range(0, len(rows), SIZES[name])]
    assert len(epochs) == 3
    for epoch in epochs:
        assert sorted(epoch) == list(range(SIZES[name]))
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_row_that_straddles_two_epochs_counts_once():
    sampler = sampler_of(batch_size=40)  # 10 of 16 rows of flaky_tests a step
    counts = Counter(row for step in drawn(sampler, range(8)) for row in step["flaky_tests"])
    assert max(len(set(rows["flaky_tests"])) - len(rows["flaky_tests"]) for rows in drawn(sampler, range(8))) == 0
    assert set(counts) == set(range(16))
    assert 3 <= min(counts.values()) <= max(counts.values()) <= 5  # 80 draws are five epochs


def test_round_robin_gives_equal_counts():
    for step in drawn(sampler_of(batch_size=16), range(5)):
        assert {len(rows) for rows in step.values()} == {4}


def test_shares_follow_the_formula():
    sizes = {"a": 1000, "b": 100, "c": 10}
    assert task_shares(sizes, RoundRobinConfig()) == pytest.approx(dict.fromkeys(sizes, 1 / 3))
    assert task_shares(sizes, ProportionalConfig()) == pytest.approx(
        {"a": 1000 / 1110, "b": 100 / 1110, "c": 10 / 1110}
    )
    raw = np.array([200, 100, 10]) ** (1 / 3)
    found = task_shares(sizes, TemperatureConfig(temperature=3.0, cap=200))
    assert list(found.values()) == pytest.approx((raw / raw.sum()).tolist())
    assert task_shares(sizes, TemperatureConfig(temperature=1.0)) == pytest.approx(
        task_shares(sizes, ProportionalConfig())
    )
    capped = task_shares(sizes, TemperatureConfig(temperature=1.0, cap=100))
    assert capped == pytest.approx({"a": 100 / 210, "b": 100 / 210, "c": 10 / 210}), "a and b count alike"
    hot = task_shares(sizes, TemperatureConfig(temperature=1e6))
    assert list(hot.values()) == pytest.approx([1 / 3] * 3, abs=1e-4)


@pytest.mark.parametrize("rule", MIXED, ids=rule_id)
@pytest.mark.parametrize("batch_size", [1, 3, 7, 16])
def test_every_step_is_full_and_counts_keep_their_shares(rule, batch_size):
    sampler = sampler_of(rule, batch_size)
    counts = dict.fromkeys(ALL, 0)
    shares = task_shares(SIZES, rule)
    for done in range(1, 60):
        (step,) = drawn(sampler, [done - 1])
        seen = {name: len(rows) for name, rows in step.items()}
        assert batch_size - len(ALL) < sum(seen.values()) <= batch_size, "rows at an epoch's edge may count once"
        assert batch_size > 1 or sum(seen.values()) == 1, "a step is never empty"
        counts = {name: counts[name] + seen[name] for name in ALL}
    for name, share in shares.items():
        assert counts[name] == pytest.approx(share * 59 * batch_size, rel=0.05, abs=2)


@pytest.mark.parametrize("rule", IN_TURN, ids=rule_id)
@pytest.mark.parametrize("batch_size", [1, 8])
def test_alternating_steps_hold_one_task_and_its_turns_are_spread_evenly(rule, batch_size):
    steps = drawn(sampler_of(rule, batch_size), range(240))
    turns = [next(name for name in ALL if step[name]) for step in steps]
    for step, name in zip(steps, turns, strict=True):
        assert {other for other in ALL if step[other]} == {name}
        assert batch_size - 3 < len(step[name]) <= batch_size, "a row at an epoch's edge counts once"
    for name, share in task_shares(SIZES, rule).items():
        own = [-1, *(step for step, turn in enumerate(turns) if turn == name)]
        assert len(own) - 1 == pytest.approx(240 * share, abs=2)
        assert max(np.diff(own)) <= 2 / share, "nobody waits for more than two of its intervals"


def test_alternating_is_equal_or_tempered():
    assert task_shares(SIZES, AlternatingConfig()) == task_shares(SIZES, RoundRobinConfig())
    tempered = {"temperature": 3.0, "cap": 20}
    assert task_shares(SIZES, AlternatingConfig(**tempered)) == task_shares(SIZES, TemperatureConfig(**tempered))


def test_a_cap_without_a_temperature_is_refused():
    with pytest.raises(ValueError, match="cap: shares are equal without a temperature"):
        AlternatingConfig(cap=10)


@pytest.mark.parametrize("name", ALL)
def test_alternating_steps_go_through_each_tasks_epochs(name):
    steps = drawn(sampler_of(AlternatingConfig(), batch_size=8), range(4 * 3 * SIZES[name] // 8))
    rows = [row for step in steps for row in step[name]]
    epochs = [rows[start : start + SIZES[name]] for start in range(0, len(rows), SIZES[name])]
    assert [sorted(epoch) for epoch in epochs] == [list(range(SIZES[name]))] * 3
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_turns_of_a_task_that_leaves_go_to_the_others():
    phases = (Phase(0, ALL), Phase(8, ("defect_detection", "code_search")))
    steps = drawn(sampler_of(AlternatingConfig(), batch_size=8), range(14), phases)
    turns = [next(name for name in ALL if step[name]) for step in steps]
    assert set(turns[:4]) == set(turns[4:8]) == set(ALL)
    assert turns[8:] == ["defect_detection", "code_search"] * 3
    first = [row for step in steps for row in step["defect_detection"]]  # five turns of eight among 48 rows
    assert len(first) == len(set(first)) == 40, "its rows go on where they were"


@pytest.mark.parametrize("seed", range(5))
def test_apportioned_numbers_sum_up_never_fall_and_stay_near_their_shares(seed):
    raw = np.random.default_rng(seed).pareto(1.0, 6) + 0.01
    shares = dict(zip("abcdef", (raw / raw.sum()).tolist(), strict=True))
    before = dict.fromkeys(shares, 0)
    for total in range(300):
        counts = apportion(total, shares)
        assert sum(counts.values()) == total
        assert all(counts[name] >= before[name] for name in shares)
        assert all(abs(counts[name] - total * share) <= 3 for name, share in shares.items())
        before = counts


def test_a_batch_smaller_than_the_number_of_tasks_takes_them_in_turn():
    steps = drawn(sampler_of(batch_size=1), range(8))
    assert [sum(len(rows) for rows in step.values()) for step in steps] == [1] * 8
    assert {name: sum(len(step[name]) for step in steps) for name in ALL} == dict.fromkeys(ALL, 2)


def test_a_task_that_leaves_gives_its_share_to_the_others_and_loses_no_row():
    phases = (Phase(0, ALL), Phase(3, ("defect_detection", "code_search")))
    steps = drawn(sampler_of(batch_size=16), range(3 + 9), phases)
    for number, step in enumerate(steps):
        expected = 4 if number < 3 else 8
        for name in ("defect_detection", "code_search"):  # a row at an epoch's edge counts once
            assert expected - 3 < len(step[name]) <= expected
        assert bool(step["flaky_tests"]) == (number < 3)
    first = [row for step in steps[:7] for row in step["defect_detection"]]  # 12 + 32 draws of 48 rows
    assert len(first) == len(set(first)) == 44, "no row twice before all were drawn once"
    assert set(first) | set(steps[7]["defect_detection"]) == set(range(48)), "none is lost either"


def test_a_task_may_be_left_alone():
    (step,) = drawn(sampler_of(batch_size=8), [3], (Phase(0, ALL), Phase(2, ("flaky_tests",))))  # rows 12 to 20 of 16
    assert {name: len(rows) for name, rows in step.items() if rows}.keys() == {"flaky_tests"}
    assert 4 <= len(step["flaky_tests"]) <= 8


def test_a_tiny_task_gives_each_row_once_a_step():
    sizes = SIZES | {"flaky_tests": 3}
    for step in drawn(sampler_of(batch_size=64, sizes=sizes), range(6)):
        assert sorted(step["flaky_tests"]) == [0, 1, 2]


@pytest.mark.parametrize("share", [0.5, 0.3, 0.9])
def test_positive_share_decides_how_many_positives_are_drawn(share):
    sampler = sampler_of(batch_size=40, defect_detection=share)
    positives, total = 0, 0
    for step in drawn(sampler, range(12)):
        rows = step["defect_detection"]
        positives += sum(row < 12 for row in rows)  # the first quarter of 48 rows
        total += len(rows)
    assert 110 <= total <= 120, "a row that two epochs draw in one step counts once"
    assert positives / total == pytest.approx(share, abs=0.04)


def test_positive_share_draws_every_row_of_either_kind_before_any_twice():
    steps = drawn(sampler_of(batch_size=16, defect_detection=0.5), range(18))  # 36 positive, 36 negative draws
    rows = [row for step in steps for row in step["defect_detection"]]
    counts = Counter(rows)
    assert set(counts) == set(range(48))
    assert {counts[row] for row in range(12)} == {3}
    assert {counts[row] for row in range(12, 48)} == {1}


def test_positive_share_without_both_classes_is_no_share():
    examples = make_examples({"defect_detection": 8}, positive_rate=0)
    sampler = Sampler(examples, RULES[0], 4, 0, {"defect_detection": 0.5})
    rows = [
        row
        for step in (0, 1)
        for row in rows_of(sampler.at(step, [Phase(0, ("defect_detection",))]), "defect_detection")
    ]
    assert sorted(rows) == list(range(8))


def test_pairs_of_a_step_share_texts_and_joint_pairs_are_shuffled():
    generator = np.random.default_rng(0)
    task = get_task("clone_detection")
    pairs = generator.integers(0, 60, (960, 2))
    phases = [Phase(0, (task.name,))]

    def texts_a_step(texts_EK):
        sampler = Sampler({task.name: Examples(task, texts_EK, np.zeros(960, "f4"))}, RULES[0], 32, 0)
        return np.mean([len(np.unique(sampler.at(step, phases)[task.name].texts_EK)) for step in range(30)])

    assert texts_a_step(pairs) < 30
    assert texts_a_step(np.arange(960)[:, None]) == 32


def test_tasks_whose_answers_are_written_are_drawn_beside_the_others():
    clones = get_task("clone_detection")
    texts = np.array([f"t{n}" for n in range(12)], dtype=object)
    examples = {
        "flaky_tests": make_examples()["flaky_tests"],
        "code_translation": PromptExamples(get_task("code_translation"), np.arange(12), texts, texts),
        "clone_detection": PromptExamples(clones, np.arange(12), texts, texts, np.arange(12, dtype="f4") % 2),
    }
    sampler = Sampler(examples, RULES[0], 9, 0)
    seen = [sampler.at(step, [Phase(0, tuple(examples))]) for step in range(4)]
    for name in examples:
        assert sorted(map(len, (batch[name] for batch in seen))) == [3, 3, 3, 3]
    found = [int(index) for batch in seen for index in batch["code_translation"].prompts_E]
    assert sorted(found) == list(range(12)), "an epoch holds each once"
    assert found != list(range(12))
