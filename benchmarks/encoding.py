"""Encoding a repository's functions: sentence-transformers against torch and ONNX Runtime, in float32 and in int8.

    python benchmarks/encoding.py [--data path/to/data] [--module path/to/run]

All read the same functions with the same weights: a module with LoRA, merged. Tokenisation is inside the measured part
for everybody; each loads its model before. sentence-transformers sorts by length itself and runs in batches of 32 (its
default) and 128. The texts are distinct, so that nobody gains from repeats; how many there are is said below the table.
They are runs of 128 neighbours out of all distinct functions in order of length, evenly spread over that order: so a
part of them has the lengths of the whole, and everybody's batches hold as little padding as those of the whole. Without
--module, the module is one at step 0, untrained. The loss of int8 is shown as cosines to the float32 vectors and as
metrics on validation rows, with the thresholds that were chosen in float32. Start-up is what a program of its own takes
to load and to answer once.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure

from manyskills.code_model import CodeModel
from manyskills.data.mining import MiningLimits
from manyskills.export.run import Wish
from manyskills.inference.onnx_model import OnnxModel
from manyskills.model.checkpoint import load_model
from manyskills.saved import read_tasks_file
from manyskills.tasks import get_task
from manyskills.torch_model import TorchModel
from measuring import (
    Cost,
    Table,
    backbone_name,
    bars,
    benchmark_parser,
    data_folder,
    gemm_peak,
    interleaved,
    machine,
    medians,
    own_cache,
    ratios,
    write_report,
)
from modules import all_functions, cosines, exported, make_module

WISHES = {
    "merged": Wish(check=False),
    "onnx": Wish(format="onnx", check=False),
    "int8": Wish(format="onnx", int8=True, check=False),
}
PEER, PADDED = "sentence-transformers, batches of {}", "torch, padded"
UNPADDED, ONNX, INT8 = "torch, unpadded", "ONNX, float32", "ONNX, int8"
EXACT = PADDED
"""Whose vectors the others are compared with."""
QUALITY = ("code_search", "clone_detection")

Encode = Callable[[Sequence[str]], np.ndarray]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = benchmark_parser(__doc__, rounds=2)
    parser.add_argument("--backbone", default="minilm", help="any backbone's name, or unixcoder-size")
    parser.add_argument("--module", type=Path, help="a finished run; its limit of tokens counts")
    parser.add_argument("--max-length", type=int, default=512, help="tokens of a text at most")
    parser.add_argument("--functions", type=int, default=512, help="about so many (default 512)")
    parser.add_argument("--quality-rows", type=int, default=150, help="validation rows of each task")
    wanted = parser.parse_args(arguments)
    count, rows = (24, 8) if wanted.quick else (wanted.functions, wanted.quality_rows)
    with own_cache() as temporary:
        torch.set_num_threads(wanted.threads)
        data = data_folder(wanted.data, temporary, MiningLimits(train=count, valid=rows, test=8))
        backbone = backbone_name(wanted.backbone, temporary)
        module = wanted.module or make_module(temporary / "best", backbone, data, wanted.max_length, rows)
        folders = exported(module, temporary, WISHES)
        texts = length_sorted_runs(all_functions(data), count)
        found = throughput(folders, texts, wanted.threads, wanted.rounds)
        found["repeats"] = repeats(all_functions(data))
        found |= {"quality": quality(folders, data, rows), "start": start_up(folders, wanted.quick)}
    trained = {"module": "a trained module" if wanted.module else "an untrained module (step 0)", "quality_rows": rows}
    result = {"machine": machine(), "gemm_peak": gemm_peak(), "functions": len(texts)} | trained | found
    write_report("encoding", wanted.output, result, tables(result), lambda figure: plot(figure, result))


def throughput(folders: Mapping[str, Path], texts: Sequence[str], threads: int, rounds: int) -> dict[str, Any]:
    """Costs of encoding all texts with one thread and with several, and how alike the vectors are."""
    engines, counts = _engines(folders), sorted({1, threads})
    vectors = {name: make(threads)(texts) for name, make in engines.items()}  # also warms up
    calls = {(name, count): make(count) for name, make in engines.items() for count in counts}
    work = {_label(*key): _with_threads(call, key[1], texts) for key, call in calls.items()}
    costs = interleaved(work, rounds)
    reference = PEER.format(32) if PEER.format(32) in engines else PADDED
    return {
        "threads": counts,
        "seconds": {name: asdict(cost) for name, cost in medians(costs).items()},
        "reference": reference,
        "times_as_fast": {
            count: {name: _faster(costs, _label(reference, count), _label(name, count)) for name in engines}
            for count in counts
        },
        "cosines": {name: cosines(vectors[EXACT], found) for name, found in vectors.items()},
    }


RUN = 128
"""Texts of neighbouring lengths that are drawn together: the largest batch of a contender."""


def length_sorted_runs(texts: Sequence[str], count: int) -> list[str]:
    """About `count` of the distinct texts: runs of the length-sorted set, evenly spread over it, in random order."""
    ordered, size = sorted(dict.fromkeys(texts), key=len), min(RUN, count)
    runs = [ordered[at : at + size] for at in range(0, len(ordered), size)]
    wanted = min(max(round(count / size), 1), len(runs))
    middles = (np.arange(wanted) + 0.5) * len(runs) / wanted
    drawn = [text for number in middles.astype(int) for text in runs[number]]
    return [drawn[index] for index in np.random.default_rng(0).permutation(len(drawn))]


def repeats(texts: Sequence[str]) -> float:
    """How many times as many characters a repository's functions have as its distinct ones."""
    return sum(map(len, texts)) / sum(map(len, set(texts)))


