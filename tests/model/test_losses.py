from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from manyskills.model.losses import (
    binary_chance,
    binary_loss,
    info_nce,
    info_nce_chance,
    soft_binary_loss,
    soft_info_nce,
)


def _numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive_info_nce(similarity, queries, answers):
    """A loop over rows and columns with the definition written out."""
    count = len(similarity)

    def direction(score):
        total = 0.0
        for i in range(count):
            kept = [j for j in range(count) if j == i or (queries[i] != queries[j] and answers[i] != answers[j])]
            total += -score(i, i) + math.log(sum(math.exp(score(i, j)) for j in kept))
        return total / count

    return (direction(lambda i, j: similarity[i][j]) + direction(lambda i, j: similarity[j][i])) / 2


@pytest.mark.parametrize(
    ("queries", "answers"),
    [
        ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9]),
        ([0, 0, 2, 3, 4], [5, 6, 7, 8, 9]),
        ([0, 1, 2, 3, 4], [5, 6, 6, 8, 6]),
        ([0, 0, 0, 3, 3], [5, 5, 6, 6, 9]),
        ([0, 0, 0, 0, 0], [5, 6, 7, 8, 9]),
    ],
)
def test_info_nce_is_the_definition(queries, answers):
    similarity = _numbers(5, 5) * 3
    found = info_nce(similarity, torch.tensor(queries), torch.tensor(answers))
    assert found.item() == pytest.approx(naive_info_nce(similarity.tolist(), queries, answers), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("queries", "answers"), [([0, 0, 1], [3, 4, 5]), ([0, 1, 2], [3, 3, 5])])
def test_a_repeated_query_or_code_is_no_negative(queries, answers):
    similarity = _numbers(3, 3).requires_grad_(True)
    info_nce(similarity, torch.tensor(queries), torch.tensor(answers)).backward()
    assert similarity.grad is not None
    assert similarity.grad[0, 1] == similarity.grad[1, 0] == 0
    assert (similarity.grad[[0, 2, 1], [2, 0, 2]] > 0).all(), "the others still push apart"


def test_one_example_costs_nothing_and_is_finite():
    similarity = torch.ones(1, 1, requires_grad=True)
    loss = info_nce(similarity, torch.tensor([0]), torch.tensor([1]))
    loss.backward()
    assert loss.item() == 0
    assert math.isfinite(info_nce_chance(1))
    assert info_nce_chance(1) > 0, "something is divided by it"


@pytest.mark.parametrize("count", [2, 7, 64])
def test_info_nce_at_chance(count):
    distinct = torch.arange(count)
    loss = info_nce(torch.full((count, count), 3.3), distinct, distinct)
    assert loss.item() == pytest.approx(info_nce_chance(count), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("weight", [1.0, 5.0])
def test_binary_loss_is_the_definition(weight, gamma):
    logits, labels = _numbers(50) * 4, (_numbers(50, seed=1) > 0).float()
    p = np.where(labels.numpy() > 0, 1, -1) * logits.numpy().astype(np.float64)
    right = 1 / (1 + np.exp(-p))
    terms = -((1 - right) ** gamma) * np.log(right) * np.where(labels.numpy() > 0, weight, 1.0)
    assert binary_loss(logits, labels, weight, gamma).item() == pytest.approx(terms.mean(), rel=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("weight", [1.0, 4.0, 0.3])
@pytest.mark.parametrize("rate", [0.5, 0.1, 0.03, 0.9])
def test_binary_chance_is_the_least_loss_of_a_constant(rate, weight, gamma):
    grid = np.linspace(-10, 10, 20001)
    yes, no = 1 / (1 + np.exp(-grid)), 1 / (1 + np.exp(grid))
    loss = -rate * weight * no**gamma * np.log(yes) - (1 - rate) * yes**gamma * np.log(no)
    assert binary_chance(rate, weight, gamma) == pytest.approx(loss.min(), rel=1e-4)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_chance_of_one_class_is_that_of_a_coin(rate):
    assert binary_chance(rate) == math.log(2)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_binary_loss_is_the_definition(temperature):
    student, teacher = _numbers(40) * 3, _numbers(40, seed=1) * 3
    p, q = (1 / (1 + np.exp(-x.numpy().astype(np.float64) / temperature)) for x in (teacher, student))
    terms = -p * np.log(q) - (1 - p) * np.log(1 - q)
    assert soft_binary_loss(student, teacher, temperature).item() == pytest.approx(
        temperature**2 * terms.mean(), rel=1e-4
    )


def test_soft_binary_loss_is_least_where_the_student_says_what_the_teacher_says():
    teacher = _numbers(20, seed=1)
    student = teacher.clone().requires_grad_(True)
    soft_binary_loss(student, teacher, 2.0).backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-6


def naive_soft_info_nce(student, teacher, queries, answers, temperature):
    """KL(teacher || student) with loops over rows and columns."""
    count = len(student)

    def direction(score, wanted):
        total = 0.0
        for i in range(count):
            kept = [j for j in range(count) if j == i or (queries[i] != queries[j] and answers[i] != answers[j])]
            p, q = (np.array([math.exp(f(i, j) / temperature) for j in kept]) for f in (wanted, score))
            p, q = p / p.sum(), q / q.sum()
            total += (p * np.log(p / q)).sum()
        return total / count

    rows = direction(lambda i, j: student[i][j], lambda i, j: teacher[i][j])
    columns = direction(lambda i, j: student[j][i], lambda i, j: teacher[j][i])
    return temperature**2 * (rows + columns) / 2


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(
    ("queries", "answers"),
    [([0, 1, 2, 3, 4], [5, 6, 7, 8, 9]), ([0, 0, 2, 3, 4], [5, 6, 6, 8, 9]), ([0, 0, 0, 0, 0], [5, 6, 7, 8, 9])],
)
def test_soft_info_nce_is_the_definition(queries, answers, temperature):
    student, teacher = (_numbers(5, 5) * 3).requires_grad_(True), _numbers(5, 5, seed=1) * 3
    found = soft_info_nce(student, teacher, torch.tensor(queries), torch.tensor(answers), temperature)
    expected = naive_soft_info_nce(student.tolist(), teacher.tolist(), queries, answers, temperature)
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    found.backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_a_student_that_ranks_as_its_teacher_has_nothing_to_learn():
    teacher, distinct = _numbers(4, 4) * 5, torch.arange(4)
    assert soft_info_nce(teacher, teacher, distinct, distinct).item() == pytest.approx(0, abs=1e-6)
    assert soft_info_nce(teacher.T, teacher, distinct, distinct).item() > 0.1
