"""What is shown to a watcher, and when."""

from __future__ import annotations

import pytest

from manyskills.training import loop
from manyskills.training.measuring import Moment
from manyskills.training.reporting import progress_bar
from manyskills.training.run import build_trainer, load_inputs
from manyskills.training.run_folder import RunFolder, data_digests
from manyskills.training.teachers import teach
from manyskills.training.tracking import NoTracker
from tests.training.helpers import ALONE, CPU, TASKS, small_config

TEACHER_WEIGHT = 0.5


def _watch(config, watcher):
    """Train, showing the watcher what there is."""
    model, prepared = load_inputs(config, CPU)
    taught = teach(config, prepared, ALONE, lambda _: None)
    folder = RunFolder(config.output_dir)
    folder.open(config, data_digests(prepared.rows), resume=False, overwrite=False)
    trainer = build_trainer(
        config, model, taught, folder, ALONE, None, lambda _: None, tracker=NoTracker(), watcher=watcher
    )
    with progress_bar(trainer.schedule.total, "test", hidden=True) as bar:
        trainer.run(bar)


@pytest.mark.parametrize("balancing", ["uniform", "pcgrad"])
def test_measured_steps_are_shown_but_for_the_last(balancing, backbone_folder, data_dir, tmp_path):
    shown: list[Moment] = []
    config = small_config(
        backbone_folder("bert"), data_dir, tmp_path / "run", balancing=balancing, conflict_steps=2, max_steps=6
    )
    _watch(config, shown.append)
    assert [moment.step for moment in shown] == [0, 1, 3], "of 0, 1, 3 and 5"
    for moment in shown:
        assert list(moment.factors) == list(moment.losses) == list(moment.gradients.tasks) == TASKS
    if balancing == "uniform":
        assert shown[0].factors == dict.fromkeys(TASKS, 0.25)


def test_with_a_teacher_what_follows_is_annealed_as_the_step_will_be(
    backbone_folder, data_dir, tmp_path, trained_run, monkeypatch
):
    used: list[float] = []
    real = loop.measure_gradients

    def measure(model, source, batch, rule, seed):
        used.extend({part.teaching.weight for part in batch.values() if part.teaching is not None})
        return real(model, source, batch, rule, seed)

    monkeypatch.setattr(loop, "measure_gradients", measure)
    config = small_config(
        backbone_folder("bert"), data_dir, tmp_path / "run", conflict_steps=1, max_steps=4,
        distillation={"teachers": {"code_search": str(trained_run.path)}, "weight": TEACHER_WEIGHT, "anneal": True},
    )  # fmt: skip
    fresh = []
    _watch(config, lambda moment: fresh.append((moment.fresh_gradients().norms(), moment.fresh_losses())))
    assert used == pytest.approx([TEACHER_WEIGHT * (1 - step / 4) for step in (1, 2, 3)])
    for norms, losses in fresh:
        assert set(norms) == set(losses) == set(TASKS)
