"""Networks with random weights, as transformers builds them from a configuration."""

from __future__ import annotations

from typing import Any

import torch

from manyskills.config.pretraining import ArchitectureConfig, PretrainConfig


def build_network(config: PretrainConfig, tokenizer: Any) -> Any:
    """A language model of the configured size; its weights are drawn by the seed and nothing else.

    Args:
        config: Architecture and seed.
        tokenizer: Decides the vocabulary and the numbers of special tokens.
    """
    import transformers as hf

    classes = {
        "qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM),
        "llama": (hf.LlamaConfig, hf.LlamaForCausalLM),
        "t5": (hf.T5Config, hf.T5ForConditionalGeneration),
    }
    config_class, network_class = classes[config.architecture.name]
    values = (_t5 if config.architecture.encoder_decoder else _decoder)(config.architecture)
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = network_class(config_class(vocab_size=len(tokenizer), **special, **values))
    if config.architecture.encoder_decoder:
        network.config.decoder_start_token_id = tokenizer.pad_token_id
        network.generation_config.decoder_start_token_id = tokenizer.pad_token_id
    network.config.use_cache = False
    return network


def _decoder(architecture: ArchitectureConfig) -> dict[str, Any]:
    heads = architecture.num_attention_heads
    return {
        "hidden_size": architecture.hidden_size,
        "num_hidden_layers": architecture.num_hidden_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": architecture.num_key_value_heads or heads,
        "intermediate_size": architecture.width,
        "max_position_embeddings": architecture.max_position_embeddings,
        "tie_word_embeddings": architecture.tie_word_embeddings,
        "bos_token_id": None,
    }


def _t5(architecture: ArchitectureConfig) -> dict[str, Any]:
    """Version 1.1 (Shazeer 2020, arXiv 2002.05202): gated GELU, no dropout while pre-training."""
    return {
        "d_model": architecture.hidden_size,
        "num_layers": architecture.num_hidden_layers,
        "num_heads": architecture.num_attention_heads,
        "d_kv": architecture.hidden_size // architecture.num_attention_heads,
        "d_ff": architecture.width,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
        "tie_word_embeddings": architecture.tie_word_embeddings,
    }
