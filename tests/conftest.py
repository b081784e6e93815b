"""Tiny random backbones and tiny data, so that every path runs without network, GPU or downloads."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["OMP_NUM_THREADS"] = "1"  # tiny tensors: threads only wait for each other, all the more under pytest-xdist

FAMILIES = ("bert", "roberta", "modernbert", "t5", "llama", "qwen2")
"""One of each kind, for tests of what does not depend on where methods attach."""

ALL_FAMILIES = (*FAMILIES, "codet5", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "starcoder2")

_DECODER = {"num_key_value_heads": 1, "max_position_embeddings": 80}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """No test reads or writes the user's cache."""
    os.environ["MANYSKILLS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory):
    """Makes (once a session) a folder with config, tokenizer and random weights of a family."""
    made: dict[str, Path] = {}

    def make(family: str) -> str:
        if family not in made:
            made[family] = _build(family, tmp_path_factory.mktemp(family))
        return str(made[family])

    return make


def _build(family: str, folder: Path) -> Path:
    import torch

    tokenizer = _tokenizer(family)
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _network(family, tokenizer).save_pretrained(folder)
    return folder


def _tokenizer(family: str):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["def add(a, b):\n    return a + b\n"], trainer)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if family in {"bert", "roberta", "modernbert"}:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
        names |= {"sep_token": "</s>", "cls_token": "<s>", "pad_token": "<pad>"}
    elif family in {"t5", "codet5"}:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 2)]
        )
        names |= {"pad_token": "<pad>"}
    # decoders have no pad token here, as in life
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _network(family: str, tokenizer):
    import transformers as hf

    common = {"vocab_size": 300, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    match family:
        case "bert":
            return hf.BertModel(hf.BertConfig(**common, **SIZES, max_position_embeddings=80), add_pooling_layer=False)
        case "roberta":
            config = hf.RobertaConfig(**common, **SIZES, max_position_embeddings=82)
            return hf.RobertaModel(config, add_pooling_layer=False)
        case "modernbert":
            config = hf.ModernBertConfig(
                **common, **SIZES, max_position_embeddings=80, cls_token_id=0, sep_token_id=2, local_attention=16
            )
            return hf.ModernBertModel(config)
        case "t5" | "codet5":
            ffn = "gated-gelu" if family == "t5" else "relu"
            return hf.T5ForConditionalGeneration(
                hf.T5Config(vocab_size=300, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=2,
                            feed_forward_proj=ffn, pad_token_id=1, eos_token_id=2, decoder_start_token_id=1)
            )  # fmt: skip
        case "llama":
            return hf.LlamaForCausalLM(hf.LlamaConfig(**common, **SIZES, **_DECODER))
        case "qwen2":
            return hf.Qwen2ForCausalLM(hf.Qwen2Config(**common, **SIZES, **_DECODER))
        case "qwen3":
            return hf.Qwen3ForCausalLM(hf.Qwen3Config(**common, **SIZES, **_DECODER, head_dim=24))
        case "mistral":
            return hf.MistralForCausalLM(hf.MistralConfig(**common, **SIZES, **_DECODER, sliding_window=8))
        case "gemma":
            return hf.GemmaForCausalLM(hf.GemmaConfig(**common, **SIZES, **_DECODER, head_dim=24))
        case "gemma2":
            return hf.Gemma2ForCausalLM(hf.Gemma2Config(**common, **SIZES, **_DECODER, head_dim=24, sliding_window=8))
        case "gemma3_text":
            config = hf.Gemma3TextConfig(
                **common, **SIZES, **_DECODER, head_dim=24, sliding_window=8,
                layer_types=["sliding_attention", "full_attention"],
            )  # fmt: skip
            return hf.Gemma3ForCausalLM(config)
        case "starcoder2":
            return hf.Starcoder2ForCausalLM(hf.Starcoder2Config(**common, **SIZES, **_DECODER, sliding_window=8))
    raise ValueError(family)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """Four small, learnable tasks in the documented layout."""
    root = tmp_path_factory.mktemp("data")
    for split, count, offset in (("train", 24, 0), ("valid", 10, 100), ("test", 10, 200)):
        numbers = range(offset, offset + count)
        _write(root / "defect_detection" / f"{split}.jsonl", (_defect(n) for n in numbers))
        _write(root / "flaky_tests" / f"{split}.jsonl", (_flaky(n) for n in numbers))
        _write(root / "code_search" / f"{split}.jsonl", (_search(n) for n in numbers))
        _write(root / "clone_detection" / f"pairs_{split}.jsonl", (_pair(n, offset, count) for n in numbers))
    functions = ({"id": f"f{n}", "code": f"def work_{n % 7}(x):\n    y = {n}\n    return x + y"} for n in range(211))
    _write(root / "clone_detection" / "functions.jsonl", functions)
    return root


@pytest.fixture(scope="session")
def seven_dir(data_dir) -> Path:
    """The same folder with three small tasks whose answers are written."""
    for split, count, offset in (("train", 24, 0), ("valid", 8, 100), ("test", 8, 200)):
        numbers = range(offset, offset + count)
        for language in ("python", "java"):
            rows = [_function(n, language) for n in numbers]
            _write(
                data_dir / "code_generation" / f"{language}_{split}.jsonl",
                ({"id": f"g{n}", **r} for n, r in enumerate(rows)),
            )
            summaries = ({"id": f"s{n}", "code": r["code"], "summary": r["nl"]} for n, r in enumerate(rows))
            _write(data_dir / "code_summarization" / f"{language}_{split}.jsonl", summaries)
        _write(data_dir / "code_translation" / f"{split}.jsonl", (_translation(n) for n in numbers))
    return data_dir


def _function(number: int, language: str) -> dict[str, str]:
    if language == "python":
        return {"nl": f"add {number} to x", "code": f"def f(x):\n    return x + {number}"}
    return {"nl": f"add {number} to x", "code": f"int f(int x) {{ return x + {number}; }}"}


def _translation(number: int) -> dict[str, str]:
    return {
        "id": f"t{number}",
        "java": f"int get{number}() {{ return a; }}",
        "csharp": f"int Get{number}() {{ return a; }}",
    }


@pytest.fixture(scope="session")
def trained_run(backbone_folder, data_dir, tmp_path_factory):
    """A finished run of four tasks on a tiny BERT, for tests that only read it."""
    from manyskills.training.run import train
    from tests.training.helpers import small_config

    folder = tmp_path_factory.mktemp("runs") / "shared"
    return train(small_config(backbone_folder("bert"), data_dir, folder, max_steps=12, eval_steps=4))


@pytest.fixture(scope="session")
def writing_module(backbone_folder, seven_dir, tmp_path_factory):
    """Makes (once a session) a folder like best/ of a run of tasks that write and others, made instead of trained."""
    from manyskills.model.checkpoint import save_model
    from tests.training.helpers import small_config, warmed_up

    made: dict[tuple[str, str], Path] = {}
    tasks = {
        "code_translation": {"max_new_tokens": 9, "prompt": {"csharp_java": "To Java: {source}"}},
        "code_summarization": {"max_new_tokens": 7, "num_beams": 2, "prompt": "Sum up: {source}"},
        "defect_detection": {"answer": "text", "prompt": "Bad? {code}"},
        "code_search": {},
    }

    def make(method: str, family: str = "qwen2") -> Path:
        if (method, family) not in made:
            config = small_config(backbone_folder(family), seven_dir, tasks=tasks, max_length=68, method=method)
            model, _ = warmed_up(config)
            folder = tmp_path_factory.mktemp("module") / "best"
            folder.mkdir()
            save_model(model, folder, config, {"defect_detection": 0.4}, step=3)
            made[method, family] = folder
        return made[method, family]

    return make


def _write(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _defect(n: int) -> dict:
    bad = n % 2
    return {
        "id": f"d{n}",
        "code": f"int f{n}(int *p) {{ {'' if bad else 'if (!p) return 0; '}return *p + {n}; }}",
        "label": bad,
    }


def _flaky(n: int) -> dict:
    flaky = int(n % 4 == 0)
    wait = "time.sleep(1); " if flaky else ""
    return {"id": f"t{n}", "code": f"def test_{n}():\n    {wait}assert g({n}) == {n}", "label": flaky, "project": "p"}


def _search(n: int) -> dict:
    return {"id": f"s{n}", "query": f"add {n} to a number", "code": f"def add(a):\n    return a + {n}"}


def _pair(n: int, offset: int, count: int) -> dict:
    other = offset + (n - offset + 7) % count if n % 2 else offset + (n - offset + 3) % count
    return {"id1": f"f{n}", "id2": f"f{other}", "label": int(n % 7 == other % 7)}
