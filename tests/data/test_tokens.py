"""Texts become the right tokens: special ones never cut, nothing of the text changed, and the cache tells no lies."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import AutoTokenizer

from manyskills.data.tokens import Entry, Template, TextTable, cache_folder, read_template, tokenize
from tests.conftest import FAMILIES

BOS, PAD, EOS = 0, 1, 2
CODE = 'def f(a):\n    if a:\n\treturn  "x"\n\n\n    # é λ 漢 \U0001f600\r\n'


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MANYSKILLS_CACHE", str(tmp_path))
    return tmp_path / "tokens"


@pytest.fixture
def tokenizer(backbone_folder):
    return AutoTokenizer.from_pretrained(backbone_folder("bert"))


@pytest.fixture
def template(tokenizer):
    return read_template(tokenizer, end_token=False)


@pytest.mark.parametrize(
    ("family", "end_token", "expected"),
    [
        ("bert", False, Template((BOS,), (EOS,), (EOS,))),
        ("modernbert", False, Template((BOS,), (EOS,), (EOS,))),
        ("t5", False, Template((), (EOS,), (EOS,))),
        ("t5", True, Template((), (EOS,), (EOS,))),
        ("llama", True, Template((), (EOS,), (EOS,))),
        ("llama", False, Template((), (EOS,), ())),
    ],
)
def test_template_is_read_off_the_tokenizer(family, end_token, expected, backbone_folder):
    tokenizer = AutoTokenizer.from_pretrained(backbone_folder(family))
    assert read_template(tokenizer, end_token=end_token) == expected


def test_template_of_a_tokenizer_that_starts_decoder_texts_and_doubles_separators(tokenizer):
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A </s> </s> $B", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    assert read_template(tokenizer, end_token=False) == Template((BOS,), (EOS, EOS), ())
    assert read_template(tokenizer, end_token=True) == Template((BOS,), (EOS, EOS), (EOS,))


def test_without_any_special_token_a_pair_is_parted_by_a_blank_line(tokenizer):
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    tokenizer.eos_token = tokenizer.sep_token = None
    found = read_template(tokenizer, end_token=True)
    assert found.suffix == ()
    assert tokenizer.decode(found.middle) == "\n\n"


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_tokenizer_itself_would_give(family, backbone_folder):
    tokenizer = AutoTokenizer.from_pretrained(backbone_folder(family))
    template = read_template(tokenizer, end_token=False)
    store = tokenize([Entry(CODE, 500), Entry((CODE, "b"), 500)], tokenizer, template, use_cache=False)
    assert store.sequence(0).tolist() == tokenizer(CODE)["input_ids"]
    if family in {"bert", "roberta", "modernbert", "t5"}:
        assert store.sequence(1).tolist() == tokenizer(CODE, "b")["input_ids"]
    assert store.full_lengths_N.tolist() == store.lengths_N.tolist()


def test_whitespace_and_every_character_survive(tokenizer, template):
    store = tokenize([Entry(CODE, 500)], tokenizer, template, use_cache=False)
    assert tokenizer.decode(store.sequence(0)[1:-1].tolist(), clean_up_tokenization_spaces=False) == CODE


@pytest.mark.parametrize("limit", [3, 7, 12])
def test_truncation_keeps_the_special_tokens_and_is_counted(limit, tokenizer, template):
    whole = tokenizer(CODE)["input_ids"]
    store = tokenize([Entry(CODE, limit), Entry("a", limit)], tokenizer, template, use_cache=False)
    assert store.sequence(0).tolist() == [*whole[: limit - 1], EOS]
    assert store.lengths_N.tolist() == [limit, 3]
    assert store.full_lengths_N.tolist() == [len(whole), 3]


@pytest.mark.parametrize(
    ("first", "second", "limit", "kept"),
    [
        ("a" * 20, "b" * 20, 13, (5, 5)),
        ("a" * 20, "bb", 13, (8, 2)),
        ("aa", "b" * 20, 13, (2, 8)),
        ("a", "b", 13, (1, 1)),
    ],
)
def test_of_a_joint_pair_the_longer_side_is_cut_first(first, second, limit, kept, tokenizer, template):
    store = tokenize([Entry((first, second), limit)], tokenizer, template, use_cache=False)
    (a,) = tokenizer("a", add_special_tokens=False)["input_ids"]
    (b,) = tokenizer("b", add_special_tokens=False)["input_ids"]
    assert store.sequence(0).tolist() == [BOS, *[a] * kept[0], EOS, *[b] * kept[1], EOS]
    assert store.full_lengths_N.tolist() == [len(first) + len(second) + 3]


def test_a_table_gives_each_text_and_limit_one_index():
    table = TextTable()
    one = Entry("a", 5)
    others = [Entry("b", 5), Entry("a", 6), Entry(("a", "b"), 5), Entry("a", 5, route=1), Entry("a", 5, overlap=0.0)]
    assert [table.add(*entry) for entry in (one, *others, one)] == [0, 1, 2, 3, 4, 5, 0]
    assert table.entries == [one, *others]


def _equal(one, two):
    for name in ("ids_T", "starts_S", "full_lengths_N", "routes_S"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert (one.windows is None) == (two.windows is None)
    if one.windows is not None and two.windows is not None:
        np.testing.assert_array_equal(one.windows.firsts_N, two.windows.firsts_N)
        np.testing.assert_array_equal(one.windows.shares_S, two.windows.shares_S)


def test_a_cache_hit_gives_equal_arrays_without_the_tokenizer(cache, tokenizer, template, monkeypatch):
    entries = [Entry(CODE, 9), Entry("x", 9), Entry((CODE, "y"), 9)]
    made = tokenize(entries, tokenizer, template)
    monkeypatch.setattr("manyskills.data.tokens._tokenize", None)
    found = tokenize(entries, tokenizer, template)
    assert isinstance(found.ids_T, np.memmap)
    _equal(made, found)
    assert len(list(cache.iterdir())) == 1


def test_whatever_decides_the_ids_decides_the_cache_entry(cache, tokenizer, template, backbone_folder):
    base = [Entry("a", 9), Entry("b", 9)]
    variants = [
        base,
        [Entry("a", 8), Entry("b", 9)],
        [Entry("a", 9), Entry("b", 8)],
        base[::-1],
        [Entry(("a", "b"), 9)],
        [Entry("ab", 9)],
        [Entry("a", 9, overlap=0.0), Entry("b", 9)],
        [Entry("a", 9, overlap=0.5), Entry("b", 9)],
        [Entry("a", 9, overlap=0.5), Entry("b", 9, overlap=0.5)],
        [Entry("a", 9)],
    ]
    for entries in variants:
        _equal(tokenize(entries, tokenizer, template), tokenize(entries, tokenizer, template, use_cache=False))
    t5 = AutoTokenizer.from_pretrained(backbone_folder("t5"))
    tokenize(base, t5, read_template(t5, end_token=False))
    tokenize(base, tokenizer, Template((), (), ()))
    assert len(list(cache.iterdir())) == len(variants) + 2


def test_routes_are_not_kept_but_told_by_who_asks(cache, tokenizer, template):
    tokenize([Entry(CODE, 9, 1, 0.5), Entry("x", 9, 1)], tokenizer, template)
    found = tokenize([Entry(CODE, 9, 3, 0.5), Entry("x", 9, 2)], tokenizer, template)
    assert isinstance(found.ids_T, np.memmap)
    assert found.routes_S.tolist() == [3] * found.sequences_N[0] + [2]
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("name", ["ids", "starts", "full_lengths", "window_firsts", "window_shares"])
@pytest.mark.parametrize("damage", ["empty", "cut", "gone", "nonsense", "shorter"])
def test_a_corrupt_cache_is_made_again(name, damage, cache, tokenizer, template):
    entries = [Entry(CODE, 9, overlap=0.25), Entry("x", 9)]
    made = tokenize(entries, tokenizer, template, use_cache=False)
    tokenize(entries, tokenizer, template)
    (folder,) = cache.iterdir()
    path = folder / f"{name}.npy"
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(path.read_bytes()[:-1])
        case "gone":
            path.unlink()
        case "nonsense":
            path.write_bytes(b"nonsense" * 50)
        case "shorter":
            np.save(path, np.load(path)[:-1])
    _equal(tokenize(entries, tokenizer, template), made)
    _equal(tokenize(entries, tokenizer, template), made)
    assert np.load(path).shape == np.load(path, mmap_mode="r").shape
    assert list(cache.iterdir()) == [folder], "the broken entry is replaced, and nothing else stays behind"
    assert isinstance(tokenize(entries, tokenizer, template).ids_T, np.memmap)


def test_a_cache_that_cannot_be_written_only_costs_the_cache(tmp_path, tokenizer, template, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("MANYSKILLS_CACHE", str(blocked))
    assert len(tokenize([Entry("a", 9)], tokenizer, template)) == 1


def test_half_a_surrogate_pair_is_a_question_mark(cache, tokenizer, template):
    store = tokenize([Entry("a\ud800b", 9), Entry("a?b", 9)], tokenizer, template)
    assert store.sequence(0).tolist() == store.sequence(1).tolist()


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("MANYSKILLS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "manyskills"
