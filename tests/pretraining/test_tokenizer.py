"""The trained tokenizer: deterministic, lossless, and the same after reloading."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import unicodedata

import pytest

from manyskills.config.pretraining import PretrainConfig
from manyskills.errors import UserError
from manyskills.pretraining.architectures import build_network
from manyskills.pretraining.pieces import next_token_pieces
from manyskills.pretraining.tokenizer import END, PAD, check_reloads, get_tokenizer, train_tokenizer
from tests.pretraining.helpers import corpus

SCRIPT = """
from tests.pretraining.test_tokenizer import config
from tests.pretraining.helpers import corpus
from manyskills.pretraining.tokenizer import train_tokenizer
print(train_tokenizer(config(), corpus()).backend_tokenizer.to_str())
"""


def config(name: str = "qwen2", **tokenizer) -> PretrainConfig:
    values = {"data": ["x"], "architecture": name, "tokenizer": {"vocab_size": 400, **tokenizer}}
    return PretrainConfig.model_validate(values)


def test_the_same_texts_give_the_same_tokenizer_in_another_process():
    here = train_tokenizer(config(), corpus()).backend_tokenizer.to_str()
    there = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    assert json.loads(there) == json.loads(here)


@pytest.mark.parametrize("name", ["qwen2", "llama", "t5"])
def test_any_text_comes_back_also_after_reloading(name, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = train_tokenizer(config(name), corpus())
    tokenizer.save_pretrained(tmp_path)
    build_network(config(name), tokenizer).config.save_pretrained(tmp_path)  # decides the class that reads it
    again = AutoTokenizer.from_pretrained(tmp_path)
    draw = random.Random(0)
    texts = ["".join(chr(draw.choice([draw.randrange(256), draw.randrange(0xD800)])) for _ in range(80))]
    for text in [*texts, "", "  \t\n\r\n  x ", "don 't , . !", "é\u2028\U0001f600\x00", "\x85\xa0 1234"]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == (unicodedata.normalize("NFC", text) if name == "qwen2" else text)
        assert again(text, add_special_tokens=False)["input_ids"] == ids
        assert again.decode(ids) == tokenizer.decode(ids)
    assert again(" 12")["input_ids"] == tokenizer(" 12")["input_ids"]
    assert (again.eos_token, again.pad_token, len(again)) == (END, PAD, len(tokenizer))


def test_special_tokens():
    decoder, t5 = (train_tokenizer(config(name), corpus()) for name in ("llama", "t5"))
    for tokenizer in (decoder, t5):
        assert (tokenizer.eos_token, tokenizer.pad_token) == (END, PAD)
        assert tokenizer.eos_token_id != tokenizer.pad_token_id
        assert 256 < len(tokenizer) <= 400
    assert decoder("a")["input_ids"] == decoder("a", add_special_tokens=False)["input_ids"]
    assert t5("a")["input_ids"][-1] == t5.eos_token_id
    sentinels = t5.convert_tokens_to_ids([f"<extra_id_{n}>" for n in range(100)])
    assert len(set(sentinels)) == 100


def test_what_looks_like_a_special_token_in_a_text_is_text():
    tokenizer = train_tokenizer(config(), corpus())
    text = f"a {END} b"
    pieces = next_token_pieces([text], tokenizer, 200)
    assert (pieces.ids_T == tokenizer.eos_token_id).sum() == 1
    assert tokenizer.decode(pieces.piece(0)) == text
    assert tokenizer(END)["input_ids"] == [tokenizer.eos_token_id]


def test_a_chat_template_marks_roles_and_ends_answers():
    tokenizer = train_tokenizer(config(chat=True), corpus())
    question = [{"role": "user", "content": "Say a."}]
    asked = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*question, {"role": "assistant", "content": "a"}], tokenize=False)
    assert asked == "<|user|>\nSay a.\n<|assistant|>\n"
    assert whole == f"{asked}a{END}\n"
    assert len(tokenizer("<|user|><|assistant|><|system|>")["input_ids"]) == 3


def test_an_existing_tokenizer_is_reused_if_it_fits(backbone_folder):
    from transformers import AutoTokenizer, LlamaConfig, Qwen2Config

    name = backbone_folder("llama")
    wanted = PretrainConfig.model_validate({"data": ["x"], "tokenizer": name, "architecture": "llama"})
    tokenizer = get_tokenizer(wanted, [])
    assert tokenizer("a = 1")["input_ids"] == AutoTokenizer.from_pretrained(name)("a = 1")["input_ids"]
    check_reloads(tokenizer, LlamaConfig(), corpus())
    with pytest.raises(UserError, match="reads it in another way beside a network of type qwen2"):
        check_reloads(tokenizer, Qwen2Config(), corpus())
    with pytest.raises(UserError, match="has no sentinel <extra_id_0>"):
        get_tokenizer(
            PretrainConfig.model_validate({"data": ["x"], "tokenizer": backbone_folder("t5"), "architecture": "t5"}), []
        )
