"""`pretrain` from the command line: data on stdout, talk on stderr, exit codes."""

from __future__ import annotations

import json

import pytest
import yaml

from manyskills.cli.app import run
from tests.pretraining.helpers import small_config, write_corpus


@pytest.fixture
def config_file(tmp_path):
    config = small_config(write_corpus(tmp_path), tmp_path / "made", max_steps=2)
    path = tmp_path / "pretrain.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def test_a_folder_comes_of_it(config_file, tmp_path, capsys):
    assert run(["pretrain", str(config_file), "seed=3"]) == 0
    found = capsys.readouterr()
    assert "held-out perplexity: " in found.out
    assert f"use it with backbone={tmp_path / 'made'}" in found.err
    assert run(["pretrain", str(config_file), "seed=3"]) == 2
    assert "holds a finished backbone" in capsys.readouterr().err


def test_json_and_quiet(config_file, capsys):
    assert run(["pretrain", str(config_file), "--json", "--quiet"]) == 0
    found = capsys.readouterr()
    assert found.err == ""
    assert json.loads(found.out)["steps"] == 2


def test_a_dry_run_writes_nothing(config_file, tmp_path, capsys):
    assert run(["pretrain", str(config_file), "--dry-run"]) == 0
    assert "54 texts and 6 held out" in capsys.readouterr().out
    assert run(["pretrain", str(config_file), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("max_lenght=5", "max_lenght: unknown key: did you mean 'max_length'?"),
        ("architecture=qwen3", "architecture.name: wanted 'qwen2', 'llama' or 't5', found 'qwen3' (typing qwen2?)"),
        ("architecture.hidden_size=33", "hidden_size 33 does not divide into 2 heads"),
        ("architecture=t5", "wanted 358 or more"),
        ("objective=span_corruption", "objective: qwen2 trains by next_token, found span_corruption"),
        ("max_length=4000", "max_length: 4000 is over architecture.max_position_embeddings (2048)"),
        ("data=[{path: x, colums: [code]}]", "data.0.colums: unknown key: did you mean 'columns'?"),
        ("data=nowhere.py", "data[0]: there is no file or folder nowhere.py"),
        ("tokenizer.vocab_size=200", "tokenizer.vocab_size: wanted greater than 256, found 200"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(config_file, override, said, capsys):
    extra = ["tokenizer.vocab_size=300"] if override == "architecture=t5" else []
    assert run(["pretrain", str(config_file), override, *extra]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert said in found.err


def test_the_schema_of_its_configurations(capsys):
    assert run(["config", "schema", "--for", "pretrain"]) == 0
    assert "batch_tokens" in json.loads(capsys.readouterr().out)["properties"]
    assert run(["config", "schema", "--for", "pretrian"]) == 2
    assert "did you mean 'pretrain'?" in capsys.readouterr().err
