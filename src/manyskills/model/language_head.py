"""The output layer of a language model, and the network below it as the rest of the package knows networks.

Shape legend: V vocabulary, H hidden size, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from manyskills.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TESTED = {"t5", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "starcoder2"}
"""Model types whose logits are known to come from the last states as `OutputLayer` says, and that are known to go on
behind left-padded prompts; others are tried out."""

_SAME = 1e-2
"""By how much of the largest logit those of the two ways may differ: in half precision they round in another order."""


@dataclass(frozen=True, slots=True)
class OutputLayer:
    """How states become logits: cap(scale * states @ weight.T + bias), cap(x) = softcap * tanh(x / softcap).

    Attributes:
        weight_VH: Shared with the input embeddings where they are tied.
        bias_V: None in most networks.
        scale: Of the states; T5's is 1 / sqrt(H) where its embeddings are tied.
        softcap: Bound of the logits; None: there is none.
    """

    weight_VH: torch.Tensor
    bias_V: torch.Tensor | None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Of each state, last axis V."""
        logits = F.linear(states * self.scale, self.weight_VH, self.bias_V)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def output_layer(language_model: PreTrainedModel) -> OutputLayer:
    """The output layer of a language model; its tensors are the model's own."""
    config, head = language_model.config, _head(language_model)
    scaled = getattr(config, "scale_decoder_outputs", False)  # what transformers asks of a T5
    scale = config.d_model**-0.5 if scaled else 1.0
    bias = getattr(head, "bias", None)
    return OutputLayer(cast("torch.Tensor", head.weight), bias, scale, getattr(config, "final_logit_softcapping", None))


def _head(language_model: PreTrainedModel) -> nn.Module:
    head = language_model.get_output_embeddings()
    assert head is not None  # transformers' mapping of language models holds only those that have one
    return head


def untied_head(language_model: PreTrainedModel) -> nn.Module | None:
    """The output layer as a module, where it is not the input embeddings over again; else None."""
    head = _head(language_model)
    return None if head.weight is language_model.get_input_embeddings().weight else head


def network_below(language_model: PreTrainedModel) -> PreTrainedModel:
    """The network whose last states a language model's output layer reads; it consists of the model's own modules.

    A T5 with an output layer holds encoder and decoder side by side, without a module around both that would run
    without it: there one is made.

    Raises:
        UserError: The model is built in another way.
    """
    if language_model.base_model is not language_model:
        return cast("PreTrainedModel", language_model.base_model)
    from transformers import AutoModel

    with torch.device("meta"):
        network: Any = AutoModel.from_config(language_model.config, trust_remote_code=False)
    for name, _ in list(network.named_children()):
        if not hasattr(language_model, name):
            raise UserError(*_unknown(language_model))
        setattr(network, name, getattr(language_model, name))
    network.config = language_model.config
    return network


_QUANTIZED = ("is_quantized", "is_loaded_in_4bit", "quantization_method", "hf_quantizer")


def tell_quantized(network: nn.Module, language_model: PreTrainedModel) -> None:
    """Mark a network as quantised like the language model around it, where transformers marks the outer one only and
    peft looks at the inner one."""
    for name in _QUANTIZED:
        if name in vars(language_model):
            setattr(network, name, getattr(language_model, name))


@torch.no_grad()
def try_output(language_model: PreTrainedModel, network: PreTrainedModel) -> None:
    """Compare the logits of a few tokens with the language model's own, where its type was never tested.

    Raises:
        UserError: They differ, or the network cannot be called as others can.
    """
    if language_model.config.model_type in TESTED or language_model.device.type == "meta":
        return
    ids_1T = torch.arange(3, 8, device=language_model.device)[None]
    inputs = {"input_ids": ids_1T}
    if language_model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids_1T
    with tried_out(language_model):
        own = language_model.eval()(**inputs).logits.float()
        mine = output_layer(language_model).logits(network.eval()(**inputs).last_hidden_state).float()
    if own.shape != mine.shape or not (own - mine).abs().max() <= _SAME * own.abs().max():
        raise UserError(*_unknown(language_model))


@contextmanager
def tried_out(language_model: PreTrainedModel) -> Iterator[None]:
    """Say which network it was where it cannot be called as others can, whatever its own code raises then."""
    try:
        yield
    except Exception as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        kind = language_model.config.model_type
        what = f"a network of type {kind!r} cannot be tried out as one that writes: {first_line}"
        raise UserError(what, f"known are: {', '.join(sorted(TESTED))}") from error


def _unknown(language_model: PreTrainedModel) -> tuple[str, str]:
    kind = language_model.config.model_type
    wanted = f"it is not known how a network of type {kind!r} makes words of its last states"
    return wanted, f"known are: {', '.join(sorted(TESTED))}"
