"""Trained heads in NumPy: the formulas of `manyskills.model.heads` outside training.

Shape legend: M texts of the task's view, E examples, K texts an example, D size of a vector, P size of a side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from manyskills.config import TaskConfig
from manyskills.errors import UserError
from manyskills.saved import refuse_difference
from manyskills.tasks import Kind, Task

PAIR_BLOCK = 4096
"""Pairs scored at a time: few enough that what is computed of them stays in the processor's cache."""

Weights = Mapping[str, np.ndarray]


class Head(ABC):
    """What every head offers: `sides` once a text, `scores` once an example.

    Args:
        weights: By name, float32.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    @abstractmethod
    def sides(self, vectors_MD: np.ndarray) -> np.ndarray:
        """The part that is computed once a text, shape (M, P)."""

    @abstractmethod
    def scores(self, sides_MP: np.ndarray, texts_EK: np.ndarray) -> np.ndarray:
        """One logit (or similarity) an example."""

    def probabilities(self, sides_MP: np.ndarray, texts_EK: np.ndarray) -> np.ndarray:
        """Probability of the positive class for each example of a classifying task, float64."""
        logits_E = self.scores(sides_MP, texts_EK) + self.weights["prior_shift"]
        return np.exp(-np.logaddexp(np.float32(0), -logits_E)).astype(np.float64)  # 1 / (1 + exp(-x)), never overflows


class ClassifyHead(Head):
    """One text, one logit."""

    EPSILON: ClassVar = np.float32(1e-5)
    """Of torch's layer_norm."""

    def sides(self, vectors_MD: np.ndarray) -> np.ndarray:
        """The logit of each text, shape (M, 1)."""
        centred_MD = vectors_MD - vectors_MD.mean(axis=1, keepdims=True)
        variance_M1 = np.square(centred_MD).mean(axis=1, keepdims=True)
        x_MD = centred_MD / np.sqrt(variance_M1 + self.EPSILON)
        if "hidden.weight" in self.weights:
            x_MD = np.tanh(x_MD @ self.weights["hidden.weight"].T + self.weights["hidden.bias"])
        return x_MD @ self.weights["out.weight"].T + self.weights["out.bias"]

    def scores(self, sides_MP: np.ndarray, texts_EK: np.ndarray) -> np.ndarray:
        """Looks the logits up."""
        return sides_MP[texts_EK[:, 0], 0]


class PairHead(Head):
    """Two texts, one logit: w . [|p_a - p_b| ; p_a * p_b] + s (cos(v_a, v_b) - c) with p = W v / |v|."""

    def sides(self, vectors_MD: np.ndarray) -> np.ndarray:
        """Each text's projection and direction, concatenated."""
        directions_MD = _directions(vectors_MD)
        scaled_MD = directions_MD * np.float32(np.sqrt(vectors_MD.shape[1]))
        projected_MP = scaled_MD @ self.weights["project.weight"].T + self.weights["project.bias"]
        return np.concatenate([projected_MP, directions_MD], axis=1)

    def scores(self, sides_MP: np.ndarray, texts_EK: np.ndarray) -> np.ndarray:
        """One logit a pair."""
        logits_E = np.empty(len(texts_EK), dtype=np.float32)
        for start in range(0, len(texts_EK), PAIR_BLOCK):
            block = slice(start, start + PAIR_BLOCK)
            logits_E[block] = self._block(sides_MP[texts_EK[block, 0]], sides_MP[texts_EK[block, 1]])
        return logits_E

    def _block(self, left_EP: np.ndarray, right_EP: np.ndarray) -> np.ndarray:
        width = len(self.weights["project.weight"])
        of_difference, of_product = np.split(self.weights["out.weight"][0], 2)
        a_E, b_E = left_EP[:, :width], right_EP[:, :width]
        cosine_E = np.einsum("ed,ed->e", left_EP[:, width:], right_EP[:, width:])
        joined_E = np.abs(a_E - b_E) @ of_difference + (a_E * b_E) @ of_product
        return joined_E + self.weights["scale"] * (cosine_E - self.weights["centre"])


class EmbedHead(Head):
    """Directions in one space for queries and answers."""

    def sides(self, vectors_MD: np.ndarray) -> np.ndarray:
        """Unit vectors."""
        return _directions(vectors_MD @ self.weights["project.weight"].T)

    def scores(self, sides_MP: np.ndarray, texts_EK: np.ndarray) -> np.ndarray:
        """Cosine of each query and its own answer."""
        return np.einsum("ep,ep->e", sides_MP[texts_EK[:, 0]], sides_MP[texts_EK[:, 1]])


def read_heads(path: Path, tasks: Mapping[str, Task], configs: Mapping[str, TaskConfig], size: int) -> dict[str, Head]:
    """The heads of these tasks.

    Args:
        path: Their weights, as `manyskills.model.checkpoint.save_heads` writes them.
        tasks: By name.
        configs: Their choices.
        size: Of the vectors that they get.

    Raises:
        UserError: The file is missing or broken, or its weights are not those of such heads.
    """
    found = _read(path)
    plans = {name: _plan(task, configs[name], size) for name, task in tasks.items()}
    wanted = {f"{name}.{weight}": shape for name, (_, shapes) in plans.items() for weight, shape in shapes.items()}
    refuse_difference(set(wanted), set(found), path)
    for name, shape in wanted.items():
        if found[name].shape != shape:
            what = f"{path}: {name} has shape {found[name].shape}, wanted {shape}"
            raise UserError(what, "the file belongs to another backbone, or to other choices of its tasks")
    return {name: kind({weight: found[f"{name}.{weight}"] for weight in shapes})
            for name, (kind, shapes) in plans.items()}  # fmt: skip


def _plan(task: Task, config: TaskConfig, size: int) -> tuple[type[Head], dict[str, tuple[int, ...]]]:
    """Class and weights of a task's head; a pair that is read jointly is classified like one text."""
    width = config.head_hidden
    if task.kind is Kind.EMBED:
        return EmbedHead, {"project.weight": (width or size, size), "log_scale": ()}
    if task.kind is Kind.PAIR and config.read != "joint":
        width = width or 128
        shapes = {"project.weight": (width, size), "project.bias": (width,), "out.weight": (1, 2 * width)}
        return PairHead, shapes | {"scale": (), "centre": (), "prior_shift": ()}
    hidden = {"hidden.weight": (width, size), "hidden.bias": (width,)} if width else {}
    return ClassifyHead, {**hidden, "out.weight": (1, width or size), "out.bias": (1,), "prior_shift": ()}


def _read(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing", "restore the file or export the module again") from error
    except SafetensorError as error:
        raise UserError(f"{path} is broken: {error}", "restore the file or export the module again") from error


def _directions(vectors_MD: np.ndarray) -> np.ndarray:
    """Of length 1; a vector of zeros stays."""
    lengths_M1 = np.linalg.norm(vectors_MD, axis=1, keepdims=True)
    return vectors_MD / np.maximum(lengths_M1, np.float32(1e-12))
