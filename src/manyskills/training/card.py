"""The model card of a run folder, made from its results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from manyskills.config import TrainConfig
from manyskills.evaluation.conflict import worst_pair
from manyskills.evaluation.table import render_markdown
from manyskills.files import write_atomically
from manyskills.model.backbones import hub_id
from manyskills.model.methods import METHODS
from manyskills.model.methods.base import placement
from manyskills.training.run_folder import RunFolder


def write_card(folder: RunFolder, config: TrainConfig, results: Mapping[str, Any]) -> None:
    """Write README.md with the result table, the data and how to use the module."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(  # Markdown: nothing to escape
        loader=PackageLoader("manyskills.training", ""), undefined=StrictUndefined, keep_trailing_newline=True
    )
    card = environment.get_template("model_card.md.j2").render(card_values(folder, config, results))
    write_atomically(folder.card_file, card)


def card_values(folder: RunFolder, config: TrainConfig, results: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows."""
    tasks, training = results["tasks"], results["training"]
    method = METHODS[config.method.name]
    return {
        "name": folder.path.resolve().name,
        "path": folder.path.name,
        "base_model": hub_id(config.backbone.name),
        "method": config.method.name,
        "where": placement(config.method, method),
        "sharing": method.shared(config.method),
        "adapter": method.trains == "adapter",
        "plug_in": method.plug_in,
        "tasks": list(tasks),
        "metrics": sorted({entry["primary_metric"] for entry in tasks.values()}),
        "index": [row for name, entry in tasks.items() if (row := _index_row(name, entry))["value"] is not None],
        "table": render_markdown(dict(results)),
        "confidence": config.confidence,
        "synthetic": {name: entry["synthetic"] for name, entry in tasks.items() if entry["synthetic"]},
        "data": [_data_row(name, entry) for name, entry in tasks.items()],
        "conflict": _conflict(results["conflict"]),
        "seed": config.seed,
        "shared": training["trainable_shared"],
        "heads": training["trainable_heads"],
        "total": training["backbone_parameters"],
        **{key: training[key] for key in ("steps", "best_step", "tokens", "seconds")},
    }


def _index_row(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    metric = entry["primary_metric"]
    value = entry["systems"]["module"]["test"]["metrics"][metric]["value"]
    return {"task": name, "kind": entry["kind"], "metric": metric, "value": value}


def _conflict(found: Mapping[str, Any]) -> dict[str, Any]:
    """The pair of tasks whose gradients agree least, and what was warned of."""
    pair = worst_pair(found)
    values = {} if pair is None else {key: found[key][pair[0]][pair[1]] for key in ("cosines", "negative")}
    return {"pair": pair, "steps": found["steps"], "warnings": found["warnings"], **values}


def _data_row(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    found = entry["truncation"]
    over, fate = (found["windowed"], "in windows") if found["long"] == "window" else (found["cut"], "cut")
    long = f"{over} of {found['texts']} {fate} (limit {found['max_length']})"
    return {"task": name, **entry["rows"], "long": long}
