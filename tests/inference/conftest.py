"""A module, and the graph that was made of it."""

from __future__ import annotations

import pytest

from manyskills.export.run import Wish, export

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="session")
def exported(trained_run, tmp_path_factory):
    """What an export made of the shared run."""
    folder = tmp_path_factory.mktemp("exported") / "graph"
    export(trained_run.path, folder, Wish("onnx", check=False))
    return folder
