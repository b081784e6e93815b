"""manyskills: one parameter-efficient module for many code tasks.

    import manyskills

    run = manyskills.train("examples/analysis.yaml")
    model = manyskills.load(run.path)
    model.predict("defect_detection", [{"code": "int f(int *p) { return *p; }"}])

The public names are loaded when they are first used: importing the package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manyskills.api import load, train
    from manyskills.code_model import CodeModel
    from manyskills.config import TrainConfig
    from manyskills.errors import UserError
    from manyskills.training.run import Run

__version__ = "0.1.0"

_PUBLIC = {
    "CodeModel": "manyskills.code_model",
    "Run": "manyskills.training.run",
    "TrainConfig": "manyskills.config",
    "UserError": "manyskills.errors",
    "load": "manyskills.api",
    "train": "manyskills.api",
}

__all__ = ["CodeModel", "Run", "TrainConfig", "UserError", "__version__", "load", "train"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'manyskills' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
