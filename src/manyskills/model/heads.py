"""Heads: vectors to answers. Each looks its texts up by index, so a text is projected once however often it is used.

Shape legend: M texts of the task's view, E examples, D size of a vector, P size of a projected side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from manyskills.config import TaskConfig
from manyskills.model.losses import (
    binary_chance,
    binary_loss,
    info_nce,
    info_nce_chance,
    soft_binary_loss,
    soft_info_nce,
)
from manyskills.tasks.base import Kind, Task


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a teacher says of the examples of a step.

    Attributes:
        answers: Of classifying tasks log-odds, as `probabilities` gives them, shape (E,); of searches each row's query
            side times the teacher's scale, and its answer side, shape (E, 2, P).
        weight: Share of the teacher in the loss, 0 to 1.
        temperature: Divides the logits of teacher and student.
    """

    answers: torch.Tensor
    weight: float
    temperature: float


class Head(nn.Module):
    """What every kind of head offers.

    `sides` does the work that is needed once a text; `scores` combines sides into one number an example; `loss` turns
    them into the task's loss. Evaluation calls the same two as training.
    """

    def sides(self, vectors_MD: torch.Tensor) -> torch.Tensor:
        """The part of the head that is computed once a text."""
        raise NotImplementedError

    def scores(self, sides_MP: torch.Tensor, texts_EK: torch.Tensor) -> torch.Tensor:
        """One logit (or similarity) an example."""
        raise NotImplementedError

    def loss(
        self,
        vectors_MD: torch.Tensor,
        texts_EK: torch.Tensor,
        labels_E: torch.Tensor | None,
        lesson: Lesson | None = None,
    ) -> tuple[torch.Tensor, float]:
        """The loss, and what it would be at chance level on these examples.

        With a lesson it is (1 - w) L + w KD (Clark et al. 2019, arXiv 1907.04829, section 3), where KD is the distance
        from the teacher's answers; the chance level stays that of L.
        """
        raise NotImplementedError


class BinaryHead(Head):
    """What classifying one text and classifying a pair have in common: loss, class balance, probabilities.

    Attributes:
        prior_shift: Added to the logits outside training. Weighting or drawing positives more often makes a model
            expect more of them than there are; the shift takes that back (Elkan 2001, theorem 2).
    """

    prior_shift: torch.Tensor

    def __init__(self, config: TaskConfig) -> None:
        super().__init__()
        self.focal_gamma = config.focal_gamma
        self.positive_weight, self.chance = 1.0, math.log(2)
        self.dropout = nn.Dropout(config.head_dropout)
        self.register_buffer("prior_shift", torch.zeros(()))

    def set_balance(self, positive_rate: float, config: TaskConfig) -> None:
        """Fit weight, chance level and prior shift to the share of positive training rows."""
        rate = min(max(positive_rate, 1e-6), 1 - 1e-6)
        balanced = (1 - rate) / rate
        self.positive_weight = balanced if config.positive_weight == "balanced" else float(config.positive_weight or 1)
        drawn = config.positive_share or rate
        seen_odds = self.positive_weight * drawn / (1 - drawn)
        self.prior_shift.fill_(math.log(rate / (1 - rate)) - math.log(seen_odds))
        one_class = not 0 < positive_rate < 1  # next to nothing is no measure
        self.chance = binary_chance(positive_rate if one_class else drawn, self.positive_weight, self.focal_gamma)

    def probabilities(self, sides_MP: torch.Tensor, texts_EK: torch.Tensor) -> torch.Tensor:
        """Probability of the positive class for each example."""
        return torch.sigmoid(self.log_odds(sides_MP, texts_EK))

    def log_odds(self, sides_MP: torch.Tensor, texts_EK: torch.Tensor) -> torch.Tensor:
        """The logit of `probabilities`."""
        return self.scores(sides_MP, texts_EK) + self.prior_shift

    def loss(
        self,
        vectors_MD: torch.Tensor,
        texts_EK: torch.Tensor,
        labels_E: torch.Tensor | None,
        lesson: Lesson | None = None,
    ) -> tuple[torch.Tensor, float]:
        """Binary cross-entropy of the examples; against the teacher without weights and focus."""
        assert labels_E is not None
        logits_E = self.scores(self.sides(vectors_MD), texts_EK)
        loss = binary_loss(logits_E, labels_E, self.positive_weight, self.focal_gamma)
        if lesson is not None:
            # as the teacher would answer if it had been trained on the positives and weights of this run
            teacher_E = lesson.answers - self.prior_shift
            loss = _mixed(loss, soft_binary_loss(logits_E, teacher_E, lesson.temperature), lesson)
        return loss, self.chance


class ClassifyHead(BinaryHead):
    """One text, one logit. Starts at the class balance: an untrained head says nothing instead of something random."""

    def __init__(self, vector_size: int, config: TaskConfig) -> None:
        super().__init__(config)
        width = config.head_hidden or vector_size
        self.hidden = nn.Linear(vector_size, width) if config.head_hidden else None
        self.out = nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def set_balance(self, positive_rate: float, config: TaskConfig) -> None:
        """Start at the share of positives among the rows that will be drawn, which is what chance level means."""
        super().set_balance(positive_rate, config)
        if 0 < positive_rate < 1:
            drawn = config.positive_share or positive_rate
            nn.init.constant_(self.out.bias, math.log(self.positive_weight * drawn / (1 - drawn)))

    def sides(self, vectors_MD: torch.Tensor) -> torch.Tensor:
        """The logit of each text, shape (M, 1)."""
        # without its length and offset: backbones differ in both by orders of magnitude, learning rates should not
        x_MD = self.dropout(F.layer_norm(vectors_MD, vectors_MD.shape[-1:]))
        if self.hidden is not None:
            x_MD = self.dropout(torch.tanh(self.hidden(x_MD)))
        return self.out(x_MD)

    def scores(self, sides_MP: torch.Tensor, texts_EK: torch.Tensor) -> torch.Tensor:
        """Looks the logits up; a pair that is read jointly is one text."""
        return sides_MP[texts_EK[:, 0], 0]


