"""An order of labelled pairs in which neighbours share texts, so that few encoded texts serve many pairs.

Pairs are the edges of a graph whose nodes are texts. Drawn at random, E pairs touch almost 2 E texts. Here an epoch is
cut into clusters, each grown around a random text by always adding the text with the most open pairs into the
cluster; then the clusters are shuffled. Every pair occurs exactly once an epoch, whatever the clusters.
"""

from __future__ import annotations

import numpy as np


def local_order(pairs_E2: np.ndarray, generator: np.random.Generator, cluster: int = 16) -> np.ndarray:
    """A permutation of the pairs in runs of about `cluster` pairs that share texts.

    Args:
        pairs_E2: Text indices of each pair.
        generator: Decides starting texts and the order of the clusters.
        cluster: Pairs of one run. Larger saves more encodings and makes the labels of a step more alike.

    Returns:
        Row numbers, each exactly once.
    """
    neighbours = _adjacency(pairs_E2)
    nodes = np.fromiter(neighbours, dtype=np.int64, count=len(neighbours))
    clusters: list[list[int]] = []
    for node in generator.permutation(nodes).tolist():
        while neighbours[node]:
            clusters.append(_grow(node, neighbours, cluster))
    shuffled = generator.permutation(len(clusters))
    return np.array([row for index in shuffled for row in clusters[index]], dtype=np.int64)


def _adjacency(pairs_E2: np.ndarray) -> dict[int, dict[int, list[int]]]:
    """text -> other text -> rows that pair the two (several where a pair is listed twice)."""
    neighbours: dict[int, dict[int, list[int]]] = {}
    for row, (left, right) in enumerate(pairs_E2.tolist()):
        neighbours.setdefault(left, {}).setdefault(right, []).append(row)
        if left != right:
            neighbours.setdefault(right, {}).setdefault(left, []).append(row)
    return neighbours


def _grow(start: int, neighbours: dict[int, dict[int, list[int]]], size: int) -> list[int]:
    """Take up to `size` open pairs around `start` out of the graph."""
    rows: list[int] = []
    members: dict[int, None] = {}
    links: dict[int, int] = {start: 0}  # texts outside the cluster -> open pairs into it
    while links and len(rows) < size:
        # dictionaries keep their insertion order, so equal counts are decided the same way in every process
        node = max(links, key=links.__getitem__)
        del links[node]
        members[node] = None
        for other in [other for other in neighbours[node] if other in members]:
            if len(rows) >= size:
                break
            rows += neighbours[node].pop(other)
            if other != node:
                del neighbours[other][node]
        for other in neighbours[node]:
            if other not in members:
                links[other] = links.get(other, 0) + 1
    return rows
