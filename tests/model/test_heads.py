from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from manyskills.config import TaskConfig
from manyskills.model.heads import ClassifyHead, EmbedHead, Lesson, PairHead, build_head
from manyskills.model.losses import soft_binary_loss, soft_info_nce
from manyskills.tasks import get_task

PAIRS = torch.tensor([[0, 1], [2, 3], [4, 4], [5, 0], [1, 5]])


def _vectors(count=6, size=8):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(0))


def _config(**choices):
    return TaskConfig.model_validate(choices)


def _shaken(head):
    with torch.no_grad():
        for number, p in enumerate(head.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(number)))
    return head.eval()


@pytest.mark.parametrize(
    ("task", "choices", "kind"),
    [
        ("clone_detection", {}, PairHead),
        ("clone_detection", {"read": "joint"}, ClassifyHead),
        ("defect_detection", {}, ClassifyHead),
        ("code_search", {}, EmbedHead),
    ],
)
def test_each_kind_has_its_head(task, choices, kind):
    assert type(build_head(get_task(task), 8, _config(**choices))) is kind


@pytest.mark.parametrize("hidden", [0, 5])
def test_a_pair_has_no_order(hidden):
    head = _shaken(PairHead(8, _config(head_hidden=hidden)))
    sides = head.sides(_vectors())
    torch.testing.assert_close(head.scores(sides, PAIRS), head.scores(sides, PAIRS.flip(1)))


def test_an_untrained_pair_head_is_the_cosine_on_a_logit_scale():
    head, vectors = PairHead(8, _config()).eval(), _vectors(40)
    pairs = torch.arange(40).view(20, 2)
    logits = head.scores(head.sides(vectors), pairs)
    cosine = F.cosine_similarity(vectors[pairs[:, 0]], vectors[pairs[:, 1]])
    assert logits.argsort().tolist() == cosine.argsort().tolist()
    torch.testing.assert_close(logits, 8 * (cosine - 0.5), rtol=1e-4, atol=1e-5)


