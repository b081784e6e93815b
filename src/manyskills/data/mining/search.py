"""Search rows: the first paragraph of a docstring asks, the function without it answers."""

from __future__ import annotations

import re

_POOR_STARTS = (
    "see ", "same as", "alias", "deprecated", "todo", "fixme", "xxx", "inherit", "overrid", "internal", "private",
    "undocumented", "not implemented", "docstring", "implement ", "implements ", "helper for", "wrapper for",
)  # fmt: skip
_POOR_PARTS = (">>>", "%(", "{{", "<!--", "http://", "https://", "@param", ":param", ".. ")
_MIN_WORDS, _MAX_WORDS, _MAX_CHARS = 5, 50, 400


def query_of(docstring: str | None) -> str | None:
    """What a person would ask to find the function; None if the docstring says too little, or no sentence."""
    if not docstring:
        return None
    paragraph = re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0]
    text = " ".join(_without_markup(paragraph).split())
    lowered = text.lower()
    if lowered.startswith(_POOR_STARTS) or any(part in lowered for part in _POOR_PARTS):
        return None
    words = re.findall(r"[A-Za-z]{2,}", text)
    if not _MIN_WORDS <= len(words) <= _MAX_WORDS or len(text) > _MAX_CHARS or not text[0].isalnum():
        return None
    readable = sum(character.isascii() and (character.isalpha() or character == " ") for character in text)
    return text if readable >= 0.8 * len(text) else None


def _without_markup(text: str) -> str:
    """reStructuredText roles and quotes go, their words stay."""
    text = re.sub(r":[\w:+.-]+:`~?\.?([^`<]+?)(?:\s*<[^`]*>)?`", r"\1", text)
    return re.sub(r"`+|\*\*", "", text)
