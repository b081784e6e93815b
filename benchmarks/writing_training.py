"""Training to write: answer tokens a second and peak memory, against Hugging Face's Trainer with peft.

    python benchmarks/writing_training.py --data path/to/data [--sizes 4m 50m] [--threads 1]

Ours: prompts and answers one behind another without padding, the loss on answers only, logits a block at a time. The
Trainer: rows padded to the longest of a batch of eight (in the order of drawing, or grouped by length as in a long
run), or to 512 tokens; all logits at once. The same network with random weights, the same LoRA on every linear layer,
the same rows of code generation, summarization and translation, tokenised beforehand; before anything is measured the
losses of the first step are compared. Contenders take turns in one process; memory is the peak of a program of its own
that takes one step (on a GPU: of the steps, beyond what was there before). One more measurement takes steps of all
seven tasks apart, in the smallest network. On a GPU the networks are those of Qwen2.5-Coder 0.5B and 1.5B in bfloat16.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from contenders.field import OURS, Contender, seconds_a_step
from contenders.writing import OurWriting, WritingPeer, WritingTrainer, WritingWork, draw_writing
from manyskills.config import TrainConfig
from manyskills.model.backbones import quiet
from manyskills.model.multitask import MultiTaskModel
from measuring import (
    TASKS,
    Table,
    bars,
    benchmark_parser,
    interleaved,
    machine,
    medians,
    own_cache,
    peak_memory_of,
    ratios,
    write_report,
)
from real_size_plans import SHAPES, VOCABULARY, chat_tokenizer
from real_size_plans import TASKS as WRITTEN

LONGEST, BY_LENGTH, FIXED = "Trainer, longest of the batch", "Trainer, grouped by length", "Trainer, fixed 512"
CACHED = "manyskills, step_memory=cached"
CONTENDERS = (OURS, CACHED, LONGEST, BY_LENGTH, FIXED)
MAX_LENGTH, PROMPT = 512, 384


@dataclass(frozen=True, slots=True)
class Size:
    """A network and how much it is trained.

    Attributes:
        shape: Keys of Qwen2's configuration.
        words: Of the tokenizer.
        batch_size: Rows a step, of all three tasks.
        steps: That are measured.
    """

    shape: dict[str, Any]
    words: int
    batch_size: int = 32
    steps: int = 2


SIZES = {
    "4m": Size(
        {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 704}, 4_096
    ),
    "50m": Size(
        {"hidden_size": 512, "num_hidden_layers": 9, "num_attention_heads": 8, "intermediate_size": 2048}, 32_000,
        batch_size=16, steps=1,
    ),
    "0.5b": Size(SHAPES["0.5b"] | {"vocab_size": VOCABULARY}, 32_000, steps=8),
    "1.5b": Size(SHAPES["1.5b"] | {"vocab_size": VOCABULARY}, 32_000, steps=8),
}  # fmt: skip
QUICK = Size(
    {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}, 600, batch_size=9,
    steps=1,
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    gpu = torch.cuda.is_available()
    parser = benchmark_parser(__doc__, rounds=3 if gpu else 2)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["0.5b", "1.5b"] if gpu else ["4m", "50m"])
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    wanted = parser.parse_args(arguments)
    if wanted.data is None:
        parser.error("--data: a folder with code_generation, code_summarization and code_translation is needed")
    torch.set_num_threads(wanted.threads)
    if wanted.memory_of:
        take_one(*json.loads(wanted.memory_of))
        return
    sizes = {name: QUICK if wanted.quick else SIZES[name] for name in wanted.sizes}
    with own_cache() as temporary:
        found, first = [], None
        for name, size in sizes.items():
            backbone = random_network(size, temporary / name, wanted.data)
            first = first or (backbone, size)
            found.append({"size": name} | measure(size, backbone, wanted, temporary))
        assert first is not None
        mixed = mixture(*first, wanted)
    result = {"machine": machine(), "measurements": found, "seven_tasks": mixed}
    tables = [*(table(one) for one in found), mixture_table(mixed)]
    write_report("writing_training", wanted.output, result, tables, lambda figure: plot(figure, found))


def configuration(backbone: str, size: Size, data: str, tasks: Sequence[str] = WRITTEN) -> TrainConfig:
    """Prompt and answer have 512 tokens together at most."""
    limit = {"train": 1000, "valid": 8, "test": 8}
    written = {"max_length": PROMPT, "max_new_tokens": MAX_LENGTH - PROMPT, "limit": limit}
    return TrainConfig.model_validate({
        "backbone": {"name": backbone},
        "method": {"name": "lora", "r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target": "all-linear"},
        "tasks": {name: written if name in WRITTEN else {"limit": limit, "max_length": 256} for name in tasks},
        "data_dir": data,
        "batch_size": round(size.batch_size * len(tasks) / len(WRITTEN)),
    })  # fmt: skip


def measure(size: Size, backbone: str, wanted: argparse.Namespace, temporary: Path) -> dict[str, Any]:
    """What every contender's steps cost, in turns, after a little work that is not counted."""
    work, model = draw(size, backbone, str(wanted.data))
    field = everybody(work, model, temporary / "trainer")
    # grouped by length, the Trainer's batches are of typical size, but may hold more of one task than of another
    answers = {name: work.answer_tokens(work.drawn if name == BY_LENGTH else work.batches) for name in field}
    for contender in field.values():
        if contender.warm_up is not None:
            contender.warm_up()
    costs = interleaved(field, wanted.rounds)
    middle = medians(seconds_a_step(field, costs))
    if work.device.type == "cuda":
        peaks = {name: one.peak_bytes for name, one in field.items()}
    else:
        peaks = {name: peak_of(name, size, backbone, wanted) for name in field}
    return {
        "parameters": model.backbone_parameters,
        "batch_size": work.config.batch_size,
        "steps": work.steps,
        "rounds": wanted.rounds,
        "answer_tokens_a_step": answers,
        "tokens_a_step": {name: one.tokens_a_step for name, one in field.items()},
        "answer_tokens_a_cpu_second": {name: answers[name] / cost.cpu for name, cost in middle.items()},
        "answer_tokens_a_second": {name: answers[name] / cost.wall for name, cost in middle.items()},
        "peak_bytes": peaks,
        "seconds_a_step": {
            name: [asdict(one) for one in costs] for name, costs in seconds_a_step(field, costs).items()
        },
        "times_as_long_as_manyskills": {name: asdict(one) for name, one in ratios(costs, OURS).items()},
    }


