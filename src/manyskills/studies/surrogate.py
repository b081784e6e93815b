"""From the measurements of one joint run to each task's loss in any subset of the tasks.

Shape legend: K tasks, M measured steps.

AdamW gives a step about the same length whoever asks for it, so tasks that train together share it: with independent
gradients of squared lengths e, as they enter the update, the part of task k in a step of subset S is
r_k = sqrt(e_k / sum_S e). The surrogate is linear in these parts. What a step of S does to the loss of task j is

    p_j(S) = sum_{k in S} r_k A_kj,

with A the transfers of `manyskills.studies.affinity`: their median, because single steps, above all the first ones, are
off by orders of magnitude. Between two tasks it counts by as much as it stands out of two standard errors
(`settled_transfer`): most pairs of tasks do nothing measurable to each other but to share a step. The loss that task j
ends with is that of the joint run, moved by the difference in speed over as many steps as make the joint run's own
reduction out of its own speed:

    log L_j(S) = log L_j(all) - n_j (p_j(S) - p_j(all)),    n_j = (log L_j(0) - log L_j(all)) / p_j(all).

n_j is at most the number of the last measured step, and the difference of the logarithms at most `FARTHEST` times the
joint run's reduction: a speed near zero would else decide alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from manyskills.evaluation.bootstrap import Floats
from manyskills.studies.affinity import Affinity
from manyskills.studies.partitions import Subset, members, subsets

FARTHEST = 2.0


def settled_transfer(affinity: Affinity) -> Floats:
    """A_kj, shape (K, K): medians; those between tasks times (1 - (2 / t)^2)+, with t the median in its standard
    errors: the estimate of James and Stein 1961 with a bar of two of them.

    The standard error of a median is 1.2533 robust standard deviations over the square root of M, for normal noise.
    """
    median_KK = np.median(affinity.transfer_MKK, axis=0)
    deviation_KK = 1.4826 * np.median(np.abs(affinity.transfer_MKK - median_KK), axis=0)
    error_KK = 1.2533 * deviation_KK / math.sqrt(len(affinity.transfer_MKK))
    kept_KK = np.clip(1 - (2 * error_KK) ** 2 / np.maximum(median_KK**2, 1e-30), 0, 1)
    return np.where(np.eye(len(median_KK), dtype=bool), median_KK, median_KK * kept_KK)


def speeds(affinity: Affinity, subset: Subset) -> dict[int, float]:
    """p_j(S) for each task of a subset, by number."""
    transfer_KK = settled_transfer(affinity)
    chosen = members(subset)
    energies = np.median(affinity.energies_MK, axis=0)[chosen]
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
        By subset: the losses of its tasks, in their order.
    """
    names = affinity.tasks
    everything = (1 << len(names)) - 1
    together, steps = speeds(affinity, everything), effective_steps(affinity, start, end)
    found: dict[Subset, list[float]] = {}
    for subset in subsets(len(names)):
        found[subset] = []
        for j, speed in speeds(affinity, subset).items():
            reach = FARTHEST * abs(math.log(start[names[j]] / end[names[j]]))
            ahead = min(max(steps[j] * (speed - together[j]), -reach), reach)
            found[subset].append(end[names[j]] * math.exp(-ahead))
    return found


def effective_steps(affinity: Affinity, start: Mapping[str, float], end: Mapping[str, float]) -> dict[int, float]:
    """n_j of each task, by number: fewer than the joint run had, because losses do not fall along their first tangent.

    A task whose speed or whose reduction was not positive tells nothing about this and has the median of the others.
    """
    names = affinity.tasks
    together = speeds(affinity, (1 << len(names)) - 1)
    reductions = {j: math.log(start[name] / end[name]) for j, name in enumerate(names)}
    known = {
        j: min(reductions[j] / together[j], float(affinity.steps[-1]))
        for j in together
        if together[j] > 0 and reductions[j] > 0
    }
    usual = float(np.median(list(known.values()))) if known else 0.0
    return {j: known.get(j, usual) for j in together}
