"""What all stores rest on; torn and damaged files are tested where rows are states (`test_activation_store`)."""

from __future__ import annotations

import os

import numpy as np
import pytest

from manyskills.data.row_store import SPAN, DamageError, RowStore, content_key

ROW = 3


def _spans(*lengths: int) -> np.ndarray:
    spans_B = np.zeros(len(lengths), dtype=SPAN)
    spans_B["length"], spans_B["note"] = lengths, range(7, 7 + len(lengths))
    return spans_B


def _rows(count: int, first: int = 0) -> np.ndarray:
    return np.arange(first, first + count * ROW, dtype=np.uint8).reshape(count, ROW)


def test_the_task_that_reads_is_part_of_the_key():
    ids_T = np.array([5, 6, 7])
    assert content_key(ids_T) == content_key(ids_T, 0)
    assert len({content_key(ids_T, route) for route in range(300)}) == 300


def test_rows_and_notes_come_back_and_nothing_is_found_in_nothing(tmp_path):
    store = RowStore(tmp_path, "rows.bin", ROW)
    keys = [content_key(np.array([n])) for n in range(3)]
    assert len(store.find([])) == 0
    store.add(keys[:2], _spans(2, 1), _rows(3))
    store.add(keys, _spans(9, 9, 4), _rows(22))
    assert len(store.find([])) == 0
    spans_B = store.find(keys)
    assert spans_B["start"].tolist() == [0, 2, 3]
    assert spans_B["length"].tolist() == [2, 1, 4]
    assert spans_B["note"].tolist() == [7, 8, 9]
    np.testing.assert_array_equal(store.rows(), [*_rows(3), *_rows(4, first=18 * ROW)])


def test_all_files_are_of_one_folder_whatever_is_put_into_its_place(tmp_path, monkeypatch):
    """One process opens the folder while another removes it and a third makes it again."""
    folder, keys = tmp_path / "store", [content_key(np.array([1]))]
    RowStore(folder, "rows.bin", ROW).add(keys, _spans(1), _rows(1))
    real = os.open

    def swapping(path, *arguments, **options):
        descriptor = real(path, *arguments, **options)
        if path == "rows.bin":
            monkeypatch.undo()
            folder.rename(tmp_path / "removed")
            RowStore(folder, "rows.bin", ROW).add(keys, _spans(2), _rows(2, first=100))
        return descriptor

    monkeypatch.setattr(os, "open", swapping)
    store = RowStore(folder, "rows.bin", ROW)
    assert store.find(keys)["length"].tolist() == [1]
    np.testing.assert_array_equal(store.rows(), _rows(1))


def test_what_the_index_says_is_there_must_be_there(tmp_path):
    keys = [content_key(np.array([1]))]
    RowStore(tmp_path, "rows.bin", ROW).add(keys, _spans(2), _rows(2))
    os.truncate(tmp_path / "rows.bin", 2 * ROW - 1)
    with pytest.raises(DamageError, match="rows are missing"):
        RowStore(tmp_path, "rows.bin", ROW).find(keys)
