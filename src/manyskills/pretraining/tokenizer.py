"""Byte-level byte-pair encoding, trained on the texts (Sennrich et al. 2016, arXiv 1508.07909; bytes after GPT-2).

Every text can be written, whatever bytes it holds, and decoding gives it back (for Qwen2 in Unicode's composed form,
NFC). The same texts give the same tokenizer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from manyskills.config.pretraining import SENTINELS, PretrainConfig
from manyskills.data.tokens import encodable
from manyskills.errors import UserError

END, PAD = "<|endoftext|>", "<|pad|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")

COMPARED = 64
"""Texts on which a reloaded tokenizer is compared."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


def sentinel(number: int) -> str:
    """What stands for a masked span."""
    return f"<extra_id_{number}>"


def get_tokenizer(config: PretrainConfig, texts: Sequence[str]) -> Any:
    """The tokenizer of a configuration as transformers knows it: trained on the texts, or an existing one.

    Raises:
        UserError: An existing one cannot be read, or lacks an end token or (for span corruption) sentinels.
    """
    if config.tokenizer.name is None:
        return train_tokenizer(config, texts)
    from manyskills.config import BackboneConfig
    from manyskills.model.backbones import load_tokenizer

    tokenizer = load_tokenizer(BackboneConfig(name=config.tokenizer.name))[0]
    check_tokenizer(tokenizer, config)
    return tokenizer


def check_tokenizer(tokenizer: Any, config: PretrainConfig) -> None:
    """Make sure that an existing tokenizer has the special tokens that the objective needs.

    Raises:
        UserError: It lacks one.
    """
    needed = {"end token (eos_token)": tokenizer.eos_token_id}
    if config.architecture.encoder_decoder:
        known = tokenizer.get_vocab()
        needed |= {"pad token": tokenizer.pad_token_id, f"sentinel {sentinel(0)}": known.get(sentinel(0))}
    missing = next((name for name, token in needed.items() if token is None), None)
    if missing:
        what = f"tokenizer.name: {config.tokenizer.name} has no {missing}"
        raise UserError(what, "leave tokenizer.name out: a tokenizer is trained on the texts then")


def train_tokenizer(config: PretrainConfig, texts: Sequence[str]) -> Any:
    """A byte-level BPE tokenizer of `vocab_size` tokens, or fewer where the texts are too small for more."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    roles = list(ROLES) if config.tokenizer.chat else []
    sentinels = [sentinel(n) for n in range(SENTINELS)] if config.architecture.encoder_decoder else []
    backend = Tokenizer(models.BPE())
    if config.architecture.name == "qwen2":
        _cut_as_qwen2(backend)
    else:  # digits one by one: numbers share no tokens with each other otherwise; then words with the space before them
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.tokenizer.vocab_size,
        special_tokens=[END, PAD, *roles, *sentinels],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator((encodable(text) for text in texts), trainer)
    if config.architecture.encoder_decoder:
        backend.post_processor = processors.TemplateProcessing(
            single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, backend.token_to_id(END))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[*roles, *sentinels],
        model_max_length=config.architecture.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )
    if roles:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _cut_as_qwen2(backend: Any) -> None:
    """transformers cuts text Qwen2's way wherever config.json says qwen2, whatever the tokenizer's own files say."""
    from transformers import Qwen2Tokenizer

    own = Qwen2Tokenizer().backend_tokenizer
    backend.normalizer, backend.pre_tokenizer = own.normalizer, own.pre_tokenizer


def check_reloads(tokenizer: Any, network_config: Any, texts: Sequence[str]) -> None:
    """Make sure that the tokenizer which others will load beside the network's configuration is this one.

    Args:
        tokenizer: To be saved.
        network_config: What will stand beside it; transformers chooses the tokenizer's class by it.
        texts: Some of them are compared.

    Raises:
        UserError: It is not.
    """
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        network_config.save_pretrained(folder)
        again = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    some = [encodable(text) for text in texts[:COMPARED]]
    if any(again(text)["input_ids"] != tokenizer(text)["input_ids"] for text in some):
        what = f"tokenizer: transformers reads it in another way beside a network of type {network_config.model_type}"
        raise UserError(what, "train one (leave tokenizer.name out), or choose the architecture that it comes from")


def load_saved(folder: Path) -> Any:
    """The tokenizer that a stopped run has written."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
