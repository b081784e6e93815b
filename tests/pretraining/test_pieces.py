"""Pieces of texts and the steps that hold them."""

from __future__ import annotations

import numpy as np
import pytest

from manyskills.pretraining.pieces import Batches, next_token_pieces, span_pieces
from manyskills.pretraining.tokenizer import train_tokenizer
from tests.pretraining.helpers import corpus
from tests.pretraining.test_tokenizer import config


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(config(), corpus())


def test_every_token_behind_a_texts_first_is_predicted_once_and_within_its_text(tokenizer):
    texts = corpus()
    pieces = next_token_pieces(texts, tokenizer, 16)
    assert pieces.lengths_P.max() <= 16
    predicted = pieces.positions(np.arange(len(pieces))) + 1
    assert len(set(predicted.tolist())) == len(predicted)
    ends = np.flatnonzero(pieces.ids_T == tokenizer.eos_token_id)
    firsts = [0, *(ends[:-1] + 1)]
    assert sorted(predicted.tolist()) == [n for n in range(len(pieces.ids_T)) if n not in set(firsts)]
    assert not set(ends.tolist()) & set((predicted - 1).tolist())  # nothing is predicted from another text's end


def test_positions_are_those_of_the_pieces(tokenizer):
    pieces = span_pieces(corpus(), tokenizer, 16)
    chosen = np.array([5, 0, 7])
    joined = np.concatenate([pieces.piece(index) for index in chosen])
    assert (pieces.ids_T[pieces.positions(chosen)] == joined).all()
    assert pieces.lengths_P.min() >= 2
    assert pieces.lengths_P.max() <= 15


def test_an_epoch_holds_every_piece_once_and_steps_are_of_like_size():
    lengths = np.random.default_rng(0).integers(1, 64, size=500)
    batches = Batches(lengths, 512, seed=3)
    steps = [batches.pieces(step)[0] for step in range(batches.steps_per_epoch)]
    assert sorted(np.concatenate(steps).tolist()) == list(range(500))
    assert all(abs(lengths[step].sum() - 512) < 128 for step in steps)


def test_steps_depend_on_seed_and_number_alone():
    lengths = np.full(100, 10)
    step = Batches(lengths, 100, seed=3).steps_per_epoch + 4
    forwards, alone, other = Batches(lengths, 100, 3), Batches(lengths, 100, 3), Batches(lengths, 100, 4)
    for earlier in range(step):
        forwards.pieces(earlier)
    (first, rng), (again, same) = forwards.pieces(step), alone.pieces(step)
    assert (first == again).all()
    assert rng.random() == same.random()
    assert not np.array_equal(first, other.pieces(step)[0])
    assert not np.array_equal(first, alone.pieces(4)[0])  # another epoch is another order