def draw(size: Size, backbone: str, data: str, tasks: Sequence[str] = WRITTEN) -> tuple[WritingWork, MultiTaskModel]:
    """The work, where there is a GPU on it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return draw_writing(configuration(backbone, size, data, tasks), size.steps, device)


def everybody(work: WritingWork, model: MultiTaskModel, folder: Path) -> dict[str, Contender]:
    """The contenders.

    Raises:
        AssertionError: The losses of the first step differ.
    """
    ours, peer = OurWriting(work, model), WritingPeer(work, model)
    cached = OurWriting(work, model, step_memory="cached")
    mine, theirs = ours.loss(), peer.loss(work)
    tolerance = 1e-3 if model.network.dtype == torch.float32 else 0.05
    if abs(mine - theirs) > tolerance * theirs:
        raise AssertionError(f"loss {mine:.6f} of manyskills, {theirs:.6f} of the Trainer's model")
    trainers = {
        LONGEST: WritingTrainer(work, peer, None, folder),
        BY_LENGTH: WritingTrainer(work, peer, None, folder, by_length=True),
        FIXED: WritingTrainer(work, peer, MAX_LENGTH, folder),
    }
    field = {
        name: Contender(name, one.run, one.counter, work.steps, one.warm_up)
        for name, one in ((OURS, ours), (CACHED, cached))
    }
    return field | {
        name: Contender(name, one.run, peer.counter, work.steps, one.warm_up if name == LONGEST else None)
        for name, one in trainers.items()
    }


def peak_of(name: str, size: Size, backbone: str, wanted: argparse.Namespace) -> int:
    """Bytes of a program of its own that takes one step as a contender does."""
    case = [name, asdict(size), backbone, str(wanted.data)]
    argv = ["python", __file__, "--data", str(wanted.data), "--threads", str(wanted.threads)]
    return peak_memory_of([*argv, "--memory-of", json.dumps(case)]).peak_bytes


def take_one(name: str, size: Mapping[str, Any], backbone: str, data: str) -> None:
    """One step of one contender."""
    work, model = draw(replace(Size(**size), steps=1), backbone, data)
    if name in (OURS, CACHED):
        OurWriting(work, model, step_memory="cached" if name == CACHED else "single_pass").run()
        return
    peer = WritingPeer(work, model)
    padded_to = MAX_LENGTH if name == FIXED else None
    WritingTrainer(work, peer, padded_to, Path(backbone), by_length=name == BY_LENGTH).run()


def mixture(backbone: str, size: Size, wanted: argparse.Namespace) -> dict[str, Any] | None:
    """Steps of all seven tasks, of the three that write alone, and of the four with heads alone: the same rows.

    None where the data has no other tasks.
    """
    if not all((wanted.data / name).is_dir() for name in TASKS):
        return None
    work, model = draw(size, backbone, str(wanted.data), [*WRITTEN, *TASKS])
    parts = {"all seven": [*WRITTEN, *TASKS], "the three that write": WRITTEN, "the four with heads": TASKS}
    field = {}
    for name, tasks in parts.items():
        ours = OurWriting(work, model, tasks)
        field[name] = Contender(name, ours.run, ours.counter, work.steps, ours.warm_up)
        ours.warm_up()
    costs = seconds_a_step(field, interleaved(field, wanted.rounds))
    return {
        name: {
            "rows_a_step": sum(len(work.batches[0][task]) for task in parts[name]),
            "tokens_a_step": one.tokens_a_step,
            "seconds_a_step": [asdict(cost) for cost in costs[name]],
            "cpu": medians(costs)[name].cpu,
        }
        for name, one in field.items()
    }


def random_network(size: Size, folder: Path, data: Path) -> str:
    """A folder with a Qwen2 of this shape with random weights and a tokenizer with a chat template."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = chat_tokenizer(data, size.words)
    shape: dict[str, Any] = {"num_key_value_heads": 2, "vocab_size": len(tokenizer)} | size.shape
    config = Qwen2Config(
        **shape, max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    with quiet():
        Qwen2ForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


def table(found: dict[str, Any]) -> Table:
    """For people."""
    rows = []
    for name, ratio in found["times_as_long_as_manyskills"].items():
        speed, ours = found["answer_tokens_a_cpu_second"], found["answer_tokens_a_cpu_second"][OURS]
        rows.append((
            name,
            f"{found['tokens_a_step'][name]:,.0f}",
            f"{found['answer_tokens_a_step'][name]:,.0f}",
            f"{speed[name]:,.0f}",
            f"{found['answer_tokens_a_second'][name]:,.0f}",
            f"{ours / speed[name]:.2f}",
            f"{found['peak_bytes'][name] / 2**30:.2f}",
            f"{ratio['cpu_range'][0]:.2f}-{ratio['cpu_range'][1]:.2f}",
        ))  # fmt: skip
    columns = (
        f"{found['size']} ({found['parameters'] / 1e6:,.1f} million parameters)", "tokens a step", "answer tokens",
        "answer tokens a CPU second", "a second", "manyskills is faster", "peak GiB", "CPU of a step, times ours",
    )  # fmt: skip
    caption = (
        f"{found['batch_size']} rows a step. Median of {found['rounds']} rounds; the last column has the smallest and "
        "the largest round. Grouped by length, the Trainer takes batches of the mean padded size of a long run, and "
        "its answer tokens are the mean of all drawn steps. step_memory=cached reads all tokens twice."
    )
    return Table(columns, rows, caption)


def mixture_table(found: dict[str, Any] | None) -> Table:
    """What the tasks of a step cost, together and apart."""
    rows = [
        (name, str(one["rows_a_step"]), f"{one['tokens_a_step']:,.0f}", f"{one['cpu']:.2f}",
         f"{one['tokens_a_step'] / one['cpu']:,.0f}")
        for name, one in (found or {}).items()
    ]  # fmt: skip
    columns = ("a step of manyskills with", "rows", "tokens", "CPU s", "tokens a CPU second")
    return Table(columns, rows, "The smallest network; the same rows together and apart.")


def plot(figure: Figure, found: Sequence[dict[str, Any]]) -> None:
    """Answer tokens a second."""
    figure.set_size_inches(8.5, 2.4 * len(found))
    for axes, one in zip(figure.subplots(len(found), squeeze=False)[:, 0], found, strict=True):
        bars(axes, one["answer_tokens_a_cpu_second"], one["size"], "answer tokens a CPU second", marked=OURS)


if __name__ == "__main__":
    main()
