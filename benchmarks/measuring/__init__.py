"""What the benchmarks share: measuring in turns, the machine's limit, peak memory, inputs, reports."""

from measuring.inputs import (
    TASKS,
    UNIXCODER_SIZE,
    backbone_name,
    benchmark_parser,
    data_folder,
    own_cache,
    random_roberta,
)
from measuring.machine import gemm_peak, machine
from measuring.memory import Finished, peak_memory_of
from measuring.report import Table, bars, write_report
from measuring.timing import Clock, Cost, Ratio, interleaved, measured, medians, ratios

__all__ = [
    "TASKS",
    "UNIXCODER_SIZE",
    "Clock",
    "Cost",
    "Finished",
    "Ratio",
    "Table",
    "backbone_name",
    "bars",
    "benchmark_parser",
    "data_folder",
    "gemm_peak",
    "interleaved",
    "machine",
    "measured",
    "medians",
    "own_cache",
    "peak_memory_of",
    "random_roberta",
    "ratios",
    "write_report",
]
