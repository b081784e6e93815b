"""One line a test row: what was asked, what was answered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from manyskills.data.rows import SplitRows
from manyskills.evaluation.answers import Generations, Outputs, Probabilities


def write_predictions(
    folder: Path, rows: Mapping[str, SplitRows], outputs: Mapping[str, Outputs], thresholds: Mapping[str, float]
) -> None:
    """Write `<task>.jsonl` for every task into an existing folder."""
    for name, part in rows.items():
        lines = _lines(part, outputs[name], thresholds.get(name, 0.5))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _lines(part: SplitRows, answer: Outputs, threshold: float) -> list[dict[str, object]]:
    ids = [row["id"] for row in part.rows]
    if isinstance(answer, Probabilities):
        return [
            {
                "id": id_,
                "label": row[part.task.label or "label"],
                "probability": round(p, 6),
                "prediction": int(p >= threshold),
            }
            for id_, row, p in zip(ids, part.rows, answer.probabilities_E.tolist(), strict=True)
        ]
    if isinstance(answer, Generations):
        texts = zip(ids, answer.variants, answer.predictions, answer.references, strict=True)
        return [
            {"id": id_, "variant": variant, "prediction": prediction, "reference": reference}
            for id_, variant, prediction, reference in texts
        ]
    return [{"id": id_, "rank": rank} for id_, rank in zip(ids, answer.ranks_Q.tolist(), strict=True)]
