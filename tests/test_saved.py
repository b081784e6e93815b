"""`tasks.json`: what is written is read, and folders of former versions are too."""

from __future__ import annotations

import json

import pytest

from manyskills.config import TrainConfig
from manyskills.data.frames import Frame
from manyskills.errors import UserError
from manyskills.saved import TASKS_FILE, SavedTasks, read_tasks_file

CONFIG = TrainConfig.model_validate({"tasks": ["code_translation", "clone_detection"]})
FRAMES = {
    "code_translation": {"java_csharp": Frame("<s>{a}\n", "\u00e4|", "</s>")},
    "clone_detection": {"": Frame("a", "b", "c", "between")},
}


@pytest.fixture
def content(tmp_path):
    def write(**changes):
        saved = SavedTasks(CONFIG, {"clone_detection": 0.25}, {}, 7, FRAMES)
        (tmp_path / TASKS_FILE).write_text(json.dumps(saved.to_dict() | changes))
        return tmp_path

    return write


def test_what_is_written_is_read(content):
    assert read_tasks_file(content()) == SavedTasks(CONFIG, {"clone_detection": 0.25}, {}, 7, FRAMES)
    saved = json.loads((content() / TASKS_FILE).read_text())["prompts"]
    assert saved["code_translation"] == {"java_csharp": ["<s>{a}\n", "\u00e4|", "</s>"]}
    assert saved["clone_detection"] == {"": ["a", "b", "c", "between"]}


def test_folders_of_former_versions_load(content):
    folder = content()
    old = json.loads((folder / TASKS_FILE).read_text())
    del old["prompts"]
    (folder / TASKS_FILE).write_text(json.dumps(old))
    assert read_tasks_file(folder).prompts == {}


@pytest.mark.parametrize("broken", [["a"], {"code_translation": []}, {"code_translation": {"x": ["a"]}}, "text"])
def test_broken_prompts_are_told(content, broken):
    with pytest.raises(UserError, match=r"tasks\.json is not what manyskills writes"):
        read_tasks_file(content(prompts=broken))


def test_a_relative_backbone_is_found_above_the_run(tmp_path, monkeypatch):
    backbone, run = tmp_path / "project" / "backbones" / "small", tmp_path / "project" / "runs" / "one" / "best"
    for folder in (backbone, run, tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
    (backbone / "config.json").write_text("{}")
    config = CONFIG.model_copy(update={"backbone": CONFIG.backbone.model_copy(update={"name": "backbones/small"})})
    (run / TASKS_FILE).write_text(json.dumps(SavedTasks(config, {}, {}, 7, FRAMES).to_dict()))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert read_tasks_file(run).config.backbone.name == str(backbone)
    monkeypatch.chdir(tmp_path / "project")
    assert read_tasks_file(run).config.backbone.name == "backbones/small"
