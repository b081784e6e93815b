"""Configuration files: YAML and dotted overrides to a configuration, with every mistake shown at once, and back.

Overrides (`key.sub=value`, the value read as YAML) are applied after short forms were written out, so that
`method: lora` with `method.r=8`, or `tasks: [code_search]` with `tasks.code_search.limit=500`, mean what they say.
An override that changes the `name` of a section (`method.name=frozen`) drops the keys which the file gave for
the former choice and which the new one does not have; keys from other overrides stay: errors if they do not fit. A list
of tasks (`tasks=[code_search]`) chooses among the file's, which keep what the file says about them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from manyskills.config import TrainConfig
from manyskills.config.draft import HINTS, Draft, expand
from manyskills.config.pretraining import PretrainConfig
from manyskills.config.section import Section
from manyskills.config.sections import NAMED_SECTIONS, keys_of_choice
from manyskills.config.starter import starter_config
from manyskills.config.yaml_lines import read_yaml
from manyskills.errors import UserError

__all__ = ["config_from_dict", "config_schema", "dump_config", "load_config", "read_config", "starter_config"]

AnyConfig = TypeVar("AnyConfig", bound=Section)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read the configuration of a training run.

    Raises:
        UserError: As `read_config`.
    """
    return read_config(TrainConfig, path, overrides)


def read_config(model: type[AnyConfig], path: str | Path, overrides: Sequence[str] = ()) -> AnyConfig:
    """Read a configuration of any kind.

    Args:
        model: The kind: `TrainConfig`, `PretrainConfig`.
        path: A YAML file.
        overrides: `key.sub=value` each, applied in order.

    Raises:
        UserError: No such file, broken YAML, or mistakes in it: all of them, each as `file:line: key: problem`; those
            from an override name the override.
    """
    draft = _read(model, Path(path))
    for override in overrides:
        draft.override(override)
    return _checked(model, draft)


def config_from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """The configuration of these keys, with the checks and short forms of a file.

    Raises:
        UserError: Mistakes in it, all of them.
    """
    plain = copy.deepcopy(dict(values))
    expand(plain, TrainConfig)
    return _checked(TrainConfig, Draft(TrainConfig, "configuration", plain, {}))


def _checked(model: type[AnyConfig], draft: Draft) -> AnyConfig:
    draft.fill_names()
    draft.check_tasks()
    config = None
    try:
        config = model.model_validate(draft.values)
    except ValidationError as error:
        draft.add_all(error)
    draft.raise_problems()
    assert config is not None
    return config


def dump_config(config: Section) -> str:
    """The configuration as YAML with every key; `read_config` gives the same configuration back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def config_schema(model: type[Section] = TrainConfig) -> dict[str, Any]:
    """The JSON schema of configuration files of a kind, short forms included, for editors."""
    schema = model.model_json_schema()
    properties = schema["properties"]
    for name in NAMED_SECTIONS[model]:
        choices = list(keys_of_choice(model, name))
        short: dict[str, Any] = {"type": "string", "enum": choices} if choices else {"type": "string"}
        properties[name] = {"anyOf": [short, properties[name]]}
    if model is not TrainConfig:
        return schema
    properties["tasks"] = {"anyOf": [{"type": "array", "items": {"type": "string"}}, properties["tasks"]]}
    limit = schema["$defs"]["TaskConfig"]["properties"]["limit"]
    schema["$defs"]["TaskConfig"]["properties"]["limit"] = {"anyOf": [{"type": "integer"}, limit]}
    return schema


_WHERE_FROM: dict[type[Section], str] = {
    TrainConfig: "`manyskills init {path}` writes one",
    PretrainConfig: "docs/pretraining.md has some to begin with",
}


def _read(model: type[Section], path: Path) -> Draft:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"there is no configuration {path}", _WHERE_FROM[model].format(path=path)) from error
    except IsADirectoryError as error:
        raise UserError(f"wanted a configuration file, found the folder {path}", "name a YAML file") from error
    except UnicodeDecodeError as error:
        line = path.read_bytes().count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}:{line}: wanted UTF-8, found byte 0x{error.object[error.start]:02x} at byte offset {error.start:,}",
            "save the file as UTF-8",
        ) from error
    content = read_yaml(text, lambda line: f"{path}:{line}")
    if not isinstance(content.value, dict | None):
        raise UserError(f"{path}: wanted keys and values, found {type(content.value).__name__}", HINTS[model])
    values = content.value or {}
    expand(values, model)
    origins = {key: f"{path}:{line}" for key, line in content.lines.items()}
    return Draft(model, str(path), values, origins, content.problems)
