"""Data sets of the Hugging Face hub, through `datasets`, which obeys `HF_HUB_OFFLINE` and runs no remote code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from manyskills.data.finding import SPLIT_NAMES
from manyskills.data.formats import FORMATS, RecordSource
from manyskills.errors import UserError, require_library
from manyskills.tasks.base import SplitName, Task

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def may_be_hub_id(source: str) -> bool:
    """Whether a name that is no local folder can be one of the hub (`organisation/name`).

    `data/code_search` beside an existing folder `data` is a mistyped path, not a request to download something.
    """
    return HUB_ID.fullmatch(source) is not None and not Path(source).parent.exists()


def hub_splits(name: str) -> dict[SplitName, Any]:
    """The splits of a hub data set under our names.

    Raises:
        UserError: There is no such data set, it is private, the hub cannot be reached, or it needs code of its own.
    """
    loaded = _load(name)
    return {ours: loaded[their] for ours, names in SPLIT_NAMES.items() for their in names[::-1] if their in loaded}


def hub_source(name: str, split: str, data: Any) -> RecordSource:
    """A loaded split as a source of records."""
    return RecordSource(f"{name}[{split}]", split, "table", lambda _: enumerate(data, start=1), {})


def hub_table(name: str, task: Task) -> RecordSource | None:
    """The table that a task's rows refer to, from the file of that name in the data set."""
    if task.join is None:
        return None
    files = [f"{task.join.table}{ending}" for ending in FORMATS]
    for file in files:
        try:
            loaded = _load(name, data_files=file)
        except UserError:
            continue
        return hub_source(name, task.join.table, loaded["train"])
    raise UserError(
        f"{name}: wanted the file {' or '.join(files)}, found none of them", f"add {files[0]} to the data set"
    )


def _load(name: str, data_files: str | None = None) -> dict[str, Any]:
    require_library("datasets", f"{name}: no such folder, and reading it from the hub")
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        return dict(load_dataset(name, data_files=data_files))  # type: ignore[arg-type]
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{name}: no such folder, and the hub's data set of that name cannot be read: {reason}",
            "check the path; for the hub: the name, the connection, HF_TOKEN for private data, HF_HUB_OFFLINE",
        ) from error
