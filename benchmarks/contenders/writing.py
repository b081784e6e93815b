"""Ways of training one module to write, on the same prompts and answers: ours, and Hugging Face's Trainer.

Shape legend: B rows of a batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import torch

from contenders.hugging_face import grouped
from contenders.ours import synchronize
from contenders.trainers import timed
from contenders.work import TokenCounter
from manyskills.config import TrainConfig
from manyskills.data.preparation import Prepared
from manyskills.data.prompted import PromptExamples, PromptStore
from manyskills.data.sampling import Phase, Sampler
from manyskills.data.text_set import Examples
from manyskills.model.answers import AnswerStates
from manyskills.model.backbones import quiet, resolve
from manyskills.model.multitask import MultiTaskModel
from manyskills.model.token_loss import token_loss
from manyskills.training.answer_rows import AnswerRows
from manyskills.training.balancing import build_balancing
from manyskills.training.forward import Sources
from manyskills.training.loop import positive_shares
from manyskills.training.optimizer import Optimizer
from manyskills.training.processes import Processes
from manyskills.training.run import load_inputs
from manyskills.training.step import accumulate_gradients
from manyskills.training.vectors import BackboneVectors
from measuring import Cost

MICRO_BATCH = 8
"""Rows of the Trainer's batches; a step accumulates as many as its rows need."""

IGNORED = -100
"""What transformers' loss passes over."""

Batch = Mapping[str, Examples | PromptExamples]


@dataclass(frozen=True)
class WritingWork:
    """Some steps of a run, drawn and tokenised beforehand.

    Attributes:
        config: Of the run.
        prepared: All its data.
        drawn: The examples by task of many steps.
        steps: How many of them are measured, those nearest the mean in tokens.
        device: Where the contenders train.
    """

    config: TrainConfig
    prepared: Prepared
    drawn: Sequence[Batch]
    steps: int
    device: torch.device

    @property
    def store(self) -> PromptStore:
        """Prompts and answers."""
        assert self.prepared.prompts is not None
        return self.prepared.prompts

    @cached_property
    def batches(self) -> list[Batch]:
        """What is measured."""
        most = max(map(rows_of_all, self.drawn))
        whole = [batch for batch in self.drawn if rows_of_all(batch) == most]  # an epoch's end leaves fewer
        tokens = np.array([self.store.lengths_S[prompts_of(batch)].sum() for batch in whole])
        nearest = np.argsort(np.abs(tokens - tokens.mean()), kind="stable")[: self.steps]
        return [whole[step] for step in np.sort(nearest)]

    def answer_tokens(self, batches: Sequence[Batch]) -> float:
        """That a step learns, the mean over some."""
        return float(np.mean([self.store.answer_lengths_S[prompts_of(batch)].sum() for batch in batches]))


def rows_of_all(batch: Batch) -> int:
    """Rows of a step."""
    return sum(map(len, batch.values()))


def prompts_of(batch: Batch) -> np.ndarray:
    """Indices of a step's prompts."""
    return np.concatenate([part.prompts_E for part in batch.values() if isinstance(part, PromptExamples)])


SEEN = 50
"""Steps of a run among which typical ones are looked for."""


def draw_writing(config: TrainConfig, steps: int, device: torch.device) -> tuple[WritingWork, MultiTaskModel]:
    """Read the data and draw steps as training draws them; also gives the model at step 0."""
    model, prepared = load_inputs(config, device)
    train = prepared.all_examples("train")
    sampler = Sampler(train, config.sampling, config.batch_size, config.seed, positive_shares(config))
    drawn = [sampler.at(step, [Phase(0, tuple(config.tasks))]) for step in range(SEEN)]
    return WritingWork(config, prepared, drawn, steps, device), model


class OurWriting:
    """Steps as the training loop takes them.

    Args:
        work: What to train on.
        model: At step 0.
        tasks: Those of each step's tasks that take part; None: all.
        step_memory: As in a configuration.
    """

    def __init__(
        self,
        work: WritingWork,
        model: MultiTaskModel,
        tasks: Sequence[str] | None = None,
        step_memory: Literal["single_pass", "cached"] = "single_pass",
    ) -> None:
        self.work, self.model = work, model
        chosen = work.config.tasks if tasks is None else tasks
        self.batches = [{name: part for name, part in batch.items() if name in chosen} for batch in work.batches]
        self.counter = TokenCounter(model.network.get_input_embeddings())
        self.rule = build_balancing(work.config.balancing, list(chosen), work.config.seed)
        self.optimizer = Optimizer(model, work.config, 1000)
        budget, alone = work.config.token_budget, Processes(0, 1, work.device)
        cached = step_memory == "cached"
        self.sources = Sources(
            BackboneVectors(model, work.prepared.store, budget, cached=cached, processes=alone),
            AnswerRows(AnswerStates(model, work.store), budget, cached=cached, processes=alone),
            alone,
        )

    def run(self) -> None:
        """All steps of the work."""
        self._take(self.batches)

    def warm_up(self) -> None:
        """One step on a row of each task."""
        self._take([{name: part.take(np.arange(1)) for name, part in self.batches[0].items()}])

    def _take(self, batches: Sequence[Batch]) -> None:
        for step, batch in enumerate(batches):
            self.model.train()
            accumulate_gradients(self.model, self.sources, batch, self.rule, step)
            self.optimizer.update(step)
        synchronize(self.work.device)

    @torch.no_grad()
    def loss(self) -> float:
        """Mean cross-entropy of the first step's answer tokens, without dropout."""
        self.model.eval()
        states, prompts_S = AnswerStates(self.model, self.work.store), prompts_of(self.work.batches[0])
        total = 0.0
        for chunk in states.plan(prompts_S, self.work.config.token_budget):
            targets_R = torch.from_numpy(states.targets(prompts_S[chunk])).to(self.work.device)
            total += token_loss(self.model, states(prompts_S[chunk]), targets_R).item()
        return total / int(states.counts(prompts_S).sum())


