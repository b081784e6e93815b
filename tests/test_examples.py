"""Every configuration in examples/ can be read, and says what its name promises."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from manyskills.config import FullConfig, QloraConfig
from manyskills.config.file import load_config, read_config
from manyskills.config.pretraining import PretrainConfig
from manyskills.data.options import refuse_useless_options

EXAMPLES = Path(__file__).parent.parent / "examples"
ALL = sorted(EXAMPLES.glob("*.yaml"))
MIXTURE = ["code_generation", "code_summarization", "code_translation"]


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_it_is_a_configuration(path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "architecture" in content:
        assert read_config(PretrainConfig, path).output_dir == content["output_dir"]
    else:
        config = load_config(path)
        refuse_useless_options(config)
        assert list(config.tasks) == list(content["tasks"])


@pytest.mark.parametrize("name", ["mt_qlora", "mt_qlora_study"])
def test_the_studys_recipe(name):
    """Haque et al. 2026, arXiv 2601.15094, section 3, as far as both configurations keep to it."""
    config = load_config(EXAMPLES / f"{name}.yaml")
    assert config.method == QloraConfig(r=8, lora_alpha=16, lora_dropout=0.1, target="all-linear")
    assert list(config.tasks) == MIXTURE
    assert (config.optim, config.learning_rate, config.lr_scheduler_type) == ("adamw_bnb_8bit", 1e-4, "cosine")
    assert config.warmup_ratio > 0
    assert (config.batch_size, config.num_train_epochs, config.bf16) == (32, 5, True)
    assert all(task.num_beams == 1 for task in config.tasks.values())


def test_the_study_reads_and_writes_512_tokens():
    config = load_config(EXAMPLES / "mt_qlora_study.yaml")
    assert {(task.max_length or 0) + task.max_new_tokens for task in config.tasks.values()} == {512}
    assert {task.loss_on for task in config.tasks.values()} == {"all"}
    assert config.sampling.name == "proportional"


def test_ours_is_the_same_mixture_with_another_method():
    lora, full = (load_config(EXAMPLES / f"{name}.yaml") for name in ("mt_qlora", "mt_full"))
    assert (full.method, full.tasks, full.sampling) == (FullConfig(), lora.tasks, lora.sampling)
    assert full.learning_rate < lora.learning_rate
    assert {task.select_by for task in lora.tasks.values()} == {"generation"}
    assert {task.loss_on for task in lora.tasks.values()} == {"answer"}


@pytest.mark.parametrize("task", MIXTURE)
def test_one_task_alone_keeps_its_choices(task):
    whole, alone = (load_config(EXAMPLES / "mt_qlora.yaml", given) for given in ([], [f"tasks=[{task}]"]))
    assert alone.tasks == {task: whole.tasks[task]}
