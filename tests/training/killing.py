"""Runs that are killed at a chosen instant, and what must be the same when they have been continued."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from manyskills import files
from manyskills.training import run_folder


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the package may catch it."""


def assert_same(folder: Path, expected: Path) -> None:
    for part in ("best", "last", "best_by_task"):
        names = sorted(path.relative_to(expected) for path in (expected / part).rglob("*.safetensors"))
        assert names == sorted(path.relative_to(folder) for path in (folder / part).rglob("*.safetensors"))
        assert names
        for name in names:
            assert (folder / name).read_bytes() == (expected / name).read_bytes(), name
    found, wanted = (json.loads((path / "results.json").read_text()) for path in (folder, expected))
    assert found["tasks"] == wanted["tasks"]
    assert {**found["training"], "seconds": 0} == {**wanted["training"], "seconds": 0}
    assert records(folder) == records(expected)
    assert not [path for path in folder.rglob("*") if ".tmp-" in path.name or path.name.endswith(".old")]
    assert {path.name for path in folder.iterdir()} == {path.name for path in expected.iterdir()}


def records(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def kill_at(monkeypatch, owner, name, calls, *, after=False, when: Callable[..., bool] = lambda *_: True):
    """Dies at the so-manieth call of a function (before or after it), each time this is set up anew."""
    real, count = getattr(owner, name), iter(range(1, 10_000))

    def dying(*arguments, **options):
        hit = when(*arguments) and next(count) == calls
        if hit and not after:
            raise Killed
        result = real(*arguments, **options)
        if hit:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, dying)


def cut_line(monkeypatch, calls):
    """Dies while it writes a line of metrics.jsonl."""
    real, count = run_folder.RunFolder.append_metrics, iter(range(1, 10_000))

    def dying(self, record):
        if next(count) == calls:
            with self.metrics_file.open("a") as file:
                file.write(json.dumps(record)[:25])
            raise Killed
        real(self, record)

    monkeypatch.setattr(run_folder.RunFolder, "append_metrics", dying)


def renames(what):
    return lambda source, target: Path(target).name == what or Path(source).name == what


def leave_everything_behind(monkeypatch):
    """SIGKILL runs no `except` and no `finally`: temporary names and half a swap stay behind."""
    rmtree, mend = files.shutil.rmtree, files._mend

    def dying() -> bool:
        return isinstance(sys.exc_info()[1], Killed)

    monkeypatch.setattr(files, "_mend", lambda target: None if dying() else mend(target))
    monkeypatch.setattr(files.shutil, "rmtree", lambda *a, **o: None if dying() else rmtree(*a, **o))
