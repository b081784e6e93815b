"""From nothing to a trained module and a table: mine Python code of this machine, train, and use the result.

Run it with `make demo`, or `python examples/demo.py` in an environment that has `manyskills[embedded]`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.panel import Panel

import manyskills
from manyskills.config.file import load_config
from manyskills.data.mining import MiningLimits, mine_python
from manyskills.errors import UserError
from manyskills.evaluation.table import print_table

HERE = Path(__file__).parent


def main() -> None:
    """Mine, train, show."""
    started = time.monotonic()
    console, talk = Console(), Console(stderr=True)
    config = load_config(HERE / "demo.yaml")
    data = Path(config.data_dir)
    if (data / "code_search").is_dir():
        talk.print(f"using the data in {data} (remove the folder to mine again)")
    else:
        talk.rule("1. mining Python code that is on this machine")
        report = mine_python(data, limits=MiningLimits(train=1000, valid=120, test=200), progress=talk.print)
        for warning in report.warnings:
            talk.print(f"note: {warning}")
    talk.rule("2. training one module for four skills")
    run = manyskills.train(config, overwrite=True)
    console.rule("3. how good it is")
    print_table(run.results, console)
    console.print(f"plots: {run.path / 'plots' / 'training.png'} and {run.path / 'plots' / 'results.png'}")
    console.rule("4. what it answers")
    show_answers(manyskills.load(run.path), data, console)
    console.print(f"all this took {time.monotonic() - started:.0f} s; the module is in {run.path / 'best'}")


def show_answers(model: manyskills.CodeModel, data: Path, console: Console) -> None:
    """One prediction and one search on rows that were not trained on."""
    tests = read_rows(data / "flaky_tests" / "test.jsonl")
    flaky = next(row for row in tests if row["label"] == 1)
    console.print(Panel(str(flaky["code"]), title="a test (synthetic label: flaky)", title_align="left"))
    probability = model.predict_proba("flaky_tests", [flaky])[0]
    threshold = model.thresholds["flaky_tests"]
    verdict = "flaky" if probability >= threshold else "not flaky"
    console.print(f"predict flaky_tests: {verdict} (probability {probability:.2f}, threshold {threshold:.2f})\n")
    searches = read_rows(data / "code_search" / "test.jsonl")
    functions = [str(row["code"]) for row in searches]
    query = str(searches[0]["query"])
    console.print(f"search {query!r} among {len(functions)} functions of unseen modules")
    index, cosine = model.search(query, functions, top_k=1)[0]
    own = "the function this docstring was taken from" if index == 0 else "not the one this docstring was taken from"
    console.print(Panel(functions[index], title=f"nearest, cosine {cosine:.2f}: {own}", title_align="left"))


def read_rows(path: Path) -> list[dict[str, str | int]]:
    """The rows of a JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"manyskills: {error}")
