"""The lower and the upper layers of a backbone apart: what is below the last K layers runs once, what is above often.

Shape legend: B sequences, T tokens, H hidden size, D size of a vector.

A network walks over its list of layers in its own forward, whatever the family, and passes the states of each on to
the next. So the list is where it is taken apart: for a lower pass the walk meets stand-ins instead of the upper layers,
which pass the states on, and for an upper pass instead of the lower ones, where the first hands in states that were
kept. Embeddings, masks, positions and the last normalisation are the network's own. Nothing is renamed, no hook is set,
and only the walk meets stand-ins: gradient checkpointing computes a layer again from that layer's own inputs, so it
does not matter what the list stands for by then. How a network walks is not promised by transformers, so a trunk tries
itself out before it is used (`Trunk.problem`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from manyskills.model.attention import probe, routed_to_first
from manyskills.model.backbones import Architecture
from manyskills.model.chunks import Chunk
from manyskills.model.fingerprint import add_facts, add_tensor, computation, tensors
from manyskills.model.multitask import MultiTaskModel
from manyskills.model.sites import SITES

Layer = Callable[..., Any]

SAME = 1e-4
"""By how much of the largest value vectors may differ that are computed from the same numbers in the same order."""


class Trunk:
    """A model whose last layers alone train, with its lower and its upper part callable apart.

    Args:
        model: Its list of layers is replaced by one of the same content and the same names.
        last: How many layers train; fewer than the backbone has.

    Raises:
        RuntimeError: Something trains in the lower layers, so their states would not stay as they are.
    """

    def __init__(self, model: MultiTaskModel, last: int) -> None:
        self.model = model
        self.lower_layers = model.architecture.layers - last
        stand_in = _STAND_INS.get(model.architecture.model_type, StandIn)
        self._layers = SteppedLayers.of(model.network, _path(model.architecture), stand_in)
        self._refuse_training_below()

    @torch.no_grad()
    def lower(self, chunk: Chunk) -> torch.Tensor:
        """Hidden states after the lower layers, axes as the chunk's ids and H, in the network's own number format."""
        with self._layers.lower_only(self.lower_layers) as states:
            self.model.vectors(chunk)
        return states[0]

    def upper(self, states_BTH: torch.Tensor, chunk: Chunk) -> torch.Tensor:
        """Vectors from the states after the lower layers, as `MultiTaskModel.vectors` gives them from the ids.

        Args:
            states_BTH: As `lower` gives them; need no gradient and get none.
            chunk: Its ids only matter for what the network derives from them besides states, as positions.

        Returns:
            vectors_BD, with a graph if gradients are on.
        """
        with self._layers.upper_only(self.lower_layers, states_BTH):
            return self.model.vectors(chunk)

    @torch.no_grad()
    def problem(self) -> str | None:
        """What is wrong with the parts of two texts, the shorter one padded; None if they give what the whole gives.

        Puts the model into evaluation mode.
        """
        self.model.eval()
        chunk = probe(self.model)
        try:
            with routed_to_first(self.model, chunk):
                whole_BD = self.model.vectors(chunk)
                parts_BD = self.upper(self.lower(chunk), chunk)
        except Exception as error:  # noqa: BLE001 - whatever another version of the library makes of the stand-ins
            return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if (parts_BD - whole_BD).abs().max() <= SAME * whole_BD.abs().max():
            return None
        return "their vectors are not those of the whole network"

    def fingerprint(self) -> str:
        """A hash of what decides the lower states: weights, how they are computed with, and how many layers."""
        digest = hashlib.sha256()
        add_facts(digest, [self.lower_layers, *computation(self.model)])
        for name, tensor in tensors(self.model):
            if not self._is_upper(name):
                add_tensor(digest, name, tensor)
        return digest.hexdigest()

    def _is_upper(self, name: str) -> bool:
        before, _, rest = name.partition(f"{_path(self.model.architecture)}.")
        return not before and bool(rest) and int(rest.split(".", 1)[0]) >= self.lower_layers

    def _refuse_training_below(self) -> None:
        trained = (name for name, p in self.model.network.named_parameters() if p.requires_grad)
        below = next((name for name in trained if not self._is_upper(name)), None)
        if below is not None:
            raise RuntimeError(f"{below} trains, but only the layers from {self.lower_layers} on were meant to")


def why_whole(architecture: Architecture, last: int) -> str | None:
    """Why a network cannot be taken apart below its last layers; None if it can."""
    if architecture.model_type not in SITES:
        return f"it is not known how layers follow each other in an architecture of type {architecture.model_type!r}"
    if architecture.family == "encoder_decoder":
        return "the decoder of an encoder-decoder reads what the encoder's last layers change"
    if last >= architecture.layers:
        return f"there is nothing below the last {last} of {architecture.layers} layers"
    return None


class SteppedLayers(nn.ModuleList):
    """A network's layers; in a forward pass, those of one part may be replaced by stand-ins.

    Args:
        layers: All of them.
        stand_in: What passes states on in place of a layer.
    """

    def __init__(self, layers: Sequence[nn.Module], stand_in: type[StandIn]) -> None:
        super().__init__(layers)
        self._stand_in = stand_in
        self._walked: Sequence[Layer] | None = None

    @classmethod
    def of(cls, network: nn.Module, path: str, stand_in: type[StandIn]) -> SteppedLayers:
        """The one at a path of the network, put there in the place of a list with the same content if need be."""
        parent, _, name = path.rpartition(".")
        owner = network.get_submodule(parent)
        layers = getattr(owner, name)
        if not isinstance(layers, cls):
            training, layers = layers.training, cls(list(layers), stand_in)
            layers.training = training
            setattr(owner, name, layers)
        return layers

    @contextmanager
    def lower_only(self, border: int) -> Iterator[list[torch.Tensor]]:
        """Within it, the layers from the border on do nothing; gives a list that gets the states before them."""
        found: list[torch.Tensor] = []
        first, *rest = self._own()[border:]
        above = [self._stand_in(first, keep=found), *map(self._stand_in, rest)]
        with self._walking([*self._own()[:border], *above]):
            yield found

    @contextmanager
    def upper_only(self, border: int, states_BTH: torch.Tensor) -> Iterator[None]:
        """Within it, the layers below the border do nothing, and these are the states that come out of them."""
        first, *rest = self._own()[:border]
        below = [self._stand_in(first, give=states_BTH), *map(self._stand_in, rest)]
        with self._walking([*below, *self._own()[border:]]):
            yield

    @contextmanager
    def _walking(self, layers: Sequence[Layer]) -> Iterator[None]:
        self._walked = layers
        try:
            yield
        finally:
            self._walked = None

    def _own(self) -> list[nn.Module]:
        return list(self._modules.values())  # pyright: ignore

    def __iter__(self) -> Iterator[Any]:
        return iter(self._own() if self._walked is None else self._walked)

    def __getitem__(self, index: int | slice | str) -> Any:
        """One layer, or for a slice a list of what a walk over it meets."""
        return list(self)[index] if isinstance(index, slice) else super().__getitem__(index)  # pyright: ignore


class StandIn:
    """In place of a layer: passes the states on.

    Args:
        layer: What it stands for; networks look up attributes of their layers.
        give: Pass these states on instead.
        keep: Put the states in here.
    """

    def __init__(
        self, layer: nn.Module, give: torch.Tensor | None = None, keep: list[torch.Tensor] | None = None
    ) -> None:
        self._layer, self._give, self._keep = layer, give, keep

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def __call__(self, states_BTH: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        """The states, whatever else a layer gets."""
        if self._keep is not None:
            self._keep.append(states_BTH)
        return states_BTH if self._give is None else self._give.to(states_BTH.dtype)


class _T5StandIn(StandIn):
    """In place of a T5 block: the first one's position bias serves all blocks (Raffel et al. 2020, section 2.1)."""

    def __call__(
        self,
        states_BTH: torch.Tensor,
        mask: Any = None,
        position_bias: torch.Tensor | None = None,
        *arguments: Any,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """States and position bias, as a block returns them."""
        attention = self.layer[0].SelfAttention
        if position_bias is None and attention.has_relative_attention_bias:
            tokens = states_BTH.shape[1]
            position_bias = attention.compute_bias(tokens, tokens, device=states_BTH.device)
        return super().__call__(states_BTH), position_bias, None


_STAND_INS: dict[str, type[StandIn]] = {"t5": _T5StandIn}
"""By model type, where a layer returns more than its states."""


def _path(architecture: Architecture) -> str:
    """Where the list of layers is in the network."""
    return SITES[architecture.model_type][0].layer.replace("\\", "").removesuffix(".")
