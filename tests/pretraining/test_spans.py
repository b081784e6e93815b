"""Span corruption loses nothing and masks what it promises."""

from __future__ import annotations

import numpy as np
import pytest

from manyskills.pretraining.spans import Corruption, corrupt, draw_spans

END = 1
CORRUPTION = Corruption(0.15, 3.0, np.arange(100, 200), END)


def restored(inputs: np.ndarray, targets: np.ndarray) -> list[int]:
    """The text, from what was read and what is to be written."""
    spans: dict[int, list[int]] = {}
    mark = -1
    for token in targets[:-1].tolist():
        if token in CORRUPTION.sentinels:
            mark = token
            spans[mark] = []
        else:
            spans[mark].append(token)
    return [inner for token in inputs[:-1].tolist() for inner in spans.get(token, [token])]


@pytest.mark.parametrize("length", [2, 3, 7, 20, 255, 900])
def test_inputs_and_targets_give_the_text_back(length):
    rng = np.random.default_rng(length)
    ids = rng.integers(200, 300, size=length)
    one = corrupt(ids, CORRUPTION, rng)
    assert restored(one.inputs, one.targets) == ids.tolist()
    assert one.inputs[-1] == one.targets[-1] == END
    marks = [token for token in one.inputs if token in CORRUPTION.sentinels]
    assert marks == list(range(100, 100 + len(marks)))
    assert [token for token in one.targets if token in CORRUPTION.sentinels] == [*marks, 100 + len(marks)]


def test_fifteen_percent_in_spans_of_three():
    rng = np.random.default_rng(0)
    lengths, masked, spans = rng.integers(10, 300, size=2000), 0, 0
    where = np.zeros(10)
    for length in lengths.tolist():
        starts, ends = draw_spans(length, CORRUPTION, rng)
        assert (ends > starts).all()
        assert (starts[1:] > ends[:-1]).all()
        masked, spans = masked + int((ends - starts).sum()), spans + len(starts)
        for start in starts:
            where[min(int(10 * start / length), 9)] += 1
    assert masked / lengths.sum() == pytest.approx(0.15, abs=0.001)
    assert masked / spans == pytest.approx(3, abs=0.1)
    assert where.min() > 0.5 * where.mean()  # all over the text


def test_sentinels_are_never_short():
    few = Corruption(0.9, 1.0, np.arange(100, 104), END)
    starts, _ = draw_spans(500, few, np.random.default_rng(0))
    assert len(starts) == 3
