"""Training steps on a GPU: tokens a second and peak memory, LoRA and QLoRA, 1.5 billion and 125 million weights.

    python benchmarks/gpu_training.py [--data path/to/data] [--sizes qwen2.5-coder-1.5b-size unixcoder-size]
    python benchmarks/gpu_training.py --device cpu --tiny      # the same path with tiny networks: whether it runs

As benchmarks/training_step.py, in bfloat16, and with `group_by_length` also in batches of a whole step's rows (the
same number of rows a step, nothing accumulated), because a GPU gains by large batches. Everybody first takes one
uncounted round of whole steps. Networks have random weights, which cost the same time as trained ones. Tokens a second
are useful ones: every text of a step once, without padding. Memory is the most that a contender's steps need beyond all
weights and optimiser states.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from contenders.field import OURS, TRAINER, TRAINER_WHOLE, Contender, common_field, seconds_a_step
from contenders.ours import Ours
from contenders.peer import PeerOptions
from contenders.work import draw
from manyskills.config import BackboneConfig, TrainConfig
from manyskills.data.mining import MiningLimits
from manyskills.model.backbones import load_tokenizer, quiet
from measuring import (
    TASKS,
    UNIXCODER_SIZE,
    Table,
    bars,
    benchmark_parser,
    data_folder,
    interleaved,
    machine,
    medians,
    own_cache,
    ratios,
    write_report,
)

QWEN_SIZE = "qwen2.5-coder-1.5b-size"
METHODS = ("lora", "qlora")


@dataclass(frozen=True, slots=True)
class Work:
    """How much is measured."""

    batch_size: int = 64
    steps: int = 4
    rows: int = 2000
    max_length: int = 512
    token_budget: int = 16384


TINY = Work(batch_size=8, steps=1, rows=12, max_length=64, token_budget=512)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = benchmark_parser(__doc__, rounds=3)
    parser.add_argument("--sizes", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="networks of two narrow layers, few rows")
    wanted = parser.parse_args(arguments)
    if wanted.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu --tiny shows whether the script runs")
    torch.set_num_threads(wanted.threads)
    work = TINY if wanted.tiny or wanted.quick else Work()
    with own_cache() as temporary, warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")  # the libraries' own, about each other's names
        limits = MiningLimits(train=min(work.rows, 400), valid=8, test=8, max_lines=400, max_chars=9000)
        data = data_folder(wanted.data, temporary, limits)
        found = []
        for size in wanted.sizes:
            backbone = random_network(size, temporary / size, tiny=work is TINY)
            for method in wanted.methods:
                config = configuration(backbone, method, data, work)
                found.append(measure(config, size, work, torch.device(wanted.device), temporary, wanted.rounds))
    result = {"machine": machine(), "measurements": found}
    write_report("gpu_training", wanted.output, result, [table(one) for one in found], lambda f: plot(f, found))


def configuration(backbone: str, method: str, data: Path, work: Work) -> TrainConfig:
    """Four tasks, one method, everything else as by default."""
    limit = {"train": work.rows, "valid": 20, "test": 20}
    return TrainConfig.model_validate({
        "backbone": {"name": backbone},
        "method": {"name": method},
        "tasks": {name: {"limit": limit} for name in TASKS},
        "data_dir": str(data),
        "batch_size": work.batch_size,
        "max_length": work.max_length,
        "token_budget": work.token_budget,
    })  # fmt: skip


def measure(
    config: TrainConfig, size: str, amount: Work, device: torch.device, folder: Path, rounds: int
) -> dict[str, Any]:
    """What every contender's steps cost, in turns, after one round that is not counted."""
    work, model = draw(config, amount.steps, device)
    options = PeerOptions(
        dtype=torch.bfloat16 if device.type == "cuda" else torch.float32, quantized=config.method.name == "qlora"
    )
    field = common_field(work, model, folder / "trainer", options, TRAINER | TRAINER_WHOLE)
    padded = Ours(work, {"attention": "padded"})
    field.insert(1, Contender(f"{OURS}, padded attention", padded.run, padded.counter, amount.steps))
    contenders = {one.name: one for one in field}
    interleaved(contenders, 1)  # kernels are chosen and compiled at the first call
    a_step = seconds_a_step(contenders, interleaved(contenders, rounds))
    tokens = int(work.useful_lengths.sum()) / amount.steps
    middle = medians(a_step)
    return {
        "size": size,
        "method": config.method.name,
        **asdict(amount),
        "rounds": rounds,
        "attention": model.attention,
        "useful_tokens_a_step": tokens,
        "tokens_a_step": {name: one.tokens_a_step for name, one in contenders.items()},
        "useful_tokens_a_second": {name: tokens / cost.wall for name, cost in middle.items()},
        "peak_bytes": {name: one.peak_bytes for name, one in contenders.items()},
        "seconds_a_step": {name: [asdict(one) for one in found] for name, found in a_step.items()},
        "times_as_long_as_manyskills": {name: asdict(one) for name, one in ratios(a_step, OURS).items()},
    }


