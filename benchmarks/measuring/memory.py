"""Peak memory of a program of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_LAUNCHER = """
import os, resource, subprocess, sys
child = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(child.pid, 0)
unit = 1 if sys.platform == "darwin" else 1024
open(sys.argv[1], "w").write(str(usage.ru_maxrss * unit))
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""Stands between: Linux counts what the starting process held before `exec` as the started one's, and this is small."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A program that ran to its end.

    Attributes:
        peak_bytes: The most memory that it held at once (resident set).
        stdout: What it printed.
    """

    peak_bytes: int
    stdout: str


def peak_memory_of(argv: Sequence[str]) -> Finished:
    """Run a program and measure the most memory it held; its stderr is passed through.

    Args:
        argv: The program and its arguments; `python` stands for this interpreter.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    command = [sys.executable, *argv[1:]] if argv[0] == "python" else list(argv)
    with tempfile.TemporaryDirectory() as temporary:
        peak = Path(temporary) / "peak"
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(peak)]
        done = subprocess.run([*launcher, *command], stdout=subprocess.PIPE, text=True, check=True)
        return Finished(int(peak.read_text(encoding="utf-8")), done.stdout)
