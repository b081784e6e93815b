"""What the configuration models say about themselves: keys of a section, choices of a named one, defaults."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from manyskills.config import Section, TrainConfig
from manyskills.config.pretraining import PretrainConfig
from manyskills.config.yaml_lines import KeyPath

NAMED_SECTIONS: dict[type[Section], tuple[str, ...]] = {
    TrainConfig: ("backbone", "method", "sampling", "balancing"),
    PretrainConfig: ("architecture", "tokenizer"),
}
"""By configuration, the sections whose `name` may stand for the whole: `method: lora`."""


def default_name(model: type[Section], part: str) -> str | None:
    """The name that a named section has if nobody gives one."""
    return model.model_fields[part].default.name


def keys_of_choice(model: type[Section], part: str) -> dict[str, set[str]]:
    """The choices of a named section and the keys of each; empty where any name will do (backbones)."""
    models = list(models_in(model.model_fields[part].annotation))
    return {name: set(choice.model_fields) for choice in models for name in _names(choice)}


def _names(model: type[BaseModel]) -> tuple[str, ...]:
    """The names that a section may have; none where any will do."""
    annotation = model.model_fields["name"].annotation
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def section_keys(model: type[Section], path: KeyPath, values: Any) -> list[str]:
    """The keys that the section of `model` at `path` may have, by what `values` choose."""
    annotation: Any = model
    for part in path:
        held: Any = dict(enumerate(values)) if isinstance(values, list) else values
        values = held[part] if isinstance(held, dict) else None
        inner = next(iter(models_in(annotation)), None)
        annotation = inner.model_fields[str(part)].annotation if inner else get_args(annotation)[-1]  # dict[str, …]
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