def test_pair_head_is_the_formula():
    head, vectors = _shaken(PairHead(8, _config(head_hidden=5))), _vectors()
    for (a, b), logit in zip(PAIRS.tolist(), head.scores(head.sides(vectors), PAIRS), strict=True):
        p_a, p_b = (head.project(v / v.norm() * 8**0.5) for v in (vectors[a], vectors[b]))  # 8 is the vectors' size
        expected = head.out(torch.cat([(p_a - p_b).abs(), p_a * p_b]))
        expected += head.scale * (F.cosine_similarity(vectors[a], vectors[b], dim=0) - head.centre)
        torch.testing.assert_close(logit, expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("hidden", [0, 5])
def test_an_untrained_classifier_says_nothing(hidden):
    head = ClassifyHead(8, _config(head_hidden=hidden)).eval()
    sides = head.sides(_vectors())
    assert head.scores(sides, torch.arange(6)[:, None]).tolist() == [0.0] * 6
    loss, chance = head.loss(_vectors(), torch.arange(6)[:, None], torch.ones(6))
    assert loss.item() == pytest.approx(math.log(2)) == chance


@pytest.mark.parametrize(("task", "choices"), [("defect_detection", {}), ("clone_detection", {}), ("code_search", {})])
def test_answers_do_not_depend_on_how_long_a_backbones_vectors_are(task, choices):
    head, vectors = _shaken(build_head(get_task(task), 8, _config(**choices))), _vectors()
    torch.testing.assert_close(head.sides(vectors), head.sides(1000 * vectors), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("choices", [{}, {"positive_share": 0.4}, {"positive_weight": 3.0}])
def test_a_classifier_that_knows_the_balance_starts_with_the_true_rate(choices):
    head = ClassifyHead(8, _config(**choices)).eval()
    head.set_balance(0.1, _config(**choices))
    texts = torch.arange(6)[:, None]
    torch.testing.assert_close(head.probabilities(head.sides(_vectors()), texts), torch.full((6,), 0.1))


def test_an_untrained_embed_head_compares_the_backbones_own_vectors():
    head, vectors = EmbedHead(8, _config()), _vectors()
    torch.testing.assert_close(head.sides(vectors), F.normalize(vectors, dim=-1))


def test_embed_head_gives_unit_vectors_and_bounds_its_scale():
    head = EmbedHead(8, _config(head_hidden=3))
    sides = head.sides(_vectors())
    torch.testing.assert_close(sides.norm(dim=1), torch.ones(6))
    assert sides.shape == (6, 3)
    loss, chance = head.loss(_vectors(), PAIRS[:2], None)
    assert chance == pytest.approx(math.log(2))
    with torch.no_grad():
        head.log_scale.fill_(50.0)
    bounded, _ = head.loss(_vectors(), PAIRS[:2], None)
    assert torch.isfinite(loss)
    assert bounded < 200, "the scale is 100 at most"


@pytest.mark.parametrize("head_class", [ClassifyHead, PairHead])
@pytest.mark.parametrize(
    "choices",
    [{}, {"positive_share": 0.5}, {"positive_weight": "balanced"}, {"positive_weight": 3.0},
     {"positive_share": 0.3, "positive_weight": 2.0}],
)  # fmt: skip
def test_probabilities_of_the_corrected_optimum_are_the_true_rate(head_class, choices):
    """A constant feature tells nothing: the best constant answer must come out as the share of positives there are."""
    rate, config = 0.1, _config(**choices, head_dropout=0.0)
    head = head_class(4, config)
    head.set_balance(rate, config)
    drawn = config.positive_share or rate
    labels = (torch.arange(1000) < 1000 * drawn).float()
    vectors, texts = torch.ones(1, 4), torch.zeros(1000, 2, dtype=torch.long)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss, _ = head.loss(vectors, texts, labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    loss, chance = head.loss(vectors, texts, labels)
    assert loss.item() == pytest.approx(chance, rel=1e-3), "the scaled loss of this optimum is 1"
    p = head.probabilities(head.sides(vectors), texts[:1]).item()
    assert p == pytest.approx(rate, rel=2e-2)


@pytest.mark.parametrize("rate", [0.0, 1.0])
@pytest.mark.parametrize("choices", [{}, {"positive_weight": "balanced"}, {"positive_share": 0.5}])
def test_one_class_in_training_leaves_the_loss_on_an_ordinary_scale(rate, choices):
    config = _config(**choices)
    head = ClassifyHead(4, config)
    head.set_balance(rate, config)
    assert head.chance == pytest.approx(math.log(2))
    assert math.isfinite(head.prior_shift.item())


def test_dropout_is_off_outside_training():
    head, vectors = _shaken(PairHead(8, _config(head_dropout=0.5))), _vectors()
    torch.testing.assert_close(head.sides(vectors), head.sides(vectors))
    head.train()
    assert not torch.equal(head.sides(vectors), head.sides(vectors))


def _lesson(answers, weight=0.3, temperature=2.0):
    return Lesson(answers, weight, temperature)


@pytest.mark.parametrize("head_class", [ClassifyHead, PairHead])
@pytest.mark.parametrize("choices", [{}, {"positive_weight": 3.0, "focal_gamma": 2.0}, {"positive_share": 0.5}])
def test_a_lesson_mixes_the_loss_with_the_plain_one_against_the_teacher(head_class, choices):
    head = head_class(8, _config(**choices))
    head.set_balance(0.2, _config(**choices))
    head, vectors, labels = _shaken(head), _vectors(), torch.tensor([0.0, 1, 0, 0, 1])
    answers = torch.randn(5, generator=torch.Generator().manual_seed(5))
    logits = head.scores(head.sides(vectors), PAIRS)
    plain, chance = head.loss(vectors, PAIRS, labels)
    found, same_chance = head.loss(vectors, PAIRS, labels, _lesson(answers))
    soft = soft_binary_loss(logits, answers - head.prior_shift, 2.0)
    torch.testing.assert_close(found, 0.7 * plain + 0.3 * soft)
    assert same_chance == chance


@pytest.mark.parametrize(
    ("teacher", "student"),
    [({}, {}), ({"positive_share": 0.5}, {}), ({"positive_weight": 5.0}, {"positive_share": 0.3})],
)
def test_a_teacher_that_drew_other_shares_teaches_the_same_probabilities(teacher, student):
    heads = [PairHead(8, _config(**choices)).eval() for choices in (teacher, student)]
    for head, choices in zip(heads, (teacher, student), strict=True):
        head.set_balance(0.1, _config(**choices))
    answers = heads[0].log_odds(heads[0].sides(_vectors()), PAIRS).detach()
    head = heads[1]
    with torch.no_grad():  # the student says the same probabilities
        head.centre.sub_((heads[0].prior_shift - head.prior_shift) / head.scale)
    torch.testing.assert_close(head.probabilities(head.sides(_vectors()), PAIRS), torch.sigmoid(answers))
    loss, _ = head.loss(_vectors(), PAIRS, torch.zeros(5), _lesson(answers, weight=1.0, temperature=1.0))
    loss.backward()
    assert head.centre.grad is not None
    assert head.centre.grad.abs() < 1e-5, "nothing to learn"


def test_a_search_learns_from_similarities_of_a_teacher_with_vectors_of_another_size():
    head, vectors = _shaken(EmbedHead(8, _config())), _vectors()
    answers = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(5))
    plain, chance = head.loss(vectors, PAIRS, None)
    found, same_chance = head.loss(vectors, PAIRS, None, _lesson(answers))
    sides = head.sides(vectors)
    similarity = head.scale * sides[PAIRS[:, 0]] @ sides[PAIRS[:, 1]].T
    teacher = torch.stack([torch.stack([q @ a for a in answers[:, 1]]) for q in answers[:, 0]])
    soft = soft_info_nce(similarity, teacher, PAIRS[:, 0], PAIRS[:, 1], 2.0)
    torch.testing.assert_close(found, 0.7 * plain + 0.3 * soft)
    assert same_chance == chance
