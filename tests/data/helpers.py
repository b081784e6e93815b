"""Small files of rows for the tests of reading and checking."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline="")
    return path


def defects(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Distinct functions, every third with a defect."""
    return [
        {"code": f"def f{i}(x):\n    return x + {i}\n", "label": int(i % 3 == 0)} for i in range(start, start + count)
    ]


def clone_folder(folder: Path) -> Path:
    """Six functions and pairs of them in three splits."""
    write_jsonl(
        folder / "functions.jsonl", [{"id": str(i), "code": f"int f{i}() {{\n\treturn {i};\n}}"} for i in range(6)]
    )
    for split, (a, b) in {"train": (0, 1), "valid": (2, 3), "test": (4, 5)}.items():
        pairs = [{"id1": str(a), "id2": str(b), "label": 1}, {"id1": str(b), "id2": str(b), "label": 0}]
        write_jsonl(folder / f"pairs_{split}.jsonl", pairs)
    return folder
