"""An exported graph as an encoder, run by onnxruntime.

Shape legend: B sequences, T tokens, D size of a vector.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from manyskills.data.tokens import Template
from manyskills.errors import UserError, require_extra
from manyskills.saved import GRAPH_FACTS_FILE

FORMAT = 1
"""Of onnx.json."""


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """What a program has to know to feed a graph.

    Attributes:
        path: The graph.
        inputs: Names of token ids and mask.
        output: Name of the vectors.
        vector_size: Their size.
        pad_id: Fills sequences up.
        template: Special tokens.
        max_positions: Tokens that the network can take at most.
    """

    path: Path
    inputs: tuple[str, str]
    output: str
    vector_size: int
    pad_id: int
    template: Template
    max_positions: int | None

    @classmethod
    def read(cls, folder: Path) -> GraphFacts:
        """From onnx.json.

        Raises:
            UserError: It is missing, broken or of a newer format, or the graph that it names is missing.
        """
        path = folder / GRAPH_FACTS_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] > FORMAT:
                raise UserError(f"{path} has format {content['format']}, known is {FORMAT}", "upgrade manyskills")
            token_ids, mask = content["inputs"]
            template = Template(*(tuple(content["template"][part]) for part in ("prefix", "middle", "suffix")))
            facts = cls(
                folder / content["graph"], (token_ids, mask), content["output"], content["vector_size"],
                content["pad_id"], template, content["max_positions"],
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not what an export writes: {error!r}", "export the module again") from error
        if not facts.path.is_file():
            raise UserError(f"{facts.path} is missing", "restore the file, or export the module again")
        return facts


class Graph:
    """The graph of an exported folder. Several threads may call it at the same time.

    Args:
        folder: Holds onnx.json and the graph that it names.
        threads: Of one call; None: as many as there are cores.

    Raises:
        UserError: onnxruntime is not installed, or the folder's files are not what an export writes.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self.facts = GraphFacts.read(folder)
        onnxruntime = require_extra("onnxruntime", "inference")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        providers = ["CPUExecutionProvider"]
        try:
            self._session = onnxruntime.InferenceSession(str(self.facts.path), options, providers=providers)
        except Exception as error:  # onnxruntime's own classes share nothing but Exception
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{self.facts.path} cannot be run: {reason}", "export the module again") from error

    def encode(self, ids_BT: np.ndarray, mask_BT: np.ndarray) -> np.ndarray:
        """vectors_BD, float32.

        Args:
            ids_BT: Right-padded token ids, int64.
            mask_BT: 1 for tokens, int64.
        """
        inputs = dict(zip(self.facts.inputs, (ids_BT, mask_BT), strict=True))
        (vectors_BD,) = self._session.run([self.facts.output], inputs)
        return vectors_BD
