"""The frozen backbone as start and as comparison."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from manyskills.data.preparation import positive_rates
from manyskills.data.text_set import gather
from manyskills.model import vector_cache
from manyskills.model.encoding import WholeBackbone
from manyskills.training import baselines
from manyskills.training.run import load_inputs, train
from tests.training.helpers import ALONE, CPU, small_config


@pytest.fixture
def config(backbone_folder, data_dir, tmp_path):
    return small_config(
        backbone_folder("bert"), data_dir, tmp_path / "run", baselines=["untrained", "frozen"], heads_first=True
    )


def test_frozen_heads_see_the_rows_that_the_run_draws(config):
    _, prepared = load_inputs(config, CPU)
    short = config.model_copy(update={"max_steps": 2, "batch_size": 8})
    seen = baselines.rows_of_the_run(short, prepared).examples
    assert {name: len(part) for name, part in seen["train"].items()} == dict.fromkeys(prepared.examples["train"], 4)
    assert seen["valid"] is prepared.examples["valid"]
    whole = baselines.rows_of_the_run(config.model_copy(update={"max_steps": 50}), prepared).examples["train"]
    assert {name: len(part) for name, part in whole.items()} == dict.fromkeys(whole, 24)


def test_kept_vectors_are_read_back_and_only_for_the_same_texts(config, tmp_path, monkeypatch):
    model, prepared = load_inputs(config, CPU)
    keep = tmp_path / "vectors.safetensors"
    first = baselines.base_vectors(model, config, prepared, ["train", "valid"], keep=keep)
    monkeypatch.setattr(model, "vectors", None)
    again = baselines.base_vectors(model, config, prepared, ["train", "valid"], keep=keep)
    assert torch.equal(first.vectors_SD, again.vectors_SD)
    with pytest.raises(TypeError):
        baselines.base_vectors(model, config, prepared, ["train", "valid", "test"], keep=keep)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """Vectors on disk, however few tokens there are; gives the sequences that were encoded."""
    monkeypatch.setattr(vector_cache, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(vector_cache, "LEAST_TOKENS_ON_CPU", 1)
    encoded: list[int] = []
    call = WholeBackbone.__call__

    def counting(self, indices_B):
        if len(encoded) >= self.__class__.allowed:
            raise KeyboardInterrupt
        encoded.extend(indices_B)
        return call(self, indices_B)

    monkeypatch.setattr(WholeBackbone, "allowed", sys.maxsize, raising=False)
    monkeypatch.setattr(WholeBackbone, "__call__", counting)
    return encoded


def test_another_run_on_the_backbone_reads_its_vectors(config, own_cache, tmp_path):
    def run(**changes):
        own_cache.clear()
        update = {"heads_first": False, "baselines": ["untrained"], "max_steps": 1, **changes}
        return train(config.model_copy(update=update)).results

    def untrained(results):
        return {name: task["systems"]["untrained"] for name, task in results["tasks"].items()}

    first = run(vector_cache=False)
    alone = len(own_cache)
    assert not (tmp_path / "cache").exists()
    second = run(output_dir=str(tmp_path / "second"))
    filled = len(own_cache)
    third = run(output_dir=str(tmp_path / "third"), seed=3)
    assert len(own_cache) < filled <= alone
    for name, splits in untrained(first).items():
        for results in (second, third):
            found = untrained(results)[name]["test"]["metrics"]
            values = {key: estimate["value"] for key, estimate in splits["test"]["metrics"].items()}
            assert {key: estimate["value"] for key, estimate in found.items()} == pytest.approx(values, abs=1e-4)


def test_who_is_killed_while_encoding_goes_on_with_the_same_numbers(config, own_cache, monkeypatch, tmp_path):
    def vectors(place):
        monkeypatch.setattr(vector_cache, "cache_folder", lambda: tmp_path / place)
        model, prepared = load_inputs(config, CPU)
        cache = vector_cache.published_vector_cache(model, 1000)
        return baselines.base_vectors(model, config, prepared, ["test", "train", "valid"], cache=cache).vectors_SD

    expected_SD = vectors("whole")
    total = len(own_cache)
    for allowed in (5, total // 2, total - 3):
        own_cache.clear()
        monkeypatch.setattr(WholeBackbone, "allowed", allowed)
        with pytest.raises(KeyboardInterrupt):
            vectors(f"killed-{allowed}")
        monkeypatch.setattr(WholeBackbone, "allowed", sys.maxsize)
        assert torch.equal(vectors(f"killed-{allowed}"), expected_SD)


def test_vectors_of_the_model_at_step_0_are_the_published_backbones(config):
    model, prepared = load_inputs(config, CPU)
    plain = baselines.frozen_model(config, positive_rates(prepared.examples["train"]), CPU)
    ours, theirs = (baselines.base_vectors(m, config, prepared, ["valid"]) for m in (model, plain))
    torch.testing.assert_close(ours.vectors_SD, theirs.vectors_SD)


def test_heads_first_starts_from_each_tasks_best_frozen_head(config):
    results = train(config).results
    folder = baselines.RunFolder(config.output_dir)
    records = [record for record in folder.read_metrics() if record["kind"] == "valid"]
    start = records[0]["primary"]
    alone = baselines.RunFolder(baselines.frozen_config(config).output_dir)
    best = {
        name: max(record["primary"][name] for record in alone.read_metrics() if record["kind"] == "valid")
        for name in start
    }
    assert start == pytest.approx(best)
    for name, value in start.items():
        entry = results["tasks"][name]
        frozen = entry["systems"]["frozen"]["valid"]["metrics"][entry["primary_metric"]]["value"]
        assert frozen == pytest.approx(value)
    assert not (folder.baselines / "vectors.safetensors").exists(), "vectors are only kept while the run needs them"


def test_probabilities_are_corrected_by_the_whole_training_split(config):
    """The rows that a run draws hold more positives than there are; heads from frozen ones must not forget."""
    tasks = {"flaky_tests": {"positive_share": 0.5}, "code_search": {}}
    config = small_config(
        config.backbone.name,
        config.data_dir,
        config.output_dir,
        tasks=tasks,
        heads_first=True,
        max_steps=2,
        batch_size=8,
    )
    model, prepared = load_inputs(config, CPU)
    rate = positive_rates(prepared.examples["train"])["flaky_tests"]
    assert rate == pytest.approx(0.25)
    seen = positive_rates(baselines.rows_of_the_run(config, prepared).examples["train"])["flaky_tests"]
    assert seen > 0.3, "the rows drawn must differ from all rows for this test to say anything"
    right = model.head("flaky_tests").prior_shift.item()
    folder = train(config).path
    for saved in ("best", "last", "baselines/frozen/best"):
        heads = load_file(folder / saved / "heads.safetensors")
        assert heads["flaky_tests.prior_shift"].item() == pytest.approx(right)


def test_frozen_heads_are_combined_task_by_task(config):
    model, prepared = load_inputs(config, CPU)
    source = baselines.base_vectors(model, config, prepared, ["train", "valid"])
    best = baselines.train_frozen(
        config, prepared, positive_rates(prepared.examples["train"]), source, ALONE, lambda _: None
    )
    combined = load_file(best / "heads.safetensors")
    for name in config.tasks:
        own = load_file(best.parent / "best_by_task" / name / "heads.safetensors")
        for key, value in combined.items():
            if key.startswith(f"{name}."):
                assert torch.equal(value, own[key])
    thresholds = json.loads((best / "tasks.json").read_text())["thresholds"]
    assert set(thresholds) == {"clone_detection", "defect_detection", "flaky_tests"}
    texts = gather(prepared.examples["valid"]).unique_N
    assert np.isin(texts, source.indices_S).all()


def test_the_untrained_backbone_has_no_prefix(backbone_folder, data_dir, tmp_path):
    """A prefix changes the vectors before the first step, and what a run is compared with must not have one."""
    found = []
    for method in ("lora", {"name": "prefix_tuning", "length": 4}):
        target = tmp_path / str(len(found))
        config = small_config(
            backbone_folder("bert"), data_dir, target, method=method, baselines=["untrained"], max_steps=1
        )
        results = train(config).results
        found.append({name: task["systems"]["untrained"]["test"]["metrics"] for name, task in results["tasks"].items()})
    assert found[0] == found[1]


def test_a_checkpoint_is_checked_on_the_vectors_it_was_chosen_by(backbone_folder, data_dir, tmp_path, monkeypatch):
    """The backbone's may come from the disk, from another run's chunks: other digits must not end a finished run."""
    original, calls = baselines.base_vectors, []

    def other_digits_at_first(*arguments, **options):
        found = original(*arguments, **options)
        if not calls:
            found.vectors_SD += torch.randn(found.vectors_SD.shape, generator=torch.Generator().manual_seed(0))
        calls.append(found)
        return found

    monkeypatch.setattr(baselines, "base_vectors", other_digits_at_first)
    config = small_config(backbone_folder("bert"), data_dir, tmp_path / "run", method="frozen", max_steps=4)
    train(config)
    assert len(calls) == 2 and not torch.allclose(*(found.vectors_SD[:1] for found in calls), atol=0.1)
