"""Plans at real size say what can be worked out by hand."""

from __future__ import annotations

import json

import pytest

import real_size_plans

VOCABULARY, HIDDEN, LAYERS, KEYS, INNER = 151_936, 896, 24, 128, 4_864
QUANTIZED = LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * KEYS + 3 * HIDDEN * INNER)
"""Weights of the seven projections of all layers of the 0.5B."""


@pytest.fixture(scope="module")
def plans(seven_dir, tmp_path_factory):
    output = tmp_path_factory.mktemp("plans")
    real_size_plans.main(
        ["--quick", "--threads", "1", "--sizes", "0.5b", "--data", str(seven_dir), "--output", str(output)]
    )
    found = json.loads((output / "real_size_plans.json").read_text())["plans"]
    return {one["configuration"]: one["plan"] for one in found}


def test_parameters_are_the_published_ones(plans):
    method = plans["mt_qlora"]["method"]
    assert method["backbone"] == 494_032_768
    sites = 2 * (HIDDEN + HIDDEN) + 2 * (HIDDEN + KEYS) + 3 * (HIDDEN + INNER)
    assert method["trainable"] == 8 * LAYERS * sites == 4_399_104
    assert plans["mt_full"]["method"]["trainable"] == 494_032_768


def test_weights_are_those_of_nf4_and_bfloat16(plans):
    """NF4 with double quantisation: 4 + 8/64 + 32/(64 * 256) = 4.127 bits a weight; adapters in float32."""
    whole = plans["mt_qlora"]["method"]["backbone"]
    by_hand = QUANTIZED * (4 + 8 / 64 + 32 / (64 * 256)) / 8 + 2 * (whole - QUANTIZED) + 4 * 4_399_104
    assert plans["mt_qlora"]["memory"]["single_pass"]["weights"] == pytest.approx(by_hand, rel=1e-3)
    assert plans["mt_full"]["memory"]["single_pass"]["weights"] == 4 * whole


def test_eight_bit_moments_are_counted(plans):
    full = plans["mt_full"]["memory"]["single_pass"]["training"]
    assert full == pytest.approx((4 + 2 * (1 + 4 / 256)) * 494_032_768, rel=1e-3)


def test_they_are_planned_for_a_gpu(plans):
    for plan in plans.values():
        assert plan["place"] == {"device": "cuda", "bf16": True}
    alone, checkpointed = "mt_qlora, code_translation alone", "mt_qlora, layers checkpointed"
    assert set(plans) == {"mt_qlora", checkpointed, alone, "mt_qlora_study", "mt_full"}
    kept, again = (plans[name]["memory"]["single_pass"]["activations"] for name in ("mt_qlora", checkpointed))
    assert again < kept / 5


def test_a_trained_output_layer_takes_memory(plans):
    one, full = (plans[name]["memory"]["single_pass"]["answers"] for name in ("mt_qlora", "mt_full"))
    assert full - one > 4 * 4 * VOCABULARY * HIDDEN
