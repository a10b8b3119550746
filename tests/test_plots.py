"""Plots of scores and confusion matrices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from plug_jax import plots
from tests.small_disk import largest_file


def records(values: dict[int, float]) -> list[dict]:
    return [
        {"step": step, "split": split, "accuracy": value}
        for step, value in values.items()
        for split in ("train", "validation")
    ]


def test_curves_are_means_over_the_steps_that_all_runs_have(tmp_path: Path, monkeypatch) -> None:
    figure, (axis,) = plots.new_figure(1)
    monkeypatch.setattr(plots, "new_figure", lambda panels, **size: (figure, [axis]))
    groups = {
        "two": [records({10: 50, 20: 60, 30: 70}), records({10: 70, 20: 80})],
        "none": [],
    }
    path = tmp_path / "curves.png"
    plots.plot_curves(groups, "accuracy", path, lines={"n-grams": 86.0})
    mean, line = axis.lines
    assert mean.get_xydata().tolist() == [[10, 60], [20, 70]]
    assert line.get_ydata() == [86.0, 86.0]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["two", "n-grams"]
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_full_disk_leaves_the_earlier_curves(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    path.write_text("earlier")
    with largest_file(100), pytest.raises(OSError, match=f"{path}'$"):
        plots.plot_curves({"one": [records({10: 50})]}, "accuracy", path)
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == {path.name: "earlier"}


def test_many_lines_to_compare_with_can_be_told_apart(tmp_path: Path, monkeypatch) -> None:
    figure, (axis,) = plots.new_figure(1)
    monkeypatch.setattr(plots, "new_figure", lambda panels, **size: (figure, [axis]))
    lines = {str(n): float(n) for n in range(9)}
    plots.plot_curves({}, "accuracy", tmp_path / "curves.png", lines=lines)
    styles = {(line.get_color(), line.get_linestyle()) for line in axis.lines}
    assert len(styles) == len(lines)


def test_few_labels_have_numbers_and_many_have_none() -> None:
    few = plots.confusion_figure(np.array([[8, 2], [0, 1234]]), ("bad", "good"))
    axis = few.axes[0]
    assert [text.get_text() for text in axis.texts] == ["8", "2", "0", "1,234"]
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["bad", "good"]
    np.testing.assert_allclose(axis.images[0].get_array(), [[0.8, 0.2], [0, 1]])
    many = plots.confusion_figure(np.eye(30, dtype=int), [str(n) for n in range(30)])
    assert not many.axes[0].texts


def test_names_that_no_font_can_draw_become_numbers() -> None:
    figure = plots.confusion_figure(np.eye(2, dtype=int), ("好评", "差评"))
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["0", "1"]
