"""sentence-transformers' trainer: one data set and one loss a task, in turn.

Contrastive loss for pairs, in-batch negatives for searches, and a classifier of one text, which the library has no loss
for, in a module of a few lines.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from contenders.trainers import common_arguments, timed
from contenders.work import TokenCounter, Work, first_rows
from manyskills.data.text_set import Examples
from manyskills.model.backbones import quiet, resolve
from manyskills.model.multitask import MultiTaskModel
from manyskills.tasks.base import Kind
from measuring import Cost


class ClassifierLoss(nn.Module):
    """A head on the vector of one text.

    Args:
        model: A SentenceTransformer.
        head: Of this repository.
    """

    def __init__(self, model: Any, head: nn.Module) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(self, features: Sequence[dict[str, torch.Tensor]], labels: torch.Tensor) -> torch.Tensor:
        """Binary cross-entropy."""
        vectors_ED = self.model(features[0])["sentence_embedding"]
        texts_E1 = torch.arange(len(vectors_ED), device=vectors_ED.device)[:, None]
        return self.head.loss(vectors_ED, texts_E1, labels.float())[0]  # pyright: ignore


class SentenceTransformers:
    """Its trainer for the rows of the work.

    Args:
        work: What to train on. Texts go in as their numbers, and are looked up instead of tokenised, because the other
            contenders' rows are tokenised beforehand too.
        model: At step 0; gives heads and the adapter's configuration.
        folder: The trainer wants one; nothing is written.
    """

    def __init__(self, work: Work, model: MultiTaskModel, folder: Path) -> None:
        self.work, self.folder = work, folder
        self.network = _network(work, model)
        self.losses = {name: _loss(work, self.network, model, name) for name in work.config.tasks}
        self.counter = TokenCounter(self.network[0].auto_model.get_input_embeddings())
        self.trainer = self._trainer(work.batches)
        self.clock = timed(self.trainer, work.device)

    def run(self) -> Cost:
        """One epoch over the rows; what its steps cost."""
        self.trainer.train()
        return self.clock.cost

    def warm_up(self) -> None:
        """A few steps of another trainer on two rows of each task."""
        other = self._trainer([first_rows(self.work.batches[0])])
        timed(other, self.work.device)  # keeps it quiet
        other.train()

    def _trainer(self, batches: Sequence[Mapping[str, Examples]]) -> Any:
        from sentence_transformers import SentenceTransformerTrainer
        from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator

        trainer = SentenceTransformerTrainer(
            model=self.network,
            args=_arguments(self.work, self.folder),
            train_dataset={name: _data(batches, name) for name in self.work.config.tasks},
            loss=self.losses,
            data_collator=SentenceTransformerDataCollator(self._look_up),
        )
        for callback in list(trainer.callback_handler.callbacks):
            if type(callback).__name__.endswith("ModelCardCallback"):  # describes the data: no part of training
                trainer.remove_callback(type(callback))
        return trainer

    def _look_up(self, texts: Sequence[str], prompt: object = None, task: object = None) -> Mapping[str, torch.Tensor]:
        ids = [{"input_ids": self.work.store.sequence(int(text)).tolist()} for text in texts]
        return dict(self.network.tokenizer.pad(ids, return_tensors="pt"))


def _network(work: Work, model: MultiTaskModel) -> Any:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    adapter = copy.deepcopy(model.backbone.peft_config["default"])  # pyright: ignore
    with quiet():
        transformer = modules.Transformer(resolve(work.config.backbone.name), max_seq_length=work.config.max_length)
        mode = {"cls": "cls", "mean": "mean", "last": "lasttoken"}[model.architecture.pooling]
        pooling = modules.Pooling(model.architecture.hidden_size, mode)  # pyright: ignore[reportArgumentType]
        network = SentenceTransformer(modules=[transformer, pooling], device=str(work.device))
    network.add_adapter(adapter)
    return network


def _loss(work: Work, network: Any, model: MultiTaskModel, name: str) -> nn.Module:
    from sentence_transformers.sentence_transformer import losses

    match work.prepared.examples["train"][name].task.kind:
        case Kind.PAIR:
            return losses.ContrastiveLoss(network)
        case Kind.EMBED:
            return losses.MultipleNegativesRankingLoss(network)
        case _:
            return ClassifierLoss(network, copy.deepcopy(model.head(name)))


def _data(batches: Sequence[Mapping[str, Examples]], name: str) -> Any:
    from datasets import Dataset

    columns: dict[str, list[Any]] = {}
    for batch in batches:
        examples = batch[name]
        for number, texts_E in enumerate(examples.texts_EK.T):
            columns.setdefault(f"text{number}", []).extend(str(text) for text in texts_E)
        if examples.labels_E is not None:
            columns.setdefault("label", []).extend(examples.labels_E.tolist())
    return Dataset.from_dict(columns)


def _arguments(work: Work, folder: Path) -> Any:
    from sentence_transformers import SentenceTransformerTrainingArguments

    return SentenceTransformerTrainingArguments(
        **common_arguments(work, folder),
        per_device_train_batch_size=work.rows_a_task,
        gradient_accumulation_steps=len(work.batches[0]),
        multi_dataset_batch_sampler="round_robin",
    )
