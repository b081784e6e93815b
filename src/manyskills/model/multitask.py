"""One backbone with a shared module, one head a task, and one output layer for all tasks whose answers are written.

Shape legend: B sequences, T tokens, H hidden size, D size of a vector (= H), N texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import nn

from manyskills.config import BackboneConfig, FullConfig, MethodConfig, QloraConfig, TaskConfig, TrainConfig
from manyskills.data.frames import Frames, written
from manyskills.data.text_set import plan_chunks, plan_unpadded_chunks
from manyskills.data.tokens import TokenStore
from manyskills.model.attention import Layout, choose_attention, first_position
from manyskills.model.backbones import Architecture, Backbone, load_backbone
from manyskills.model.chunks import Chunk, PaddedChunk, padded_chunk, unpadded_chunk
from manyskills.model.heads import BinaryHead, Head, build_head
from manyskills.model.language_head import OutputLayer, output_layer, untied_head
from manyskills.model.methods import METHODS, adapt, train_own_dropout
from manyskills.model.quantization import parameter_count
from manyskills.tasks import get_task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CPU_TOKENS = 2048
"""Tokens of an unpadded chunk on a CPU, at most: more at once were no faster on the two cores where it was tried, and
take more memory everywhere."""


OUTPUT_HEAD = "lm_head."
"""What the names of an output layer's weights begin with, where they are not those of the input embeddings."""


