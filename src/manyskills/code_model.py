"""What every trained module answers, whether torch or onnxruntime computes its vectors.

Shape legend: N texts, D size of a vector, E rows, K texts a row, P size of what a head makes of a vector.

Importing this imports neither torch nor onnxruntime.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from manyskills.asking import Asked, decoding_for
from manyskills.config import TrainConfig
from manyskills.data.prompted import PromptExamples, PromptStore
from manyskills.data.prompts import written
from manyskills.data.reading import check_rows
from manyskills.data.text_set import Examples, gather
from manyskills.data.tokens import TokenStore
from manyskills.errors import UserError, did_you_mean
from manyskills.model.decoding.options import Decoding, Stop
from manyskills.row_reader import RowReader
from manyskills.tasks import SPLITS, Kind, SplitName, Task, get_task

if TYPE_CHECKING:
    from manyskills.evaluation.answers import Outputs
    from manyskills.evaluation.scores import TaskScores


class CodeModel(ABC):
    """One backbone with its shared module, and one head a task or what it was taught to write.

    Attributes:
        tasks: The tasks it answers, by name.
        thresholds: Probability from which it says yes, by task; chosen on validation.
        synthetic: Tasks that were trained on labels made by a program, with how.
        folder: Where it was loaded from.
    """

    def __init__(self, reader: RowReader, folder: Path, vector_size: int) -> None:
        saved = reader.saved
        self._config, self._reader, self._vector_size = saved.config, reader, vector_size
        self.tasks: dict[str, Task] = {name: get_task(name) for name in saved.config.tasks}
        self.thresholds, self.synthetic, self.folder = dict(saved.thresholds), dict(saved.synthetic), folder

    @abstractmethod
    def _encode(self, store: TokenStore, indices_N: np.ndarray) -> np.ndarray:
        """vectors_ND of these texts, float32, each computed once."""

    def _evaluation_vectors(self, store: TokenStore, indices_N: np.ndarray) -> np.ndarray:
        """`_encode` for texts that may well be asked for again, and so be kept."""
        return self._encode(store, indices_N)

    @abstractmethod
    def _sides(self, task: str, vectors_ND: np.ndarray) -> np.ndarray:
        """What a task's head makes of each vector, float32, shape (N, P)."""

    @abstractmethod
    def _outputs(self, examples: Mapping[str, Examples], vectors_ND: np.ndarray) -> dict[str, Outputs]:
        """Answers of each task, from one vector for each text of `gather(examples)`."""

    def _write(self, asked: Asked, decoding: Decoding, done: Done | None) -> list[list[str]]:
        """The answers to each prompt."""
        raise _mute()

    def _choose(self, asked: Asked) -> np.ndarray:
        """P(yes) among the two answers, for each prompt of a yes/no task, float64."""
        raise _mute()

    def _written_outputs(self, store: PromptStore, examples: Mapping[str, PromptExamples]) -> dict[str, Outputs]:
        """Answers of each task whose answers are written."""
        raise _mute()

    @property
    def config(self) -> TrainConfig:
        """The configuration it was trained with."""
        return self._config

    def predict(self, task: str, rows: Sequence[Mapping[str, Any]]) -> list[int]:
        """0 or 1 for each row of a classifying task, by the threshold that was chosen on validation.

        Args:
            task: Its name.
            rows: Dictionaries with the task's columns (`code`; for pairs `code1` and `code2`); no label needed.

        Raises:
            UserError: The module does not know the task, a row lacks a column, or a text is longer than it may be.
        """
        threshold = self.thresholds.get(task, 0.5)
        return [int(p >= threshold) for p in self.predict_proba(task, rows)]

    def predict_proba(self, task: str, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """P(label is 1) for each row of a classifying task, float64, shape (E,).

        Raises:
            UserError: As `predict`.
        """
        from manyskills.evaluation.answers import Probabilities

        known = self.require(task)
        if known.kind is Kind.EMBED:
            raise UserError(f"{task} ranks, it does not classify", "use search(query, candidates) or encode(texts)")
        if known.kind is Kind.GENERATE:
            raise UserError(f"{task} writes, it does not classify", "use generate(task, rows)")
        if not rows:
            return np.empty(0)
        if self.writes(task):
            return self._choose(self._reader.prompts(task, rows))
        checked = check_rows(known, rows, labels_required=False)
        texts = [tuple(row[name] for name in known.inputs) for row in checked]
        places = [
            f"row {number}" if row.get("id") in (None, "") else str(row["id"])
            for number, row in enumerate(rows, start=1)
        ]
        examples, vectors_ND = self._encode_rows(task, texts, places)
        answer = self._outputs({task: examples}, vectors_ND)[task]
        assert isinstance(answer, Probabilities)
        return answer.probabilities_E

    def generate(
        self,
        task: str,
        rows: Sequence[Mapping[str, Any]],
        *,
        variant: str | None = None,
        max_new_tokens: int | None = None,
        num_beams: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        samples: int = 1,
        seed: int = 0,
        stop: Stop | None = None,
        done: Done | None = None,
    ) -> list[str] | list[list[str]]:
        """What a generating task writes for each row.

        Args:
            task: Its name.
            rows: Dictionaries with the column that the task reads (`nl`, `code`, `java` or `csharp`).
            variant: The language or direction of all rows; None: each row's column `variant` (or `language`) says it,
                or its columns leave only one.
            max_new_tokens: Tokens of an answer at most; None: as in training.
            num_beams: Beams of the search; None: as in training, and 1 where answers are drawn.
            temperature: 0: the likeliest token each time; else tokens are drawn, from logits divided by it.
            top_p: Draws: only the likeliest tokens that have this share of probability together.
            top_k: Draws: only so many likeliest tokens; 0: all.
            samples: Answers to each row.
            seed: Of draws. A draw depends on the seed, the prompt, the sample's number and the place in the answer
                only: not on the other rows nor on their order.
            stop: end (default): an answer ends at its end token or at the limit; function: also behind its first
                function, in Python, Java and C#.
            done: Gets a row's position and its answers as soon as they are there; the longest texts come first.

        Returns:
            For each row its answer, or with `samples` over 1 a list of them.

        Raises:
            UserError: The task writes nothing or is unknown, a row lacks a column or leaves its variant open, or
                numbers are out of range.
        """
        if self.require(task).kind is not Kind.GENERATE:
            raise UserError(f"{task} does not write", "use predict, predict_proba or search")
        decoding = decoding_for(
            self._config.tasks[task], max_new_tokens=max_new_tokens, num_beams=num_beams, temperature=temperature,
            top_p=top_p, top_k=top_k, samples=samples, seed=seed, stop=stop,
        )  # fmt: skip
        if not rows:
            return []
        asked = self._reader.prompts(task, rows, variant=variant, max_new_tokens=decoding.max_new_tokens)
        answers = self._write(asked, decoding, done)
        return answers if samples > 1 else [only for (only,) in answers]

    def encode(self, texts: Sequence[str], *, task: str | None = None) -> np.ndarray:
        """Vectors of texts, float32, shape (N, D).

        A text over the length limit is read as the task reads it (`long`); without a task as all tasks do if they do
        alike, and else it is cut.

        Args:
            texts: Code or natural language.
            task: A search task whose head makes unit vectors to be compared by inner product; None: the backbone's
                own vectors as every head gets them. Where the method gives each task vectors of its own (mtl_lora), a
                task must be named; one that is no search gets the vectors that its head gets, but for pairs with
                `read: joint`: each text is encoded alone here, where the head gets a vector of both together.

        Raises:
            UserError: The task is unknown, is no search and has no vectors of its own, or is missing; or a text is
                longer than it may be.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise UserError("encode takes a list of texts", "put the text into a list, and make every item a string")
        by_head = self._through_head(task)
        if not texts:
            width = self._config.tasks[task].head_hidden if task is not None and by_head else 0
            return np.empty((0, width or self._vector_size), dtype=np.float32)
        places = [f"text {number}" for number in range(1, len(texts) + 1)]
        examples, vectors_ND = self._encode_rows(task, [(text,) for text in texts], places)
        if task is not None and by_head:
            vectors_ND = self._sides(task, vectors_ND)
        members = np.searchsorted(gather({"": examples}).unique_N, examples.texts_EK[:, 0])
        return vectors_ND[members]

    def search(
        self, query: str, candidates: Sequence[str], *, top_k: int = 10, task: str = "code_search"
    ) -> list[tuple[int, float]]:
        """The candidates nearest to a query: (index, cosine), best first.

        Raises:
            UserError: The module has no such search task.
        """
        return self.search_many([query], candidates, top_k=top_k, task=task)[0]

    def search_many(
        self, queries: Sequence[str], candidates: Sequence[str], *, top_k: int = 10, task: str = "code_search"
    ) -> list[list[tuple[int, float]]]:
        """`search` for several queries; candidates are encoded once.

        Raises:
            UserError: As `search`.
        """
        if not candidates or not queries:
            return [[] for _ in queries]
        candidates_CD = self.encode(candidates, task=task)
        found: list[list[tuple[int, float]]] = []
        for query_D in self.encode(queries, task=task):
            scores_C = candidates_CD @ query_D
            best = np.argsort(-scores_C, kind="stable")[:top_k]
            found.append([(int(index), float(scores_C[index])) for index in best])
        return found

    def evaluate(
        self,
        data: str | Path | None = None,
        *,
        split: SplitName = "test",
        tasks: Sequence[str] | None = None,
        limit: int | None = None,
        samples: int = 1000,
    ) -> dict[str, TaskScores]:
        """Metrics with intervals on a split, with the thresholds chosen on validation.

        Args:
            data: A folder with one folder a task; None: where the module was trained.
            split: train, valid or test.
            tasks: Some of the module's tasks; None: all.
            limit: Rows of each task at most, drawn at random; None: what the run used.
            samples: Bootstrap resamples.

        Raises:
            UserError: The data is absent or wrong.
        """
        from manyskills.evaluation.answers import score

        if split not in SPLITS:
            raise UserError(f"unknown split {split!r}", f"known are: {', '.join(SPLITS)}")
        names = list(self.tasks if tasks is None else tasks)
        rows = {self.require(name).name: self._reader.split(name, data, split, limit) for name in names}
        prepared = self._reader.prepared(split, rows)
        found: dict[str, Outputs] = {}
        if examples := prepared.examples[split]:
            vectors_ND = self._evaluation_vectors(prepared.store, gather(examples).unique_N)
            found |= self._outputs(examples, vectors_ND)
        if prepared.prompts is not None:
            found |= self._written_outputs(prepared.prompts, prepared.prompted[split])
        outputs = {name: found[name] for name in names}
        return score(
            outputs, self.thresholds, samples=samples, confidence=self._config.confidence, seed=self._config.seed
        )

    def push_to_hub(self, repo_id: str, *, private: bool = True) -> str:
        """Upload the module and, where there is one, its model card.

        Returns:
            The address of the repository.

        Raises:
            UserError: The hub refused or cannot be reached.
        """
        from manyskills.hub import upload

        return upload(self.folder, repo_id, private=private)

    def require(self, name: str) -> Task:
        """The task of that name.

        Raises:
            UserError: The module was not trained on it.
        """
        if name not in self.tasks:
            raise UserError(f"this module was not trained on {name!r}", did_you_mean(name, self.tasks))
        return self.tasks[name]

    def writes(self, task: str) -> bool:
        """Whether the task's answers are texts, not what a head makes of a vector."""
        return written(task, self._config.tasks[self.require(task).name])

    def variants(self, task: str) -> list[str]:
        """Languages or directions of a generating task that the module was trained on; none of another task."""
        known = self.require(task)
        return list(self._reader.saved.prompts.get(task, {})) if known.kind is Kind.GENERATE else []

    def _through_head(self, task: str | None) -> bool:
        """Whether `encode` gives what the task's head makes of a vector.

        Raises:
            UserError: The vector depends on the task and none is named, or the other way round.
        """
        routed = len(set(self._reader.routes.values())) > 1
        if task is None:
            if routed:
                what = f"with {self._config.method.name} the vector of a text depends on the task"
                raise UserError(what, f"name one: encode(texts, task=...); the tasks are: {', '.join(self.tasks)}")
            return False
        searches = self.require(task).kind is Kind.EMBED
        if self.writes(task):
            raise UserError(f"{task} is answered with text, and has no vectors", "leave task out, or use generate")
        if not searches and not routed:
            raise UserError(f"{task} has no vectors of its own", "leave task out")
        return searches

    def _encode_rows(
        self, task: str | None, rows: Sequence[tuple[str, ...]], places: Sequence[str]
    ) -> tuple[Examples, np.ndarray]:
        """Unique texts once; the examples index them; `places` are the rows' names in messages."""
        store, examples = self._reader.texts(task, rows, places)
        return examples, self._encode(store, np.unique(examples.texts_EK))


Done = Callable[[int, list[str]], None]
"""Gets the position of a row and its answers."""


def _mute() -> UserError:
    return UserError("an ONNX graph has no language model, and cannot write", "load the run, or its merged export")
