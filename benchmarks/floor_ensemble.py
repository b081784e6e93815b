"""A trained module and the TF-IDF floor together: does one know what the other does not?

    python benchmarks/floor_ensemble.py RUN [RUN ...] [--data path/to/data] [--output benchmarks/results]

For each run and task three systems answer the whole test split: the module, the floor (fitted on the whole training
split), and both. Classifying tasks join the two logits (for pairs, the module's logit and the texts' TF-IDF cosine) by
a logistic regression; a search adds the two cosines. The regression's weights, the search's mixture and every threshold
come from validation; test is scored once, at the end.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression

import manyskills
from manyskills.code_model import CodeModel
from manyskills.data.reading import read_split
from manyskills.data.rows import SplitRows
from manyskills.evaluation.classification import choose_threshold, score_classification, threshold_metric
from manyskills.evaluation.floors import REGULARISATION
from manyskills.evaluation.ranking import TIE, ranks_of_scores, score_ranking
from manyskills.evaluation.scores import TaskScores
from manyskills.evaluation.tfidf import pair_cosines, subwords, subwords_and_signs, tfidf_vectorizer, unique
from manyskills.tasks import Kind, SplitName, Task
from measuring import Table, write_report

# Shape legend: E examples, N texts, V words, Q queries, C candidates, F features
SYSTEMS = ("module", "floor", "both")
MIXTURES = np.linspace(0, 1, 21).tolist()
"""Shares of the floor's cosine that a search tries on validation."""

BOOTSTRAP: dict[str, Any] = {"samples": 1000, "confidence": 0.95, "seed": 0}