class MultiTaskModel(nn.Module):
    """Texts to vectors through the shared module, vectors to answers through the heads.

    Args:
        backbone: The loaded backbone; its network is adapted in place. Tasks whose answers are written need its
            language model.
        method: How it is adapted.
        tasks: The tasks and their choices; each gets a head, unless its answers are written.
    """

    backbone_parameters: int
    """Of the backbone as it was published."""
    language_model: PreTrainedModel | None
    """Writes answers; made of `network` and an output layer, and so no part of its own. None if no task writes."""
    frames: Frames
    """What stands around sources and answers, by task and variant; whoever knows sets it."""

    def __init__(self, backbone: Backbone, method: MethodConfig, tasks: Mapping[str, TaskConfig]) -> None:
        super().__init__()
        self.tokenizer, self.template = backbone.tokenizer, backbone.template
        self.architecture: Architecture = backbone.architecture
        self.method, self.task_configs = method, dict(tasks)
        self.trunk_dropout = False
        self.attention: Layout = "padded"  # `choose_attention` changes it
        self.autocast_dtype: torch.dtype | None = None
        self.frames = {}
        with_heads = {name: task for name, task in tasks.items() if not written(name, task)}
        language_model = backbone.language_model if len(with_heads) < len(tasks) else None
        if len(with_heads) < len(tasks) and language_model is None:
            raise ValueError("tasks whose answers are written need a backbone that was loaded with language_head=True")
        self.output_head = None if language_model is None else untied_head(language_model)
        parts = [backbone.model, *([] if self.output_head is None else [self.output_head])]
        self.backbone_parameters = sum(map(parameter_count, parts))
        self.backbone = adapt(backbone, method, list(tasks))
        vars(self)["language_model"] = language_model  # not registered: its weights are the network's
        self._settle_output_head()
        size = self.architecture.hidden_size
        self.heads = nn.ModuleDict({name: build_head(get_task(name), size, task) for name, task in with_heads.items()})

    @property
    def output(self) -> OutputLayer | None:
        """What makes words of states; None if no task's answers are written."""
        return None if self.language_model is None else output_layer(self.language_model)

    def head(self, name: str) -> Head:
        """The head of a task that has one."""
        head = self.heads[name]
        assert isinstance(head, Head)
        return head

    def encode(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor, routes_B: torch.Tensor | None = None) -> torch.Tensor:
        """Vectors of right-padded sequences, float32, shape (B, D).

        Args:
            ids_BT: Token ids.
            mask_BT: 1 for tokens.
            routes_B: Which task reads each sequence (`routes`); only a routed method looks at it.
        """
        with self.routed(routes_B):
            return self.vectors(PaddedChunk(ids_BT, mask_BT))

    def vectors(self, chunk: Chunk) -> torch.Tensor:
        """Vectors of a chunk's sequences, float32, shape (B, D); a routed method must be set for it (`routed`)."""
        with self.autocast():
            states = self.states(chunk)
        return chunk.pool(states, self.architecture.pooling)

    def states(self, chunk: Chunk) -> torch.Tensor:
        """Last hidden states of a chunk's tokens, with the same first two axes as its ids."""
        return self.backbone(**chunk.inputs(), **self._decoder_inputs(chunk)).last_hidden_state

    def chunk(self, store: TokenStore, indices_B: np.ndarray) -> Chunk:
        """These sequences of a store as the network reads them."""
        if self.attention == "padded":
            return padded_chunk(store, indices_B, self.architecture.pad_id, self.device)
        return unpadded_chunk(store, indices_B, first_position(self.network), self.device)

    def plan(self, lengths_S: np.ndarray, token_budget: int, device_type: str | None = None) -> list[np.ndarray]:
        """Positions of the sequences of each chunk: sorted by length, within the budget.

        Args:
            lengths_S: Tokens of each sequence.
            token_budget: Tokens of a chunk at most.
            device_type: Of the device that will encode them; default: the model's.
        """
        if self.attention == "padded":
            return plan_chunks(lengths_S, token_budget)
        most = min(token_budget, CPU_TOKENS) if (device_type or self.device.type) == "cpu" else token_budget
        return plan_unpadded_chunks(lengths_S, most)

    def chunk_tokens(self, lengths_B: np.ndarray) -> int:
        """Tokens that a chunk of sequences of these lengths costs."""
        return int(lengths_B.sum() if self.attention == "unpadded" else len(lengths_B) * lengths_B.max())

    def routed(self, routes: torch.Tensor | None) -> AbstractContextManager[None]:
        """Within it, these tasks' parts of the shared module read the sequences; nothing if the method is not routed.

        Whatever runs a layer again (gradient checkpointing in a backward pass) must be within it too.

        Args:
            routes: One a sequence of a padded chunk, or of shape (1, N) one a token of an unpadded one.
        """
        if routes is None or not METHODS[self.method.name].routed:
            return nullcontext()
        return self.backbone.base_model.routed(routes)  # pyright: ignore

    def routed_for(self, store: TokenStore, indices_B: np.ndarray) -> AbstractContextManager[None]:
        """`routed` for the chunk of these sequences."""
        routes_B = torch.from_numpy(store.routes_S[indices_B]).to(self.device)
        if self.attention == "padded":
            return self.routed(routes_B)
        lengths_B = torch.from_numpy(store.lengths_S[indices_B]).to(self.device)
        return self.routed(routes_B.repeat_interleave(lengths_B)[None])

    def _decoder_inputs(self, chunk: Chunk) -> dict[str, torch.Tensor | None]:
        """An encoder-decoder reads the text twice, the decoder behind its start token (Wang et al. 2021, CodeT5, arXiv
        2109.00859, section 3.3): its last state has then seen the text through both."""
        if self.architecture.family != "encoder_decoder":
            return {}
        assert isinstance(chunk, PaddedChunk)
        start_B1 = chunk.ids.new_full((len(chunk.ids), 1), self.architecture.start_id)
        return {
            "decoder_input_ids": torch.cat([start_B1, chunk.ids[:, :-1]], 1),
            "decoder_attention_mask": chunk.mask_BT,
        }

    def undecayed(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether weight decay would do harm: it pulls to zero what is meant to stay near one, and biases."""
        return parameter.ndim <= 1 or any(part in name for part in METHODS[self.method.name].undecayed)

    def shared_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trainable parameters that all tasks share, under the names that transformers gives them."""
        for name, p in self.backbone.named_parameters():
            if p.requires_grad:
                yield name, p
        if self.output_head is not None:
            for name, p in self.output_head.named_parameters():
                if p.requires_grad:
                    yield f"{OUTPUT_HEAD}{name}", p

    def head_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters of the heads."""
        return self.heads.named_parameters()

    @property
    def routes(self) -> dict[str, int]:
        """By task, which part of the shared module reads its texts; all 0 unless the method is routed."""
        routed = METHODS[self.method.name].routed
        return {name: number if routed else 0 for number, name in enumerate(self.task_configs)}

    @property
    def has_adapter(self) -> bool:
        """Whether the shared module is a peft adapter."""
        return METHODS[self.method.name].trains == "adapter"

    @property
    def trains_backbone(self) -> bool:
        """Whether vectors change during training."""
        return any(True for _ in self.shared_parameters())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.backbone.parameters()).device

    def train(self, mode: bool = True) -> MultiTaskModel:
        """Training mode for heads and for the method's own dropout; for the pre-trained network only on request.

        Dropout inside a frozen network costs speed (it leaves the fast attention kernels) and regularises nothing
        that could overfit. A layer whose activations are not kept is in training mode itself, because transformers
        looks there; its dropout modules are not.
        """
        super().train(mode)
        if mode and not self.trunk_dropout:
            self.backbone.eval()
            train_own_dropout(self.backbone)
            for layer in self._checkpointed_layers():
                layer.training = True
        return self

    def checkpoint_gradients(self) -> None:
        """Keep only the input of each layer for the backward pass and compute the rest again there.

        Not reentrant: that way gradients reach adapters although the embeddings need none (Chen et al. 2016, arXiv
        1604.06174).
        """
        network = self.network
        enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
        enable({"use_reentrant": False})

    @property
    def network(self) -> PreTrainedModel:
        """The backbone itself, without what peft wraps around it."""
        network = self.backbone.get_base_model() if self.has_adapter else self.backbone  # pyright: ignore
        return cast("PreTrainedModel", network)

    def _settle_output_head(self) -> None:
        """It trains if the backbone's own weights do."""
        if self.output_head is None:
            return
        trains = METHODS[self.method.name].trains == "backbone"
        self.output_head.requires_grad_(trains)
        if trains:
            self.output_head.float()

    def _checkpointed_layers(self) -> Iterator[nn.Module]:
        from transformers.modeling_layers import GradientCheckpointingLayer

        layers = (layer for layer in self.backbone.modules() if isinstance(layer, GradientCheckpointingLayer))
        return (layer for layer in layers if layer.gradient_checkpointing)

    def autocast(self) -> AbstractContextManager[object]:
        """Within it, products are computed in the number format that the model was set to."""
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_dtype)


