"""The model card of a pre-trained backbone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manyskills.config.pretraining import PretrainConfig

_CARD = """---
library_name: transformers
pipeline_tag: {pipeline}
tags: [code, manyskills]
---

# {name}

A small {form} ({architecture}, {parameters:,} parameters, {vocab_size:,} tokens of byte-level BPE), trained from random
weights with `manyskills pretrain` for tests, examples and machines without a hub. It was trained on little text and
knows little: it is no substitute for a published code model.

| | |
|---|---|
| objective | {objective} |
| texts | {train:,} to learn from, {valid:,} held out, {duplicates:,} exact duplicates left out |
| tokens predicted in training | {tokens:,} in {steps:,} steps |
| loss, last record | {loss:.3f} |
| {held} |
| seed | {seed} |

`config.yaml` is the configuration, `pretraining.json` has all losses.

```
manyskills train CONFIG backbone={path}
```
"""


def card(config: PretrainConfig, path: Path, summary: Mapping[str, Any]) -> str:
    """README.md of the folder `path`, from the content of pretraining.json."""
    valid = summary["valid"]
    held = "held-out perplexity | " + (f"{valid[-1]['perplexity']:.2f}" if valid else "nothing was held out")
    two = config.architecture.encoder_decoder
    return _CARD.format(
        name=path.resolve().name,
        path=path.name,
        pipeline="text2text-generation" if two else "text-generation",
        form="encoder-decoder" if two else "decoder",
        objective="span corruption (Raffel et al. 2020)" if two else "next token, packed, no attention across texts",
        loss=summary["train"][-1]["loss"],
        held=held,
        seed=config.seed,
        **{key: summary["texts"][key] for key in ("train", "valid", "duplicates")},
        **{key: summary[key] for key in ("architecture", "parameters", "vocab_size", "tokens", "steps")},
    )
