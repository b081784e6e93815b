"""Texts to token sequences: one flat array for all of them, made once and kept in a cache.

Shape legend: N texts, S sequences (one for each text, unless it is long and read in windows), T tokens of all sequences
together.

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
from typing import Any, NamedTuple

import numpy as np

from manyskills.data.windows import Pieces, Windows, cut_windows
from manyskills.tasks.base import Text

CACHE_VARIABLE = "MANYSKILLS_CACHE"
FORMAT = 3
"""Part of every cache key: raise it when the layout or the meaning of the arrays changes."""


def cache_folder() -> Path:
    """Where computed things that can be made again are kept; the variable MANYSKILLS_CACHE moves it."""
    if CACHE_VARIABLE in os.environ:
        return Path(os.environ[CACHE_VARIABLE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "manyskills"


@dataclass(frozen=True, slots=True)
class TokenStore:
    """Texts, and the token sequences they are encoded as.

    Where no text may be read in windows the two are one: text i is sequence i.

    Attributes:
        ids_T: Token ids, int32, memory-mapped where they come from the cache.
        starts_S: Where each sequence begins, int64, with the end appended (S + 1 values).
        full_lengths_N: Tokens of each text before truncation, special tokens included.
        routes_S: Which task's part of a routed module reads each sequence; 0 where no method is routed.
        windows: Which sequences each text is; None: each is one.
    """

    ids_T: np.ndarray
    starts_S: np.ndarray
    full_lengths_N: np.ndarray
    routes_S: np.ndarray
    windows: Windows | None = None

    def __len__(self) -> int:
        """How many texts."""
        return len(self.full_lengths_N)

    @property
    def lengths_S(self) -> np.ndarray:
        """Tokens of each sequence as it is encoded."""
        return np.diff(self.starts_S)

    @property
    def lengths_N(self) -> np.ndarray:
        """Tokens that encoding each text costs: those of all its sequences."""
        return np.diff(self.starts_S if self.windows is None else self.starts_S[self.windows.firsts_N])

    @property
    def sequences_N(self) -> np.ndarray:
        """How many sequences each text is."""
        return np.ones(len(self), dtype=np.int64) if self.windows is None else np.diff(self.windows.firsts_N)

    def pieces(self, indices_N: np.ndarray) -> Pieces:
        """The sequences that these texts are read as."""
        return Pieces.one_each(indices_N) if self.windows is None else self.windows.select(indices_N)

    def sequence(self, index: int) -> np.ndarray:
        """The ids of one sequence."""
        return self.ids_T[self.starts_S[index] : self.starts_S[index + 1]]


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
    backend = tokenizer.backend_tokenizer
    plain = "plain|" if backend.encode_special_tokens else ""  # no part of the tokenizer's own description
    state = f"{FORMAT}|{plain}{template}|{backend.to_str()}"
    return hashlib.sha256(state.encode()).hexdigest()


class Entry(NamedTuple):
    """One text as it is to be read.

    Attributes:
        text: The text, or two that are read jointly.
        max_length: Tokens a sequence may have.
        route: Which task's part of a routed module reads it.
        overlap: Share of a window that the next one repeats, for texts over max_length that are read in windows; None:
            they lose their end. Two that are read jointly cannot be cut into windows.
    """

    text: Text
    max_length: int
    route: int = 0
    overlap: float | None = None


@dataclass(slots=True)
class TextTable:
    """Gives each distinct entry one index; texts of all tasks and splits share it."""

    _index: dict[Entry, int] = field(default_factory=dict)

    def add(self, text: Text, max_length: int, route: int = 0, overlap: float | None = None) -> int:
        """The index of this text, the same for every occurrence."""
        return self._index.setdefault(Entry(text, max_length, route, overlap), len(self._index))

    @property
    def entries(self) -> list[Entry]:
        """The distinct entries, in order of their indices."""
        return list(self._index)


def tokenize(entries: Sequence[Entry], tokenizer: Any, template: Template, *, use_cache: bool = True) -> TokenStore:
    """Token sequences of all texts, from the cache if these very texts were tokenised before.

    A text over its limit is read in windows or loses its end; of a joint pair the longer side is cut first.
    `full_lengths_N` tells what was there.
    """
    key = _content_key(entries, tokenizer_digest(tokenizer, template))
    folder = cache_folder() / "tokens" / key
    if use_cache and (stored := _load(folder, entries)) is not None:
        return stored
    store = _tokenize(entries, tokenizer, template)
    if use_cache:
        _save(store, folder)
    return store


def _content_key(entries: Sequence[Entry], tokenizer_key: str) -> str:
    digest = hashlib.sha256(tokenizer_key.encode())
    for text, limit, _, overlap in entries:
        parts = _parts(text)
        digest.update(b"%d:%d:" % (limit, len(parts)))  # two texts are not one pair
        if overlap is not None:
            digest.update(b"%r:" % overlap)
        for part in parts:
            data = part.encode("utf-8", "surrogatepass")
            digest.update(b"%d:" % len(data))
            digest.update(data)
    return digest.hexdigest()[:40]


def _tokenize(entries: Sequence[Entry], tokenizer: Any, template: Template) -> TokenStore:
    texts = [encodable(part) for entry in entries for part in _parts(entry.text)]
    encoded = _encode_batches(texts, tokenizer)
    sequences: list[list[int]] = []
    full_lengths: list[int] = []
    new_by_text: list[list[int]] = []
    for entry in entries:
        ids = [next(encoded) for _ in _parts(entry.text)]
        special = template.length(joint=len(ids) == 2)
        full_lengths.append(sum(map(len, ids)) + special)
        room = max(entry.max_length - special, 1)
        cut = _windows(ids, room, entry.overlap)
        sequences += [_assemble(parts, room, template) for parts, _ in cut]
        new_by_text.append([new for _, new in cut])
    starts_S = np.zeros(len(sequences) + 1, dtype=np.int64)
    np.cumsum([len(sequence) for sequence in sequences], out=starts_S[1:])
    ids_T = np.fromiter((i for sequence in sequences for i in sequence), dtype=np.int32, count=int(starts_S[-1]))
    windows = Windows.of(new_by_text) if _in_windows(entries) else None
    full_lengths_N = np.asarray(full_lengths, dtype=np.int32)
    return TokenStore(ids_T, starts_S, full_lengths_N, _routes(entries, windows), windows)


def _parts(text: Text) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else text


def _windows(ids: list[list[int]], room: int, overlap: float | None) -> list[tuple[list[list[int]], int]]:
    """What each sequence of a text holds, and how many tokens it brings."""
    if overlap is None:
        return [(ids, 1)]
    (text,) = ids
    return [([text[window.start : window.stop]], window.new) for window in cut_windows(len(text), room, overlap)]


def _in_windows(entries: Sequence[Entry]) -> bool:
    """Whether a text and a sequence may be two things."""
    return any(entry.overlap is not None for entry in entries)


def _routes(entries: Sequence[Entry], windows: Windows | None) -> np.ndarray:
    routes_N = np.fromiter((entry.route for entry in entries), dtype=np.int64, count=len(entries))
    return routes_N if windows is None else np.repeat(routes_N, np.diff(windows.firsts_N))


def encodable(text: str) -> str:
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


def _assemble(parts: list[list[int]], room: int, template: Template) -> list[int]:
    if len(parts) == 1:
        return [*template.prefix, *parts[0][:room], *template.suffix]
    first, second = parts
    keep_first = max(room // 2, room - len(second))
    first = first[:keep_first]
    second = second[: room - len(first)]
    return [*template.prefix, *first, *template.middle, *second, *template.suffix]


def _load(folder: Path, entries: Sequence[Entry]) -> TokenStore | None:
    names = _ARRAYS + (_WINDOW_ARRAYS if _in_windows(entries) else ())
    try:
        ids_T, starts_S, full_lengths_N, *rest = (
            np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names
        )
    except (OSError, ValueError, EOFError):  # absent, or cut short by something outside: made again
        return None
    windows = Windows(*rest) if rest else None
    sequences = len(entries) if windows is None else len(windows.shares_S)
    whole = len(full_lengths_N) == len(entries) and sequences == len(starts_S) - 1 and starts_S[-1] == len(ids_T)
    if windows is not None:
        whole = whole and len(windows.firsts_N) == len(entries) + 1 and windows.firsts_N[-1] == sequences
    return TokenStore(ids_T, starts_S, full_lengths_N, _routes(entries, windows), windows) if whole else None


_ARRAYS: tuple[str, ...] = ("ids", "starts", "full_lengths")
_WINDOW_ARRAYS: tuple[str, ...] = ("window_firsts", "window_shares")


def _save(store: TokenStore, folder: Path) -> None:
    """Keep the arrays; a full disk or a read-only home only costs the cache."""
    kept = [*zip(_ARRAYS, (store.ids_T, store.starts_S, store.full_lengths_N), strict=True)]
    if store.windows is not None:
        kept += zip(_WINDOW_ARRAYS, (store.windows.firsts_N, store.windows.shares_S), strict=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            build = Path(temporary) / "build"
            build.mkdir()
            for name, array in kept:
                np.save(build / f"{name}.npy", array, allow_pickle=False)
            shutil.rmtree(folder, ignore_errors=True)  # there only if it is broken, or was made just now by another
            build.rename(folder)
    except OSError:
        return
