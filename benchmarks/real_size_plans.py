"""Dry runs of the second study's configurations at the sizes of Qwen2.5-Coder-Instruct.

    python benchmarks/real_size_plans.py --data path/to/data [--sizes 0.5b 1.5b 3b] [--backbones path/to/folders]

A plan needs a backbone's configuration and tokenizer, but no weights. Without --backbones the script makes folders with
the published configurations and a byte-level tokenizer that is trained on the texts of the data, with a chat template
of the same kind; it gives about as many tokens as the published one, not the same ones. --backbones names a folder that
holds the real ones as `0.5b`, `1.5b` and `3b`. Memory is that of a GPU that computes in bfloat16, also where the script
runs without one.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from manyskills.config import FullConfig, TrainConfig
from manyskills.config.file import load_config
from manyskills.evaluation.plots import PALETTE
from manyskills.model.backbones import quiet
from manyskills.tasks import get_task
from manyskills.training.plan import make_plan
from measuring import Table, benchmark_parser, machine, own_cache, write_report

EXAMPLES = Path(__file__).parent.parent / "examples"
TASKS = ("code_generation", "code_summarization", "code_translation")

SHAPES: dict[str, dict[str, Any]] = {
    "0.5b": {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "intermediate_size": 4864},
    "1.5b": {"hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "intermediate_size": 8960},
    "3b": {"hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "intermediate_size": 11008},
}
"""Qwen2.5-Coder-Instruct (Hui et al. 2024, arXiv 2409.12186, table 1, and the published configurations)."""

PARTS = {
    "weights": "weights", "training": "gradients and moments", "activations": "activations",
    "task_gradients": "tasks' gradients", "answers": "answers",
}  # fmt: skip
"""Of memory, with their names for people."""

VOCABULARY = 151_936
WORDS = 32_000
"""Of the tokenizer that is trained here: on code of the same kind as many words give about as short sequences as the
published ones do on any text."""

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML, without the system turn of some twenty tokens that the published template puts first."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Plan, print, write."""
    parser = benchmark_parser(__doc__, rounds=1)
    parser.add_argument("--sizes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--backbones", type=Path, help="folder with the real ones; default: made here, without weights")
    wanted = parser.parse_args(arguments)
    if wanted.data is None:
        parser.error("--data: a folder with code_generation, code_summarization and code_translation is needed")
    torch.set_num_threads(wanted.threads)
    with own_cache() as temporary:
        folders = wanted.backbones or make_backbones(temporary, wanted.sizes, wanted.data, quick=wanted.quick)
        plans = [
            planned(name, size_name, str(folders / size_name), wanted.data, choice)
            for size_name in wanted.sizes
            for name, choice in runs(quick=wanted.quick)
        ]
    result = {"machine": machine(), "tokenizer": "given" if wanted.backbones else f"trained, {WORDS:,} words"}
    result["plans"] = plans
    write_report("real_size_plans", wanted.output, result, tables(plans), lambda figure: plot(figure, plans))


def runs(*, quick: bool) -> Iterator[tuple[str, list[str]]]:
    """Which configurations: a file of examples/ and what is changed in it."""
    yield "mt_qlora", []
    yield "mt_qlora", ["gradient_checkpointing=true"]
    for task in TASKS[-1:] if quick else TASKS:
        yield "mt_qlora", [f"tasks=[{task}]"]
    yield "mt_qlora_study", []
    yield "mt_full", []


def planned(name: str, of_size: str, backbone: str, data: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """One plan with what it took to make it."""
    config = load_config(EXAMPLES / f"{name}.yaml", [f"backbone.name={backbone}", f"data_dir={data}", *overrides])
    start = time.perf_counter()
    plan = make_plan(config)
    seconds = time.perf_counter() - start
    print(f"{of_size} {name} {' '.join(overrides)}: {seconds:.1f} s", file=sys.stderr)
    return {
        "size": of_size,
        "configuration": label(name, config),
        "seconds": seconds,
        "plan": plan.to_dict(),
    }


def label(name: str, config: TrainConfig) -> str:
    """The file's name, and what was changed in it."""
    if len(config.tasks) == 1:
        return f"{name}, {next(iter(config.tasks))} alone"
    checkpointed = config.gradient_checkpointing and not isinstance(config.method, FullConfig)
    return f"{name}, layers checkpointed" if checkpointed else name


def make_backbones(folder: Path, sizes: Sequence[str], data: Path, *, quick: bool) -> Path:
    """Folders with config.json and tokenizer, as far as a plan reads a backbone."""
    from transformers import Qwen2Config

    tokenizer = chat_tokenizer(data, words=600 if quick else WORDS)
    for name in sizes:
        config = Qwen2Config(
            **SHAPES[name], num_key_value_heads=2, vocab_size=VOCABULARY, max_position_embeddings=32_768,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6}, rms_norm_eps=1e-6, tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, dtype="bfloat16",
        )  # fmt: skip
        with quiet():
            config.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
    return folder


