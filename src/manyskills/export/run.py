"""An export from beginning to end: load, measure, convert, write, compare, hand over."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from manyskills import __version__
from manyskills.config import MtlLoraConfig
from manyskills.errors import UserError, did_you_mean
from manyskills.export.checking import Answers, Material, answers, compare, gather_material, refuse_difference
from manyskills.export.folders import LORA_KIN, merge, write_backbone, write_lora, write_surroundings
from manyskills.export.graph import FLOAT_GRAPH, INT8_GRAPH, quantize_graph, require_onnx, write_facts, write_graph
from manyskills.export.source import Source, in_full_precision, load_source
from manyskills.files import replace_folder_atomically
from manyskills.inference.graph import Graph
from manyskills.model.backbones import hub_id
from manyskills.model.methods import METHODS

Format = Literal["merged", "lora", "onnx"]
FORMATS: tuple[Format, ...] = ("merged", "lora", "onnx")
SUMMARY_FILE = "export.json"
FORMAT = 1
Announce = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wish:
    """What is wanted.

    Attributes:
        format: merged: a stand-alone Hugging Face folder; lora: an adapter folder; onnx: a graph.
        task: The only task; None: all.
        int8: Keep the graph's weights in 8 bits.
        check: Compare the export with the module.
        data: A folder with one folder a task, for the comparison; None: where the module was trained.
        limit: Validation rows of each task at most, drawn at random.
    """

    format: Format = "merged"
    task: str | None = None
    int8: bool = False
    check: bool = True
    data: Path | None = None
    limit: int = 200


def export(
    run: Path, target: Path, wish: Wish, *, overwrite: bool = False, announce: Announce = lambda _: None
) -> dict[str, Any]:
    """Export a trained module.

    Args:
        run: A run folder, or a folder such as its best/.
        target: The folder to make.
        wish: What it is to be.
        overwrite: Replace an earlier export in `target`.
        announce: Gets sentences for people.

    Returns:
        The content of `export.json`: what was exported from what, the files with their sizes, and the comparison.

    Raises:
        UserError: The module cannot be loaded, its method does not allow the format, `target` holds something else, a
            library is missing, or the export does not answer as the module.
    """
    _refuse_contradictions(wish)
    _refuse_target(target, overwrite)
    if wish.format == "onnx":
        require_onnx()
    source = load_source(run, wish.task)
    _refuse_method(source, wish.format)
    _refuse_writing(source, wish.format)
    summary: dict[str, Any] = {}

    def build(folder: Path) -> None:
        summary.update(_build(source, wish, folder, announce))
        (folder / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")

    replace_folder_atomically(build, target)
    return summary


class _Judge:
    """Holds what the module answered: merging changes it in place, so it is asked first.

    Args:
        source: The module, before anything is done to it.
        wish: Says what it is asked.
        announce: Gets sentences for people.
    """

    def __init__(self, source: Source, wish: Wish, announce: Announce) -> None:
        self.thresholds = source.saved.thresholds
        self.material: Material = gather_material(source, wish.data, wish.limit)
        for name, reason in self.material.missing.items():
            announce(f"{name}: only vectors are compared, there is no validation data: {reason}")
        announce(f"asking the module about {self.material.texts} texts")
        self.expected: Answers = answers(source.model, self.material, self.thresholds, None)

    def compare(self, exported: Source, graph: Graph | None) -> dict[str, Any]:
        """How the export's answers differ from the module's."""
        found = answers(exported.model, self.material, self.thresholds, graph)
        return compare(self.expected, found, self.material)


def _build(source: Source, wish: Wish, folder: Path, announce: Announce) -> dict[str, Any]:
    judge = _Judge(source, wish, announce) if wish.check else None
    checks: dict[str, Any] = {}
    if wish.format == "lora":
        write_lora(source, folder)
    else:
        plain = _plain(source)
        if not plain.model.has_adapter or METHODS[plain.model.method.name].mergeable:
            merge(plain.model)
        if wish.format == "onnx":
            announce("tracing the network")
            checks = _write_onnx(plain, wish, folder, judge, announce)
        else:
            write_backbone(plain, folder)
    if judge is not None and wish.format != "onnx":
        checks = {"float32": judge.compare(load_source(folder, None), None)}
        refuse_difference(checks["float32"])
    return _summary(source, wish, folder, checks if judge else None)


def _plain(source: Source) -> Source:
    """The same network with one update for all texts, on full-precision weights."""
    if isinstance(source.saved.config.method, MtlLoraConfig):
        with tempfile.TemporaryDirectory() as scratch:
            write_lora(source, Path(scratch))
            return _plain(load_source(Path(scratch), None))
    return in_full_precision(source) if source.quantized else source


def _write_onnx(source: Source, wish: Wish, folder: Path, judge: _Judge | None, announce: Announce) -> dict[str, Any]:
    """Graph, facts and surroundings; returns the comparison by number format."""
    config, model = source.saved.config, source.model
    write_surroundings(source, folder)
    model.backbone.config.save_pretrained(str(folder))  # pyright: ignore
    write_graph(model, folder / FLOAT_GRAPH)
    write_facts(model, config, FLOAT_GRAPH, folder)
    checks: dict[str, Any] = {}
    if judge is not None:
        checks["float32"] = judge.compare(source, Graph(folder))
        refuse_difference(checks["float32"])
    if wish.int8:
        announce("rounding the weights to 8 bits")
        quantize_graph(folder / FLOAT_GRAPH, folder / INT8_GRAPH)
        for file in folder.glob(f"{FLOAT_GRAPH}*"):
            file.unlink()
        write_facts(model, config, INT8_GRAPH, folder)
        if judge is not None:
            checks["int8"] = judge.compare(source, Graph(folder))
    return checks


def _summary(source: Source, wish: Wish, folder: Path, checks: dict[str, Any] | None) -> dict[str, Any]:
    config = source.saved.config
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "format": FORMAT,
        "manyskills": __version__,
        "export": wish.format,
        "precision": "int8" if wish.int8 else "float32",
        "tasks": source.tasks,
        "source": {
            "backbone": hub_id(config.backbone.name),
            "revision": config.backbone.revision,
            "method": config.method.model_dump(mode="json"),
            "step": source.saved.step,
        },
        "files": {path.relative_to(folder).as_posix(): path.stat().st_size for path in files},
        "checks": checks,
    }


def _refuse_contradictions(wish: Wish) -> None:
    """Options that cannot have an effect are mistakes."""
    if wish.format not in FORMATS:
        raise UserError(f"unknown format {wish.format!r}", did_you_mean(wish.format, FORMATS))
    if wish.int8 and wish.format != "onnx":
        raise UserError(f"--int8 is for ONNX graphs, not for {wish.format}", "add --format onnx")
    if wish.data is not None and not wish.check:
        raise UserError("--no-check and --data contradict each other", "leave one of them out")


def _refuse_method(source: Source, format: Format) -> None:
    """Methods that cannot become what is wanted."""
    name = source.saved.config.method.name
    method = METHODS[name]
    becomes_lora = method.routed or name == "qlora"
    if format == "merged" and source.model.has_adapter and not (method.mergeable or becomes_lora):
        can = [*(other for other, known in METHODS.items() if known.mergeable), "qlora", "mtl_lora"]
        what = f"{name} cannot be merged: it adds layers to the network, not numbers to its weights"
        raise UserError(what, f"use --format onnx, or the run's best/ folder; what can be merged: {', '.join(can)}")
    if format == "lora" and not isinstance(source.saved.config.method, LORA_KIN):
        hint = "use --format merged or onnx; best/ of a run with an adapter is a folder of peft already"
        raise UserError(f"{name} is no kind of LoRA", hint)


def _refuse_writing(source: Source, format: Format) -> None:
    """A graph makes vectors, and answers that are written need a language model that is run again and again."""
    if format == "onnx" and source.writing:
        what = f"a graph cannot write, and {', '.join(source.writing)} is answered with text"
        others = [name for name in source.tasks if name not in source.writing]
        which = f", or choose one with --task: {', '.join(others)}" if others else ""
        raise UserError(what, f"use --format merged{which}")


def _refuse_target(target: Path, overwrite: bool) -> None:
    """Only a folder that an export has made, and that nothing else was put into, may be replaced."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file", "choose another folder")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise UserError(f"{target} is not empty", "--overwrite replaces an earlier export; or choose another folder")
    try:
        ours = {*json.loads((target / SUMMARY_FILE).read_text(encoding="utf-8"))["files"], SUMMARY_FILE}
    except (OSError, ValueError, KeyError) as error:
        what = f"{target} was not made by an export: {SUMMARY_FILE} is missing or broken"
        raise UserError(what, "choose another folder, or remove it yourself") from error
    there = {path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir()}
    if foreign := sorted(there - ours):
        what = f"{target} holds things that no export wrote: {', '.join(foreign[:5])}"
        raise UserError(what, "choose another folder, or remove them yourself")
