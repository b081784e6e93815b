"""What the tests of benchmarks share."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout

from measuring import Finished


def in_this_process(main: Callable[[Sequence[str]], None]) -> Callable[[Sequence[str]], Finished]:
    """In place of `peak_memory_of`: starting a program takes longer than its work."""

    def run(argv: Sequence[str]) -> Finished:
        printed = io.StringIO()
        with redirect_stdout(printed):
            main(argv[2:])
        return Finished(2**30, printed.getvalue())

    return run
