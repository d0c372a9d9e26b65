"""The look of the book's figures and tables: colors, fonts, sizes."""

import importlib.util
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib import font_manager

# Okabe and Ito's colors, which people with any color vision tell apart.
LM, KNN, MIX, GRAY = "#0072b2", "#e69f00", "#009e73", "#8a8a8a"
CYCLE = [LM, KNN, MIX, "#cc79a7", "#56b4e9", "#d55e00", "#5f5f5f"]


def _register_hangul() -> None:
    """Make NanumGothic known to matplotlib, whose own font has no Hangul."""
    package = importlib.util.find_spec("koreanize_matplotlib")  # for its fonts; it is not imported
    if package and package.origin:
        for font in sorted((Path(package.origin).parent / "fonts").glob("NanumGothic*.ttf")):
            font_manager.fontManager.addfont(font)


def use_style() -> None:
    """Set the book's look for all figures and tables that follow; in a notebook, draw as SVG."""
    _register_hangul()
    plt.rcParams.update(
        {
            "figure.figsize": (7, 3.8),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "font.family": ["DejaVu Sans", "NanumGothic"],
            "font.size": 12,
            "axes.titlesize": 13,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.prop_cycle": plt.cycler(color=CYCLE),
            "grid.color": "#dddddd",
            "lines.linewidth": 2,
            "legend.frameon": False,
            "svg.fonttype": "path",
            "svg.hashsalt": "knnlm",
        }
    )
    if "IPython" in sys.modules and (shell := sys.modules["IPython"].get_ipython()):
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg", metadata={"Date": None})
        shell.display_formatter.formatters["text/html"].for_type(pd.DataFrame, table_html)


def table_html(table: pd.DataFrame) -> str:
    """Return a table for a page: its index's name in the corner, not in a row of its own."""
    if table.index.nlevels == table.columns.nlevels == 1 and table.columns.name is None:
        table = table.rename_axis(index=None, columns=table.index.name)
    return table._repr_html_()
