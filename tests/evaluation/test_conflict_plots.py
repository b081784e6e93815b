"""The conflict plot bears with tasks that stop and with what was not measured."""

import pytest
from matplotlib.figure import Figure

from manyskills.evaluation import conflict_plots
from manyskills.evaluation.conflict import conflict_summary
from manyskills.evaluation.conflict_plots import plot_conflict

TASKS = ("clone_detection", "defect_detection", "flaky_tests", "code_search")


def records(steps, tasks=TASKS, measured=True, stops=10**9):
    for step in range(1, steps + 1):
        active = [task for task in tasks if task != "flaky_tests" or step <= stops]
        record = {"kind": "train", "step": step, "weights": dict.fromkeys(active, 1 / len(active))}
        if measured:
            record["gradient_norms"] = {task: (index + 1) / step for index, task in enumerate(active)}
            record["gradient_cosines"] = {
                a: dict.fromkeys(active[i + 1 :], (i - step % 3) / 10) for i, a in enumerate(active[:-1])
            }
        yield record
    yield {"kind": "valid", "step": steps, "primary": {}}


def _draw(path, lines):
    lines = list(lines)
    plot_conflict(lines, conflict_summary(lines, []), path)


@pytest.fixture
def figures(monkeypatch):
    drawn: list[Figure] = []
    monkeypatch.setattr(conflict_plots, "write_figure", lambda figure, _: drawn.append(figure))
    return drawn


def test_three_panels(tmp_path, figures):
    _draw(tmp_path / "conflict.png", records(6))
    (figure,) = figures
    weights, norms, cosines = figure.axes
    assert [line.get_label() for line in weights.get_lines() if not line.get_label().startswith("_")] == list(TASKS)
    assert norms.get_yscale() == "log"
    texts = [text.get_text() for text in cosines.texts]
    assert len(texts) == 12, "six pairs, each with its mean and its share of steps in conflict"
    assert texts[:2] == ["\N{MINUS SIGN}0.10", "67%"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(TASKS)


def test_weights_alone(tmp_path, figures):
    _draw(tmp_path / "conflict.png", records(6, measured=False))
    assert len(figures[0].axes) == 1


def test_norms_without_pairs(tmp_path, figures):
    """Steps of one task each."""
    lines = [
        {"kind": "train", "step": step, "weights": {task: 1.0}, "gradient_norms": {task: 2.0}, "gradient_cosines": {}}
        for step, task in enumerate(TASKS * 3)
    ]
    _draw(tmp_path / "conflict.png", lines)
    assert len(figures[0].axes) == 2


def test_a_task_that_stops_ends(tmp_path, figures):
    _draw(tmp_path / "conflict.png", records(60, stops=20))
    line = next(line for line in figures[0].axes[0].get_lines() if line.get_label() == "flaky_tests")
    assert max(line.get_xdata()) == 20


@pytest.mark.parametrize("lines", [[], records(6, tasks=TASKS[:1]), records(0)])
def test_nothing_to_show(tmp_path, lines):
    _draw(tmp_path / "conflict.png", lines)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [2, 7])
@pytest.mark.parametrize("steps", [1, 40])
def test_equal_data_give_equal_bytes(tmp_path, count, steps):
    for name in ("one.png", "two.png"):
        _draw(tmp_path / name, records(steps, tasks=[f"task_{number}" for number in range(count)]))
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_weights_of_nothing_and_below(tmp_path):
    """A rule on gradients may leave a task out, or count it negative."""
    weights = [{"a": 1.0, "b": 0.0}, {"a": 0.9, "b": -0.1}, {"a": 1.0, "b": 0.0}]
    norms = {"a": 1.0, "b": 0.0}
    lines = [
        {"kind": "train", "step": step, "weights": now, "gradient_norms": norms, "gradient_cosines": {"a": {"b": 0.0}}}
        for step, now in enumerate(weights)
    ]
    _draw(tmp_path / "conflict.png", lines)
    assert (tmp_path / "conflict.png").is_file()
