"""States come back as they were added, whatever instant a writer died at and however many write."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from manyskills.data.activation_store import ABSENT, ActivationStore, content_key
from manyskills.errors import UserError

# Shape legend: B sequences, R tokens of all sequences one after another, H hidden size
WIDTH = 4


def _sequences(*lengths: int, first: int = 0) -> tuple[list[bytes], np.ndarray, np.ndarray]:
    """Keys, lengths and states that follow from the number of the sequence."""
    keys = [content_key(np.full(length, first + n)) for n, length in enumerate(lengths)]
    states = [
        np.full((length, WIDTH), first + n + 0.5) + np.arange(length)[:, None] for n, length in enumerate(lengths)
    ]
    return keys, np.array(lengths), np.concatenate(states).astype(np.float32)


def _check(store: ActivationStore, keys: list[bytes], lengths_B: np.ndarray, states_RH: np.ndarray) -> None:
    found = store.read(store.find(keys))
    np.testing.assert_array_equal(found.lengths_B, lengths_B)
    np.testing.assert_array_equal(found.states_RH, states_RH)


def test_states_come_back_in_the_order_asked_for(tmp_path):
    keys, lengths_B, states_RH = _sequences(3, 1, 5)
    store = ActivationStore(tmp_path, WIDTH)
    assert (store.find(keys) == ABSENT).all()
    store.add(keys, lengths_B, states_RH)
    _check(store, keys, lengths_B, states_RH)
    more = _sequences(2, 7, first=10)
    store.add(*more)
    for reader in (store, ActivationStore(tmp_path, WIDTH)):
        _check(reader, *more)
        assert reader.read(reader.find([more[0][1], keys[1]])).lengths_B.tolist() == [7, 1]
        np.testing.assert_array_equal(reader.read(reader.find([keys[1]])).states_RH, states_RH[3:4])


def test_the_key_is_the_content():
    assert content_key(np.array([1, 2], dtype=np.int32)) == content_key(np.array([1, 2], dtype=np.int64))
    assert len({content_key(np.array(ids)) for ids in ([1, 2], [2, 1], [1], [1, 2, 0])}) == 4


def test_a_reader_sees_what_another_adds_and_the_first_states_stay(tmp_path):
    one, two = ActivationStore(tmp_path, WIDTH), ActivationStore(tmp_path, WIDTH)
    keys, lengths_B, states_RH = _sequences(3, 4)
    one.add(keys[:1], lengths_B[:1], states_RH[:3])
    two.add(keys, lengths_B, states_RH + 100)
    for store in (one, two):
        _check(store, keys, lengths_B, np.concatenate([states_RH[:3], states_RH[3:] + 100]))
    assert (tmp_path / "states.bin").stat().st_size == 7 * WIDTH * 2


def _files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("states.bin", "index.bin")}


def _folder(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


@pytest.mark.parametrize("rest", [b"", b"\0" * 80, b"\x01" * 80], ids=["cut", "zeros", "other"])
def test_whatever_is_cut_off_is_a_whole_batch(rest, tmp_path):
    """A process may die, or a machine lose power, in the middle of either file's writing."""
    first, second = _sequences(3, 1), _sequences(2, 6, first=10)
    store = ActivationStore(tmp_path / "whole", WIDTH)
    store.add(*first)
    before = _files(store.folder)
    store.add(*second)
    after = _files(store.folder)
    new_states, new_index = (len(after[name]) - len(before[name]) for name in after)
    header, record = 8, 32
    assert new_index == header + 2 * record
    for cut in (0, 5, new_states - 1):  # nothing says yet that there are states
        torn = {"states.bin": after["states.bin"][: len(before["states.bin"]) + cut] + rest}
        _is_mended(_folder(tmp_path / f"states-{cut}", before | torn), first, second)
    for cut in (0, 3, header, header + 5, header + record, new_index - 9):
        torn = {"index.bin": after["index.bin"][: len(before["index.bin"]) + cut] + rest}
        _is_mended(_folder(tmp_path / f"index-{cut}", after | torn), first, second)


def _is_mended(folder: Path, first, second) -> None:
    store = ActivationStore(folder, WIDTH)
    assert (store.find(second[0]) == ABSENT).all()
    _check(store, *first)
    store.add(*second)
    _check(store, *second)
    again = ActivationStore(folder, WIDTH)
    _check(again, *first)
    _check(again, *second)


