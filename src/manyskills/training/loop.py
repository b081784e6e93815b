"""The training loop: steps, validations, checkpoints, early stopping; resumable at any step."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from manyskills.config import AlternatingConfig, FixedConfig, TrainConfig
from manyskills.data.preparation import Prepared, synthetic_tasks
from manyskills.data.sampling import Phase, Sampler
from manyskills.data.sampling_rows import sample_examples
from manyskills.errors import UserError
from manyskills.evaluation.scores import defined
from manyskills.files import recover_folder, replace_folder_atomically
from manyskills.model.checkpoint import load_weights, save_model
from manyskills.model.encoding import ChunkEncoder, encode_texts
from manyskills.model.multitask import MultiTaskModel
from manyskills.saved import saved_step
from manyskills.training.balancing import Rule, build_balancing, shares
from manyskills.training.conflict import ConflictWarning, metric_rows
from manyskills.training.distillation import annealed
from manyskills.training.failures import BROKEN, LESS_MEMORY, clear_failures, less_memory
from manyskills.training.forward import Batch, Forward, Sources
from manyskills.training.interval import Interval
from manyskills.training.measuring import MEASURED, Moment, Watcher, conflict_steps, gradient_values
from manyskills.training.optimizer import Optimizer
from manyskills.training.processes import Processes
from manyskills.training.progress import Progress, selection_score
from manyskills.training.run_folder import RunFolder
from manyskills.training.schedule import Schedule
from manyskills.training.step import (
    StepResult,
    accumulate_gradients,
    balanced_losses,
    measure_gradients,
    repeat_losses,
)
from manyskills.training.task_gradients import TaskGradients
from manyskills.training.tracking import Tracker, numbers
from manyskills.training.validation import validate, validation_metric
from manyskills.training.vectors import PrecomputedVectors

STATE_FILE, OPTIMIZER_FILE, BALANCING_FILE = "trainer_state.json", "optimizer.safetensors", "balancing.safetensors"

SETTLING = 0.25
"""Share of a run in which short gradients are not warned of: heads that start at zero send back next to nothing."""

Announce = Callable[[str], None]


class Trainer:
    """One run of the loop.

    Args:
        config: The run.
        model: At step 0, or anything: `run` loads the last checkpoint if there is one.
        prepared: Training and validation examples.
        sources: Vectors of a step, and the states that predict the tokens of its written answers.
        folder: Where checkpoints and measurements go.
        processes: This process among all; only the main one writes.
        tracker: Gets what metrics.jsonl gets.
        announce: Gets sentences for people.
        start: Vectors of the validation texts at step 0, where they are known already.
        encoder: How a chunk of the validation texts is encoded; default: by the whole backbone.
        watcher: Is shown each measured step's gradients, but for the last step's, which no step follows.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: MultiTaskModel,
        prepared: Prepared,
        sources: Sources,
        folder: RunFolder,
        processes: Processes,
        tracker: Tracker,
        announce: Announce,
        start: PrecomputedVectors | None = None,
        encoder: ChunkEncoder | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        self.config, self.model, self.prepared, self.sources = config, model, prepared, sources
        self.folder, self.processes, self.tracker, self.announce = folder, processes, tracker, announce
        self.start = sources.vectors if isinstance(sources.vectors, PrecomputedVectors) else start
        self.encoder, self.watcher = encoder, watcher
        train = prepared.all_examples("train")
        self.schedule = Schedule.of(config, sum(len(part) for part in train.values()))
        self.sampler = Sampler(train, config.sampling, config.batch_size, config.seed, positive_shares(config))
        self.rule = build_balancing(config.balancing, list(config.tasks), config.seed)
        self.followed = {  # the same rows in each measurement: others differ by more than some steps change a loss
            name: sample_examples(part, self.rule.needs.validation_rows, f"{config.seed}/{name}/balancing")
            for name, part in prepared.all_examples("valid").items()
        }
        self.unweighted = unweighted(config)
        self.conflict_steps = conflict_steps(config, model)
        self.optimizer = Optimizer(model, config, self.schedule.total)
        self.progress = Progress([Phase(0, tuple(config.tasks))])

    def run(self, bar: Any) -> Progress:
        """Train to the end.

        Args:
            bar: A tqdm bar of `schedule.total` steps.

        Raises:
            UserError: The loss is not finite, memory or disk space ran out.
        """
        self._restore()
        self._announce_unmeasured()
        bar.update(self.progress.step)
        if self.progress.step == 0 and not self.progress.baseline:
            self._validate()
        while self.progress.step < self.schedule.total and self.progress.active:
            self.step(bar)
            done = self.progress.step
            if self.schedule.validates(done):
                self._validate()
            elif self.schedule.saves(done):
                self._save()
        return self.progress

    def step(self, bar: Any) -> None:
        """One update."""
        step, started = self.progress.step, time.perf_counter()
        batch, seed = self._batch(step), self._seed(step)
        with clear_failures(f"step {step + 1}", less_memory(self.rule)):
            if self.rule.needs.validation_every and step % self.rule.needs.validation_every == 0:
                self.rule.validated(self._some_validation_losses())
            self.model.train()
            measure = self._measures(batch)
            result = accumulate_gradients(self.model, self.sources, batch, self.rule, seed, measure=measure)
            following = step + 1 < self.schedule.total
            if self.watcher is not None and measure and following and result.gradients is not None:
                self.watcher(self._moment(step, result, result.gradients))
            rate = self.optimizer.update(step)
            if self.rule.needs.repeat_every and step % self.rule.needs.repeat_every == 0:
                again = repeat_losses(self.model, self.sources, batch, self.rule, seed, apart=measure)
                self.rule.repeated(balanced_losses(self.rule, again, self.processes))
        self.progress.step += 1
        for name in batch:
            self.progress.turns[name] = self.progress.turns.get(name, 0) + 1
        self.progress.tokens += int(self.prepared.store.lengths_N[result.unique_N].sum()) + result.written_tokens
        self.progress.seconds += time.perf_counter() - started
        self._log(result, rate, bar, measured=measure)

    def _batch(self, step: int) -> Batch:
        """A step's examples, the teachers' weight in them being that of the step."""
        drawn = self.sampler.at(step, self.progress.phases)
        return annealed(drawn, self.config.distillation, step / self.schedule.total)

    def _moment(self, step: int, result: StepResult, gradients: TaskGradients) -> Moment:
        following, seed = self._batch(step + 1), self._seed(step + 1)

        def fresh_gradients() -> TaskGradients:
            return measure_gradients(self.model, self.sources, following, self.rule, seed)

        def fresh_losses() -> dict[str, float]:
            losses = repeat_losses(self.model, self.sources, following, self.rule, seed, apart=True)
            return balanced_losses(self.rule, losses, self.processes)

        losses = result.losses if self.rule.raw_losses else result.scaled_losses
        rate = self.optimizer.rate(step)
        return Moment(step, losses, result.factors, gradients, rate, fresh_gradients, fresh_losses)

    def _seed(self, step: int) -> int:
        """Of a step's random numbers."""
        return int(np.random.SeedSequence((self.config.seed, step)).generate_state(1)[0])

    def _measures(self, batch: Batch) -> bool:
        """Whether each task's gradient is measured in this step: in the first and every `conflict_steps`-th one.

        In alternating steps a task's own are counted: else the same tasks' turns would always be the ones measured.
        """
        if not self.conflict_steps:
            return False
        alternating = isinstance(self.config.sampling, AlternatingConfig)
        before = self.progress.turns.get(next(iter(batch)), 0) if alternating else self.progress.step
        return before == 0 or (before + 1) % self.conflict_steps == 0

    @torch.no_grad()
    def _some_validation_losses(self) -> dict[str, float]:
        """Losses on some validation rows, always the same ones, of each task that is still drawn from."""
        batch = {name: self.followed[name] for name in self.progress.active}
        self.model.eval()
        losses = Forward(self.model, self.sources, batch, 0, apart=False, graph=False).losses
        return balanced_losses(self.rule, losses, self.processes)

    def _log(self, result: StepResult, rate: float, bar: Any, *, measured: bool) -> None:
        norms = None if result.gradients is None else result.gradients.norms()
        self._watch(result, norms)
        self.progress.interval.add(result.losses, result.scaled_losses, shares(result.factors))
        bar.update(1)
        bar.set_postfix({name[:8]: f"{loss:.2f}" for name, loss in result.scaled_losses.items()}, refresh=False)
        done = self.progress.step
        if done % self.config.logging_steps and done != 1 and not measured:
            return
        record: dict[str, Any] = {
            "kind": "train",
            "step": done,
            **self.progress.interval.means(),
            "learning_rate": rate,
            "texts": len(result.unique_N),
            "tokens": self.progress.tokens,
            "seconds": round(self.progress.seconds, 3),
        }
        if result.gradients is not None and norms is not None:
            units = result.chances if self.rule.raw_losses else dict.fromkeys(norms, 1.0)
            record |= {
                "factors": result.factors,
                "gradient_norms": {name: norm / units[name] for name, norm in norms.items()},
                "gradient_cosines": result.gradients.cosines(),
            }
        self.progress.interval = Interval()
        self._record(record)

    def _watch(self, result: StepResult, norms: Mapping[str, float] | None) -> None:
        """Warn of what this step shows, but for tasks that were given a weight of 0."""
        watch, step = self.progress.watch, self.progress.step
        meant = [name for name in result.factors if name not in self.unweighted]
        self._warn(watch.stepped(step, list(result.factors), self.progress.active))
        if not self.rule.on_gradients:
            weights = shares(result.factors)
            self._warn(watch.weighed(step, {name: weights[name] for name in meant}))
        if norms is not None and step > SETTLING * self.schedule.total:
            lengths = {name: norms[name] for name in meant}
            self._warn(watch.measured(step, lengths, result.factors, result.scaled_losses))

    def _warn(self, warnings: list[ConflictWarning]) -> None:
        for warning in warnings:
            self.announce(warning.sentence)

    def _record(self, record: dict[str, Any]) -> None:
        if self.processes.is_main:
            self.folder.append_metrics(record)
            self.tracker.log(numbers(record), record["step"])

    def _validate(self) -> None:
        with clear_failures(f"validation at step {self.progress.step}", LESS_MEMORY):
            found = validate(self.config, self.model, self.prepared, self._valid_vectors, self.processes)
        thresholds = found.thresholds
        metric = {name: validation_metric(name, task) for name, task in self.config.tasks.items()}
        metrics = {name: {key: defined(value) for key, value in values.items()}
                   for name, values in found.metrics.items()}  # fmt: skip
        primary = {name: values[metric[name]] or 0.0 for name, values in metrics.items()}
        if not self.progress.baseline:
            self.progress.start(primary)
        else:
            before = self.progress.active
            self.progress.observe(primary, self.config.early_stopping)
            self._announce_stopped(before)
        self.progress.thresholds = thresholds
        rows = metric_rows(self.prepared.all_examples("valid"))
        self._warn(self.progress.watch.validated(self.progress.step, primary, rows))
        score = selection_score(primary, self.progress.baseline)
        best = score > self.progress.best_selection
        if best:
            self.progress.best_selection, self.progress.best_step = score, self.progress.step
        self._agree()
        self._record(
            {"kind": "valid", "step": self.progress.step, "metrics": metrics, "primary": primary,
             "valid_loss": found.losses, "thresholds": thresholds, "selection": score, "best": best}
        )  # fmt: skip
        values = "  ".join(f"{name} {metric[name]} {value:.4f}" for name, value in primary.items())
        self.announce(f"validation at step {self.progress.step}: {values}{'  (best so far)' if best else ''}")
        self._save()
        self._save_best()

    def _agree(self) -> None:
        """Every process goes on with what the main one found: devices of different kinds differ in the last digits, and
        tasks that stop in one process only would set the processes apart for good."""
        self.progress = Progress.from_dict(self.processes.agree(self.progress.to_dict()))
        self.processes.copy_from_main(p for _, p in self.model.head_parameters())

    def _announce_unmeasured(self) -> None:
        values = gradient_values(self.config, self.model)
        if values > MEASURED and self.config.conflict_steps is None and not self.rule.on_gradients:
            taken = f"the tasks' gradients are not measured, because they would take {4 * values / 2**30:.1f} GiB"
            self.announce(f"{taken}; conflict_steps={self.config.logging_steps} measures them all the same")

    def _announce_stopped(self, before: tuple[str, ...]) -> None:
        for name in before:
            if name not in self.progress.active:
                at = self.progress.tasks[name].best_step
                self.announce(f"{name} has not improved since step {at}: it is not drawn any more")

    def _valid_vectors(self) -> torch.Tensor:
        """vectors_ND of the validation split's texts, from the current weights."""
        indices_N = self.prepared.used_texts("valid")
        unchanged = self.progress.step == 0 or not self.model.trains_backbone
        if self.start is not None and unchanged and self.encoder is None:  # all of a run's validations measure alike
            return self.start.forward(indices_N, 0).cpu()
        return self._encode(indices_N).cpu()

    def _encode(self, indices_N: np.ndarray) -> torch.Tensor:
        """vectors_ND of texts under the current weights, without dropout; all processes share the work."""
        if not self.model.trains_backbone:
            self.model.eval()
            return self.sources.vectors.values(indices_N, 0)
        vectors_ND = encode_texts(
            self.model, self.prepared.store, indices_N, self.config.token_budget,
            share=self.processes.share, encoder=self.encoder,
        )  # fmt: skip
        return self.processes.sum(vectors_ND)

    def _save_best(self) -> None:
        """Write what the current weights are the best of: for all tasks, and where asked for, for each.

        Always after `last/`, which says which step is the best. A kill in between is mended when the run continues,
        because the weights of `last/` are then the ones that are missing here.
        """
        rule = self.config.early_stopping
        wanted = {self.folder.best: self.progress.best_step}
        if rule is not None and rule.keep_task_best:
            wanted |= {self.folder.best_by_task / name: task.best_step for name, task in self.progress.tasks.items()}
        for target, step in wanted.items():
            if self.processes.is_main and step == self.progress.step and saved_step(target) != step:
                replace_folder_atomically(self._write_model, target)

    def _write_model(self, folder: Path) -> None:
        thresholds, synthetic = self.progress.thresholds, synthetic_tasks(self.prepared.rows)
        save_model(self.model, folder, self.config, thresholds, synthetic, step=self.progress.step)

    def _save(self) -> None:
        """The last checkpoint: everything that the next step depends on."""

        def build(folder: Path) -> None:
            self._write_model(folder)
            self.optimizer.save(folder / OPTIMIZER_FILE)
            save_file(self.rule.state(), folder / BALANCING_FILE)
            (folder / STATE_FILE).write_text(json.dumps(self.progress.to_dict()) + "\n", encoding="utf-8")

        if self.processes.is_main:
            replace_folder_atomically(build, self.folder.last)
        self.processes.wait()

    def _restore(self) -> None:
        """Continue from the last checkpoint if there is one."""
        if self.processes.is_main:
            recover_folder(self.folder.last)
            recover_folder(self.folder.best)
        self.processes.wait()
        if not (self.folder.last / STATE_FILE).is_file():
            if self.processes.is_main:
                if self.folder.read_metrics():
                    self.announce(f"{self.folder.path} has no checkpoint yet: starting from the beginning")
                self.folder.trim_metrics(-1)
            return
        load_weights(self.model, self.folder.last)
        self.optimizer.load(self.folder.last / OPTIMIZER_FILE)
        self.progress = read_progress(self.folder.last / STATE_FILE)
        restore_rule(self.rule, self.folder.last / BALANCING_FILE)
        if self.processes.is_main:
            self.folder.trim_metrics(self.progress.step)
        self._save_best()
        self.processes.wait()
        self.announce(f"continuing after step {self.progress.step} of {self.schedule.total}")


def read_progress(path: Path) -> Progress:
    """The state that a checkpoint holds.

    Raises:
        UserError: The file is broken.
    """
    try:
        return Progress.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not what manyskills writes: {error}", BROKEN) from error


def restore_rule(rule: Rule, path: Path) -> None:
    """Give a rule the state that a checkpoint holds.

    Raises:
        UserError: The file is missing or broken.
    """
    try:
        rule.restore(load_file(path))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} is not what manyskills writes: {error}", BROKEN) from error


def unweighted(config: TrainConfig) -> frozenset[str]:
    """Tasks that the configuration itself gives no weight."""
    weights = config.balancing.weights if isinstance(config.balancing, FixedConfig) else {}
    return frozenset(name for name, weight in weights.items() if not weight)


def positive_shares(config: TrainConfig) -> dict[str, float]:
    """Tasks whose positive rows are drawn in a share of their own."""
    return {name: task.positive_share for name, task in config.tasks.items() if task.positive_share}