def _label(name: str, threads: int) -> str:
    return f"{name}; {threads} thread{'s' * (threads > 1)}"


def _faster(costs: Mapping[str, list[Cost]], reference: str, name: str) -> dict[str, Any]:
    """The reference's time divided by this one's."""
    return asdict(ratios(costs, name)[reference])


def _with_threads(encode: Encode, threads: int, texts: Sequence[str]) -> Callable[[], object]:
    def call() -> np.ndarray:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return encode(texts)
        finally:
            torch.set_num_threads(before)

    return call


def _engines(folders: Mapping[str, Path]) -> dict[str, Callable[[int], Encode]]:
    """By name, what makes an encoder of a number of threads; models of torch are loaded once."""
    found: dict[str, Callable[[int], Encode]] = {}
    if find_spec("sentence_transformers"):
        peer = _sentence_transformer(folders["merged"])
        for batch in (32, 128):
            found[PEER.format(batch)] = lambda _, batch=batch: (
                lambda texts: np.asarray(peer.encode(list(texts), batch_size=batch, show_progress_bar=False))
            )
    else:
        print("sentence-transformers is left out: pip install sentence-transformers", file=sys.stderr)
    padded, unpadded = (_torch_model(folders["merged"], layout) for layout in ("padded", "unpadded"))
    return found | {
        PADDED: lambda _: padded.encode,
        UNPADDED: lambda _: unpadded.encode,
        ONNX: lambda threads: OnnxModel(folders["onnx"], jobs=threads).encode,
        INT8: lambda threads: OnnxModel(folders["int8"], jobs=threads).encode,
    }


def _sentence_transformer(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


def _torch_model(folder: Path, layout: Literal["padded", "unpadded"]) -> CodeModel:
    saved = read_tasks_file(folder)
    config = saved.config.model_copy(update={"attention": layout})
    saved = type(saved)(config, saved.thresholds, saved.synthetic, saved.step)
    return TorchModel(load_model(folder, torch.device("cpu"), saved), saved, folder)


def quality(folders: Mapping[str, Path], data: Path, rows: int) -> dict[str, dict[str, float]]:
    """Primary metrics on validation rows, by task and number format."""
    found: dict[str, dict[str, float]] = {task: {} for task in QUALITY}
    for name in ("onnx", "int8"):
        model = OnnxModel(folders[name])
        scores = model.evaluate(data, split="valid", tasks=QUALITY, limit=rows, samples=0)
        for task in QUALITY:
            value = scores[task].metrics[get_task(task).primary_metric].value
            found[task][name] = float("nan") if value is None else value
    return found


def start_up(folders: Mapping[str, Path], quick: bool) -> dict[str, dict[str, float]]:
    """Seconds from the start of Python to the first vector; quick: of the last contender alone."""
    ours = "import manyskills, sys; manyskills.load(sys.argv[1]).encode(['def add(a, b): return a + b'])"
    peer = (
        "import sys; from sentence_transformers import SentenceTransformer;"
        "SentenceTransformer(sys.argv[1], device='cpu').encode(['def add(a, b): return a + b'])"
    )
    programs = {"torch": (ours, "merged"), ONNX: (ours, "onnx"), INT8: (ours, "int8")}
    if find_spec("sentence_transformers"):
        programs = {"sentence-transformers": (peer, "merged"), **programs}
    if quick:
        programs = {INT8: programs[INT8]}
    return {name: asdict(_program([code, str(folders[folder])])) for name, (code, folder) in programs.items()}


def _program(arguments: Sequence[str]) -> Cost:
    """What a program of its own costs."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", *arguments], check=True, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall)


def tables(result: dict[str, Any]) -> list[Table]:
    """Speed, start and quality for people."""
    rows = []
    for count in result["threads"]:
        for name, ratio in result["times_as_fast"][count].items():
            seconds, alike = result["seconds"][_label(name, count)], result["cosines"][name]
            times = [f"{ratio['cpu']:.2f}x", f"{ratio['wall']:.2f}x"]
            cells = [f"{seconds['cpu']:.1f}", f"{seconds['wall']:.1f}", *times]
            rows.append([_label(name, count), *cells, f"{alike['mean']:.4f}", f"{alike['min']:.4f}"])
    columns = ["encoder", "CPU s", "wall s", "as fast (CPU)", "as fast (wall)", "mean cosine", "least cosine"]
    caption = (
        f"{result['functions']} distinct functions; as fast: times {result['reference']}; cosines to {EXACT}. "
        f"All functions are {result['repeats']:.2f} times as long as the distinct ones; ours reads those only."
    )
    speed = Table(columns, rows, caption)
    started = [[name, f"{cost['cpu']:.2f}", f"{cost['wall']:.2f}"] for name, cost in result["start"].items()]
    start = Table(["start to first vector", "CPU s", "wall s"], started)
    tasks = [[task, f"{by['onnx']:.4f}", f"{by['int8']:.4f}"] for task, by in result["quality"].items()]
    measured = f"Of {result['module']}, on {result['quality_rows']} validation rows a task."
    return [speed, start, Table(["validation metric", "float32", "int8"], tasks, measured)]


def plot(figure: Figure, result: dict[str, Any]) -> None:
    """Functions a second."""
    axes = figure.subplots()
    most = result["threads"][-1]
    speeds = {name: result["functions"] / result["seconds"][_label(name, most)]["wall"] for name in result["cosines"]}
    bars(axes, speeds, f"Encoding functions, {_label('', most).strip('; ')}", "functions a second", marked=INT8)


if __name__ == "__main__":
    main()
