"""Steps that hold texts and prompts: heads and written answers in one module."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from manyskills.config import UniformConfig
from manyskills.data.sampling import Phase, Sampler
from manyskills.errors import UserError
from manyskills.model.answers import AnswerStates
from manyskills.training.answer_rows import AnswerRows
from manyskills.training.balancing import build_balancing
from manyskills.training.forward import Sources
from manyskills.training.processes import Processes
from manyskills.training.run import load_inputs, train
from manyskills.training.step import accumulate_gradients, measure_gradients, repeat_losses
from manyskills.training.teachers import teach
from manyskills.training.vectors import BackboneVectors
from tests.training.helpers import ALONE, CPU, small_config, warmed_up

SEVEN = {
    "clone_detection": {"head_dropout": 0.0},
    "code_search": {"head_dropout": 0.0},
    "code_generation": {"max_new_tokens": 24},
    "code_summarization": {"max_new_tokens": 24},
    "code_translation": {"max_new_tokens": 32},
}
WRITTEN = ("code_generation", "code_summarization", "code_translation")
NO_DROPOUT = {"method": {"name": "lora", "r": 2, "lora_dropout": 0.0}}
FULL = {"method": "full"}


def config(family, backbone_folder, seven_dir, **changes):
    values = {"tasks": SEVEN, "max_length": 64, **NO_DROPOUT} | changes
    return small_config(backbone_folder(family), seven_dir, **values)


def sources(model, prepared, *, budget=300, cached=False, processes=ALONE):
    vectors = BackboneVectors(model, prepared.store, budget, cached=cached, processes=processes)
    answers = AnswerRows(AnswerStates(model, prepared.prompts), budget, cached=cached, processes=processes)
    return Sources(vectors, answers, processes)


def step(model, prepared, batch=None, *, measure=False, rule=None, **options):
    """What one step measured, and its gradients."""
    model.train()
    model.zero_grad()
    rule = rule or build_balancing(UniformConfig(), list(SEVEN), 0)
    given = sources(model, prepared, **options)
    result = accumulate_gradients(model, given, batch or part(prepared), rule, 1, measure=measure)
    return result, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def part(prepared, rows=6):
    return {name: examples.take(np.arange(rows)) for name, examples in prepared.all_examples("train").items()}


def close(found, expected, rtol=1e-4, atol=1e-6):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=rtol, atol=atol, msg=name)


@pytest.mark.parametrize("family", ["qwen2", "llama", "t5"])
@pytest.mark.parametrize("method", [NO_DROPOUT, FULL])
def test_a_mixed_step_is_the_mean_of_its_tasks_alone(family, method, backbone_folder, seven_dir):
    model, prepared = warmed_up(config(family, backbone_folder, seven_dir, **method))
    batch = part(prepared)
    result, found = step(model, prepared, batch)
    total: dict[str, torch.Tensor] = {}
    for name, examples in batch.items():
        alone, gradients = step(model, prepared, {name: examples})
        assert alone.losses[name] == pytest.approx(result.losses[name], rel=1e-5)
        for key, gradient in gradients.items():
            total[key] = total.get(key, 0) + gradient / len(batch)
    close(found, total)


@pytest.mark.parametrize("measure", [False, True])
@pytest.mark.parametrize(("cached", "budget"), [(True, 300), (False, 90), (True, 90)])
def test_chunks_and_caching_do_not_matter(measure, cached, budget, backbone_folder, seven_dir):
    model, prepared = warmed_up(config("qwen2", backbone_folder, seven_dir))
    one, expected = step(model, prepared, budget=10_000)
    two, found = step(model, prepared, budget=budget, cached=cached, measure=measure)
    assert one.losses == pytest.approx(two.losses, rel=1e-5)
    assert one.written_tokens == two.written_tokens > 0
    close(found, expected)


def test_cached_steps_repeat_the_dropout_of_each_chunk(backbone_folder, seven_dir):
    dropout = {"method": {"name": "lora", "r": 2, "lora_dropout": 0.3}}
    model, prepared = warmed_up(config("qwen2", backbone_folder, seven_dir, **dropout))
    one, expected = step(model, prepared)
    two, found = step(model, prepared, cached=True)
    assert one.losses == pytest.approx(two.losses, rel=1e-6)
    close(found, expected)


@pytest.mark.parametrize(("family", "method"), [("qwen2", NO_DROPOUT), ("qwen2", FULL), ("t5", FULL)])
def test_each_tasks_gradient_is_that_of_its_loss_alone(family, method, backbone_folder, seven_dir):
    """With method full the output layer trains: one of its own, or the embedding table, which learns at both ends."""
    model, prepared = warmed_up(config(family, backbone_folder, seven_dir, **method))
    batch, rule = part(prepared), build_balancing(UniformConfig(), list(SEVEN), 0)
    model.train()
    measured = measure_gradients(model, sources(model, prepared), batch, rule, 1)
    assert all(p.grad is None for _, p in model.shared_parameters())
    for name, examples in batch.items():
        step(model, prepared, {name: examples})
        parameters = [p for _, p in model.shared_parameters()]
        flat_P = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        torch.testing.assert_close(measured.values_KP[measured.row(name)], flat_P, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["uncertainty", "dwa", "famo", "gls", "pcgrad", "gradnorm"])
def test_balancing_rules_get_heads_and_written_answers(name, backbone_folder, seven_dir):
    """A rule sees every task's loss, whichever way the task is answered, and its factors are what counts."""
    wanted = config("qwen2", backbone_folder, seven_dir, balancing=name)
    model, prepared = warmed_up(wanted)
    rule = build_balancing(wanted.balancing, list(SEVEN), 0)
    seen: list[dict[str, float]] = []
    for method in ("weigh", "combine"):
        monkeyed = getattr(rule, method)
        setattr(rule, method, lambda *given, own=monkeyed: seen.append(given[-1]) or own(*given))
    result, gradients = step(model, prepared, rule=rule)
    assert seen[0] == pytest.approx(result.scaled_losses if not rule.raw_losses else result.losses, rel=1e-5)
    assert list(seen[0]) == list(SEVEN) == list(result.factors)
    if not rule.on_gradients:
        total: dict[str, torch.Tensor] = {}
        for task, examples in part(prepared).items():
            uniform = build_balancing(UniformConfig(), [task], 0)
            for key, gradient in step(model, prepared, {task: examples}, rule=uniform)[1].items():
                unit = 1.0 if not rule.raw_losses else result.chances[task]
                total[key] = total.get(key, 0) + gradient * result.factors[task] * unit
        close(gradients, total, rtol=1e-3, atol=1e-5)