def test_damage_below_what_others_may_have_read_is_an_error_and_not_written_over(tmp_path):
    store = ActivationStore(tmp_path / "whole", WIDTH)
    batches = [_sequences(3, 1, first=10 * number) for number in range(3)]
    for batch in batches:
        store.add(*batch)
    files = _files(store.folder)
    for position in (0, 5, 20):  # of the second batch: its length, its checksum, a record
        index = bytearray(files["index.bin"])
        index[len(index) // 3 + position] ^= 1
        damaged = ActivationStore(_folder(tmp_path / str(position), files | {"index.bin": bytes(index)}), WIDTH)
        _check(damaged, *batches[0])
        with pytest.raises(UserError, match="damaged") as caught:
            damaged.add(*batches[1])
        assert "remove that folder" in (caught.value.hint or "")
        assert (damaged.folder / "index.bin").read_bytes() == index
    short = files | {"states.bin": files["states.bin"][:-1]}
    with pytest.raises(UserError, match="damaged"):
        ActivationStore(_folder(tmp_path / "short", short), WIDTH).find(batches[0][0])


def test_a_removed_folder_stays_whole_for_who_has_it_open(tmp_path):
    folder = tmp_path / "store"
    one = ActivationStore(folder, WIDTH)
    first, second, third = _sequences(3, 1), _sequences(2, 6, first=10), _sequences(5, first=20)
    one.add(*first)
    shutil.rmtree(folder)
    two = ActivationStore(folder, WIDTH)
    assert (two.find(first[0]) == ABSENT).all()
    two.add(*second)
    one.add(*third)
    one.add(*second)
    two.add(*first)
    for store in (one, two, ActivationStore(folder, WIDTH)):
        _check(store, *first)
        _check(store, *second)
    _check(one, *third)
    assert (two.find(third[0]) == ABSENT).all()


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from manyskills.data.activation_store import ActivationStore
from tests.data.test_activation_store import WIDTH, _check, _sequences
store = ActivationStore(Path(sys.argv[1]), WIDTH)
for number in range(int(sys.argv[2]), 40, 2):  # every sequence is added by two of the three
    batch = _sequences(3, 1, 4, first=number * 3)
    store.add(*batch)
    _check(store, *batch)
"""


def test_several_processes_write_at_once(tmp_path):
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    started = [subprocess.Popen([*command, first, root], stderr=subprocess.PIPE) for first in ("0", "1", "0")]
    for process in started:
        _, problem = process.communicate()
        assert process.returncode == 0, problem.decode()
    store = ActivationStore(tmp_path, WIDTH)
    for number in range(40):
        _check(store, *_sequences(3, 1, 4, first=number * 3))
    assert len(store) == 120
    assert (tmp_path / "states.bin").stat().st_size == 40 * 8 * WIDTH * 2


@pytest.mark.parametrize("file", ["states.bin", "index.bin"])
def test_a_full_disk_is_one_sentence_and_spoils_nothing(file, tmp_path, monkeypatch):
    store = ActivationStore(tmp_path, WIDTH)
    first, second = _sequences(3), _sequences(2, 5, first=10)
    store.add(*first)
    before = (tmp_path / "states.bin").stat().st_size
    real = os.pwrite

    def full(descriptor, content, offset):
        if not os.path.samestat(os.fstat(descriptor), (tmp_path / file).stat()):
            return real(descriptor, content, offset)
        real(descriptor, content[:5], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(UserError, match="no space left") as caught:
            store.add(*second)
    assert "activation_cache=false" in (caught.value.hint or "")
    if file == "states.bin":
        assert (tmp_path / file).stat().st_size == before, "what was written so far is given back"
    assert (ActivationStore(tmp_path, WIDTH).find(second[0]) == ABSENT).all()
    store.add(*second)
    _check(store, *first)
    _check(store, *second)


def test_a_short_write_is_continued(tmp_path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, content, offset: real(descriptor, content[:7], offset))
    batch = _sequences(3, 4)
    ActivationStore(tmp_path, WIDTH).add(*batch)
    _check(ActivationStore(tmp_path, WIDTH), *batch)


def test_states_beyond_half_precision_keep_their_size(tmp_path):
    keys, lengths_B, states_RH = _sequences(2, 3)
    states_RH[1, 2] = 1e6
    store = ActivationStore(tmp_path, WIDTH)
    store.add(keys, lengths_B, states_RH)
    halves = store.read(store.find(keys))
    assert halves.exponents_B[0] > 0 == halves.exponents_B[1]
    found = np.ldexp(halves.states_RH.astype(np.float32), np.repeat(halves.exponents_B, halves.lengths_B)[:, None])
    np.testing.assert_allclose(found[:2], states_RH[:2], rtol=1e-3)


def test_states_that_are_no_numbers_are_refused(tmp_path):
    keys, lengths_B, states_RH = _sequences(2)
    states_RH[0, 0] = np.nan
    with pytest.raises(UserError, match="not finite"):
        ActivationStore(tmp_path, WIDTH).add(keys, lengths_B, states_RH)


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot read or write"):
        ActivationStore(tmp_path / "file" / "store", WIDTH)


def test_a_file_that_cannot_be_read_is_said(tmp_path, monkeypatch):
    store = ActivationStore(tmp_path, WIDTH)
    batch = _sequences(2)
    store.add(*batch)

    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", broken)
        with pytest.raises(UserError, match="cannot read or write"):
            ActivationStore(tmp_path, WIDTH).find(batch[0])
    for name in ("states.bin", "index.bin"):
        os.truncate(tmp_path / name, 3)
        with pytest.raises(UserError, match="damaged"):
            store.add(*_sequences(1, first=9))
    with pytest.raises(UserError, match="damaged"):
        store.read(store.find(batch[0]))


def test_what_others_may_have_read_stays_when_the_disk_does_not_confirm_it(tmp_path, monkeypatch):
    one, two = ActivationStore(tmp_path, WIDTH), ActivationStore(tmp_path, WIDTH)
    first, second = _sequences(3), _sequences(2, 5, first=10)
    calls = iter([None, OSError(errno.EIO, os.strerror(errno.EIO))])

    def broken(descriptor):
        if problem := next(calls):
            raise problem

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", broken)
        with pytest.raises(UserError, match="cannot read or write"):
            one.add(*first)
    _check(two, *first)
    one.add(*second)
    for store in (one, two):
        _check(store, *first)
        _check(store, *second)


def test_keys_of_any_bytes_are_told_apart(tmp_path):
    keys = [bytes(16), b"\0" * 15 + b"\1", b"\1" + bytes(15), b"\1\0\1" + bytes(13), b"\xff" * 16, b"\xff" + bytes(15)]
    store = ActivationStore(tmp_path, WIDTH)
    for number, key in enumerate(keys):
        assert (store.find([key]) == ABSENT).all()
        store.add([key], np.array([1]), np.full((1, WIDTH), number, dtype=np.float32))
    for reader in (store, ActivationStore(tmp_path, WIDTH)):
        assert reader.read(reader.find(keys)).states_RH[:, 0].tolist() == list(range(len(keys)))