class WrittenRow(TypedDict):
    """A prompt with its answer as a data set holds it."""

    input_ids: list[int]
    labels: list[int]
    other: None


class WritingTrainer:
    """Hugging Face's Trainer with peft, on padded batches.

    Args:
        work: What to train on.
        peer: The language model with an adapter.
        padded_to: Tokens of every row; None: of the longest of its batch.
        by_length: Rows are grouped by length as transformers does it in a long run, else in the order of drawing.
        folder: The Trainer wants one; nothing is written.
    """

    def __init__(
        self, work: WritingWork, peer: WritingPeer, padded_to: int | None, folder: Path, *, by_length: bool = False
    ) -> None:
        self.work, self.peer, self.collate = work, peer, Padding(peer.pad_id, padded_to)
        rows_a_step = len(prompts_of(work.batches[0]))
        self.rows: list[Any] = [row for batch in work.batches for row in written_rows(batch, work.store)]
        if by_length:
            all_rows: Any = [row for batch in work.drawn for row in written_rows(batch, work.store)]
            self.rows = grouped(all_rows, MICRO_BATCH, len(self.rows) // MICRO_BATCH)
        self.arguments = _arguments(work, rows_a_step, folder)
        self.trainer = self._trainer(self.rows)
        self.clock = timed(self.trainer, work.device)

    def run(self) -> Cost:
        """One epoch over the rows; what its steps cost."""
        self.trainer.train()
        return self.clock.cost

    def warm_up(self) -> None:
        """One batch of another Trainer."""
        other = self._trainer(self.rows[:1])
        timed(other, self.work.device)  # keeps it quiet
        other.train()

    def _trainer(self, rows: Sequence[Any]) -> Any:
        from transformers import Trainer

        return Trainer(model=self.peer.model, args=self.arguments, train_dataset=rows, data_collator=self.collate)  # pyright: ignore


class WritingPeer:
    """The same language model and adapter, as people load them.

    Args:
        work: Names the backbone.
        model: At step 0; gives the adapter's configuration.
    """

    def __init__(self, work: WritingWork, model: MultiTaskModel) -> None:
        import peft
        from transformers import AutoModelForCausalLM

        ours: Any = model.backbone.peft_config["default"]  # pyright: ignore
        adapter = peft.LoraConfig(
            r=ours.r, lora_alpha=ours.lora_alpha, lora_dropout=ours.lora_dropout, target_modules="all-linear"
        )
        dtype = model.network.dtype
        with quiet():
            network = AutoModelForCausalLM.from_pretrained(resolve(work.config.backbone.name), dtype=dtype)
        network.config.use_cache = False
        self.model = peft.get_peft_model(network, adapter).to(work.device)
        assert sum(p.numel() for p in self.model.parameters() if p.requires_grad) == sum(
            p.numel() for _, p in model.shared_parameters()
        )
        self.pad_id = model.architecture.pad_id
        self.counter = TokenCounter(network.get_input_embeddings())

    @torch.no_grad()
    def loss(self, work: WritingWork) -> float:
        """Mean cross-entropy of the first step's answer tokens, without dropout."""
        self.model.eval()
        total, count, collate = 0.0, 0, Padding(self.pad_id, None)
        for row in written_rows(work.batches[0], work.store):
            batch = {key: value.to(work.device) for key, value in collate([row]).items()}
            learnt = int((batch["labels"] != IGNORED).sum())
            total, count = total + self.model(**batch).loss.item() * learnt, count + learnt
        return total / count


class Padding:
    """Rows to padded tensors, as transformers' collators do it.

    Args:
        pad_id: Of padding.
        length: Of all rows; None: of the longest.
    """

    def __init__(self, pad_id: int, length: int | None) -> None:
        self.pad_id, self.length = pad_id, length

    def __call__(self, rows: Sequence[WrittenRow]) -> dict[str, torch.Tensor]:
        """What a language model is called with."""
        width = self.length or max(len(row["input_ids"]) for row in rows)
        ids_BT = torch.full((len(rows), width), self.pad_id)
        labels_BT, mask_BT = torch.full_like(ids_BT, IGNORED), torch.zeros_like(ids_BT)
        for number, row in enumerate(rows):
            count = min(len(row["input_ids"]), width)
            ids_BT[number, :count] = torch.tensor(row["input_ids"][:count])
            labels_BT[number, :count] = torch.tensor(row["labels"][:count])
            mask_BT[number, :count] = 1
        return {"input_ids": ids_BT, "labels": labels_BT, "attention_mask": mask_BT}


def written_rows(batch: Batch, store: PromptStore) -> list[WrittenRow]:
    """A step's rows, task by task."""
    return [_written_row(int(index), store) for index in prompts_of(batch)]


def _written_row(index: int, store: PromptStore) -> WrittenRow:
    prompt, answer = store.prompt(index).tolist(), store.answer(index).tolist()
    return WrittenRow(input_ids=prompt + answer, labels=[IGNORED] * len(prompt) + answer, other=None)


def _arguments(work: WritingWork, rows_a_step: int, folder: Path) -> Any:
    from transformers import TrainingArguments

    cuda = work.device.type == "cuda"
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        learning_rate=work.config.learning_rate,
        weight_decay=work.config.weight_decay,
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=-(-rows_a_step // MICRO_BATCH),
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        dataloader_pin_memory=cuda,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not cuda,
        bf16=cuda,
    )
