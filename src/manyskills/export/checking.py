"""An export beside the module it was made from: their vectors, and each task's metric on the validation split.

Shape legend: N texts, S sequences, B sequences of a chunk, D size of a vector, P probes, V words.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from manyskills.config import TaskConfig, TrainConfig
from manyskills.data.finding import task_folder
from manyskills.data.long_texts import length_limit
from manyskills.data.preparation import Prepared, prepare, task_source
from manyskills.data.prompts import written
from manyskills.data.reading import read_split
from manyskills.data.rows import SplitRows
from manyskills.data.text_set import gather, pad_chunk, plan_chunks
from manyskills.data.tokens import TextTable, TokenStore, tokenize
from manyskills.errors import UserError
from manyskills.evaluation.answers import plain_metrics
from manyskills.evaluation.outputs import task_outputs
from manyskills.evaluation.written import likelihood_metrics, token_losses
from manyskills.export.source import Source
from manyskills.inference.encoding import CHUNK_TOKENS
from manyskills.inference.graph import Graph
from manyskills.model.encoding import ChunkEncoder, encode_texts
from manyskills.model.multitask import MultiTaskModel
from manyskills.tasks import get_task

SAME = 1e-3
"""How far a float32 export's vectors may be from the module's, as a share of the largest component."""

PROBES = (
    "",
    "x",
    "sort a list of numbers in descending order",
    "def add(a, b):\n    return a + b\n",
    "class Stack:\n    def __init__(self):\n        self.items = []\n",
    "public static int max(int a, int b) {\n    return a > b ? a : b;\n}\n",
    "int copy(char *to, const char *from) {\n    while ((*to++ = *from++));\n    return 0;\n}\n",
    'SELECT name, count(*) FROM tests WHERE flaky = 1 GROUP BY name; -- "größer" als 名前',
    "total = 0\nfor i in range(10):\n    total += i * i\nprint(total)\n" * 40,
)
"""Texts that every export is tried on: nothing, one word, several languages, longer than any limit is likely to be."""


@dataclass(frozen=True, slots=True)
class Material:
    """What a module and its exports are compared on.

    Attributes:
        config: Of the run.
        probes: Sequences of `PROBES`.
        valid: Rows of the wanted tasks.
        missing: By task, why there are no rows of it.
    """

    config: TrainConfig
    probes: TokenStore
    valid: Prepared | None
    missing: dict[str, str]

    @property
    def texts(self) -> int:
        """How many there are."""
        if self.valid is None:
            return len(PROBES)
        prompts = sum(map(len, self.valid.prompted.get("valid", {}).values()))
        return len(PROBES) + len(self.valid.used_texts("valid")) + prompts


@dataclass(frozen=True, slots=True)
class Answers:
    """What a module or an export makes of the material.

    Attributes:
        vectors_ND: Of the probes, then of the validation texts.
        metrics: By task, its primary metric; where answers are written, the mean probability of a right token.
        logits_PV: What the output layer makes of the probes' vectors; None where nothing is written.
    """

    vectors_ND: torch.Tensor
    metrics: dict[str, float] = field(default_factory=dict)
    logits_PV: torch.Tensor | None = None


class GraphChunks:
    """A graph in place of the network.

    Args:
        graph: Gives the vectors.
        store: Holds the sequences.
    """

    def __init__(self, graph: Graph, store: TokenStore) -> None:
        self.graph, self.store = graph, store

    def __call__(self, indices_B: np.ndarray) -> torch.Tensor:
        """Pad to the longest and run."""
        return torch.from_numpy(self.graph.encode(*pad_chunk(self.store, indices_B, self.graph.facts.pad_id)))

    def plan(self, lengths_S: np.ndarray, token_budget: int) -> list[np.ndarray]:
        """As those who load the export will: with 8-bit activations a vector depends on what is beside it."""
        return plan_chunks(lengths_S, CHUNK_TOKENS)

    def routed(self, indices_B: np.ndarray) -> AbstractContextManager[None]:
        """A graph is of one task, or of tasks that share everything."""
        return nullcontext()


def gather_material(source: Source, data: Path | None, limit: int) -> Material:
    """Probes, and validation rows where there are any.

    Args:
        source: The module.
        data: A folder with one folder a task; None: where the module was trained.
        limit: Rows of each task at most, drawn at random.

    Raises:
        UserError: `data` was given and holds no good rows.
    """
    config, model = source.saved.config, source.model
    rows, missing = _read(config, data, limit)
    tasks: Mapping[str, TaskConfig] = {name: config.tasks[name] for name in rows}
    positions = model.architecture.max_positions
    valid = None
    if rows:
        valid = prepare({"valid": rows}, tasks, config.max_length, model.tokenizer, model.template, positions,
                        model.routes, model.architecture.family, source.saved.prompts)  # fmt: skip
    first = source.tasks[0]
    table, most = TextTable(), length_limit(first, config.tasks[first], config.max_length, positions)
    for text in PROBES:
        table.add(text, most, model.routes[first])
    return Material(config, tokenize(table.entries, model.tokenizer, model.template, use_cache=False), valid, missing)


def answers(model: MultiTaskModel, material: Material, thresholds: Mapping[str, float], graph: Graph | None) -> Answers:
    """Encode the material and measure the tasks.

    Args:
        model: Its heads answer.
        material: The texts.
        thresholds: Of the classifying tasks.
        graph: Gives the vectors; None: the model does.
    """
    probes_ND = _encode(model, material.config, material.probes, np.arange(len(PROBES)), graph)
    writes = any(written(name, task) for name, task in material.config.tasks.items())
    logits_PV = _logits(model, probes_ND) if writes else None
    if material.valid is None:
        return Answers(probes_ND, logits_PV=logits_PV)
    vectors_ND, metrics = probes_ND, _written_metrics(model, material)
    if examples := material.valid.examples["valid"]:
        of_rows_ND = _encode(model, material.config, material.valid.store, gather(examples).unique_N, graph)
        outputs = task_outputs(model, examples, of_rows_ND)
        found = plain_metrics(outputs, dict.fromkeys(examples, 0.5) | dict(thresholds))
        metrics |= {name: found[name][_metric(material, name)] for name in examples}
        vectors_ND = torch.cat([probes_ND, of_rows_ND])
    in_order = {name: metrics[name] for name in material.valid.rows["valid"]}
    return Answers(vectors_ND, in_order, logits_PV)


def compare(module: Answers, exported: Answers, material: Material) -> dict[str, Any]:
    """Differences of vectors and metrics, ready for JSON."""
    a_ND, b_ND = module.vectors_ND, exported.vectors_ND
    largest = float((a_ND - b_ND).abs().max())
    cosine_N = functional.cosine_similarity(a_ND.double(), b_ND.double())
    rows = {} if material.valid is None else material.valid.rows["valid"]
    tasks = {
        name: {
            "metric": _metric(material, name),
            "split": "valid",
            "rows": len(rows[name].rows),
            "module": value,
            "exported": exported.metrics[name],
        }
        for name, value in module.metrics.items()
    }
    logits = {} if module.logits_PV is None else {"logits": _difference(module.logits_PV, exported.logits_PV)}
    return {
        **logits,
        "vectors": {
            "texts": len(a_ND),
            "max_difference": largest,
            "relative_difference": largest / float(a_ND.abs().max()),
            "min_cosine": float(cosine_N.min()),
            "mean_cosine": float(cosine_N.mean()),
        },
        "tasks": tasks,
        "not_measured": material.missing,
    }


def refuse_difference(check: Mapping[str, Any]) -> None:
    """A float32 export that answers otherwise than its module is not handed out.

    Raises:
        UserError: The vectors differ by more than rounding explains.
    """
    for what in ("vectors", "logits"):
        if what not in check:
            continue
        found = check[what]["relative_difference"]
        if not found <= SAME:  # NaN is different too
            which = f"the export does not answer as the module: {what} differ by {found:.2g} of their largest component"
            hint = f"up to {SAME} would be rounding; please report it. --no-check writes it all the same"
            raise UserError(which, hint)


def _metric(material: Material, name: str) -> str:
    """What a task is compared by. Texts would tell little: one other token makes another text of the rest."""
    return "token_probability" if written(name, material.config.tasks[name]) else get_task(name).primary_metric


def _written_metrics(model: MultiTaskModel, material: Material) -> dict[str, float]:
    valid = material.valid
    if valid is None or valid.prompts is None:
        return {}
    examples = valid.prompted["valid"]
    losses = token_losses(model, valid.prompts, examples, material.config.token_budget)
    found = likelihood_metrics(losses, list(examples))
    return {name: found[name]["token_probability"] for name in examples}


@torch.no_grad()
def _logits(model: MultiTaskModel, vectors_PD: torch.Tensor) -> torch.Tensor:
    assert model.output is not None
    states_PD = vectors_PD.to(model.device, model.output.weight_VH.dtype)
    return model.output.logits(states_PD).float().cpu()


def _difference(module: torch.Tensor, exported: torch.Tensor | None) -> dict[str, float]:
    """How far two tensors are apart; an export that lost its output layer is as far as can be."""
    largest = float("nan") if exported is None else float((module - exported).abs().max())
    return {"max_difference": largest, "relative_difference": largest / float(module.abs().max())}


def _read(config: TrainConfig, data: Path | None, limit: int) -> tuple[dict[str, SplitRows], dict[str, str]]:
    """Validation rows by task, and why there are none of others."""
    if data is not None and not data.is_dir():  # else <data>/<task> would be looked for on the hub
        raise UserError(f"there is no folder {data}", "it is to hold one folder a task")
    rows: dict[str, SplitRows] = {}
    missing: dict[str, str] = {}
    for name, task in config.tasks.items():
        try:
            place = task_source(config, name) if data is None else str(task_folder(data, get_task(name)))
            rows[name] = read_split(
                get_task(name), place, "valid",
                columns=task.columns, variants=task.variants, limit=limit, seed=config.seed,
            )  # fmt: skip
        except UserError as error:
            if data is not None:
                raise
            missing[name] = error.message
    return rows, missing


def _encode(
    model: MultiTaskModel, config: TrainConfig, store: TokenStore, indices_N: np.ndarray, graph: Graph | None
) -> torch.Tensor:
    encoder: ChunkEncoder | None = None if graph is None else GraphChunks(graph, store)
    return encode_texts(model, store, indices_N, config.token_budget, encoder=encoder)
