"""What a model answers where answers are written, and how probable it finds the right ones.

Shape legend: E examples, R predicted tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from manyskills.config import TaskConfig
from manyskills.data.prompted import PromptExamples, PromptStore
from manyskills.evaluation.answers import Generations, Outputs, Probabilities
from manyskills.model.answers import AnswerStates
from manyskills.model.generation import Decoding, answer_probabilities, generate
from manyskills.model.multitask import MultiTaskModel
from manyskills.model.token_loss import token_chance, token_loss

Join = Callable[[list[list[str]]], list[list[str]]]
Sum = Callable[[torch.Tensor], torch.Tensor]


def written_outputs(
    model: MultiTaskModel,
    store: PromptStore,
    examples: Mapping[str, PromptExamples],
    configs: Mapping[str, TaskConfig],
    token_budget: int,
    *,
    share: tuple[int, int] = (0, 1),
    join: Join = lambda texts: texts,
    add: Sum = lambda tensor: tensor,
) -> dict[str, Outputs]:
    """Generated texts, and of yes/no tasks the probability of yes among the two words.

    Args:
        model: Put into evaluation mode.
        store: Holds the prompts.
        examples: Rows by task.
        configs: Length and beams of each task.
        token_budget: Tokens in one batch.
        share: (rank, processes): of several processes, which part this one answers.
        join: Makes all answers of each process's part.
        add: Sums a tensor over the processes.
    """
    model.eval()
    found: dict[str, Outputs] = {}
    for name, part in examples.items():
        if part.labels_E is not None:
            probabilities_E = answer_probabilities(
                model, store, part.prompts_E, part.choices, token_budget=token_budget, share=share
            )
            found[name] = Probabilities(part.labels_E, add(torch.from_numpy(probabilities_E)).numpy())
        else:
            decoding = Decoding(configs[name].max_new_tokens, num_beams=configs[name].num_beams)
            texts = join(generate(model, store, part.prompts_E, decoding, token_budget=token_budget, share=share))
            predictions = [only for (only,) in texts]
            found[name] = Generations(predictions, part.references_E.tolist(), part.variants_E.tolist(), part.task)
    return found


@torch.no_grad()
def token_losses(
    model: MultiTaskModel,
    store: PromptStore,
    examples: Mapping[str, PromptExamples],
    token_budget: int,
    *,
    share: tuple[int, int] = (0, 1),
    add: Sum = lambda tensor: tensor,
) -> dict[str, float]:
    """Mean cross-entropy of a token of the right answers, by task, in nats.

    Args:
        model: Put into evaluation mode.
        store: Holds prompts and answers.
        examples: Rows by task.
        token_budget: Tokens in one chunk.
        share: (rank, processes): of several processes, which part this one computes.
        add: Sums a tensor over the processes.
    """
    model.eval()
    states = AnswerStates(model, replace(store, learnt_S=np.zeros(len(store), dtype=bool)))  # whatever training learns
    return {name: _token_loss(states, part, token_budget, share, add) for name, part in examples.items()}


def _token_loss(
    states: AnswerStates, part: PromptExamples, token_budget: int, share: tuple[int, int], add: Sum
) -> float:
    total = torch.zeros(1, dtype=torch.float64)
    for chunk in states.plan(part.prompts_E, token_budget)[share[0] :: share[1]]:
        prompts_B = part.prompts_E[chunk]
        rows_RH = states(prompts_B)
        targets_R = torch.from_numpy(states.targets(prompts_B)).to(rows_RH.device)
        total += token_loss(states.model, rows_RH, targets_R).double().cpu()
    return add(total).item() / max(int(states.counts(part.prompts_E).sum()), 1)


def relative_losses(model: MultiTaskModel, losses: Mapping[str, float]) -> dict[str, float]:
    """Losses of tokens, 1 at chance level (every word of the vocabulary alike)."""
    return {name: loss / token_chance(model) for name, loss in losses.items()}


def likelihood_metrics(losses: Mapping[str, float], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """The geometric mean of the probabilities of the right tokens, the inverse of perplexity."""
    return {name: {"token_probability": math.exp(-losses[name])} for name in names}
