"""The network as an ONNX graph: token ids and mask to vectors, pooling included.

Shape legend: B sequences, T tokens, D size of a vector.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from manyskills.errors import UserError, require_extra
from manyskills.inference.graph import FORMAT
from manyskills.model.multitask import MultiTaskModel
from manyskills.saved import GRAPH_FACTS_FILE

if TYPE_CHECKING:
    from manyskills.config import TrainConfig

FLOAT_GRAPH, INT8_GRAPH = "model.onnx", "model.int8.onnx"
INPUTS, OUTPUT = ("input_ids", "attention_mask"), "vectors"
TWO_GIB = 2**31
"""What one file of protocol buffers can hold; weights beyond it lie beside the graph."""


def require_onnx() -> None:
    """Make sure that graphs can be made and run.

    Raises:
        UserError: A library is missing.
    """
    for module in ("onnx", "onnxscript", "onnxruntime"):
        require_extra(module, "onnx")


class _Vectors(nn.Module):
    """What is traced: names of arguments become names of the graph's inputs."""

    def __init__(self, model: MultiTaskModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """vectors_BD."""
        return self.model.encode(input_ids, attention_mask)


def write_graph(model: MultiTaskModel, path: Path) -> None:
    """Trace the network with batch and length left open, and write it.

    Args:
        model: Not routed and not quantised; merged where it can be, which makes the graph smaller.
        path: The file; weights beyond 2 GiB lie beside it.

    Raises:
        UserError: The network cannot be traced.
    """
    ids_BT = torch.full((2, 8), model.architecture.pad_id)
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, 5:] = 0
    axes = {0: "batch", 1: "tokens"}
    model.eval()
    with torch.no_grad(), _quiet(), _explained(model), _eager(model):
        program = torch.onnx.export(
            _Vectors(model).eval(),
            (ids_BT, mask_BT),
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_shapes=dict.fromkeys(INPUTS, axes),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    _forget_sources(program.model)
    program.save(path)


def quantize_graph(path: Path, target: Path) -> None:
    """The same graph with the weights of matrix products and embeddings in 8 bits.

    Activations are rounded to 8 bits as they come: dynamic quantisation of onnxruntime, with one scale an output
    channel for weights and one a tensor for activations. Weights use 7 of the 8 bits: with all 8 the sums overflow on
    processors that have AVX2 without VNNI, so what was checked on one machine would not hold on another.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    large = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")) >= TWO_GIB
    with _quiet():
        quantize_dynamic(
            path,
            target,
            op_types_to_quantize=["MatMul", "Gather"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=large,
        )


def write_facts(model: MultiTaskModel, config: TrainConfig, graph: str, folder: Path) -> None:
    """`onnx.json`: what a program without torch has to know to feed the graph; tasks and heads have their own files."""
    architecture, template = model.architecture, model.template
    facts: dict[str, Any] = {
        "format": FORMAT,
        "graph": graph,
        "inputs": list(INPUTS),
        "output": OUTPUT,
        "vector_size": architecture.hidden_size,
        "pooling": architecture.pooling,
        "pad_id": architecture.pad_id,
        "template": {"prefix": template.prefix, "middle": template.middle, "suffix": template.suffix},
        "max_length": config.max_length,
        "max_positions": architecture.max_positions,
    }
    (folder / GRAPH_FACTS_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _forget_sources(graph: Any) -> None:
    """Drop where in the source each node comes from: paths of this machine, and a third of a small file."""
    for node in graph.graph.all_nodes():
        node.metadata_props.clear()
    for value in (*graph.graph.inputs, *graph.graph.outputs):
        value.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """The tools talk about their own affairs; what comes out is checked instead."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.fx", "onnxscript", "onnx_ir", "root")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _eager(model: MultiTaskModel) -> Iterator[None]:
    """Attention as matrix products and a softmax.

    Traced from torch's fused attention, the graph guards each softmax against rows that see nothing: onnxruntime then
    needs up to 18 % longer.
    """
    own = model.network.config._attn_implementation
    model.network.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.network.set_attn_implementation(own)  # pyright: ignore


@contextmanager
def _explained(model: MultiTaskModel) -> Iterator[None]:
    from torch.onnx import OnnxExporterError

    try:
        yield
    except OnnxExporterError as error:
        cause = error.__cause__ or error
        reason = str(cause).strip().splitlines()[0]
        what = f"this network ({model.architecture.model_type}) cannot be written as an ONNX graph: {reason}"
        raise UserError(what, "use --format merged if the method can be merged") from error
