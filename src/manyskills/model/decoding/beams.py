"""Beam search, by transformers.

Shape legend: B prompts, T tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from manyskills.model.decoding.loop import Ended
from manyskills.model.decoding.prompts import encoded, language_model, left_padded, right_padded

if TYPE_CHECKING:
    from manyskills.model.multitask import MultiTaskModel


class _Ended(StoppingCriteria):
    """Ends what `ended` says has ended; candidates of a prompt lie side by side."""

    def __init__(self, ended: Ended, prompts: int, start: int) -> None:
        self.ended, self.prompts, self.start = ended, prompts, start

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        rows = input_ids[:, self.start :].tolist()
        each = len(rows) // self.prompts
        answers = [self.ended(row // each, tokens) for row, tokens in enumerate(rows)]
        return torch.tensor(answers, device=input_ids.device)  # pyright: ignore[reportReturnType]


def search_answers(
    model: MultiTaskModel,
    prompts: Sequence[np.ndarray],
    routes_B: torch.Tensor,
    *,
    beams: int,
    length: int,
    end_ids: frozenset[int],
    ended: Ended | None,
) -> list[list[int]]:
    """The tokens of the best answer to each prompt, the end token not included.

    Args:
        model: Has a language model.
        prompts: Ids of each.
        routes_B: Which task's part of a routed module reads each.
        beams: Answers that are followed at a time. They are compared by their log-probability a token.
        length: Tokens of an answer at most.
        end_ids: Tokens that end an answer.
        ended: What else ends one.
    """
    network, architecture = language_model(model), model.architecture
    inputs: dict[str, Any]
    if architecture.family == "encoder_decoder":
        from transformers.modeling_outputs import BaseModelOutput

        ids_BT, seen_BT = right_padded(prompts, architecture.pad_id, model.device)
        states_BTH = encoded(model, ids_BT, seen_BT, routes_B)
        inputs = {"encoder_outputs": BaseModelOutput(last_hidden_state=states_BTH)}  # pyright: ignore
        start = 1
    else:
        ids_BT, seen_BT = left_padded(prompts, architecture.pad_id, model.device)
        inputs = {"input_ids": ids_BT}
        start = ids_BT.shape[1]
    wanted = GenerationConfig(
        num_beams=beams,
        do_sample=False,
        max_new_tokens=length,
        eos_token_id=sorted(end_ids),
        pad_token_id=min(end_ids),  # behind an answer that has ended, where it is cut off again
        decoder_start_token_id=architecture.start_id,
        use_cache=True,
    )
    criteria = StoppingCriteriaList([] if ended is None else [_Ended(ended, len(prompts), start)])
    with model.routed(routes_B.repeat_interleave(beams)), _own_habits(network):
        found_BT = network.generate(
            **inputs, attention_mask=seen_BT.long(), generation_config=wanted, stopping_criteria=criteria
        )
    return [_until(row, end_ids) for row in found_BT[:, start:].tolist()]


def _until(tokens: list[int], end_ids: frozenset[int]) -> list[int]:
    ends = [place for place, token in enumerate(tokens) if token in end_ids]
    return tokens[: ends[0]] if ends else tokens


@contextmanager
def _own_habits(network: Any) -> Iterator[None]:
    """Within it, what the backbone's authors recommend (temperatures, penalties) does not fill what we leave open."""
    theirs = network.generation_config
    network.generation_config = GenerationConfig()
    try:
        yield
    finally:
        network.generation_config = theirs
