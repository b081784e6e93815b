"""Vectors come back as they were added or not at all, and their folders stay within a limit."""

from __future__ import annotations

import fcntl
import os

import numpy as np
import pytest

from manyskills.data.row_store import DamageError, content_key
from manyskills.data.vector_store import VectorStore, make_room, remove

SIZE = 6


def _vectors(count: int, first: int = 0) -> tuple[list[bytes], np.ndarray]:
    """Keys and vectors that follow from the number of the sequence."""
    keys = [content_key(np.array([first + n])) for n in range(count)]
    return keys, np.arange(count * SIZE, dtype=np.float32).reshape(count, SIZE) + first + 0.1


def test_vectors_come_back_to_the_last_bit_and_in_the_order_asked_for(tmp_path):
    keys, vectors_BD = _vectors(5)
    store = VectorStore(tmp_path / "one", SIZE)
    found_BD, known_B = store.read(keys)
    assert not known_B.any()
    assert not found_BD.any()
    store.add(keys[:3], vectors_BD[:3])
    for reader in (store, VectorStore(tmp_path / "one", SIZE)):
        found_BD, known_B = reader.read([keys[4], keys[2], keys[0]])
        assert known_B.tolist() == [False, True, True]
        np.testing.assert_array_equal(found_BD, [np.zeros(SIZE), vectors_BD[2], vectors_BD[0]])
    assert reader.read([])[0].shape == (0, SIZE)


def test_the_first_vector_of_a_sequence_stays(tmp_path):
    one, two = VectorStore(tmp_path / "one", SIZE), VectorStore(tmp_path / "one", SIZE)
    keys, vectors_BD = _vectors(3)
    one.add(keys[:2], vectors_BD[:2])
    two.add(keys, vectors_BD + 1)
    for store in (one, two):
        np.testing.assert_array_equal(store.read(keys)[0], [*vectors_BD[:2], vectors_BD[2] + 1])


def test_a_changed_byte_is_damage_and_never_a_vector(tmp_path):
    keys, vectors_BD = _vectors(4)
    folder = tmp_path / "one"
    VectorStore(folder, SIZE).add(keys, vectors_BD)
    file = folder / "vectors.bin"
    whole = file.read_bytes()
    for position in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[position] ^= 4
        file.write_bytes(changed)
        store, hit = VectorStore(folder, SIZE), position // (4 * SIZE)
        with pytest.raises(DamageError):
            store.read(keys)
        intact = [index for index in range(4) if index != hit]
        np.testing.assert_array_equal(store.read([keys[index] for index in intact])[0], vectors_BD[intact])
    file.write_bytes(whole[:-1])
    with pytest.raises(DamageError):
        VectorStore(folder, SIZE).read(keys)


def test_rows_in_each_others_places_are_damage(tmp_path):
    keys, vectors_BD = _vectors(2)
    VectorStore(tmp_path / "one", SIZE).add(keys, vectors_BD)
    (tmp_path / "one" / "vectors.bin").write_bytes(vectors_BD[::-1].tobytes())
    with pytest.raises(DamageError):
        VectorStore(tmp_path / "one", SIZE).read(keys)


@pytest.fixture
def folders(tmp_path):
    """Three folders of 1,000 vectors each, nobody using them; the one that is alphabetically last is the oldest."""
    for age, name in enumerate(("a", "b", "c")):
        VectorStore(tmp_path / name, SIZE).add(*_vectors(1000))
        used = 1_000_000 - age
        os.utime(tmp_path / name / "used", (used, used))
    return tmp_path


EACH = 1000 * (SIZE * 4 + 32) + 8
"""Bytes of a folder: vectors, index."""


def _names(parent):
    return sorted(path.name for path in parent.iterdir())


def test_folders_unused_for_longest_make_room(folders):
    assert make_room(folders, EACH, 4 * EACH)
    assert _names(folders) == ["a", "b", "c"]
    assert make_room(folders, EACH, 4 * EACH - 1)
    assert _names(folders) == ["a", "b"]
    assert make_room(folders, EACH, 2 * EACH)
    assert _names(folders) == ["a"]


def test_what_is_in_use_stays(folders):
    oldest = VectorStore(folders / "c", SIZE)
    assert not make_room(folders, EACH, 2 * EACH - 1)
    assert _names(folders) == ["a", "b", "c"], "without c it cannot be enough"
    assert make_room(folders, EACH, 2 * EACH)
    assert _names(folders) == ["c"]
    assert oldest.read(_vectors(3)[0])[1].all()
    del oldest
    assert make_room(folders, EACH, EACH)
    assert _names(folders) == []


def test_what_does_not_fit_even_alone_removes_nothing(folders):
    assert not make_room(folders, 4 * EACH, 3 * EACH)
    assert _names(folders) == ["a", "b", "c"]


def test_opening_a_folder_makes_it_the_youngest(folders):
    VectorStore(folders / "c", SIZE)
    assert make_room(folders, EACH, 2 * EACH + 1)
    assert _names(folders) == ["c"]


def test_what_a_killed_process_did_not_finish_removing_goes(folders):
    (folders / "a").rename(folders / "a.removed-1")
    (folders / "notes").mkdir()
    assert make_room(folders, 0, 9 * EACH)
    assert _names(folders) == ["b", "c", "notes"]


@pytest.fixture
def before_locking(monkeypatch):
    """Lets something happen between opening `used` and locking it, so many times."""
    lock = fcntl.flock

    def arrange(happen, times):
        left = [happen] * times

        def late(descriptor, how):
            if left:
                left.pop()()
            lock(descriptor, how)

        monkeypatch.setattr(fcntl, "flock", late)

    return arrange


def test_who_opens_a_folder_while_it_is_removed_starts_anew(folders, before_locking):
    before_locking(lambda: remove(folders / "a"), 1)
    store = VectorStore(folders / "a", SIZE)
    assert not store.read(_vectors(3)[0])[1].any()
    store.add(*_vectors(3))
    assert not make_room(folders, EACH, EACH), "its new folder is known to be in use"
    del store
    assert make_room(folders, EACH, EACH)
    assert _names(folders) == []


def test_a_folder_that_is_removed_again_and_again_cannot_be_opened(folders, before_locking):
    before_locking(lambda: remove(folders / "a"), 99)
    with pytest.raises(OSError):
        VectorStore(folders / "a", SIZE)


def test_a_folder_that_was_made_anew_meanwhile_is_not_removed_for_the_former(folders, before_locking):
    made: list[VectorStore] = []

    def replace():
        remove(folders / "c")
        made.append(VectorStore(folders / "c", SIZE))

    before_locking(replace, 1)
    assert make_room(folders, EACH, 3 * EACH)
    assert _names(folders) == ["a", "c"]
    made[0].add(*_vectors(3))
    assert VectorStore(folders / "c", SIZE).read(_vectors(3)[0])[1].all()


def test_who_has_a_removed_folder_open_goes_on_with_it(tmp_path):
    one = VectorStore(tmp_path / "one", SIZE)
    keys, vectors_BD = _vectors(4)
    one.add(keys[:2], vectors_BD[:2])
    remove(tmp_path / "one")
    assert _names(tmp_path) == []
    two = VectorStore(tmp_path / "one", SIZE)
    one.add(keys[2:], vectors_BD[2:])
    np.testing.assert_array_equal(one.read(keys)[0], vectors_BD)
    assert not two.read(keys)[1].any()
    remove(tmp_path / "absent")