def test_repeated_losses_are_the_steps_own(backbone_folder, seven_dir):
    model, prepared = warmed_up(config("qwen2", backbone_folder, seven_dir))
    rule = build_balancing(UniformConfig(), list(SEVEN), 0)
    result, _ = step(model, prepared, rule=rule)
    again = repeat_losses(model, sources(model, prepared), part(prepared), rule, 1, apart=False)
    assert {name: loss.value.item() for name, loss in again.items()} == pytest.approx(result.losses, rel=1e-5)


class Half(Processes):
    """One of two processes, whose sums are handed to it."""

    def sum(self, tensor):
        return tensor

    def sum_gradients(self, parameters):
        pass


def test_two_processes_share_the_answers(backbone_folder, seven_dir):
    """Losses and gradients of two processes sum to those of one, because a loss is the mean over all their tokens."""
    model, prepared = warmed_up(config("qwen2", backbone_folder, seven_dir))
    batch = {name: examples for name, examples in part(prepared).items() if name in WRITTEN}
    rule = build_balancing(UniformConfig(), list(batch), 0)
    whole, expected = step(model, prepared, batch, rule=rule, budget=90)
    halves = [step(model, prepared, batch, rule=rule, budget=90, processes=Half(rank, 2, CPU)) for rank in range(2)]
    for name, loss in whole.losses.items():
        assert sum(half.losses[name] for half, _ in halves) == pytest.approx(loss, rel=1e-5)
    for name, gradient in expected.items():
        both = sum(gradients.get(name, torch.zeros_like(gradient)) for _, gradients in halves)
        torch.testing.assert_close(both, gradient, rtol=1e-4, atol=1e-6)


def test_a_routed_method_gives_each_task_its_own_part(backbone_folder, seven_dir):
    model, prepared = warmed_up(
        config("qwen2", backbone_folder, seven_dir, method={"name": "mtl_lora", "r": 2, "lora_dropout": 0.0})
    )
    batch = {name: examples for name, examples in part(prepared).items() if name in WRITTEN}
    rule = build_balancing(UniformConfig(), list(batch), 0)
    joint, _ = step(model, prepared, batch, rule=rule)
    alone = {name: step(model, prepared, {name: examples}, rule=rule)[0] for name, examples in batch.items()}
    assert {name: result.losses[name] for name, result in alone.items()} == pytest.approx(joint.losses, rel=1e-4)


def test_a_teacher_of_one_task_beside_a_written_one(backbone_folder, seven_dir, trained_run):
    tasks = {"defect_detection": {"head_dropout": 0.0}, "code_translation": {"max_new_tokens": 32}}
    teachers = {"teachers": {"defect_detection": str(trained_run.path)}, "weight": 0.5}
    wanted = config("qwen2", backbone_folder, seven_dir, tasks=tasks, distillation=teachers)
    _, prepared = load_inputs(wanted, CPU)
    taught = teach(wanted, prepared, ALONE, lambda _: None)
    teaching = taught.examples["train"]["defect_detection"].teaching
    drawn = Sampler(taught.all_examples("train"), wanted.sampling, wanted.batch_size, wanted.seed)
    for number in range(wanted.max_steps):
        rows = drawn.rows_at(number, [Phase(0, tuple(tasks))])["defect_detection"]
        assert (teaching.rows_E[rows] >= 0).all()


def test_a_frozen_backbone_cannot_write(backbone_folder, seven_dir):
    with pytest.raises(UserError, match="frozen trains heads alone, and code_generation"):
        load_inputs(config("qwen2", backbone_folder, seven_dir, method="frozen"), CPU)


def test_an_encoder_cannot_write(backbone_folder, seven_dir):
    with pytest.raises(UserError, match="write"):
        load_inputs(config("bert", backbone_folder, seven_dir), CPU)


@pytest.mark.parametrize("select_by", ["generation", "likelihood"])
def test_a_run_with_both_kinds_has_every_figure(select_by, backbone_folder, seven_dir, tmp_path):
    tasks = {name: options | ({"select_by": select_by} if name in WRITTEN else {}) for name, options in SEVEN.items()}
    baselines = ["floor", "untrained", "frozen"]
    run = train(config("qwen2", backbone_folder, seven_dir, tasks=tasks, output_dir=str(tmp_path / "run"),
                       max_steps=4, eval_steps=2, baselines=baselines))  # fmt: skip
    found = run.results["tasks"]
    assert list(found) == list(SEVEN)
    for name in WRITTEN:
        systems = found[name]["systems"]
        wanted = {"module", "untrained", "floor"} | ({"copy"} if name == "code_translation" else set())
        assert set(systems) == wanted
        assert systems["module"]["test"]["metrics"]["bleu"]["value"] is not None
    assert set(found["clone_detection"]["systems"]) == {"module", "untrained", "floor", "frozen"}
