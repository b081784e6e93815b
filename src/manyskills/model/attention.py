"""Which layout a model reads its chunks in: padded, or one sequence behind another.

Shape legend: B sequences, T tokens, D size of a vector.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from manyskills.errors import UserError
from manyskills.model.chunks import Chunk, PaddedChunk, UnpaddedChunk
from manyskills.model.methods import METHODS
from manyskills.model.unpadded import ATTENTION, Bounds, has_varlen

if TYPE_CHECKING:
    from manyskills.model.multitask import MultiTaskModel

Layout = Literal["padded", "unpadded"]

UNPADDED = ("bert", "roberta", "modernbert", "llama", "mistral", "qwen2", "qwen3", "starcoder2")
"""Model types whose networks run unpadded. T5 has a bias for distances that its network makes itself, for one text."""

SAME = 1e-4
"""By how much of the largest value the vectors of the two layouts may differ in float32."""

PROBE_LENGTHS = (6, 16, 16)
WIDEST = 256
"""Sliding windows up to this size are tried with a text that they do not span."""


def choose_attention(model: MultiTaskModel, wanted: Literal["auto", "padded", "unpadded"]) -> None:
    """Set a model's layout.

    How networks pass on what is new to them is not promised by transformers, so a few short texts are tried first.

    Args:
        model: On the device where it will run; `attention` is set, and the network's attention function.
        wanted: auto: unpadded where it is possible and of use.

    Raises:
        UserError: unpadded is wanted and not possible.
    """
    if wanted == "padded" or (wanted == "auto" and not _worthwhile(model)):
        return
    problem = _why_padded(model)
    if problem is None:
        own = model.network.config._attn_implementation
        model.network.config._attn_implementation = ATTENTION
        model.attention = "unpadded"
        problem = None if model.device.type == "meta" else _difference(model)
        if problem is None:
            return
        model.network.config._attn_implementation = own
        model.attention = "padded"
    if wanted == "unpadded":
        raise UserError(f"attention=unpadded is not possible: {problem}", "set attention=auto")


def first_position(network: Any) -> int:
    """What a network numbers the first token of a sequence with: RoBERTa counts from behind its padding's number."""
    return network.config.pad_token_id + 1 if network.config.model_type == "roberta" else 0


def _worthwhile(model: MultiTaskModel) -> bool:
    """On a GPU only with variable-length attention: one call a group of like length would leave it idle."""
    if model.device.type != "cuda":
        return True
    return has_varlen(model.device, model.autocast_dtype or model.network.dtype)


def _why_padded(model: MultiTaskModel) -> str | None:
    """What speaks against the unpadded layout; None: nothing."""
    network = model.network.config
    if network.model_type not in UNPADDED:
        return f"networks of type {network.model_type} are not known to run so"
    if not METHODS[model.method.name].unpadded:
        return f"{model.method.name} has an attention function of its own"
    if network._attn_implementation != "sdpa":
        return f"the network's attention is {network._attn_implementation}, not sdpa"
    return None


@torch.no_grad()
def _difference(model: MultiTaskModel) -> str | None:
    """What is wrong with the vectors of a few short texts; None if they are those of the padded layout."""
    training = model.training
    model.eval()
    try:
        padded_BD, unpadded_BD = (_vectors(model, chunk) for chunk in _probes(model))
    except Exception as error:  # noqa: BLE001 - whatever another version of the library makes of the bounds
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    finally:
        model.train(training)
    precise = model.autocast_dtype is None and model.network.dtype == torch.float32
    bound = SAME if precise else 0.05  # half precision rounds in another order
    if not padded_BD.isfinite().all():
        return "its vectors are not finite numbers, so that layouts cannot be compared"
    if (padded_BD - unpadded_BD).abs().max() <= bound * padded_BD.abs().max():
        return None
    return "this version of transformers gives other vectors then"


def routed_to_first(model: MultiTaskModel, chunk: Chunk) -> AbstractContextManager[None]:
    """The network set as if the first task read every sequence."""
    shape = chunk.ids.shape if isinstance(chunk, UnpaddedChunk) else chunk.ids.shape[:1]
    return model.routed(torch.zeros(shape, dtype=torch.long, device=model.device))


def probe(model: MultiTaskModel) -> Chunk:
    """A few short texts in the model's layout, to try a network out."""
    padded, unpadded = _probes(model)
    return padded if model.attention == "padded" else unpadded


def _vectors(model: MultiTaskModel, chunk: Chunk) -> torch.Tensor:
    with routed_to_first(model, chunk):
        return model.vectors(chunk)


def _probes(model: MultiTaskModel) -> tuple[PaddedChunk, UnpaddedChunk]:
    pad, network = model.architecture.pad_id, model.network.config
    window = getattr(network, "sliding_window", None) or WIDEST
    lengths_B = np.array([*PROBE_LENGTHS, *([window + 8] if window < WIDEST else [])])
    lengths_B = np.minimum(lengths_B, model.architecture.max_positions or lengths_B)
    mask_BT = torch.arange(int(lengths_B.max())) < torch.from_numpy(lengths_B)[:, None]
    ids_BT = (3 + torch.arange(mask_BT.numel()) % (network.vocab_size - 3)).view_as(mask_BT)
    ids_BT = ids_BT.where(ids_BT != pad, 2).where(mask_BT, pad).to(model.device)
    mask_BT = mask_BT.to(model.device)
    unpadded = UnpaddedChunk(ids_BT[mask_BT][None], Bounds(lengths_B, model.device), first_position(model.network))
    return PaddedChunk(ids_BT, mask_BT.long()), unpadded
