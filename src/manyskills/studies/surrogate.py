"""From the measurements of one joint run to each task's loss in any subset of the tasks.

Shape legend: K tasks, M measured steps.

AdamW gives a step about the same length whoever asks for it, so tasks that train together share it: with independent
gradients of mean squared lengths e, the part of task k in a step of subset S is r_k = sqrt(e_k / sum_S e). The
surrogate is linear in these parts. What a step of S does to the loss of task j is

    p_j(S) = sum_{k in S} r_k A_kj,

with A the measured transfer (`manyskills.studies.affinity`), and the loss that task j ends with is

    log L_j(S) = log L_j(0) - (log L_j(0) - log L_j(all)) p_j(S) / p_j(all):

the joint run's own reduction, in the ratio of the two speeds.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from manyskills.evaluation.bootstrap import Floats
from manyskills.studies.affinity import Affinity
from manyskills.studies.partitions import Subset, members, subsets

OUTLYING = 2.0

FASTEST = 3.0
"""A ratio of speeds is kept within this: beyond it the measurement of the slower one is mostly noise."""


def robust_mean(values_MKK: Floats) -> Floats:
    """Means of the measured steps, each value drawn to within `OUTLYING` robust standard deviations of the median:
    single steps, above all the first ones, are off by orders of magnitude (winsorising; Tukey 1962)."""
    median_KK = np.median(values_MKK, axis=0)
    reach_KK = OUTLYING * 1.4826 * np.median(np.abs(values_MKK - median_KK), axis=0)
    return np.clip(values_MKK, median_KK - reach_KK, median_KK + reach_KK).mean(axis=0)


def speeds(affinity: Affinity, subset: Subset) -> dict[int, float]:
    """p_j(S) for each task of a subset, by number."""
    transfer_KK = robust_mean(affinity.transfer_MKK)
    chosen = members(subset)
    energies = affinity.energies_K[chosen]
    parts = np.sqrt(energies / energies.sum())
    return {j: float(parts @ transfer_KK[chosen, j]) for j in chosen}


def predicted_losses(
    affinity: Affinity, start: Mapping[str, float], end: Mapping[str, float]
) -> dict[Subset, list[float]]:
    """Each task's loss at the end of a training with every subset, as long as the joint run was.

    Args:
        affinity: What the joint run measured.
        start: Validation losses before the first step.
        end: Validation losses after the joint run.

    Returns:
        By subset: the losses of its tasks, in their order. A task that the joint run does not seem to move has the same
        loss everywhere.
    """
    names = affinity.tasks
    together = speeds(affinity, (1 << len(names)) - 1)
    found: dict[Subset, list[float]] = {}
    for subset in subsets(len(names)):
        losses = []
        for j, speed in speeds(affinity, subset).items():
            ratio = float(np.clip(speed / together[j], -FASTEST, FASTEST)) if together[j] > 0 else 1.0
            reduction = np.log(start[names[j]]) - np.log(end[names[j]])
            losses.append(float(np.exp(np.log(start[names[j]]) - reduction * ratio)))
        found[subset] = losses
    return found
