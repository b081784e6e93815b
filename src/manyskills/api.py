"""The Python interface: train a module, load one that answers.

Importing this does not import torch: a module that was exported as an ONNX graph answers without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manyskills.code_model import CodeModel
from manyskills.config import TrainConfig
from manyskills.errors import UserError
from manyskills.files import complete_folder
from manyskills.saved import GRAPH_FACTS_FILE

if TYPE_CHECKING:
    import torch

    from manyskills.training.run import Run


def train(
    config: TrainConfig | Mapping[str, Any] | str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> Run:
    """Train one module for several tasks and measure it.

    Args:
        config: A configuration, its keys as a dictionary, or the path of a YAML file.
        resume: Continue what is in output_dir.
        overwrite: Remove a former run in output_dir first.

    Raises:
        UserError: Something is wrong with configuration, data, backbone or output_dir.
    """
    from manyskills.config.file import config_from_dict, load_config
    from manyskills.training.run import train as train_run

    if isinstance(config, (str, Path)):
        config = load_config(config)
    elif not isinstance(config, TrainConfig):
        config = config_from_dict(config)
    return train_run(config, resume=resume, overwrite=overwrite)


def load(path: str | Path, *, device: str | torch.device | None = None, jobs: int | None = None) -> CodeModel:
    """Load a trained module, or an ONNX graph that was made of one.

    A graph is run by onnxruntime, and torch is not imported.

    Args:
        path: A run folder, a folder such as its best/, or what `manyskills export` made.
        device: Where it answers; default: the GPU if there is one. A graph answers on the CPU.
        jobs: Chunks of texts that are encoded at the same time, one thread each; default: as many as this process may
            use cores. Only for a graph: torch has threads of its own (`torch.set_num_threads`).

    Raises:
        UserError: There is no trained module, its files do not fit together, or it cannot answer on that device or
            with so many jobs.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder", "give a run folder, or its best/ folder")
    folder = complete_folder(folder / "best") or folder
    if (folder / GRAPH_FACTS_FILE).is_file():
        from manyskills.inference.onnx_model import OnnxModel

        if device is not None and str(device) != "cpu":
            raise UserError(f"{folder} holds an ONNX graph, which answers on the CPU", "leave device out")
        return OnnxModel(folder, jobs=jobs)
    from manyskills.torch_model import TorchModel

    if jobs is not None:
        what = f"jobs is for exported ONNX graphs, and {folder} holds weights for torch"
        raise UserError(what, "leave jobs out, or export it: manyskills export RUN --format onnx")
    return TorchModel.load(folder, device)
