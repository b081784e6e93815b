"""Modules on disk that are made, not trained, so that their updates and heads do something."""

from __future__ import annotations

from pathlib import Path

import pytest

from manyskills.model.checkpoint import save_model
from tests.training.helpers import small_config, warmed_up

THRESHOLDS = {"clone_detection": 0.4, "defect_detection": 0.6, "flaky_tests": 0.5}


@pytest.fixture(scope="session")
def module(backbone_folder, data_dir, tmp_path_factory):
    """Makes (once a session) a folder like best/ of a run of four tasks."""
    made: dict[tuple[str, str, str], Path] = {}

    def make(method: str, family: str = "bert", part: str = "auto") -> Path:
        key = (method, family, part)
        if key not in made:
            backbone = {"name": backbone_folder(family), "part": part}
            config = small_config(backbone, data_dir, method=method)  # pyright: ignore[reportArgumentType]
            model, _ = warmed_up(config)
            folder = tmp_path_factory.mktemp("module") / "best"
            folder.mkdir()
            save_model(model, folder, config, THRESHOLDS, step=3)
            made[key] = folder
        return made[key]

    return make