def random_network(size: str, folder: Path, *, tiny: bool) -> str:
    """A folder with a tokenizer and a network of this size in bfloat16 with random weights."""
    torch.manual_seed(0)
    tokenizer, network = NETWORKS[size](tiny)
    with quiet():
        network.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


def _qwen(tiny: bool) -> tuple[Any, Any]:
    """Qwen2.5-Coder 1.5B, as its config.json has it, and a tokenizer of its kind with fewer words."""
    from transformers import Qwen2Config, Qwen2Model

    tokenizer = _byte_level_tokenizer(words=1_000 if tiny else 16_000, modules=8 if tiny else 150)
    shape: dict[str, Any] = {
        "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
        "intermediate_size": 8960, "vocab_size": 151936,
    }  # fmt: skip
    if tiny:
        shape |= {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
                  "vocab_size": 1_100}  # fmt: skip
    config = Qwen2Config(
        **shape, max_position_embeddings=32768, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        rms_norm_eps=1e-6, tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return tokenizer, Qwen2Model(config)


def _byte_level_tokenizer(words: int, modules: int) -> Any:
    """Byte pairs of Python's standard library: texts get about as many tokens as the published tokenizer gives."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=words, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    library = sorted(Path(os.__file__).parent.glob("*.py"))[:modules]
    tokenizer.train([str(path) for path in library], trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end)


def _roberta(tiny: bool) -> tuple[Any, Any]:
    """UniXcoder's shape, with MiniLM's tokenizer."""
    from transformers import RobertaConfig, RobertaModel

    tokenizer, _ = load_tokenizer(BackboneConfig(name="minilm"))
    shape: dict[str, Any] = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128
    }  # fmt: skip
    config = RobertaConfig(
        **(shape if tiny else {}), vocab_size=len(tokenizer), max_position_embeddings=514,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return tokenizer, RobertaModel(config, add_pooling_layer=False)


NETWORKS: dict[str, Callable[[bool], tuple[Any, Any]]] = {QWEN_SIZE: _qwen, UNIXCODER_SIZE: _roberta}


def table(found: dict[str, Any]) -> Table:
    """For people."""
    rows = []
    for name, speed in found["useful_tokens_a_second"].items():
        ratio = found["times_as_long_as_manyskills"][name]
        low, high = ratio["wall_range"]
        memory = found["peak_bytes"][name]
        rows.append((
            name,
            f"{speed:,.0f}",
            f"{found['tokens_a_step'][name]:,.0f}",
            f"{memory / 2**30:.2f}" if memory else "-",
            f"{ratio['wall']:.2f}x ({low:.2f}-{high:.2f})",
        ))  # fmt: skip
    columns = (f"{found['size']}, {found['method']}", "useful tokens/s", "tokens a step", "peak GiB", "wall")
    caption = (
        f"{found['useful_tokens_a_step']:,.0f} useful tokens a step of {found['batch_size']} rows; attention of "
        f"manyskills: {found['attention']}. Median of {found['rounds']} rounds; x: times as long as manyskills, with "
        "the smallest and the largest round."
    )
    return Table(columns, rows, caption)


def plot(figure: Figure, found: Sequence[dict[str, Any]]) -> None:
    """Useful tokens a second."""
    figure.set_size_inches(8.5, 2.8 * len(found))
    for axes, one in zip(figure.subplots(len(found), squeeze=False)[:, 0], found, strict=True):
        title = f"{one['size']}, {one['method']}"
        bars(axes, one["useful_tokens_a_second"], title, "useful tokens a second", marked=OURS)


if __name__ == "__main__":
    main()
