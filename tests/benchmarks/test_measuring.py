"""The harness of the benchmarks: turns, ratios, peak memory, reports."""

from __future__ import annotations

import json
import subprocess

import pytest

from measuring import Cost, Table, bars, gemm_peak, interleaved, machine, medians, peak_memory_of, ratios, write_report


def test_rounds_take_turns_and_begin_with_another_contender_each():
    calls: list[str] = []
    costs = interleaved({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=3)
    assert calls == list("abcbcacab")
    assert {name: len(found) for name, found in costs.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_call_may_measure_itself():
    assert interleaved({"one": lambda: Cost(3, 4)}, rounds=2) == {"one": [Cost(3, 4)] * 2}


def test_progress_goes_to_stderr(capsys):
    interleaved({"one": lambda: None}, rounds=1)
    captured = capsys.readouterr()
    assert captured.out == "" and "round 1/1  one" in captured.err


def test_ratios_are_medians_of_the_rounds_own_ratios():
    costs = {
        "ours": [Cost(1, 1), Cost(2, 10), Cost(1, 1)],
        "slow": [Cost(4, 2), Cost(2, 10), Cost(3, 3)],
    }
    found = ratios(costs, "ours")
    assert (found["slow"].cpu, found["slow"].cpu_range) == (3, (1, 4))
    assert (found["slow"].wall, found["slow"].wall_range) == (2, (1, 3))
    assert found["ours"].cpu_range == (1, 1)
    assert medians(costs)["slow"] == Cost(3, 3)


def test_peak_memory_is_the_programs_own():
    ballast = bytearray(200_000_000)
    small = peak_memory_of(["python", "-c", "print('done')"])
    large = peak_memory_of(["python", "-c", "held = b'x' * 150_000_000"])
    assert small.stdout == "done\n"
    assert small.peak_bytes < 100_000_000 < 150_000_000 < large.peak_bytes < 250_000_000
    assert len(ballast) == 200_000_000


def test_a_program_that_fails_is_an_error():
    with pytest.raises(subprocess.CalledProcessError) as error:
        peak_memory_of(["python", "-c", "raise SystemExit(3)"])
    assert error.value.returncode == 3


def test_report_writes_json_table_and_plot_and_prints_the_table(tmp_path, capsys):
    table = Table(("what", "s"), [("ours", "1.0"), ("theirs", "12.5")], "Lower is better.")
    values = {"ours": 1.0, "theirs": 12.5}
    write_report("speed", tmp_path / "new", {"s": [1.0, 12.5]}, table,
                 lambda figure: bars(figure.subplots(), values, "speed", "s", marked="ours"))  # fmt: skip
    folder = tmp_path / "new"
    assert sorted(path.name for path in folder.iterdir()) == ["speed.json", "speed.md", "speed.png"]
    assert json.loads((folder / "speed.json").read_text()) == {"s": [1.0, 12.5]}
    assert (folder / "speed.md").read_text().splitlines() == [
        "| what   |    s |",
        "| ------ | ---: |",
        "| ours   |  1.0 |",
        "| theirs | 12.5 |",
        "",
        "Lower is better.",
    ]
    assert (folder / "speed.png").read_bytes().startswith(b"\x89PNG")
    assert "| theirs | 12.5 |" in capsys.readouterr().out


def test_a_report_that_fails_leaves_the_former_one(tmp_path):
    def fail(figure):
        raise ValueError("cannot draw")

    table = Table(("what", "s"), [("ours", "1.0")])
    write_report("speed", tmp_path, {}, table, lambda figure: None)
    before = (tmp_path / "speed.png").read_bytes()
    with pytest.raises(ValueError, match="cannot draw"):
        write_report("speed", tmp_path, {}, table, fail)
    assert (tmp_path / "speed.png").read_bytes() == before


def test_machine_says_what_ran_but_not_where():
    found = machine()
    assert found["libraries"]["torch"] and found["cores"] >= 1
    assert set(found) == {"cpu", "cpu_capability", "cores", "threads", "gpu", "system", "python", "libraries"}


def test_the_peak_of_a_small_product_is_a_positive_rate():
    assert gemm_peak(size=64, attempts=2) > 0
