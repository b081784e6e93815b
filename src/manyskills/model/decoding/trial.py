"""Whether a network of a type that was never tested writes what it reads, tried out with two short prompts.

Shape legend: B prompts, T places of an answer, V vocabulary.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from manyskills.errors import UserError
from manyskills.model import language_head
from manyskills.model.decoding.prompts import Writer, continuation, language_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from manyskills.model.backbones import Architecture, Backbone

PROMPTS = (np.arange(3, 9), np.arange(20, 23))
"""Of different lengths, so that one is padded."""
ANSWER = (11, 12)

SAME = 1e-4
"""By how much of the largest logit those of the two ways may differ in float32."""


@dataclass(frozen=True, slots=True)
class _Bare:
    """A backbone as a `Writer`."""

    language_model: PreTrainedModel
    network: PreTrainedModel
    architecture: Architecture

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.language_model.device

    def routed(self, routes: torch.Tensor | None) -> AbstractContextManager[None]:
        """A backbone has no tasks."""
        return nullcontext()


@torch.no_grad()
def try_writing(backbone: Backbone) -> None:
    """Compare the logits of a few tokens that are written one by one with those of reading all of them at once.

    Args:
        backbone: With a language model. Types that were tested and networks without weights are passed.

    Raises:
        UserError: They differ, or the network cannot be called as others can.
    """
    model, kind = language_model(backbone), backbone.architecture.model_type
    if kind in language_head.TESTED or model.device.type == "meta":
        return
    with language_head.tried_out(model):
        difference = _difference(_Bare(model.eval(), cast("PreTrainedModel", backbone.model), backbone.architecture))
    bound = SAME if model.dtype == torch.float32 else 0.05  # half precision rounds in another order
    if not difference <= bound:
        what = f"a network of type {kind!r} writes other tokens one by one than it finds likely when it reads them"
        raise UserError(what, f"known to write are: {', '.join(sorted(language_head.TESTED))}")


def _difference(model: Writer) -> float:
    """Of logits behind left-padded prompts and kept keys and values from those of reading everything at once, as a part
    of the largest."""
    expected_BTV = torch.stack([_read(model, prompt) for prompt in PROMPTS])
    source = continuation(model, PROMPTS, torch.zeros(len(PROMPTS), dtype=torch.long, device=model.device))
    first, second = (torch.full((len(PROMPTS),), token, device=model.device) for token in ANSWER)
    found = [source.read(), source.write(first)]
    swapped = torch.tensor([1, 0], device=model.device)
    source.keep(swapped)
    found.append(source.write(second)[swapped])
    largest = expected_BTV.abs().max()
    return float((torch.stack(found, 1).float() - expected_BTV).abs().max() / largest)


def _read(model: Writer, prompt: np.ndarray) -> torch.Tensor:
    """logits_TV of each token of the answer and of the one behind it."""
    network = language_model(model)
    if model.architecture.family == "encoder_decoder":
        prompt_1T = torch.from_numpy(prompt)[None].to(model.device)
        start_1T = torch.tensor([[model.architecture.start_id, *ANSWER]], device=model.device)
        logits = network(input_ids=prompt_1T, decoder_input_ids=start_1T, use_cache=False).logits
    else:
        ids_1T = torch.tensor([[*prompt.tolist(), *ANSWER]], device=model.device)
        logits = network(input_ids=ids_1T, use_cache=False).logits
    return logits[0, -len(ANSWER) - 1 :].float()
