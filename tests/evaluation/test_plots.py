"""Plots are whole PNG files or nothing, and bear with missing values."""

import pytest

from manyskills.evaluation import plots
from manyskills.evaluation.plots import plot_results, plot_training

PNG = b"\x89PNG\r\n\x1a\n"


def records(steps):
    for step in range(1, steps + 1):
        loss = {"clone_detection": 1 / step, "code_search": None if step == 2 else 1.0}
        yield {"kind": "train", "step": step, "loss": loss, "scaled_loss": loss, "weights": {}, "learning_rate": 0.1}
        if step % 2 == 0:
            yield {"kind": "valid", "step": step, "metrics": {}, "primary": {"clone_detection": 0.5}, "selection": 0.5}
    yield {"kind": "other"}


def results(*values):
    names = ("module", "frozen", "untrained", "floor", "other")
    systems = {
        name: {
            "valid": {
                "metrics": {"f1": {"value": value, "low": None, "high": None}},
                "threshold": 0.5,
                "rows": 3,
                "positives": 1,
                "candidates": None,
            },
            "test": None,
        }
        for name, value in zip(names, values, strict=False)
    }
    return {"tasks": {"flaky_tests": {"primary_metric": "f1", "synthetic": "injected", "systems": systems}}}


@pytest.mark.parametrize("steps", [0, 1, 60])
def test_training_plot(tmp_path, steps):
    path = tmp_path / "plots" / "training.png"
    plot_training(records(steps), path, metrics={"clone_detection": "f1"})
    assert path.read_bytes().startswith(PNG)
    assert [file.name for file in path.parent.iterdir()] == ["training.png"]


@pytest.mark.parametrize("values", [(), (0.5,), (None, 0.3, 0.2, 0.6, 0.1)])
def test_results_plot(tmp_path, values):
    path = tmp_path / "results.png"
    plot_results(results(*values), path)
    assert path.read_bytes().startswith(PNG)


def test_equal_data_give_equal_bytes(tmp_path):
    for name in ("one.png", "two.png"):
        plot_training(records(40), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_a_failed_plot_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "results.png"
    path.write_bytes(b"old")

    def fail(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(plots.FigureCanvasAgg, "print_png", fail)
    with pytest.raises(OSError, match="no space"):
        plot_results(results(0.5), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_smoothing_keeps_a_constant():
    assert plots._smooth([2.0] * 9, window=5).tolist() == pytest.approx([2.0] * 9)
