"""The model that peers train: the same backbone with peft's LoRA and the same heads, on padded batches of rows.

Shape legend: B rows of a batch, T tokens, D size of a vector, E examples of one task, K texts an example.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from torch import nn

from contenders.work import TokenCounter, Work
from manyskills.config import BackboneConfig
from manyskills.data.text_set import Examples
from manyskills.data.tokens import TokenStore
from manyskills.model.backbones import quiet, resolve
from manyskills.model.multitask import MultiTaskModel
from manyskills.model.pooling import Pooling, pool
from manyskills.model.quantization import settle
from manyskills.tasks.base import Kind

LEFT, RIGHT, QUERY = "left", "right", "query"
"""The code of every row, the second side of a pair, and the query of a search: each is padded and encoded apart."""


class Row(TypedDict):
    """One labelled row as a data set holds it.

    `input_ids` are those of the field `left`, which is where transformers looks for a row's length.
    """

    task: str
    input_ids: list[int]
    other: tuple[str, list[int]] | None
    texts: tuple[int, ...]
    label: float


def rows_of(batch: Mapping[str, Examples], store: TokenStore) -> list[Row]:
    """A step's rows, task by task."""
    return [_row(name, examples, index, store) for name, examples in batch.items() for index in range(len(examples))]


def _row(name: str, examples: Examples, index: int, store: TokenStore) -> Row:
    texts = tuple(examples.texts_EK[index].tolist())
    sequences = [store.sequence(text).tolist() for text in texts]
    label = 0.0 if examples.labels_E is None else float(examples.labels_E[index])
    if examples.task.kind is Kind.EMBED:  # (query, code)
        return Row(task=name, input_ids=sequences[1], other=(QUERY, sequences[0]), texts=texts[::-1], label=label)
    other = (RIGHT, sequences[1]) if len(sequences) == 2 else None
    return Row(task=name, input_ids=sequences[0], other=other, texts=texts, label=label)


def padded_size(rows: Sequence[Row]) -> int:
    """Tokens of these rows as one batch, each field padded to its longest sequence."""
    lengths: dict[str, list[int]] = {}
    for row in rows:
        for field, ids in [(LEFT, row["input_ids"]), *([row["other"]] if row["other"] else [])]:
            lengths.setdefault(field, []).append(len(ids))
    return sum(len(found) * max(found) for found in lengths.values())


