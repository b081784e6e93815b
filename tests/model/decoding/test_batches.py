"""Batches within a budget, and options that make sense."""

from __future__ import annotations

import numpy as np
import pytest

from manyskills.errors import UserError
from manyskills.model.decoding.batches import plan_batches
from manyskills.model.decoding.options import Decoding


@pytest.mark.parametrize(("samples", "rows_each", "budget"), [(1, 1, 100), (1, 4, 100), (7, 1, 60), (3, 1, 10_000)])
def test_every_answer_once_within_the_budget(samples, rows_each, budget):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 40, 50)
    limits = np.minimum(10, 44 - lengths)
    batches = plan_batches(lengths, limits, budget, samples=samples, rows_each=rows_each)
    asked = [(int(p), n) for b in batches for p in b.positions for n in range(b.first, b.first + b.samples)]
    assert sorted(asked) == [(p, n) for p in range(50) for n in range(samples)]
    for batch in batches:
        assert set(limits[batch.positions]) == {batch.limit}
        assert batch.width == lengths[batch.positions].max() + batch.limit
        assert batch.tokens <= budget or len(batch.positions) == batch.samples == 1
    firsts = [lengths[batch.positions[0]] for batch in batches]
    assert firsts == sorted(firsts, reverse=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: wanted 1 or more, found 0"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature: wanted 0, or a number from 1e-06 on, found inf"),
        ({"temperature": 1e-320}, "temperature"),
        ({"top_p": 0.0, "temperature": 1.0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"num_beams": 0}, "num_beams"),
        ({"samples": 0}, "samples"),
        ({"seed": -1}, "seed"),
        ({"stop": "line"}, "stop: wanted one of end, function, found 'line'"),
        ({"samples": 3}, "3 samples without drawing are all alike"),
        ({"num_beams": 2, "temperature": 1.0}, "beam search gives one answer and draws nothing"),
        ({"top_k": 5}, "top_k and top_p are for drawing"),
    ],
)
def test_options_that_make_no_sense(options, said):
    with pytest.raises(UserError, match=said):
        Decoding(**({"max_new_tokens": 5} | options))
