"""Number formats."""

from __future__ import annotations

import torch


def autocasts(device: str) -> bool:
    """Whether operations on devices of this type choose their number format by themselves at this moment."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