class Collator:
    """Rows to padded tensors, with transformers' own collator for each field.

    Args:
        tokenizer: Pads.
        fixed: Tokens that everything is padded to; None: to the longest of the batch.
    """

    def __init__(self, tokenizer: Any, fixed: int | None = None) -> None:
        from transformers import DataCollatorWithPadding

        tokenizer = copy.copy(tokenizer)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        padding = "longest" if fixed is None else "max_length"
        self._pad = DataCollatorWithPadding(tokenizer, padding=padding, max_length=fixed)

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Arguments of `Peer.forward`."""
        sequences: dict[str, list[list[int]]] = {LEFT: [row["input_ids"] for row in rows], RIGHT: [], QUERY: []}
        places: dict[str, list[list[tuple[str, int]]]] = {}
        labels: dict[str, list[float]] = {}
        first: dict[tuple[str, int], tuple[str, int]] = {}  # a text's first place: the loss must know the same text
        for number, row in enumerate(rows):
            mine = [(LEFT, number)]
            if row["other"] is not None:
                field, ids = row["other"]
                mine.append((field, len(sequences[field])))
                sequences[field].append(ids)
            known = [first.setdefault((row["task"], t), p) for t, p in zip(row["texts"], mine, strict=True)]
            in_order = known[::-1] if row["other"] is not None and row["other"][0] == QUERY else known
            places.setdefault(row["task"], []).append(in_order)
            labels.setdefault(row["task"], []).append(row["label"])
        starts = dict(zip(sequences, np.cumsum([0, *map(len, sequences.values())]).tolist(), strict=False))
        return {
            "fields": {name: dict(self._pad([{"input_ids": ids} for ids in found]))
                       for name, found in sequences.items() if found},
            "texts": {name: torch.tensor([[starts[field] + at for field, at in row] for row in found])
                      for name, found in places.items()},
            "answers": {name: torch.tensor(found) for name, found in labels.items()},
        }  # fmt: skip


@dataclass(frozen=True)
class PeerOptions:
    """What differs between the models of peers.

    Attributes:
        trunk_dropout: Keep the pre-trained network's own dropout, as `model.train()` does.
        dtype: Of the frozen weights.
        quantized: Keep them in 4-bit NormalFloat.
    """

    trunk_dropout: bool = True
    dtype: torch.dtype = torch.float32
    quantized: bool = False


class Peer(nn.Module):
    """Four heads on a backbone with peft's LoRA.

    Args:
        work: Names the backbone.
        model: At step 0; its heads and the adapter's configuration are copied.
        options: What differs between peers.
    """

    def __init__(self, work: Work, model: MultiTaskModel, options: PeerOptions) -> None:
        import peft

        super().__init__()
        network = load_network(work.config.backbone, options, work.device)
        adapter: Any = model.backbone.peft_config["default"]  # pyright: ignore
        self.backbone = peft.get_peft_model(network, copy.deepcopy(adapter)).to(work.device)
        self.heads = copy.deepcopy(model.heads).to(work.device)
        self.pooling: Pooling = model.architecture.pooling
        self.tokenizer = model.tokenizer
        self.counter = TokenCounter(network.get_input_embeddings())

    def forward(
        self,
        fields: Mapping[str, Mapping[str, torch.Tensor]],
        texts: Mapping[str, torch.Tensor],
        answers: Mapping[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """The mean of the chance-scaled losses of the tasks in this batch.

        Args:
            fields: ids_BT and mask_BT of each field.
            texts: texts_EK by task: rows of all fields' vectors, one field behind another.
            answers: labels_E by task; searches have zeros.
        """
        losses = list(self.losses(fields, texts, answers).values())
        return {"loss": torch.stack(losses).mean()}

    def losses(
        self,
        fields: Mapping[str, Mapping[str, torch.Tensor]],
        texts: Mapping[str, torch.Tensor],
        answers: Mapping[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Chance-scaled losses by task; arguments as for `forward`."""
        vectors_BD = torch.cat([self.encode(**field) for field in fields.values()])
        scaled: dict[str, torch.Tensor] = {}
        for name, texts_EK in texts.items():
            value, chance = self.heads[name].loss(vectors_BD, texts_EK, answers[name])  # pyright: ignore
            scaled[name] = value / chance
        return scaled

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """vectors_BD of padded sequences."""
        states_BTH = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return pool(states_BTH, attention_mask, self.pooling)

    def trainable(self) -> Iterator[nn.Parameter]:
        """What is learnt."""
        return (p for p in self.parameters() if p.requires_grad)


def load_network(config: BackboneConfig, options: PeerOptions, device: torch.device) -> Any:
    """The backbone as people load it with transformers."""
    from transformers import AutoConfig, AutoModel, BitsAndBytesConfig

    source, extra = resolve(config.name), {}
    hf_config = AutoConfig.from_pretrained(source)
    hf_config.use_cache = False
    if not options.trunk_dropout:
        for key in [key for key in vars(hf_config) if key.endswith(("dropout", "dropout_prob"))]:
            setattr(hf_config, key, 0.0)
    if hf_config.model_type in {"bert", "roberta"}:
        extra["add_pooling_layer"] = False
    if options.quantized:
        extra["device_map"] = {"": device}
        extra["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=options.dtype,
        )  # fmt: skip
    with quiet():
        network = AutoModel.from_pretrained(
            source, config=hf_config, dtype=options.dtype, use_safetensors=True, **extra
        )
    if options.quantized:
        settle(network, options.dtype)  # on a CPU, bitsandbytes would let no gradient through after an evaluation
    return network
