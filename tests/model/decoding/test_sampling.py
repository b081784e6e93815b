"""Draws: by their own numbers only, and by the distribution."""

from __future__ import annotations

import numpy as np
import torch

from manyskills.model.decoding.options import LEAST_TEMPERATURE
from manyskills.model.decoding.sampling import all_uniforms, draw, uniforms

PROMPT = np.array([5, 6, 7], dtype=np.int32)


def test_numbers_depend_on_what_they_should():
    first = uniforms(PROMPT, 1, 0, 10)
    np.testing.assert_array_equal(first[:4], uniforms(PROMPT.astype(np.int64), 1, 0, 4))
    for other in (uniforms(PROMPT, 2, 0, 10), uniforms(PROMPT, 1, 1, 10), uniforms(PROMPT[:2], 1, 0, 10)):
        assert not np.isclose(first, other).any()
    together = all_uniforms([PROMPT[:2], PROMPT], 1, range(2), 10)
    assert together.shape == (4, 10)
    np.testing.assert_array_equal(together[2], first)
    many = all_uniforms([np.array([n]) for n in range(200)], 0, range(1), 50)
    assert abs(many.mean() - 0.5) < 0.02
    assert many.min() >= 0
    assert many.max() < 1


def test_inversion():
    logits_BV = torch.tensor([[0.0, 2.0, -torch.inf, 1.0]]).repeat(4000, 1)
    uniforms_B = (torch.arange(4000).double() + 0.5) / 4000
    for temperature in (0.5, 1.0, 2.0):
        found_B = draw(logits_BV, uniforms_B, temperature=temperature, top_k=0, top_p=1.0)
        shares = torch.bincount(found_B, minlength=4) / 4000
        torch.testing.assert_close(shares, (logits_BV[0] / temperature).softmax(0), atol=1e-3, rtol=0)
    edges = draw(logits_BV[:2], torch.tensor([0.0, 1 - 1e-16]).double(), temperature=1.0, top_k=0, top_p=1.0)
    assert edges.tolist() == [0, 3]


def test_at_the_least_temperature_it_is_the_likeliest():
    logits_BV = torch.tensor([[-3e4, 3e4, 2.9e4], [0.1, 0.2, 0.3]]).bfloat16()
    uniforms_B = torch.tensor([0.001, 0.999]).double()
    found_B = draw(logits_BV, uniforms_B, temperature=LEAST_TEMPERATURE, top_k=0, top_p=0.9)
    assert found_B.tolist() == [1, 2]


def test_filters():
    logits_BV = torch.tensor([0.1, 0.4, 0.2, 0.3]).log().repeat(1000, 1)
    uniforms_B = (torch.arange(1000).double() + 0.5) / 1000

    def shares(top_k, top_p):
        found_B = draw(logits_BV, uniforms_B, temperature=1.0, top_k=top_k, top_p=top_p)
        return (torch.bincount(found_B, minlength=4) / 1000).tolist()

    np.testing.assert_allclose(shares(2, 1.0), [0, 4 / 7, 0, 3 / 7], atol=2e-3)
    np.testing.assert_allclose(shares(0, 0.5), [0, 4 / 7, 0, 3 / 7], atol=2e-3)
    np.testing.assert_allclose(shares(0, 0.71), [0, 4 / 9, 2 / 9, 3 / 9], atol=2e-3)
    np.testing.assert_allclose(shares(3, 0.4), [0, 1, 0, 0], atol=2e-3)
    np.testing.assert_allclose(shares(9, 1.0), [0.1, 0.4, 0.2, 0.3], atol=2e-3)
