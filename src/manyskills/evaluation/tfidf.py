"""Texts as sparse vectors of weighted words, and what is compared with them.

Shapes: N pairs, V words, U unique texts, Q queries, C candidates, b queries of one block.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from sklearn.feature_extraction.text import TfidfVectorizer

from manyskills.evaluation.bootstrap import Floats
from manyskills.evaluation.ranking import BLOCK_CELLS, TIE, ranks_of_scores

SUBWORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+")
"""Parts of identifiers: parseHTTPHeader2 is parse, HTTP, Header. Letters of other scripts stay together."""
SUBWORD_OR_SIGN = re.compile(rf"{SUBWORD.pattern}|[0-9]+|[^\w\s]")


def subwords(text: str) -> list[str]:
    """The lower-case parts of words and identifiers, without numbers: shared meaning is not in them."""
    return [part.lower() for part in SUBWORD.findall(text)]


def subwords_and_signs(text: str) -> list[str]:
    """`subwords`, numbers and every sign: constants and operators matter to a defect."""
    return [part.lower() for part in SUBWORD_OR_SIGN.findall(text)]


def tfidf_vectorizer(
    texts: int, tokenizer: Callable[[str], list[str]], *, ngram_range: tuple[int, int]
) -> TfidfVectorizer:
    """An unfitted vectorizer for about so many texts; its vectors have length 1."""
    options: dict[str, Any] = {
        "lowercase": False,
        "tokenizer": tokenizer,
        "token_pattern": None,
        "ngram_range": ngram_range,
        "sublinear_tf": True,
        # Word pairs seen once are most of the vocabulary and teach nothing, unless there are hardly any texts.
        "min_df": 2 if ngram_range[1] > 1 and texts >= 1000 else 1,
        "dtype": np.float32,
    }
    return TfidfVectorizer(**options)


def pair_cosines(left: Sequence[str], right: Sequence[str], vectorizer: TfidfVectorizer) -> Floats:
    """Cosine of every pair, each distinct text vectorised once."""
    texts = unique([*left, *right])
    index = {text: place for place, text in enumerate(texts)}
    vectors_UV = sp.csr_matrix(vectorizer.transform(texts))
    left_N, right_N = ([index[text] for text in side] for side in (left, right))
    cosines_N = np.asarray(vectors_UV[left_N].multiply(vectors_UV[right_N]).sum(axis=1), np.float64).ravel()
    return np.clip(cosines_N, 0.0, 1.0)


def sparse_ranks(
    queries: Sequence[str], candidates: Sequence[str], answers_Q: npt.NDArray[np.int64], vectorizer: TfidfVectorizer
) -> Floats:
    """`manyskills.evaluation.ranking.ranks` by TF-IDF cosine, a block of queries at a time."""
    queries_QV = sp.csr_matrix(vectorizer.transform(queries))
    candidates_VC = sp.csr_matrix(sp.csr_matrix(vectorizer.transform(candidates)).T)
    size = max(1, min(256, BLOCK_CELLS // len(candidates)))
    blocks = []
    for start in range(0, len(queries), size):
        scores_bC = (queries_QV[start : start + size] @ candidates_VC).toarray()
        answers_b = answers_Q[start : start + size]
        blocks.append(ranks_of_scores(scores_bC, answers_b, np.full(len(answers_b), TIE)))
    return np.concatenate(blocks)


def unique(texts: Iterable[str]) -> list[str]:
    """Each text once, in order of first occurrence."""
    return list(dict.fromkeys(texts))