def chat_tokenizer(data: Path, words: int) -> Any:
    """Byte pairs of the data's texts for training, and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=words, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts(data), trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.chat_template = CHAT
    return made


def texts(data: Path) -> Iterator[str]:
    """Of the tasks' training files."""
    for task in TASKS:
        for folder in (data / name for name in (task, *get_task(task).folders)):
            for path in sorted(folder.glob("*train.jsonl")):
                for line in path.read_text(encoding="utf-8").splitlines():
                    row = json.loads(line)
                    columns = {name for variant in get_task(task).variants for name in (variant.source, variant.target)}
                    yield from (row[name] for name in sorted(columns) if name in row)


def tables(plans: Sequence[dict[str, Any]]) -> list[Table]:
    """What a run costs, its memory by part, and what its limits cut."""
    return [cost_table(plans), memory_table(plans), truncation_table(plans)]


def cost_table(plans: Sequence[dict[str, Any]]) -> Table:
    """Parameters, steps and tokens."""
    rows = []
    for one in plans:
        plan = one["plan"]
        method = plan["method"]
        rows.append([
            f"{one['size']} {one['configuration']}",
            f"{method['backbone']:,}",
            f"{method['trainable']:,}",
            f"{method['share']:.2%}",
            f"{plan['steps']:,}",
            f"{plan['tokens_a_step']:,.0f}",
            f"{plan['tokens'] / 1e6:,.1f}",
            f"{one['seconds']:.1f}",
        ])  # fmt: skip
    columns = (
        "run", "parameters", "that train", "share", "steps", "tokens a step", "million tokens a run", "seconds to plan",
    )  # fmt: skip
    return Table(columns, rows)


def memory_table(plans: Sequence[dict[str, Any]]) -> Table:
    """Of the chosen way of taking a step, in GiB."""
    rows = []
    for one in plans:
        memory = chosen_memory(one)
        rows.append([
            f"{one['size']} {one['configuration']}",
            *(f"{memory[part] / 2**30:.2f}" for part in PARTS),
            f"{sum(memory[part] for part in PARTS) / 2**30:.1f}",
        ])  # fmt: skip
    caption = "GiB on a GPU, as the step is taken (`step_memory`); libraries take some hundred MiB besides."
    return Table(("run", *PARTS.values(), "together"), rows, caption)


def truncation_table(plans: Sequence[dict[str, Any]]) -> Table:
    """By configuration and task; the same for all sizes, which share a tokenizer."""
    rows, seen = [], set()
    for one in plans:
        for task, part in one["plan"]["tasks"].items():
            key = (one["configuration"].partition(",")[0], task)
            if key not in seen:
                seen.add(key)
                rows.append([f"{key[0]} {task}", *cut(part["truncation"]), *cut(part["answers_cut"])])
    columns = ("task", "prompts cut", "prompt tokens lost", "answers cut", "answer tokens lost")
    return Table(columns, rows)


def cut(truncation: dict[str, Any]) -> list[str]:
    """Share of texts, and of tokens."""
    return [f"{truncation['cut'] / truncation['texts']:.1%}", f"{truncation['lost'] / truncation['tokens']:.1%}"]


def chosen_memory(one: dict[str, Any]) -> dict[str, int]:
    """Bytes by part, as the run's step is taken."""
    return one["plan"]["memory"][one["plan"]["step_memory"]]


def plot(figure: Figure, plans: Sequence[dict[str, Any]]) -> None:
    """Memory by part."""
    figure.set_size_inches(9, 1 + 0.32 * len(plans))
    axes = figure.subplots()
    labels = [f"{one['size']} {one['configuration']}" for one in plans]
    start = [0.0] * len(plans)
    for number, (part, name) in enumerate(PARTS.items()):
        width = [chosen_memory(one)[part] / 2**30 for one in plans]
        axes.barh(labels, width, left=start, color=PALETTE[number % len(PALETTE)], label=name)
        start = [left + right for left, right in zip(start, width, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("GiB on a GPU")
    axes.legend(frameon=False)


if __name__ == "__main__":
    main()
