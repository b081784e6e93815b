"""Windows hold every token, all full but for a text that is short, and every token counts once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from transformers import AutoTokenizer

from manyskills.data.tokens import Entry, read_template, tokenize
from manyskills.data.windows import Pieces, Windows, cut_windows

LENGTHS = (0, 1, 2, 5, 9, 10, 11, 19, 20, 21, 57, 100, 1000)
ROOMS = (1, 2, 3, 7, 10, 64)
OVERLAPS = (0.0, 0.01, 0.25, 0.5, 0.9, 0.999, np.nextafter(1.0, 0.0))


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("room", ROOMS)
def test_every_token_is_in_a_window_and_new_in_one(room, overlap):
    for length in LENGTHS:
        windows = cut_windows(length, room, overlap)
        held: set[int] = set()
        for window in windows:
            tokens = set(range(window.start, window.stop))
            assert window.new == len(tokens - held)
            held |= tokens
        assert held == set(range(length))
        assert sum(window.new for window in windows) == length


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("room", ROOMS)
def test_windows_are_full_and_overlap_as_wanted(room, overlap):
    for length in LENGTHS:
        windows = cut_windows(length, room, overlap)
        assert windows[-1].stop == length
        if length <= room:
            assert len(windows) == 1
            continue
        assert {window.stop - window.start for window in windows} == {room}
        shared = [one.stop - two.start for one, two in itertools.pairwise(windows)]
        wanted = min(round(room * overlap), room - 1)
        assert set(shared[:-1]) <= {wanted}
        assert wanted <= shared[-1] < room
        assert all(window.new > 0 for window in windows), "a window that brings nothing is wasted"
        stride = room - wanted
        assert len(windows) == 1 + -(-(length - room) // stride), "no more windows than it takes"


def test_cutting_is_as_written_out():
    assert [tuple(window) for window in cut_windows(10, 4, 0.25)] == [(0, 4, 4), (3, 7, 3), (6, 10, 3)]
    assert [tuple(window) for window in cut_windows(9, 4, 0.25)] == [(0, 4, 4), (3, 7, 3), (5, 9, 2)]
    assert [tuple(window) for window in cut_windows(0, 4, 0.25)] == [(0, 0, 0)]


def test_shares_are_parts_of_the_text_and_an_empty_text_has_one():
    windows = Windows.of([[4, 3, 2], [0], [5]])
    assert windows.firsts_N.tolist() == [0, 3, 4, 5]
    assert windows.shares_S.tolist() == pytest.approx([4 / 9, 3 / 9, 2 / 9, 1, 1])
    assert windows.shares_S.dtype == np.float32


def test_pieces_of_some_texts_in_their_order():
    windows = Windows.of([[4, 3, 2], [7], [5, 5], [1]])
    pieces = windows.select(np.array([2, 1, 0]))
    assert pieces.sequences_S.tolist() == [4, 5, 3, 0, 1, 2]
    assert pieces.counts_N.tolist() == [2, 1, 3]
    assert pieces.shares_S.tolist() == pytest.approx([0.5, 0.5, 1, 4 / 9, 3 / 9, 2 / 9])
    assert not pieces.whole
    some = windows.select(np.array([1, 3]))
    assert some.whole and some.sequences_S.tolist() == [3, 6]
    none = windows.select(np.empty(0, dtype=np.int64))
    assert none.whole and len(none.sequences_S) == 0
    alone = Pieces.one_each(np.array([5, 2]))
    assert alone.whole and alone.sequences_S.tolist() == [5, 2] and alone.shares_S.tolist() == [1, 1]


@pytest.mark.parametrize("family", ["bert", "t5", "llama"])
@pytest.mark.parametrize("overlap", [0.0, 0.3])
def test_each_window_has_its_special_tokens_and_no_token_is_lost(family, overlap, backbone_folder):
    tokenizer = AutoTokenizer.from_pretrained(backbone_folder(family))
    template = read_template(tokenizer, end_token=True)
    text, limit = "def add(a, b):\n    return a + b\n" * 3, 12
    content = tokenizer(text, add_special_tokens=False)["input_ids"]
    entries = [Entry("a", limit, overlap=overlap), Entry(text, limit, 2, overlap), Entry(text, limit)]
    store = tokenize(entries, tokenizer, template, use_cache=False)
    first, last = template.prefix, template.suffix
    windows = [store.sequence(i).tolist() for i in store.pieces(np.array([1])).sequences_S]
    assert len(windows) > 2 and {len(window) for window in windows} == {limit}
    inner = []
    for window in windows:
        assert tuple(window[: len(first)]) == first
        assert tuple(window[len(window) - len(last) :]) == last
        inner.append(window[len(first) : len(window) - len(last)])
    cut = cut_windows(len(content), limit - len(first) - len(last), overlap)
    assert inner == [content[window.start : window.stop] for window in cut]
    assert store.sequences_N.tolist() == [1, len(windows), 1]
    assert store.full_lengths_N.tolist()[1:] == [len(content) + len(first) + len(last)] * 2
    assert store.lengths_N.tolist()[1:] == [limit * len(windows), limit]
    assert store.lengths_N.sum() == store.lengths_S.sum() == len(store.ids_T)
    assert store.routes_S.tolist() == [0, *[2] * len(windows), 0]
    assert store.sequence(len(windows) + 1).tolist() == windows[0], "cut off, only the first is left"


def test_short_and_empty_texts_are_the_same_sequences_as_without_windows(backbone_folder):
    tokenizer = AutoTokenizer.from_pretrained(backbone_folder("bert"))
    template = read_template(tokenizer, end_token=False)
    texts = ["", "a", "a b c", "x" * 18]
    plain = tokenize([Entry(text, 20) for text in texts], tokenizer, template, use_cache=False)
    windowed = tokenize([Entry(text, 20, overlap=0.25) for text in texts], tokenizer, template, use_cache=False)
    np.testing.assert_array_equal(plain.ids_T, windowed.ids_T)
    np.testing.assert_array_equal(plain.starts_S, windowed.starts_S)
    assert plain.windows is None
    assert windowed.pieces(np.arange(4)).whole
    assert windowed.pieces(np.arange(4)).shares_S.tolist() == [1, 1, 1, 1]
