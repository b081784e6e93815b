"""Inputs that the benchmarks share: arguments, data, backbones of a size."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from manyskills.config import BackboneConfig
from manyskills.data.mining import MiningLimits, mine_python
from manyskills.data.tokens import CACHE_VARIABLE
from manyskills.model.backbones import load_tokenizer, quiet

TASKS = ("clone_detection", "defect_detection", "flaky_tests", "code_search")
UNIXCODER_SIZE = "unixcoder-size"
"""Stands for a RoBERTa of 12 layers of 768 with random weights, which cost the same time as trained ones."""
RESULTS = Path(__file__).parent.parent / "results"


def benchmark_parser(description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """The arguments that all benchmarks take; a script adds its own.

    Args:
        description: The script's docstring, of which the first line is shown.
        rounds: The default of --rounds.
    """
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="one folder a task; default: mined from the standard library")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON, the table and the plot")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"each contender runs so often (default {rounds})")
    parser.add_argument("--threads", type=int, default=2, help="of the tensor library (default 2)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not how fast")
    return parser


def data_folder(given: Path | None, temporary: Path, limits: MiningLimits) -> Path:
    """The data that was asked for, or data mined from Python's standard library into `temporary`."""
    if given is not None:
        return given
    data = temporary / "data"
    mine_python(data, sources=[Path(os.__file__).parent], limits=limits)
    return data


def backbone_name(wanted: str, temporary: Path) -> str:
    """What `BackboneConfig.name` must be: the name itself, or for `unixcoder-size` a folder made in `temporary`."""
    return random_roberta(temporary / wanted) if wanted == UNIXCODER_SIZE else wanted


def random_roberta(folder: Path) -> str:
    """A network of UniXcoder's size (RoBERTa, 12 layers of 768) with random weights and MiniLM's tokenizer."""
    from transformers import RobertaConfig, RobertaModel

    tokenizer, _ = load_tokenizer(BackboneConfig(name="minilm"))
    torch.manual_seed(0)
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 514, "pad_token_id": tokenizer.pad_token_id}
    with quiet():
        tokenizer.save_pretrained(folder)
        RobertaModel(RobertaConfig(**size), add_pooling_layer=False).save_pretrained(folder)
    return str(folder)


@contextmanager
def own_cache() -> Iterator[Path]:
    """A temporary folder; what manyskills caches goes there meanwhile, so that every run starts with an empty cache."""
    before = os.environ.get(CACHE_VARIABLE)
    with tempfile.TemporaryDirectory() as temporary:
        os.environ[CACHE_VARIABLE] = f"{temporary}/cache"
        try:
            yield Path(temporary)
        finally:
            if before is None:
                del os.environ[CACHE_VARIABLE]
            else:
                os.environ[CACHE_VARIABLE] = before