class PairHead(BinaryHead):
    """Two texts, one logit, the same for (a, b) and (b, a).

    logit = w . [|p_a - p_b| ; p_a * p_b] + s (cos(v_a, v_b) - c) with p = W v / |v|. W v is computed once a text. w
    starts at zero, so an untrained head is the cosine of the backbone's vectors.
    """

    WIDTH = 128
    COSINE_SCALE = 8.0
    COSINE_CENTRE = 0.5

    def __init__(self, vector_size: int, config: TaskConfig) -> None:
        super().__init__(config)
        self.project = nn.Linear(vector_size, config.head_hidden or self.WIDTH)
        self.out = nn.Linear(2 * self.project.out_features, 1, bias=False)
        nn.init.zeros_(self.out.weight)
        self.scale = nn.Parameter(torch.tensor(self.COSINE_SCALE))
        self.centre = nn.Parameter(torch.tensor(self.COSINE_CENTRE))

    def sides(self, vectors_MD: torch.Tensor) -> torch.Tensor:
        """Each text's projection and direction, concatenated."""
        directions_MD = F.normalize(vectors_MD, dim=-1)
        scaled_MD = directions_MD * math.sqrt(vectors_MD.shape[-1])  # components of size 1, whatever the backbone
        return torch.cat([self.project(self.dropout(scaled_MD)), directions_MD], dim=-1)

    def scores(self, sides_MP: torch.Tensor, texts_EK: torch.Tensor) -> torch.Tensor:
        """One logit a pair."""
        width = self.project.out_features
        left_EP, right_EP = sides_MP[texts_EK[:, 0]], sides_MP[texts_EK[:, 1]]
        a_E, b_E = left_EP[:, :width], right_EP[:, :width]
        cosine_E = (left_EP[:, width:] * right_EP[:, width:]).sum(-1)
        joined = torch.cat([(a_E - b_E).abs(), a_E * b_E], dim=-1)
        return self.out(joined)[:, 0] + self.scale * (cosine_E - self.centre)


class EmbedHead(Head):
    """Directions in one space for queries and answers; similarity is the scaled cosine.

    The projection starts as the identity (as a rotation if it changes the size), so an untrained head compares the
    backbone's own vectors. The scale is learnt as its logarithm and bounded by 100, as in CLIP (Radford et al. 2021,
    section 2.5).
    """

    SCALE = 20.0
    MAX_SCALE = 100.0

    def __init__(self, vector_size: int, config: TaskConfig) -> None:
        super().__init__()
        self.project = nn.Linear(vector_size, config.head_hidden or vector_size, bias=False)
        (nn.init.orthogonal_ if config.head_hidden else nn.init.eye_)(self.project.weight)
        self.log_scale = nn.Parameter(torch.tensor(math.log(self.SCALE)))

    def sides(self, vectors_MD: torch.Tensor) -> torch.Tensor:
        """Unit vectors."""
        return F.normalize(self.project(vectors_MD), dim=-1)

    def scores(self, sides_MP: torch.Tensor, texts_EK: torch.Tensor) -> torch.Tensor:
        """Cosine of each query and its own answer."""
        return (sides_MP[texts_EK[:, 0]] * sides_MP[texts_EK[:, 1]]).sum(-1)

    @property
    def scale(self) -> torch.Tensor:
        """What cosines are multiplied by in the loss."""
        return self.log_scale.exp().clamp(max=self.MAX_SCALE)

    def loss(
        self,
        vectors_MD: torch.Tensor,
        texts_EK: torch.Tensor,
        labels_E: torch.Tensor | None,
        lesson: Lesson | None = None,
    ) -> tuple[torch.Tensor, float]:
        """Symmetric InfoNCE over the examples of the step."""
        sides_MP = self.sides(vectors_MD)
        queries_E, answers_E = texts_EK[:, 0], texts_EK[:, 1]
        similarity_EE = self.scale * sides_MP[queries_E] @ sides_MP[answers_E].T
        loss = info_nce(similarity_EE, queries_E, answers_E)
        if lesson is not None:
            teacher_EE = lesson.answers[:, 0] @ lesson.answers[:, 1].T
            soft = soft_info_nce(similarity_EE, teacher_EE, queries_E, answers_E, lesson.temperature)
            loss = _mixed(loss, soft, lesson)
        return loss, info_nce_chance(len(texts_EK))


def _mixed(loss: torch.Tensor, from_teacher: torch.Tensor, lesson: Lesson) -> torch.Tensor:
    return (1 - lesson.weight) * loss + lesson.weight * from_teacher


def build_head(task: Task, vector_size: int, config: TaskConfig) -> Head:
    """The head of a task's kind; a pair that is read jointly is classified like one text."""
    if task.kind is Kind.EMBED:
        return EmbedHead(vector_size, config)
    joint = task.kind is Kind.PAIR and config.read == "joint"
    return PairHead(vector_size, config) if task.kind is Kind.PAIR and not joint else ClassifyHead(vector_size, config)
