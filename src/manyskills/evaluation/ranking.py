"""Metrics of a search: at which rank each query's own answer stands among all candidates.

Shapes: Q queries, C candidates, D dimensions, b queries of one block, M metrics, B resamples of one block.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from manyskills.errors import UserError
from manyskills.evaluation.bootstrap import Floats, estimates, resample_counts
from manyskills.evaluation.scores import TaskScores

BLOCK_CELLS = 1 << 24
"""Scores held at once: 64 MiB of float32."""

TIE = 2.0**-20
"""Scores nearer than this, relative to the vectors' lengths, are equal: about float32's error in an inner product."""


def ranks(
    queries_QD: npt.ArrayLike, candidates_CD: npt.ArrayLike, answers_Q: npt.ArrayLike, *, block: int = 1024
) -> Floats:
    """The rank of each query's answer by inner product, 1 being first.

    Tied candidates share the mean of the ranks they occupy, so rank = 1 + higher + ties / 2. A model that gives every
    candidate the same score gets rank (C + 1) / 2; since 1 / mean(rank) <= mean(1 / rank), ties never raise MRR above
    what breaking them at random gives. Scores within rounding error are ties: else the order in which a matrix
    product sums up would rank equal vectors.

    Args:
        queries_QD: Query vectors; L2-normalised ones make this the cosine.
        candidates_CD: Candidate vectors, each distinct text once.
        answers_Q: Index into the candidates of each query's answer.
        block: Queries compared at a time, at most; fewer if there are many candidates (`BLOCK_CELLS`).

    Raises:
        UserError: There are no queries, or a vector holds something that is not a number.
    """
    queries_QD, candidates_CD = _vectors(queries_QD, "query"), _vectors(candidates_CD, "candidate")
    answers_Q = np.asarray(answers_Q, np.int64)
    if len(answers_Q) != len(queries_QD):
        raise ValueError(f"{len(queries_QD)} queries, but {len(answers_Q)} answers")
    if answers_Q.min() < 0 or answers_Q.max() >= len(candidates_CD):
        raise ValueError(f"answers must be indices of the {len(candidates_CD)} candidates")
    longest = np.linalg.norm(candidates_CD, axis=1).max()
    tolerance_Q = TIE * longest * np.linalg.norm(queries_QD, axis=1)
    found_Q = np.empty(len(queries_QD))
    size = max(1, min(block, BLOCK_CELLS // len(candidates_CD)))
    for start in range(0, len(queries_QD), size):
        part = slice(start, start + size)
        scores_bC = queries_QD[part] @ candidates_CD.T
        found_Q[part] = ranks_of_scores(scores_bC, answers_Q[part], tolerance_Q[part])
    return found_Q


def ranks_of_scores(scores_bC: npt.NDArray, answers_b: npt.NDArray[np.int64], tolerance_b: npt.NDArray) -> Floats:
    """Ranks from a block of scores, ties within the tolerance at their mean rank."""
    # The answer's own score comes out of the same product, else rounding could place it above its equals.
    own_b1 = scores_bC[np.arange(len(scores_bC)), answers_b][:, None]
    tolerance_b1 = tolerance_b[:, None].astype(scores_bC.dtype)
    higher_b = np.count_nonzero(scores_bC > own_b1 + tolerance_b1, axis=1)
    at_least_b = np.count_nonzero(scores_bC >= own_b1 - tolerance_b1, axis=1)
    return (higher_b + at_least_b + 1) / 2


def ranking_metrics(ranks_Q: npt.ArrayLike, *, mrr_cutoffs: Sequence[int] = (10, 1000)) -> dict[str, float]:
    """`mrr`, `mrr@k` (an answer below rank k counts 0), `recall@1|5|10` and `ndcg@10`.

    NDCG is that of one relevant candidate, 1 / log2(1 + rank) (Järvelin and Kekäläinen 2002).

    Raises:
        UserError: There are no queries.
    """
    names, gains_QM = ranking_gains(ranks_Q, mrr_cutoffs)
    return dict(zip(names, gains_QM.mean(axis=0).tolist(), strict=True))


def score_ranking(
    ranks_Q: npt.ArrayLike,
    *,
    candidates: int,
    samples: int,
    confidence: float,
    seed: int,
    mrr_cutoffs: Sequence[int] = (10, 1000),
) -> TaskScores:
    """`ranking_metrics` with bootstrap intervals over queries; the candidates stay as they are.

    Raises:
        UserError: There are no queries.
    """
    names, gains_QM = ranking_gains(ranks_Q, mrr_cutoffs)
    queries = len(gains_QM)
    blocks = [counts_BQ @ gains_QM / queries for counts_BQ in resample_counts(queries, samples, seed)]
    replicates = dict(zip(names, np.concatenate(blocks).T, strict=True)) if blocks else {}
    values = dict(zip(names, gains_QM.mean(axis=0).tolist(), strict=True))
    return TaskScores(estimates(values, replicates, confidence), None, queries, None, candidates)


def _vectors(vectors: npt.ArrayLike, role: str) -> npt.NDArray[np.float32]:
    vectors_ND = np.ascontiguousarray(vectors, np.float32)
    if vectors_ND.ndim != 2 or not vectors_ND.size:
        raise UserError(f"there are no {role} vectors to rank", "check the split with `manyskills data check`")
    bad = int((~np.isfinite(vectors_ND).all(axis=1)).sum())
    if bad:
        # Comparisons with NaN are false: unchecked, a diverged model would rank every answer first.
        raise UserError(
            f"{bad} of {len(vectors_ND)} {role} vectors hold something that is not a number",
            "the training diverged: learn slower",
        )
    return vectors_ND


def ranking_gains(ranks_Q: npt.ArrayLike, mrr_cutoffs: Sequence[int]) -> tuple[list[str], Floats]:
    """What every query adds to each metric: all of them are means over queries."""
    ranks_Q = np.asarray(ranks_Q, np.float64)
    if not ranks_Q.size:
        raise UserError("there are no queries to score", "check the split with `manyskills data check`")
    if not (ranks_Q >= 1).all():
        raise ValueError("ranks start at 1")
    gains = {"mrr": 1 / ranks_Q}
    gains |= {f"mrr@{cut}": np.where(ranks_Q <= cut, 1 / ranks_Q, 0.0) for cut in mrr_cutoffs}
    gains |= {f"recall@{cut}": (ranks_Q <= cut).astype(np.float64) for cut in (1, 5, 10)}
    gains["ndcg@10"] = np.where(ranks_Q <= 10, 1 / np.log2(1 + ranks_Q), 0.0)
    return list(gains), np.stack(list(gains.values()), axis=1)
