"""Texts to token sequences: one flat array for all of them, made once and kept in a cache.

Shape legend: N sequences, T tokens of all sequences together.

Special tokens are placed by a template that is read off the tokenizer, so that truncation never cuts them, a pair that
is read jointly always has a separator, and a decoder's sequence always ends in its end token.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from manyskills.tasks.base import Text

CACHE_VARIABLE = "MANYSKILLS_CACHE"
FORMAT = 2
"""Part of every cache key: raise it when the layout or the meaning of the arrays changes."""


def cache_folder() -> Path:
    """Where computed things that can be made again are kept; the variable MANYSKILLS_CACHE moves it."""
    if CACHE_VARIABLE in os.environ:
        return Path(os.environ[CACHE_VARIABLE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "manyskills"


@dataclass(frozen=True, slots=True)
class TokenStore:
    """Token sequences on one axis.

    Attributes:
        ids_T: Token ids, int32, memory-mapped where they come from the cache.
        starts_N: Where each sequence begins, int64, with the end appended (N + 1 values).
        full_lengths_N: Tokens of each sequence before truncation, special tokens included.
    """

    ids_T: np.ndarray
    starts_N: np.ndarray
    full_lengths_N: np.ndarray

    def __len__(self) -> int:
        return len(self.full_lengths_N)

    @property
    def lengths_N(self) -> np.ndarray:
        """Tokens of each sequence as it is encoded."""
        return np.diff(self.starts_N)

    def sequence(self, index: int) -> np.ndarray:
        """The ids of one sequence."""
        return self.ids_T[self.starts_N[index] : self.starts_N[index + 1]]


@dataclass(frozen=True, slots=True)
class Template:
    """Special tokens around one text (`prefix text suffix`) and between two (`prefix a middle b suffix`)."""

    prefix: tuple[int, ...]
    middle: tuple[int, ...]
    suffix: tuple[int, ...]

    def length(self, joint: bool) -> int:
        """How many special tokens a sequence has."""
        return len(self.prefix) + len(self.suffix) + (len(self.middle) if joint else 0)


def read_template(tokenizer: Any, *, end_token: bool) -> Template:
    """The special tokens that a Hugging Face tokenizer puts around one text and between two.

    Args:
        tokenizer: A fast tokenizer.
        end_token: Put the end token behind every sequence if the tokenizer does not; decoders whose last state is the
            vector need it.
    """
    probe = tokenizer("a", add_special_tokens=False)["input_ids"]
    one = tokenizer("a")["input_ids"]
    start = _find(one, probe)
    prefix, suffix = one[:start], one[start + len(probe) :]
    two = tokenizer("a", "a")["input_ids"]
    rest = two[len(prefix) + len(probe) : len(two) - len(suffix)]
    middle = rest[: len(rest) - len(probe)]
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if end_token and end is not None and suffix[-1:] != [end]:
        suffix = [*suffix, end]
    if not middle:  # joined without a mark, two functions could not be told apart
        mark = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else end
        middle = [mark] if mark is not None else tokenizer("\n\n", add_special_tokens=False)["input_ids"]
    return Template(tuple(prefix), tuple(middle), tuple(suffix))


def _find(sequence: list[int], part: list[int]) -> int:
    for start in range(len(sequence) - len(part) + 1):
        if sequence[start : start + len(part)] == part:
            return start
    return 0


def tokenizer_digest(tokenizer: Any, template: Template) -> str:
    """A hash of everything in the tokenizer that decides the ids."""
    state = f"{FORMAT}|{template}|{tokenizer.backend_tokenizer.to_str()}"
    return hashlib.sha256(state.encode()).hexdigest()


@dataclass(slots=True)
class TextTable:
    """Gives each distinct (text, length limit) one index; texts of all tasks and splits share it."""

    _index: dict[tuple[Text, int], int] = field(default_factory=dict)

    def add(self, text: Text, max_length: int) -> int:
        """The index of this text, the same for every occurrence."""
        return self._index.setdefault((text, max_length), len(self._index))

    @property
    def entries(self) -> list[tuple[Text, int]]:
        """The distinct texts with their limits, in order of their indices."""
        return list(self._index)


def tokenize(
    entries: Sequence[tuple[Text, int]], tokenizer: Any, template: Template, *, use_cache: bool = True
) -> TokenStore:
    """Token sequences of all texts, from the cache if these very texts were tokenised before.

    A text over its limit loses its end; of a joint pair the longer side is cut first. `full_lengths_N` tells what was
    there.
    """
    key = _content_key(entries, tokenizer_digest(tokenizer, template))
    folder = cache_folder() / "tokens" / key
    if use_cache and (stored := _load(folder, len(entries))) is not None:
        return stored
    store = _tokenize(entries, tokenizer, template)
    if use_cache:
        _save(store, folder)
    return store


def _content_key(entries: Sequence[tuple[Text, int]], tokenizer_key: str) -> str:
    digest = hashlib.sha256(tokenizer_key.encode())
    for text, limit in entries:
        parts = (text,) if isinstance(text, str) else text
        digest.update(b"%d:%d:" % (limit, len(parts)))  # two texts are not one pair
        for part in parts:
            data = part.encode("utf-8", "surrogatepass")
            digest.update(b"%d:" % len(data))
            digest.update(data)
    return digest.hexdigest()[:40]


def _tokenize(entries: Sequence[tuple[Text, int]], tokenizer: Any, template: Template) -> TokenStore:
    parts = [_encodable(part) for text, _ in entries for part in ((text,) if isinstance(text, str) else text)]
    encoded = _encode_batches(parts, tokenizer)
    sequences: list[list[int]] = []
    full_lengths: list[int] = []
    for text, limit in entries:
        if isinstance(text, str):
            first, second = next(encoded), None
        else:
            first, second = next(encoded), next(encoded)
        room = max(limit - template.length(second is not None), 1)
        full_lengths.append(len(first) + len(second or ()) + template.length(second is not None))
        sequences.append(_assemble(first, second, room, template))
    starts_N = np.zeros(len(sequences) + 1, dtype=np.int64)
    np.cumsum([len(sequence) for sequence in sequences], out=starts_N[1:])
    ids_T = np.fromiter((i for sequence in sequences for i in sequence), dtype=np.int32, count=int(starts_N[-1]))
    return TokenStore(ids_T, starts_N, np.asarray(full_lengths, dtype=np.int32))


def _encodable(text: str) -> str:
    """The text with a question mark for each half of a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text