def build_model(config: TrainConfig, device: torch.device) -> MultiTaskModel:
    """The model of a configuration at step 0: the same configuration gives the same weights.

    Args:
        config: Backbone, method, tasks and seed.
        device: Where it will train.

    Raises:
        UserError: The backbone cannot be loaded or the method does not fit it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        backbone = load_backbone(stored_as(config), device=device, language_head=writes(config))
        model = MultiTaskModel(backbone, config.method, config.tasks)
    model.trunk_dropout = config.trunk_dropout
    if config.gradient_checkpointing:
        model.checkpoint_gradients()
    bf16 = (
        device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        if config.bf16 == "auto"
        else config.bf16
    )
    model.autocast_dtype = torch.bfloat16 if bf16 else None
    model = model.to(device)
    choose_attention(model, config.attention)
    return model


def writes(config: TrainConfig) -> bool:
    """Whether any task's answers are written, so that the backbone's language model is needed."""
    return any(written(name, task) for name, task in config.tasks.items())


def stored_as(config: TrainConfig) -> BackboneConfig:
    """The backbone as a method wants it.

    Weights that train are kept in float32: read in half precision they would start from rounded values. QLoRA's are
    kept in 4 bits.
    """
    if isinstance(config.method, FullConfig) and config.backbone.dtype == "auto":
        return config.backbone.model_copy(update={"dtype": "float32"})
    if isinstance(config.method, QloraConfig):
        return config.backbone.model_copy(update={"quantize": "nf4"})
    return config.backbone


def set_class_balance(model: MultiTaskModel, positive_rates: Mapping[str, float]) -> None:
    """Tell each classifying head the share of positive rows in its training data."""
    for name, rate in positive_rates.items():
        head = model.head(name)
        if isinstance(head, BinaryHead):
            head.set_balance(rate, model.task_configs[name])
