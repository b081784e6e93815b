"""What a training says when a loss is not finite, memory runs out, or a checkpoint is broken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from manyskills.errors import UserError
from manyskills.training.balancing import Rule

LESS_MEMORY = "lower token_budget, set step_memory=cached, or lower max_length"

BROKEN = "restore the file from a copy, or start anew with --overwrite"


def less_memory(rule: Rule) -> str:
    """What helps where a step does not fit."""
    return f"{LESS_MEMORY}, or balance losses instead of gradients" if rule.on_gradients else LESS_MEMORY


@contextmanager
def clear_failures(place: str, needs_less: str) -> Iterator[None]:
    """Says where a loss was not finite or memory ran out, and what helps."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise UserError(f"{place}: the device's memory is full", needs_less) from error
    except UserError as error:
        raise UserError(f"{place}: {error.message}", error.hint) from error
