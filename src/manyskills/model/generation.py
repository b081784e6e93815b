"""Written answers: by the language model that shares its network with the adapted backbone.

Shape legend: N prompts, B prompts of a batch, E examples, C choices, V vocabulary, L tokens of a choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from manyskills.data.prompted import PromptStore
from manyskills.errors import UserError
from manyskills.model.decoding.batches import Batch, plan_batches, run_batches, shared_out
from manyskills.model.decoding.beams import search_answers
from manyskills.model.decoding.loop import Choice, Ended, write_answers
from manyskills.model.decoding.options import Decoding
from manyskills.model.decoding.prompts import continuation
from manyskills.model.decoding.sampling import all_uniforms
from manyskills.model.decoding.text import AnswerTexts
from manyskills.model.encoding import Report

if TYPE_CHECKING:
    from manyskills.model.multitask import MultiTaskModel

__all__ = ["Decoding", "Done", "answer_probabilities", "generate"]

Done = Callable[[int, list[str]], None]
"""Gets the position of a prompt among those asked for, and its answers, as soon as they are there."""


@torch.no_grad()
def generate(
    model: MultiTaskModel,
    store: PromptStore,
    indices_N: np.ndarray,
    decoding: Decoding,
    *,
    token_budget: int,
    languages: Sequence[str] | None = None,
    share: tuple[int, int] = (0, 1),
    report: Report | None = None,
    done: Done | None = None,
) -> list[list[str]]:
    """Answers to prompts.

    Prompts are sorted by length and answered in batches, longest first. An answer does not depend on what is beside it
    (up to rounding), a draw not on the order of the prompts either; the same prompt gets the same draws.

    Args:
        model: Has a language model; put into evaluation mode.
        store: Holds the prompts.
        indices_N: Which ones.
        decoding: How answers are written.
        token_budget: Tokens of prompts and answers of a batch at most, times samples and beams; where a GPU's memory
            does not hold it, batches are halved.
        languages: What is written, for each of `indices_N`; only `stop: function` looks at it.
        share: (rank, processes): only the prompts of every so-manieth batch of the plan, which is the same in all
            processes, are answered, each with all its samples; other prompts get empty lists, so that the lists of all
            processes can be joined prompt by prompt.
        report: Told how many more prompts are done.
        done: Gets each prompt's answers.

    Returns:
        For each of `indices_N` its answers, `decoding.samples` of them.

    Raises:
        UserError: The model cannot write, a prompt leaves no room for an answer, or memory does not hold one.
    """
    _refuse_mute(model)
    model.eval()
    texts = AnswerTexts(model, decoding.stop, languages)
    prompts = [store.prompt(int(index)) for index in indices_N]
    batches = plan_batches(
        np.array([len(prompt) for prompt in prompts], dtype=np.int64),
        _limits(model, prompts, decoding.max_new_tokens),
        token_budget,
        samples=decoding.samples,
        rows_each=decoding.num_beams,
    )

    def work(batch: Batch) -> list[list[int]]:
        ended = texts.ended(batch.positions, batch.samples)
        mine = [prompts[position] for position in batch.positions]
        routes_B = torch.from_numpy(store.routes_S[indices_N[batch.positions]]).long().to(model.device)
        with model.autocast():  # around all steps: it keeps the weights that it casts
            return _write(model, mine, routes_B, decoding, batch, texts.end_ids, ended)

    answers: list[list[str]] = [[] for _ in prompts]
    for batch, tokens in run_batches(shared_out(batches, share), work):
        for row, position in enumerate(map(int, batch.positions)):
            mine = tokens[row * batch.samples : (row + 1) * batch.samples]
            answers[position] += [texts.text(position, answer) for answer in mine]
            if len(answers[position]) == decoding.samples and done is not None:
                done(position, answers[position])
        if report is not None and batch.first + batch.samples == decoding.samples:
            report(len(batch.positions))
    return answers


@torch.no_grad()
def answer_probabilities(
    model: MultiTaskModel,
    store: PromptStore,
    indices_N: np.ndarray,
    choices: Sequence[Sequence[int]],
    *,
    token_budget: int,
    share: tuple[int, int] = (0, 1),
    report: Report | None = None,
) -> np.ndarray:
    """Probability of the second of two answers, where only these two may be given.

    P(1) = p_1 / (p_0 + p_1), p_i being the probability that the model writes the tokens of choice i behind the prompt.

    Args:
        model: Has a language model; put into evaluation mode.
        store: Holds the prompts.
        indices_N: Which ones.
        choices: Ids of the answers that mean 0 and 1.
        token_budget: Tokens of a batch at most.
        share: As for `generate`; the probabilities of other prompts are 0, so that they can be summed.
        report: Told how many more prompts are done.

    Returns:
        probabilities_N, float64.

    Raises:
        UserError: As `generate`.
    """
    _refuse_mute(model)
    model.eval()
    prompts = [store.prompt(int(index)) for index in indices_N]
    longest = max(len(choice) for choice in choices)
    lengths_N = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
    limits_N = np.maximum(_limits(model, prompts, longest), longest)
    batches = plan_batches(lengths_N, limits_N, token_budget, rows_each=1 if longest == 1 else len(choices))

    def work(batch: Batch) -> np.ndarray:
        mine = [prompts[position] for position in batch.positions]
        routes_B = torch.from_numpy(store.routes_S[indices_N[batch.positions]]).long().to(model.device)
        with model.autocast():
            return _log_probabilities(model, mine, routes_B, choices)

    probabilities_N = np.zeros(len(prompts))
    for batch, logs_BC in run_batches(shared_out(batches, share), work):
        probabilities_N[batch.positions] = 1 / (1 + np.exp(np.clip(logs_BC[:, 0] - logs_BC[:, 1], -700, 700)))
        if report is not None:
            report(len(batch.positions))
    return probabilities_N


def _write(
    model: MultiTaskModel,
    prompts: list[np.ndarray],
    routes_B: torch.Tensor,
    decoding: Decoding,
    batch: Batch,
    end_ids: frozenset[int],
    ended: Ended | None,
) -> list[list[int]]:
    """The tokens of each answer, those of one prompt side by side."""
    if decoding.num_beams > 1:
        return search_answers(
            model, prompts, routes_B, beams=decoding.num_beams, length=batch.limit, end_ids=end_ids, ended=ended
        )
    choice = Choice()
    if decoding.draws:
        last = batch.first + batch.samples
        uniforms_AL = all_uniforms(prompts, decoding.seed, range(batch.first, last), batch.limit)
        choice = Choice(uniforms_AL, decoding.temperature, decoding.top_k, decoding.top_p)
    source = continuation(model, prompts, routes_B)
    return write_answers(
        source, len(prompts), samples=batch.samples, length=batch.limit, choice=choice, end_ids=end_ids, ended=ended
    )


def _log_probabilities(
    model: MultiTaskModel, prompts: list[np.ndarray], routes_B: torch.Tensor, choices: Sequence[Sequence[int]]
) -> np.ndarray:
    """logs_BC: log-probability of each choice behind each prompt."""
    source = continuation(model, prompts, routes_B)
    lengths_C = torch.tensor([len(choice) for choice in choices])
    longest = int(lengths_C.max())
    ids_CL = torch.tensor([[*choice, *[choice[-1]] * (longest - len(choice))] for choice in choices])
    ids_CL = ids_CL.to(model.device)
    logs_BV = source.read().double().log_softmax(1)
    logs_BC = logs_BV[:, ids_CL[:, 0]]
    if longest > 1:
        count = len(choices)
        source.keep(torch.arange(len(prompts), device=model.device).repeat_interleave(count))
        for place in range(1, longest):
            logits = source.write(ids_CL[:, place - 1].repeat(len(prompts)))
            logs = logits.double().log_softmax(1).gather(1, ids_CL[:, place].repeat(len(prompts))[:, None])
            there_C = (lengths_C > place).to(model.device)
            logs_BC = logs_BC + logs.view(len(prompts), count) * there_C
    return logs_BC.cpu().numpy()


def _limits(model: MultiTaskModel, prompts: Sequence[np.ndarray], wanted: int) -> np.ndarray:
    """Tokens that each answer may have: fewer than wanted where a decoder's positions end before.

    Raises:
        UserError: A prompt leaves no room at all.
    """
    limits_N = np.full(len(prompts), wanted, dtype=np.int64)
    most = model.architecture.max_positions
    if most is None or model.architecture.family == "encoder_decoder":
        return limits_N
    room_N = most - np.array([len(prompt) for prompt in prompts], dtype=np.int64)
    if len(prompts) and room_N.min() < 1:
        what = f"a prompt has {most - int(room_N.min())} tokens, and with its answer the backbone reads {most} at most"
        raise UserError(what, "lower max_length, so that the source is cut, or shorten it")
    return np.minimum(limits_N, room_N)


def _refuse_mute(model: MultiTaskModel) -> None:
    if model.language_model is None:
        what = f"a {model.architecture.model_type} that was loaded without its output layer cannot write"
        raise UserError(what, "train a task that is answered with text on a decoder or an encoder-decoder")
