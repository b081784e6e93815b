"""The best partition, against plain enumeration."""

from __future__ import annotations

import numpy as np
import pytest

from manyskills.errors import UserError
from manyskills.studies.partitions import advised, best_by_groups, members, partitions, ranked, subsets

BELL = [1, 2, 5, 15, 52, 203]


def by_labels(tasks):
    """All partitions as the distinct ways to label tasks with group numbers."""
    found = set()
    for labels in np.ndindex(*[tasks] * tasks):
        groups = {}
        for task, label in enumerate(labels):
            groups[label] = groups.get(label, 0) | 1 << task
        found.add(tuple(sorted(groups.values())))
    return found


@pytest.mark.parametrize("tasks", range(1, 6))
def test_every_partition_once(tasks):
    found = list(partitions(tasks))
    assert len(found) == len(set(found)) == BELL[tasks - 1]
    assert set(found) == by_labels(tasks)


def test_subsets_and_members():
    assert subsets(2) == [1, 2, 3]
    assert len(subsets(4)) == 15
    assert members(0b1011) == [0, 1, 3]


def random_losses(tasks, seed):
    generator = np.random.default_rng(seed)
    return {subset: generator.uniform(0.5, 1, len(members(subset))).tolist() for subset in subsets(tasks)}


@pytest.mark.parametrize("seed", range(5))
def test_the_best_for_every_number_of_groups(seed):
    tasks = 4
    losses = random_losses(tasks, seed)
    found = ranked(tasks, losses)
    assert len(found) == 15
    expected = {}
    for groups in by_labels(tasks):
        loss = np.mean([losses[group][members(group).index(task)] for group in groups for task in members(group)])
        expected.setdefault(len(groups), []).append(loss)
    best = best_by_groups(found)
    assert [len(one.groups) for one in best] == [1, 2, 3, 4]
    assert [one.loss for one in best] == pytest.approx([min(expected[count]) for count in (1, 2, 3, 4)])
    assert [one.loss for one in found] == sorted(one.loss for one in found)


def test_advice_prefers_few_groups_where_they_are_as_good():
    alone, pair = [0.5], [0.501, 0.501]
    losses = {1: alone, 2: alone, 3: pair}
    found = ranked(2, losses)
    assert found[0].groups == (1, 2)
    assert advised(found, 0.01).groups == (3,)
    assert advised(found, 0.0).groups == (1, 2)
    assert ranked(2, {1: [0.5], 2: [0.5], 3: [0.5, 0.5]})[0].groups == (3,)


def test_too_many_tasks():
    with pytest.raises(UserError, match="11 tasks"):
        next(partitions(11))
