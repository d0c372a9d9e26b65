"""The figures: letters that are drawn, numbers that stand where the data are."""

import io
import warnings
from types import SimpleNamespace

import IPython
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from IPython.core.formatters import DisplayFormatter
from matplotlib import font_manager, pyplot

from knnlm.book import plotting


@pytest.fixture(autouse=True)
def _style():
    with pyplot.rc_context():
        plotting.use_style()
        yield
        pyplot.close("all")


def drawn(figure) -> bytes:
    """The picture, with every warning (of a letter without a glyph, say) as an error."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(file, format="png")
    return file.getvalue()


@pytest.mark.parametrize("weight", ["normal", "bold"])
def test_hangul_is_drawn_and_not_as_boxes(weight):
    assert "Nanum" in font_manager.findfont("NanumGothic", fallback_to_default=False)
    pictures = []
    for word in ("한국", "서울", "λ ␣⏎"):
        figure, axes = pyplot.subplots(figsize=(2, 1))
        axes.set_title(word, fontweight=weight)
        pictures.append(drawn(figure))
    assert len(set(pictures)) == 3  # boxes would look alike


def test_curves_over_lam_mark_their_lowest_points():
    lams = np.array([0, 0.5, 1])
    curves = {"one": pd.Series([9, 7, np.inf], lams), "two": pd.Series([9, 9.5, 10], lams)}
    (axes,) = plotting.lam_curves(curves, 9).axes
    marks = [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "o"]
    assert marks == [[[0.5, 7]], [[0, 9]]]
    drawn(axes.figure)


def test_the_cost_of_a_stride_is_measured_from_the_first():
    table = pd.DataFrame(
        {"seconds": [10, 15], "perplexity_lm": [100, 99], "perplexity": [80, 76]}, index=[256, 128]
    )
    (axes,) = plotting.stride_cost(table).axes
    saved = {line.get_label(): line.get_ydata().tolist() for line in axes.lines[:2]}
    assert saved["language model"] == pytest.approx([0, 1])
    assert saved["with memory"] == pytest.approx([0, 5])
    drawn(axes.figure)


def test_curves_are_drawn_beside_levels_with_their_intervals():
    keys = [1000, 4000, 16000]
    table = pd.DataFrame(
        {"perplexity": [40, 30, 20], "low": [30, 25, 18], "high": [50, 35, 22]}, keys
    )
    levels = pd.Series({"alone": 900, "tuned": 25})
    (axes,) = plotting.curves({"with memory": table}, "keys", levels, log="xy").axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1,000", "4,000", "16,000"]
    assert {line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"} == {900, 25}
    assert len(axes.collections) == 1
    drawn(axes.figure)
    (axes,) = plotting.curves({"a": table[["perplexity"]], "b": table["low"].to_frame()}, "k").axes
    assert [line.get_ydata().tolist() for line in axes.lines] == [[40, 30, 20], [30, 25, 18]]
    assert not axes.collections
    drawn(axes.figure)


def test_bars_have_a_row_each_and_their_intervals():
    table = pd.DataFrame({"gain": [3.0, -1.0], "low": [2.5, -2], "high": [4, 0.5]}, ["a", "b"])
    (axes,) = plotting.bars(table, "percent", {"none": 0.0}).axes
    assert [bar.get_width() for bar in axes.patches] == [3, -1]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b"]
    drawn(axes.figure)


def test_the_frontier_joins_what_nothing_beats():
    table = pd.DataFrame(
        {
            "speed": [1, 10, 5, 100, 100],
            "perplexity": [7, 7, 6, 9, 9.5],
            "method": ["x", "x", "y", "z", "z"],
        },
        ["slow", "good", "best", "fast", "fast and bad"],
    )
    (axes,) = plotting.frontier(table, "tokens/s").axes
    (line,) = [line for line in axes.lines if line.get_label() == "frontier"]
    assert line.get_xydata().tolist() == [[100, 9], [10, 7], [5, 6]]
    drawn(axes.figure)


def test_no_name_of_the_frontier_covers_another_or_a_point():
    rng = np.random.default_rng(0)
    crowd = pd.DataFrame(
        {
            "speed": 5500 + 900 * rng.random(12),
            "perplexity": 10.7 + 0.4 * rng.random(12),
            "method": "x",
        },
        [f"setting {i}" for i in range(12)],
    )
    crowd.loc["alone"] = (10_000.0, 15.0, "none")
    figure = plotting.frontier(crowd, "tokens/s", "alone")
    figure.canvas.draw()
    (axes,) = figure.axes
    assert axes.get_ylim()[1] < 12 < 10_000 < axes.get_xlim()[1]
    assert [text.get_text() for text in axes.texts] == [f"setting {i}" for i in range(12)]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    points = axes.transData.transform(crowd[["speed", "perplexity"]].astype(float))
    assert not any(box.contains(*point) for box in boxes for point in points)
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)
    drawn(figure)


def test_speeds_are_labeled_as_plain_numbers_where_they_span_less_than_a_decade():
    table = pd.DataFrame({"speed": [1, 1.5, 5.7], "perplexity": [16.9, 16.8, 17.3]}, index=[*"abc"])
    figure = plotting.index_comparison(table)
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels(which="both")]
    assert {"1", "2", "5"} <= set(labels)
    assert all(float(label) > 0 for label in labels if label)


def test_the_name_of_an_index_stands_in_the_corner_of_its_table(monkeypatch):
    def header(table) -> list[list[str]]:
        html = BeautifulSoup(formatter(table), "html.parser")
        return [[cell.get_text() for cell in row.find_all("th")] for row in html.select("thead tr")]

    shell = SimpleNamespace(display_formatter=DisplayFormatter())
    formatter = shell.display_formatter.formatters["text/html"]
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    plotting.use_style()
    table = pd.DataFrame({"k": [1, 1, 2], "T": [5, 7, 5], "perplexity": [10.5, 10.25, 9.5]})
    assert header(table) == [["", "k", "T", "perplexity"]]
    assert header(table.set_index("k")) == [["k", "T", "perplexity"]]
    assert formatter(table.set_index("k")).count("10.25") == 1
    two = table.set_index(["T", "k"])["perplexity"].unstack("k")  # names its columns too
    assert header(two) == [["k", "1", "2"], ["T", "", ""]]
