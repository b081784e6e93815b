"""Errors that a user can mend: one clear sentence with the place, and a hint what to do."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class UserError(Exception):
    """A mistake in the input, the configuration or the environment.

    The command line prints `message` and `hint` without a traceback and exits with code 2.

    Args:
        message: Where, what was wanted, what was found.
        hint: What to do about it.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """A hint that names the nearest of `choices`, or all of them where none is near."""
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known)}"


def require_library(library: str, purpose: str) -> None:
    """Make sure that a dependency is there which an installation that only runs graphs may lack (docs/export.md).

    Args:
        library: Its name, to import and to install it by.
        purpose: What needs it.

    Raises:
        UserError: It is not installed; the hint is the pip command.
    """
    try:
        importlib.import_module(library)
    except ImportError as error:
        what = f"{purpose} needs {library}, which is not installed"
        raise UserError(what, f"pip install {library} -c constraints.txt") from error


def require_extra(module: str, extra: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module: The module to import.
        extra: The extra of this package that installs it.

    Raises:
        UserError: It is not installed; the hint is the pip command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{module} is not installed, and this needs it", f'pip install "manyskills[{extra}]" -c constraints.txt'
        ) from error
