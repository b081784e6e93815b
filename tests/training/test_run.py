"""What a run refuses before it writes anything, and what it must not merge."""

from __future__ import annotations

import json

import pytest
import torch

from manyskills.errors import UserError
from manyskills.evaluation.answers import Ranking
from manyskills.evaluation.outputs import task_outputs
from manyskills.model.encoding import encode_texts
from manyskills.training.run import load_inputs, train
from tests.training.helpers import CPU, small_config


@pytest.mark.parametrize(
    ("task", "options", "said"),
    [
        ("code_search", {"positive_share": 0.3}, "only yes/no tasks have positive rows"),
        ("code_search", {"focal_gamma": 2.0}, "only yes/no tasks have a cross-entropy"),
        ("clone_detection", {"rename_identifiers": 0.5}, "would have to be renamed alike"),
        ("clone_detection", {"positive_share": 0.5}, "drawn on the pair graph"),
        ("defect_detection", {"read": "joint"}, "only pairs can be read jointly"),
    ],
)
def test_options_without_effect_are_refused(task, options, said, backbone_folder, data_dir, tmp_path):
    config = small_config(backbone_folder("bert"), data_dir, tmp_path / "run", tasks={task: options})
    with pytest.raises(UserError, match=said):
        train(config)
    assert not (tmp_path / "run").exists()


def test_training_rows_of_one_label_are_refused(backbone_folder, tmp_path):
    for split in ("train", "valid", "test"):
        rows = [{"code": f"int f{n}();", "label": 0 if split == "train" else n % 2} for n in range(4)]
        path = tmp_path / "data" / "defect_detection" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(map(json.dumps, rows)))
    config = small_config(
        backbone_folder("bert"), tmp_path / "data", tmp_path / "run", tasks=["defect_detection"], method="frozen"
    )
    with pytest.raises(UserError, match="all 4 training rows have label 0, wanted both"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_candidates_that_are_alike_up_to_the_limit_stay_apart(backbone_folder, tmp_path):
    """Merged, the module would rank among fewer candidates than the floor, and the shorter the limit the better."""
    for split in ("train", "valid", "test"):
        rows = [{"query": f"q {split} {n}", "code": "def add(a, b): return a + b  " + f"# {n}"} for n in range(8)]
        path = tmp_path / "data" / "code_search" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(map(json.dumps, rows)))
    config = small_config(backbone_folder("bert"), tmp_path / "data", tasks=["code_search"], max_length=8)
    model, prepared = load_inputs(config, CPU)
    examples = prepared.examples["test"]
    vectors_ND = encode_texts(model, prepared.store, prepared.used_texts("test"), 1000)
    answer = task_outputs(model, examples, vectors_ND)["code_search"]
    assert isinstance(answer, Ranking)
    assert answer.candidates == 8
    assert answer.ranks_Q.tolist() == [4.5] * 8, "equal candidates share their mean rank"
    assert torch.isfinite(vectors_ND).all()