@dataclass(frozen=True)
class Rows:
    """The splits of one task."""

    train: SplitRows
    valid: SplitRows
    test: SplitRows

    @classmethod
    def read(cls, model: CodeModel, task: Task, data: Path) -> Rows:
        """All rows; the floor's training texts are those that the task has, whatever the run's limits were."""
        columns = model.config.tasks[task.name].columns

        def split(name: SplitName) -> SplitRows:
            return read_split(task, str(data / task.name), name, columns=columns, seed=0)

        return cls(split("train"), split("valid"), split("test"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Every task of every run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="one folder a task")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    wanted = parser.parse_args(arguments)
    result: dict[str, Any] = {}
    lines: list[list[str]] = []
    for run in wanted.runs:
        model = manyskills.load(run)
        for task in model.tasks.values():
            scores = _scores(model, task, Rows.read(model, task, wanted.data))
            metric = task.primary_metric
            found = {name: scores[name].metrics[metric] for name in SYSTEMS}
            result.setdefault(run.name, {})[task.name] = {name: scores[name].to_dict() for name in SYSTEMS}
            cells = [f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]" for e in found.values()]  # pyright: ignore
            lines.append([f"{run.name}: {task.name}", metric, *cells])
    table = Table(("run: task", "metric", *SYSTEMS), lines, "Test split, 95 % bootstrap intervals.")
    write_report("floor_ensemble", wanted.output, result, table, lambda figure: _plot(figure, result))


def _scores(model: CodeModel, task: Task, rows: Rows) -> dict[str, TaskScores]:
    if task.kind is Kind.EMBED:
        return _search(model, task, rows)
    floor = _pair_floor if task.kind is Kind.PAIR else _text_floor
    valid_EF, test_EF = (np.stack(features, axis=1) for features in zip(
        [_logits(model.predict_proba(task.name, part.rows)) for part in (rows.valid, rows.test)],
        floor(task, rows), strict=True,
    ))  # fmt: skip
    labels = {"valid": _labels(rows.valid), "test": _labels(rows.test)}
    joined = LogisticRegression(C=10.0).fit(valid_EF, labels["valid"])
    answers = {
        "module": (valid_EF[:, 0], test_EF[:, 0]),
        "floor": (valid_EF[:, 1], test_EF[:, 1]),
        "both": (joined.decision_function(valid_EF), joined.decision_function(test_EF)),
    }
    metric = threshold_metric(task.primary_metric)
    found = {}
    for name, (valid_E, test_E) in answers.items():
        valid_E, test_E = _probabilities(valid_E), _probabilities(test_E)
        threshold = choose_threshold(labels["valid"], valid_E, metric)
        found[name] = score_classification(labels["test"], test_E, threshold, **BOOTSTRAP)
    return found


def _text_floor(task: Task, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the logistic regression that is best on validation."""
    (column,) = task.inputs
    vectorizer = tfidf_vectorizer(len(rows.train.rows), subwords_and_signs, ngram_range=(1, 2))
    train_NV = vectorizer.fit_transform(_column(rows.train, column))
    valid_NV, test_NV = (vectorizer.transform(_column(part, column)) for part in (rows.valid, rows.test))
    labels_E, metric = _labels(rows.valid), threshold_metric(task.primary_metric)
    best, best_value = (np.empty(0), np.empty(0)), -np.inf
    for strength in REGULARISATION:
        floor = LogisticRegression(C=strength, solver="liblinear", max_iter=200).fit(train_NV, _labels(rows.train))
        valid_E = floor.decision_function(valid_NV)
        threshold = choose_threshold(labels_E, _probabilities(valid_E), metric)
        scores = score_classification(labels_E, _probabilities(valid_E), threshold, samples=0, confidence=0.95, seed=0)
        value = scores.metrics[metric].value or 0.0
        if value > best_value:
            best, best_value = (valid_E, floor.decision_function(test_NV)), value
    return best


def _pair_floor(task: Task, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of the pairs, as logits so that they can be thresholded and joined like the others."""
    texts = unique(text for column in task.inputs for text in _column(rows.train, column))
    vectorizer = tfidf_vectorizer(len(texts), subwords, ngram_range=(1, 2)).fit(texts)
    left, right = task.inputs
    valid_E, test_E = (
        _logits(pair_cosines(_column(part, left), _column(part, right), vectorizer)) for part in (rows.valid, rows.test)
    )
    return valid_E, test_E


def _search(model: CodeModel, task: Task, rows: Rows) -> dict[str, TaskScores]:
    texts = unique(text for column in task.inputs for text in _column(rows.train, column))
    vectorizer = tfidf_vectorizer(len(texts), subwords, ngram_range=(1, 1)).fit(texts)
    valid, test = (_Search.of(model, task, part, vectorizer.transform) for part in (rows.valid, rows.test))
    best = max(MIXTURES, key=lambda share: (1 / valid.ranks(share)).mean())
    shares = {"module": 0.0, "floor": 1.0, "both": best}
    return {
        name: score_ranking(test.ranks(share), candidates=test.module_QC.shape[1], **BOOTSTRAP)
        for name, share in shares.items()
    }


@dataclass(frozen=True)
class _Search:
    """Cosines of a split's queries and distinct candidates, by module and by floor."""

    module_QC: np.ndarray
    floor_QC: np.ndarray
    answers_Q: np.ndarray

    @classmethod
    def of(cls, model: CodeModel, task: Task, rows: SplitRows, words: Callable[[list[str]], Any]) -> _Search:
        query, candidate = task.inputs
        queries, candidates = _column(rows, query), unique(_column(rows, candidate))
        place = {text: number for number, text in enumerate(candidates)}
        answers_Q = np.array([place[text] for text in _column(rows, candidate)])
        module_QC = model.encode(queries, task=task.name) @ model.encode(candidates, task=task.name).T
        floor_QC = (sp.csr_matrix(words(queries)) @ sp.csr_matrix(words(candidates)).T).toarray()
        return cls(module_QC, floor_QC.astype(np.float32), answers_Q)

    def ranks(self, share: float) -> np.ndarray:
        """Ranks by so much of the floor's cosine and the rest of the module's."""
        scores_QC = (1 - share) * self.module_QC + share * self.floor_QC
        return ranks_of_scores(scores_QC, self.answers_Q, np.full(len(scores_QC), TIE))


def _logits(probabilities_E: np.ndarray) -> np.ndarray:
    clipped_E = np.clip(probabilities_E, 1e-6, 1 - 1e-6)
    return np.log(clipped_E / (1 - clipped_E))


def _probabilities(logits_E: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits_E))


def _labels(rows: SplitRows) -> np.ndarray:
    assert rows.task.label is not None
    return np.array([row[rows.task.label] for row in rows.rows], dtype=np.int64)


def _column(rows: SplitRows, name: str) -> list[str]:
    return [row[name] for row in rows.rows]


def _plot(figure: Figure, result: dict[str, Any]) -> None:
    """Groups of three bars, one group a task of a run."""
    groups: Sequence[tuple[str, str]] = [(run, task) for run, tasks in result.items() for task in tasks]
    axes = figure.add_subplot()
    for place, system in enumerate(SYSTEMS):
        values = [_primary(result[run][task][system], task) for run, task in groups]
        axes.bar(np.arange(len(groups)) + (place - 1) * 0.27, values, width=0.25, label=system)
    axes.set_xticks(range(len(groups)), [f"{run}\n{task}" for run, task in groups], fontsize=7)
    axes.set_ylabel("primary metric on test")
    axes.legend()


def _primary(scores: dict[str, Any], task: str) -> float:
    from manyskills.tasks import get_task

    return scores["metrics"][get_task(task).primary_metric]["value"]


if __name__ == "__main__":
    main()
