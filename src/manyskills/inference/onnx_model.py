"""A trained module whose vectors an exported graph computes.

Shape legend: N texts, D size of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from manyskills.code_model import CodeModel
from manyskills.data.text_set import Examples, View, gather
from manyskills.data.tokens import TokenStore
from manyskills.errors import UserError
from manyskills.evaluation.answers import Outputs, Probabilities, search_ranking
from manyskills.inference.encoding import encode_texts, usable_cores
from manyskills.inference.graph import Graph
from manyskills.inference.heads import EmbedHead, read_heads
from manyskills.row_reader import RowReader
from manyskills.saved import HEADS_FILE, read_tasks_file

TOKENIZER_FILE = "tokenizer.json"


class OnnxModel(CodeModel):
    """What `manyskills export --format onnx` made of a module; answers on the CPU, without torch.

    A float32 graph answers as the module does, up to rounding. In an int8 graph the activations of a chunk share a
    scale, so that an answer depends a little on the texts it is asked with.

    Args:
        folder: Holds graph, tokenizer, heads and tasks.
        jobs: Chunks that are encoded at the same time, one thread each; the answers do not depend on it. None: as many
            as this process may use cores.

    Raises:
        UserError: A file is missing or broken, onnxruntime is not installed, or jobs is less than 1.
    """

    def __init__(self, folder: str | Path, *, jobs: int | None = None) -> None:
        folder = Path(folder)
        if jobs is not None and jobs < 1:
            raise UserError(f"jobs: wanted 1 or more, found {jobs}", "leave it out to use every core")
        self.jobs = jobs or usable_cores()
        saved = read_tasks_file(folder)
        self._graph = Graph(folder, threads=1)
        facts = self._graph.facts
        routes = dict.fromkeys(saved.config.tasks, 0)  # one update serves all tasks of a graph
        reader = RowReader(saved, _read_tokenizer(folder), facts.template, facts.max_positions, routes)
        super().__init__(reader, folder, facts.vector_size)
        self._heads = read_heads(folder / HEADS_FILE, self.tasks, saved.config.tasks, facts.vector_size)

    def _encode(self, store: TokenStore, indices_N: np.ndarray) -> np.ndarray:
        return encode_texts(self._graph, store, indices_N, self.jobs)

    def _sides(self, task: str, vectors_ND: np.ndarray) -> np.ndarray:
        return self._heads[task].sides(vectors_ND)

    def _outputs(self, examples: Mapping[str, Examples], vectors_ND: np.ndarray) -> dict[str, Outputs]:
        views = gather(examples).views
        return {name: self._answers(name, view, vectors_ND) for name, view in views.items()}

    def _answers(self, task: str, view: View, vectors_ND: np.ndarray) -> Outputs:
        head = self._heads[task]
        sides_MP = head.sides(vectors_ND[view.members_M])
        if isinstance(head, EmbedHead):
            return search_ranking(sides_MP, view.texts_EK)
        return Probabilities(view.labels_E, head.probabilities(sides_MP, view.texts_EK))


@dataclass(frozen=True, slots=True)
class _FastTokenizer:
    """What is asked of a tokenizer of transformers."""

    backend_tokenizer: Tokenizer


def _read_tokenizer(folder: Path) -> _FastTokenizer:
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise UserError(f"{path} is missing", "restore the file, or export the module again")
    try:
        return _FastTokenizer(Tokenizer.from_file(str(path)))
    except Exception as error:  # the library raises nothing more special
        raise UserError(f"{path} is broken: {error}", "restore the file, or export the module again") from error
