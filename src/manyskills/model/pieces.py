"""Vectors of pieces to vectors of texts, and the gradient the other way.

Shape legend: N texts, S sequences they are read as, D size of a vector.

A text's vector is the mean of its pieces' vectors, weighted by the tokens that each brings: every token of a long text
counts once. Both ways are linear, so processes may sum before or after.
"""

from __future__ import annotations

import torch

from manyskills.data.windows import Pieces


def pool_pieces(vectors_SD: torch.Tensor, pieces: Pieces) -> torch.Tensor:
    """vectors_ND of texts from the vectors of their pieces; each text's are summed in order, on every device."""
    if pieces.whole:
        return vectors_SD
    counts_N = torch.from_numpy(pieces.counts_N).to(vectors_SD.device)
    return torch.segment_reduce(vectors_SD * _shares(vectors_SD, pieces), "sum", lengths=counts_N, axis=0)


def spread_gradient(gradient_ND: torch.Tensor, pieces: Pieces) -> torch.Tensor:
    """gradient_SD of the pieces' vectors from the gradient of the texts' vectors."""
    if pieces.whole:
        return gradient_ND
    counts_N = torch.from_numpy(pieces.counts_N).to(gradient_ND.device)
    return gradient_ND.repeat_interleave(counts_N, dim=0) * _shares(gradient_ND, pieces)


def _shares(like: torch.Tensor, pieces: Pieces) -> torch.Tensor:
    """One column, to be multiplied with rows of vectors."""
    return torch.from_numpy(pieces.shares_S).to(like.device)[:, None]
