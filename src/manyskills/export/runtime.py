"""An exported graph as an encoder, run by onnxruntime.

Shape legend: B sequences, T tokens, D size of a vector.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from manyskills.errors import require_extra
from manyskills.model.checkpoint import GRAPH_FACTS_FILE


class Graph:
    """The graph of an exported folder.

    Args:
        folder: Holds onnx.json and the graph that it names.
        threads: Of one call; None: as many as there are cores.

    Raises:
        UserError: onnxruntime is not installed.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        onnxruntime = require_extra("onnxruntime", "onnx")
        facts = json.loads((folder / GRAPH_FACTS_FILE).read_text(encoding="utf-8"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        self.inputs, self.output, self.pad_id = facts["inputs"], facts["output"], facts["pad_id"]
        path = str(folder / facts["graph"])
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def encode(self, ids_BT: np.ndarray, mask_BT: np.ndarray) -> np.ndarray:
        """vectors_BD, float32.

        Args:
            ids_BT: Right-padded token ids, int64.
            mask_BT: 1 for tokens, int64.
        """
        (vectors_BD,) = self._session.run([self.output], dict(zip(self.inputs, (ids_BT, mask_BT), strict=True)))
        return vectors_BD
