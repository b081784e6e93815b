"""The second study's configurations as real runs on a tiny Qwen2 with 4-bit weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from manyskills.api import load
from manyskills.config.file import load_config
from manyskills.data.preparation import read_tasks
from manyskills.training.run import train

bnb = pytest.importorskip("bitsandbytes")

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
TASKS = ["code_generation", "code_summarization", "code_translation"]
PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
LAYERS = 2
CHAT = (
    "{% for message in messages %}<s>{{ message.role }}\n{{ message.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
SMALL = [
    "optim=adamw_torch", "max_steps=2", "eval_steps=1", "batch_size=6", "max_length=120", "bootstrap_samples=20",
    "learning_rate=1e-2", "baselines=[floor]",
]  # fmt: skip


@pytest.fixture(scope="module")
def chat_backbone(backbone_folder, tmp_path_factory) -> str:
    """The tiny Qwen2 with a chat template and positions for what that puts around a text."""
    folder = tmp_path_factory.mktemp("chat") / "qwen2"
    shutil.copytree(backbone_folder("qwen2"), folder)
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 256}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(CHAT)
    return str(folder)


@pytest.fixture
def run(chat_backbone, seven_dir, tmp_path):
    """Trains an example, small."""

    def make(name: str, *overrides: str):
        given = load_config(EXAMPLES / f"{name}.yaml", overrides)
        small = [f"tasks.{task}.{key}" for task in given.tasks for key in ("max_new_tokens=10", "limit=4")]
        own = [f"tasks.{task}.max_length=120" for task, chosen in given.tasks.items() if chosen.max_length]
        where = [f"backbone.name={chat_backbone}", f"data_dir={seven_dir}", f"output_dir={tmp_path / 'run'}"]
        return train(load_config(EXAMPLES / f"{name}.yaml", [*overrides, *SMALL, *small, *own, *where]))

    return make


@pytest.mark.parametrize(
    ("name", "overrides", "metric"),
    [
        ("mt_qlora", (), "bleu"),
        ("mt_qlora", ("tasks=[code_translation]",), "bleu"),
        ("mt_qlora_study", (), "token_probability"),
        ("mt_full", (), "bleu"),
    ],
    ids=["mixture", "one task", "as published", "full"],
)
def test_it_trains_and_answers(name, overrides, metric, run):
    made = run(name, *overrides)
    tasks = ["code_translation"] if overrides else TASKS
    assert list(made.results["tasks"]) == tasks
    for task in tasks:
        figures = made.results["tasks"][task]["systems"]["module"]["test"]["metrics"]
        assert {"bleu", "chrf", "exact_match"} <= set(figures)
    check_selection(made, tasks, metric)
    adapted = adapter_sites(made.path / "best")
    assert adapted == (set() if name == "mt_full" else {(n, p) for n in range(LAYERS) for p in PROJECTIONS})
    check_predictions(made.path, load(made.path))


def check_selection(made, tasks, metric):
    """The checkpoint is that of the validation with the best metrics of this name."""
    lines = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    validations = [line for line in lines if line["kind"] == "valid"]
    assert [line["step"] for line in validations] == [0, 1, 2]
    for line in validations:
        assert line["primary"] == {task: line["metrics"][task][metric] for task in tasks}
    best = max(validations, key=lambda line: line["selection"])
    assert made.results["training"]["best_step"] == best["step"]


def adapter_sites(folder):
    """(layer, projection) of each LoRA matrix A of a saved module."""
    from safetensors import safe_open

    if not (folder / "adapter_model.safetensors").is_file():
        return set()
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        names = [name.split(".") for name in file.keys() if "lora_A" in name]  # noqa: SIM118
    return {(int(parts[parts.index("layers") + 1]), parts[parts.index("lora_A") - 1]) for parts in names}


def check_predictions(folder, module):
    """The module that is loaded writes what the run wrote."""
    rows = read_tasks(load_config(folder / "config.yaml"), ("test",))["test"]
    for task, part in rows.items():
        lines = [json.loads(line) for line in (folder / "predictions" / f"{task}.jsonl").read_text().splitlines()]
        assert [line["id"] for line in lines] == [row["id"] for row in part.rows]
        assert module.generate(task, part.rows) == [line["prediction"] for line in lines]