def _encode_batches(parts: list[str], tokenizer: Any, batch: int = 2048):  # noqa: ANN202 - a generator of id lists
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    for start in range(0, len(parts), batch):
        for encoding in backend.encode_batch(parts[start : start + batch], add_special_tokens=False):
            yield encoding.ids


def _assemble(first: list[int], second: list[int] | None, room: int, template: Template) -> list[int]:
    if second is None:
        return [*template.prefix, *first[:room], *template.suffix]
    keep_first = max(room // 2, room - len(second))
    first = first[:keep_first]
    second = second[: room - len(first)]
    return [*template.prefix, *first, *template.middle, *second, *template.suffix]


def _load(folder: Path, entries: int) -> TokenStore | None:
    try:
        arrays = (np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS)
        store = TokenStore(*arrays)
    except (OSError, ValueError, EOFError):  # absent, or cut short by something outside: made again
        return None
    whole = len(store) == entries == len(store.starts_N) - 1 and store.starts_N[-1] == len(store.ids_T)
    return store if whole else None


_ARRAYS = ("ids", "starts", "full_lengths")


def _save(store: TokenStore, folder: Path) -> None:
    """Keep the arrays; a full disk or a read-only home only costs the cache."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            build = Path(temporary) / "build"
            build.mkdir()
            for name, array in zip(_ARRAYS, (store.ids_T, store.starts_N, store.full_lengths_N), strict=True):
                np.save(build / f"{name}.npy", array, allow_pickle=False)
            shutil.rmtree(folder, ignore_errors=True)  # there only if it is broken, or was made just now by another
            build.rename(folder)
    except OSError:
        return
