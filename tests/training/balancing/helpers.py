"""Building blocks of the tests of the balancing rules.

Shape legend: K tasks, P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from manyskills.config import BalancingConfig
from manyskills.training.balancing import Combined, Rule, build_balancing

NAMES = ["a", "b", "c"]

RULES: dict[str, dict[str, Any]] = {
    "uniform": {},
    "fixed": {"weights": {"a": 1, "b": 2, "c": 5}},
    "learned_softmax": {"learning_rate": 0.05},
    "uncertainty": {"learning_rate": 0.05},
    "dwa": {"window": 2},
    "rlw": {},
    "famo": {"every": 1, "learning_rate": 0.5},
    "coba": {"every": 1, "warmup": 2, "history": 3},
    "gls": {},
    "pcgrad": {},
    "cagrad": {},
    "mgda": {},
    "nash_mtl": {},
    "db_mtl": {},
    "gradnorm": {},
}
"""Every rule, with settings under which its state moves soon."""


def make(name: str, tasks: list[str] = NAMES, seed: int = 0, **settings: Any) -> Rule:
    """A rule by its name in the configuration."""
    config = TypeAdapter(BalancingConfig).validate_python({"name": name, **settings})
    return build_balancing(config, tasks, seed)


def softmax(z: Any) -> np.ndarray:
    powers = np.exp(np.asarray(z, dtype=float))
    return powers / powers.sum()


def combined(rule: Rule, gradients: Any, losses: Mapping[str, float] | None = None) -> Combined:
    """What a rule makes of these gradients; all losses are 1 if they are not given."""
    gradients_KP = torch.as_tensor(np.asarray(gradients), dtype=torch.float64)
    return rule.combine(gradients_KP, losses or dict.fromkeys(NAMES[: len(gradients_KP)], 1.0))


def direction(rule: Rule, gradients: Any, losses: Mapping[str, float] | None = None) -> np.ndarray:
    return combined(rule, gradients, losses).gradient_P.numpy()


def cosine(u: np.ndarray, v: np.ndarray) -> float:
    return float(u @ v / np.linalg.norm(u) / np.linalg.norm(v))


def simplex(points: int) -> np.ndarray:
    """All weights of three tasks on a grid."""
    steps = np.arange(points + 1)
    first, second = np.meshgrid(steps, steps)
    inside = first + second <= points
    first, second = first[inside], second[inside]
    return np.stack([first, second, points - first - second], axis=1) / points


@dataclass(frozen=True)
class Quadratics:
    """L_i(x) = scale_i (floor_i + sum_p curvature_ip (x_p - centre_ip)^2 / 2)."""

    centres_KP: np.ndarray
    curvatures_KP: np.ndarray
    floors_K: np.ndarray
    scales_K: np.ndarray

    def losses(self, x_P: np.ndarray) -> np.ndarray:
        return self.scales_K * (self.floors_K + (self.curvatures_KP * (x_P - self.centres_KP) ** 2).sum(axis=1) / 2)

    def gradients(self, x_P: np.ndarray) -> np.ndarray:
        return self.scales_K[:, None] * self.curvatures_KP * (x_P - self.centres_KP)


def quadratics(centres: Any, curvatures: Any, floors: Any = (0.1, 0.1), scales: Any = (1.0, 1.0)) -> Quadratics:
    return Quadratics(*(np.asarray(part, dtype=float) for part in (centres, curvatures, floors, scales)))


def update(rule: Rule, problem: Quadratics, x_P: np.ndarray) -> np.ndarray:
    """What a rule makes of the problem's gradients at x."""
    gradients_KP = problem.gradients(x_P)
    named = dict(zip(NAMES, problem.losses(x_P).tolist(), strict=False))
    if rule.needs.validation_every:
        rule.validated(named)
    if rule.on_gradients:
        return rule.combine(torch.from_numpy(gradients_KP), named).gradient_P.numpy()
    return np.array(list(rule.weigh(named).values())) @ gradients_KP


def descend(rule: Rule, problem: Quadratics, start: Any, steps: int, rate: float, last: float = 1.0) -> np.ndarray:
    """Every point of a descent by a rule, the step size falling from `rate` to `rate * last`; shape (steps + 1, P)."""
    path = [np.asarray(start, dtype=float)]
    for number in range(steps):
        x_P = path[-1] - rate * last ** (number / steps) * update(rule, problem, path[-1])
        if rule.needs.repeat_every and number % rule.needs.repeat_every == 0:
            rule.repeated(dict(zip(NAMES, problem.losses(x_P).tolist(), strict=False)))
        path.append(x_P)
    return np.stack(path)
