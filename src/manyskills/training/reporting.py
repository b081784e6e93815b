"""What people see on stderr while a run goes on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def progress_bar(total: int, label: str, unit: str = "step", *, hidden: bool = False) -> Any:
    """A tqdm bar on stderr that is silent where stderr is no terminal."""
    from tqdm import tqdm

    return tqdm(total=total, desc=label, unit=unit, unit_scale=unit == "token", file=sys.stderr, disable=hidden or None,
                dynamic_ncols=True, mininterval=0.5)  # fmt: skip


def announcer(*, quiet: bool = False) -> Callable[[str], None]:
    """Prints sentences on stderr, above a bar if there is one."""

    def announce(sentence: str) -> None:
        from tqdm import tqdm

        if not quiet:
            tqdm.write(sentence, file=sys.stderr)

    return announce
