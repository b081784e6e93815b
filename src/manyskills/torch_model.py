"""A trained module whose vectors torch computes.

Shape legend: N texts, D size of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from manyskills.asking import Asked
from manyskills.code_model import CodeModel, Done
from manyskills.data.prompted import PromptExamples, PromptStore
from manyskills.data.text_set import Examples
from manyskills.data.tokens import TokenStore
from manyskills.evaluation.answers import Outputs
from manyskills.evaluation.outputs import task_outputs
from manyskills.evaluation.written import written_outputs
from manyskills.model.checkpoint import load_model
from manyskills.model.encoding import encode_texts
from manyskills.model.generation import Decoding, answer_probabilities, generate
from manyskills.model.multitask import MultiTaskModel
from manyskills.model.vector_cache import cached_vectors, vector_cache
from manyskills.row_reader import RowReader
from manyskills.saved import SavedTasks, read_tasks_file


class TorchModel(CodeModel):
    """A module as it was trained, on a CPU or a GPU.

    Args:
        model: Network and heads.
        saved: Its tasks file.
        folder: Where it was loaded from.
    """

    def __init__(self, model: MultiTaskModel, saved: SavedTasks, folder: Path) -> None:
        architecture = model.architecture
        reader = RowReader(
            saved, model.tokenizer, model.template, architecture.max_positions, model.routes, architecture.family
        )
        super().__init__(reader, folder, architecture.hidden_size)
        self._model = model

    @classmethod
    def load(cls, folder: Path, device: str | torch.device | None) -> TorchModel:
        """The module of a folder.

        Args:
            folder: Holds adapter, heads and tasks.
            device: Where it answers; None: the GPU if there is one.

        Raises:
            UserError: There is no trained module, or its files do not fit together.
        """
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        saved = read_tasks_file(folder)
        return cls(load_model(folder, place, saved), saved, folder)

    def _encode(self, store: TokenStore, indices_N: np.ndarray) -> np.ndarray:
        return encode_texts(self._model, store, indices_N, self._config.token_budget).numpy()

    def _evaluation_vectors(self, store: TokenStore, indices_N: np.ndarray) -> np.ndarray:
        tokens = int(store.lengths_N[indices_N].sum())
        cache = vector_cache(self._model, tokens) if self._config.vector_cache else None
        return cached_vectors(self._model, store, indices_N, self._config.token_budget, cache).numpy()

    def _sides(self, task: str, vectors_ND: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self._model.head(task).sides(torch.from_numpy(vectors_ND).to(self._model.device)).cpu().numpy()

    def _outputs(self, examples: Mapping[str, Examples], vectors_ND: np.ndarray) -> dict[str, Outputs]:
        return task_outputs(self._model, examples, torch.from_numpy(vectors_ND))

    def _write(self, asked: Asked, decoding: Decoding, done: Done | None) -> list[list[str]]:
        return generate(
            self._model, asked.store, asked.examples.prompts_E, decoding,
            token_budget=self._config.token_budget, languages=asked.languages, done=done,
        )  # fmt: skip

    def _choose(self, asked: Asked) -> np.ndarray:
        examples = asked.examples
        return answer_probabilities(
            self._model, asked.store, examples.prompts_E, examples.choices, token_budget=self._config.token_budget
        )

    def _written_outputs(self, store: PromptStore, examples: Mapping[str, PromptExamples]) -> dict[str, Outputs]:
        return written_outputs(self._model, store, examples, self._config.tasks, self._config.token_budget)
