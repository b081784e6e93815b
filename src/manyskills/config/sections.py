"""What the configuration models say about themselves: keys of a section, choices of a named one, defaults."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from manyskills.config import Section, TrainConfig
from manyskills.config.yaml_lines import KeyPath

NAMED_SECTIONS: tuple[str, ...] = ("backbone", "method", "sampling", "balancing")
"""Sections whose `name` may stand for the whole: `method: lora`."""


def default_name(part: str) -> str:
    """The name that a named section has if nobody gives one."""
    return TrainConfig.model_fields[part].default.name


def keys_of_choice(part: str) -> dict[str, set[str]]:
    """The choices of a named section and the keys of each; empty where any name will do (backbones)."""
    models = models_in(TrainConfig.model_fields[part].annotation)
    named = {get_args(model.model_fields["name"].annotation): set(model.model_fields) for model in models}
    return {names[0]: keys for names, keys in named.items() if names}


def section_keys(path: KeyPath, values: Any) -> list[str]:
    """The keys that the section at `path` may have, by what `values` choose."""
    annotation: Any = TrainConfig
    for part in path:
        values = values[part] if isinstance(values, dict) else None
        model = next(iter(models_in(annotation)), None)
        annotation = model.model_fields[str(part)].annotation if model else get_args(annotation)[-1]  # dict[str, …]
        chosen = [m for m in models_in(annotation) if _is_chosen(m, values)]
        annotation = chosen[0] if chosen else annotation
    return [key for model in models_in(annotation) for key in model.model_fields]


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models among the members of an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, Annotated):
        for member in get_args(annotation):
            yield from models_in(member)


def _is_chosen(model: type[BaseModel], values: Any) -> bool:
    name = values.get("name") if isinstance(values, dict) else None
    return "name" in model.model_fields and get_args(model.model_fields["name"].annotation) == (name,)
