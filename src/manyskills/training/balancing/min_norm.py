"""The shortest vector in a convex hull.

Shape legend: K vectors, D their dimension.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

from manyskills.training.balancing.base import Floats

_RIDGE = 1e-6
"""Length of a direction of its own that each vector is given, in lengths of the longest: where several combinations
are equally short, the solver takes the most even one and does not stumble over a singular matrix."""


def coordinates(gram_KK: Floats) -> Floats:
    """Vectors with these inner products, as columns, the longest of length 1; all zero if the matrix is."""
    longest = np.diag(gram_KK).max()
    if longest <= 0:
        return np.zeros_like(gram_KK)
    eigenvalues_K, eigenvectors_KK = np.linalg.eigh(gram_KK / longest)
    return np.sqrt(np.maximum(eigenvalues_K, 0.0))[:, None] * eigenvectors_KK.T


def min_norm_weights(vectors_DK: Floats) -> Floats:
    """w >= 0 with sum w = 1 and the least |V w|, shape (K,).

    It is the normalised minimum of |V x|^2 + (sum x - 1)^2 over x >= 0: for x = t w the first term asks for the same w
    at every t > 0. That is non-negative least squares (Lawson & Hanson 1974), exact after a few active-set steps.
    """
    count = vectors_DK.shape[1]
    longest = np.sqrt((vectors_DK**2).sum(axis=0).max()) or 1.0
    stacked = np.vstack([vectors_DK / longest, _RIDGE * np.eye(count), np.ones(count)])
    weights_K, _ = nnls(stacked, np.append(np.zeros(len(stacked) - 1), 1.0))
    return weights_K / weights_K.sum()
