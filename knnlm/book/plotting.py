"""The book's figures, in one style: each takes what the module returns and answers one question."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FixedLocator, LogLocator, StrMethodFormatter
from matplotlib.transforms import Bbox

from knnlm.book.style import CYCLE, GRAY, KNN, LM, MIX
from knnlm.book.style import use_style as use_style
from knnlm.book.tables import percent
from knnlm.cases import Case
from knnlm.evaluation import Sweep
from knnlm.tokens import Window

# Where a point's name may stand: its offset in typographic points, and its side to the point.
PLACES = [(7, -3, "left"), (-7, -3, "right"), (0, 7, "center"), (0, -14, "center")]
PLACES += [(6, 6, "left"), (6, -13, "left"), (-6, 6, "right"), (-6, -13, "right")]


def loss_curve(curve: Sequence[dict]) -> Figure:
    """Draw the loss over the tokens read, on training and held-out text, in nats per token."""
    figure, axes = plt.subplots()
    rows = pd.DataFrame(curve)
    for column, label, style in (
        ("loss", "training text", "-"),
        ("validation_loss", "held-out text", "o"),
    ):
        if column in rows:
            known = rows.dropna(subset=[column])
            axes.plot(known["tokens"] / 1e6, known[column], style, label=label)
    axes.set(xlabel="tokens read, millions", ylabel="loss, nats per token")
    right = axes.secondary_yaxis("right", functions=(np.exp, lambda p: np.log(np.maximum(p, 1e-9))))
    right.yaxis.set_major_locator(FixedLocator([5, 10, 20, 50, 100, 200, 500, 1000, 4000]))
    right.set_ylabel("perplexity")
    axes.legend()
    return figure


def windows(drawn: Sequence[Window]) -> Figure:
    """Draw sliding windows: what each reads only as context, and which positions it gives."""
    figure, axes = plt.subplots(figsize=(7, 0.42 * len(drawn) + 1.2))
    for row, window in enumerate(drawn):
        axes.barh(row, window.first - window.start, left=window.start, color="#d9d9d9")
        axes.barh(row, window.stop - window.first, left=window.first, color=KNN)
    axes.barh(0, 0, color="#d9d9d9", label="read as context")
    axes.barh(0, 0, color=KNN, label="gives keys")
    axes.set(xlabel="position in the token stream", ylabel="window", yticks=range(len(drawn)))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.legend(loc="upper right")
    return figure


def index_comparison(table: pd.DataFrame) -> Figure:
    """Draw perplexity over speed, an index a point; the first row is exact search, speed 1."""
    figure, axes = plt.subplots(figsize=(7, 4.8))
    axes.axhline(table["perplexity"].iloc[0], color=GRAY, ls="--", lw=1.5)
    for name, row in table.iterrows():
        axes.plot(row["speed"], row["perplexity"], "o", ms=9, label=name)
    axes.set(
        xscale="log",
        xlabel="speed, exact search = 1 (log scale)",
        ylabel="perplexity, lower is better",
    )
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.minorticks_off()
    axes.margins(x=0.15, y=0.15)
    figure.legend(fontsize=10, ncols=2, loc="outside lower center")
    return figure


def sweep_curves(sweep: Sweep) -> Figure:
    """Draw perplexity over λ, one line for each k at its best temperature, the LM as a level."""
    curves = {}
    table = sweep.table.set_index("lam")
    for k in sorted(table["k"].unique()):
        best = sweep.best(k=k)
        rows = table[(table["k"] == k) & (table["temperature"] == best.temperature)]
        curves[f"k = {k}, T = {best.temperature:g}"] = rows["perplexity"]
    return lam_curves(curves, sweep.perplexity_lm)


def lam_curves(curves: Mapping[str, pd.Series], level: float) -> Figure:
    """Draw perplexity over λ, the series' index, its lowest point marked; the LM as a level."""
    figure, axes = plt.subplots(figsize=(7, 4.3))
    for label, curve in curves.items():
        (line,) = axes.plot(curve.index, curve, label=label)
        axes.plot(curve.idxmin(), curve.min(), "o", color=line.get_color())
    axes.axhline(level, color=GRAY, ls="--", lw=1.5, label="language model")
    lowest = min(level, *(curve.min() for curve in curves.values()))
    height = max(level - lowest, 0.05 * level)
    axes.set(
        xlabel="λ, the share of p_kNN",
        ylabel="perplexity, lower is better",
        ylim=(lowest - 0.15 * height, level + 0.6 * height),
    )
    figure.legend(fontsize=10, ncols=3, loc="outside lower center")
    return figure


def sweep_surface(sweep: Sweep, k: int) -> Figure:
    """Draw perplexity over λ and temperature at one k as a map, its lowest point marked.

    A dashed line shows where the mixture is as good as the language model alone.
    """
    table = sweep.table[sweep.table["k"] == k]
    surface = table.pivot(index="temperature", columns="lam", values="perplexity")
    figure, axes = plt.subplots()
    lowest = surface.to_numpy().min()
    highest = sweep.perplexity_lm + 0.3 * (sweep.perplexity_lm - lowest)
    clipped = surface.clip(upper=highest)  # infinite where λ = 1
    image = axes.pcolormesh(
        surface.columns,
        surface.index,
        clipped,
        cmap="viridis_r",
        shading="nearest",
        edgecolors="face",
    )
    inner = clipped.loc[:, surface.columns > 0]  # at λ = 0 it is the language model
    level = sweep.perplexity_lm
    if min(inner.shape) > 1 and inner.to_numpy().min() < level < inner.to_numpy().max():
        axes.contour(
            inner.columns, inner.index, inner, [level], colors="white", linestyles="dashed"
        )
    best = sweep.best(k=k)
    axes.plot(best.lam, best.temperature, "*", ms=16, color="white", mec="black")
    axes.set(xlabel="λ, the share of p_kNN", ylabel="temperature T (log scale)", yscale="log")
    ticks = surface.index[:: max(1, len(surface) // 6)]
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.grid(visible=False)
    figure.colorbar(image, label="perplexity", extend="max")
    return figure


def curves(
    tables: Mapping[str, pd.DataFrame],
    xlabel: str,
    levels: Mapping[str, float] = MappingProxyType({}),
    log: str = "",
    ylabel: str = "perplexity, lower is better",
) -> Figure:
    """Draw a line a table over its index, with intervals where known, beside levels.

    Parameters
    ----------
    tables
        By name; the first column is drawn, or ``perplexity`` where there is one, and around it
        ``low`` to ``high``.
    levels
        Drawn across, by name.
    log
        Which axes are logarithmic: ``"x"``, ``"y"`` or ``"xy"``. Along the x axis, the values in
        the index are then marked.
    """
    figure, axes = plt.subplots(figsize=(7, 4.3))
    colors = iter([MIX, KNN, *CYCLE[3:], LM] if len(tables) > 1 else [MIX])
    for name, table in tables.items():
        color = next(colors)
        values = table["perplexity"] if "perplexity" in table else table.iloc[:, 0]
        axes.plot(table.index, values, "o-", ms=5, color=color, label=name)
        if {"low", "high"} <= set(table):
            axes.fill_between(table.index, table["low"], table["high"], color=color, alpha=0.18)
    for (name, level), color in zip(levels.items(), (LM, GRAY, *CYCLE[3:]), strict=False):
        axes.axhline(level, color=color, ls="--", lw=1.5, label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if "x" in log:
        marked = sorted(set().union(*(table.index for table in tables.values())))
        axes.set_xscale("log")
        axes.set_xlabel(f"{xlabel} (log scale)")
        axes.set_xticks(
            marked, [f"{value:,g}" if value < 1e6 else f"{value:,.0f}" for value in marked]
        )
        axes.margins(x=0.1)
    if "y" in log:
        axes.set_yscale("log")
        axes.set_ylabel(f"{ylabel} (log scale)")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    if log:
        axes.minorticks_off()
    figure.legend(fontsize=10, ncols=3, loc="outside lower center")
    return figure


def bars(
    table: pd.DataFrame, xlabel: str, levels: Mapping[str, float] = MappingProxyType({})
) -> Figure:
    """Draw the first column, a bar a row, with its interval or else its number, beside levels."""
    figure, axes = plt.subplots(figsize=(7, 0.42 * len(table) + 1.6))
    places = np.arange(len(table))
    drawn = axes.barh(places, table.iloc[:, 0], color=MIX, height=0.6)
    if not {"low", "high"} <= set(table):
        axes.bar_label(drawn, fmt="%.2f", padding=3, fontsize=10)
        axes.margins(x=0.2)
    else:
        error = [table.iloc[:, 0] - table["low"], table["high"] - table.iloc[:, 0]]
        axes.errorbar(table.iloc[:, 0], places, xerr=error, fmt="none", color="black", capsize=3)
    for (name, level), color in zip(levels.items(), (LM, GRAY), strict=False):
        axes.axvline(level, color=color, ls="--", lw=1.5, label=name)
    axes.set(xlabel=xlabel, yticks=places, ylim=(len(table) - 0.4, -0.6))
    axes.set_yticklabels(table.index)
    axes.grid(axis="y", visible=False)
    if len(levels):
        figure.legend(fontsize=10, ncols=3, loc="outside lower center")
    return figure


def _name_points(figure: Figure, axes: Axes, table: pd.DataFrame) -> None:
    """Write each row's name beside its point, where it covers least of points and other names."""
    figure.draw_without_rendering()  # only then is everything in its place
    size = 5 * figure.dpi / 72
    taken = [
        Bbox.from_bounds(x - size, y - size, 2 * size, 2 * size)
        for x, y in axes.transData.transform(table[["speed", "perplexity"]])
    ]
    for name, row in table.iterrows():
        point = row["speed"], row["perplexity"]
        text = axes.annotate(str(name), point, (0, 0), textcoords="offset points", fontsize=9)

        def covered(place: tuple[int, int, str], text: Annotation = text) -> float:
            text.set(position=place[:2], ha=place[2])
            box = text.get_window_extent()
            outside = box.x0 < axes.bbox.x0 or box.x1 > axes.bbox.x1
            return box.count_overlaps(taken) + len(taken) * outside

        x, y, side = min(PLACES, key=covered)  # the first of those that cover least
        text.set(position=(x, y), ha=side)
        taken.append(text.get_window_extent())


def frontier(table: pd.DataFrame, xlabel: str, aside: str = "") -> Figure:
    """Draw perplexity over speed, a point a row; a line joins those that no other beats in both.

    Columns ``speed`` and ``perplexity``; rows with the same ``method`` share a color, and each
    point is named by the index. The row ``aside``, whose perplexity is too far off to show, is
    drawn as a line at its speed.
    """
    figure, axes = plt.subplots(figsize=(7, 5.2))
    points = table.drop(index=aside) if aside else table
    best = points.sort_values(["speed", "perplexity"], ascending=[False, True])
    best = best[best["perplexity"] < best["perplexity"].cummin().shift(fill_value=np.inf)]
    if len(best) > 1:
        axes.plot(best["speed"], best["perplexity"], color=GRAY, lw=1.5, zorder=1, label="frontier")
    for (method, rows), color in zip(points.groupby("method", sort=False), CYCLE * 2, strict=False):
        axes.plot(rows["speed"], rows["perplexity"], "o", ms=8, color=color, label=method)
    if aside:
        speed, perplexity = table.loc[aside, ["speed", "perplexity"]]
        label = f"{aside}, perplexity {perplexity:.2f}"
        axes.axvline(speed, color=GRAY, lw=1.5, ls="--", label=label)
    axes.set(xscale="log", xlabel=xlabel, ylabel="perplexity, lower is better")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 4, 6, 8)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.minorticks_off()
    axes.margins(x=0.12, y=0.1)
    figure.legend(fontsize=10, ncols=3, loc="outside lower center")
    _name_points(figure, axes, points)
    return figure


def stride_cost(table: pd.DataFrame) -> Figure:
    """Draw what a smaller stride saves over the time it costs; the first row is the largest.

    Columns ``seconds`` (to build the datastore), ``perplexity_lm`` and ``perplexity``; the index is
    the stride.
    """
    figure, axes = plt.subplots()
    for column, label, color in (
        ("perplexity_lm", "language model", LM),
        ("perplexity", "with memory", MIX),
    ):
        saved = 100 * (1 - table[column] / table[column].iloc[0])
        axes.plot(table["seconds"], saved, "o-", color=color, label=label)
    for stride, seconds in table["seconds"].items():
        axes.axvline(seconds, color=GRAY, lw=1, ls=":")
        axes.annotate(
            f"{stride:g}",
            (seconds, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=10,
        )
    axes.set_title("stride, in tokens", fontsize=11, loc="right", pad=18)
    axes.set(xlabel="seconds to build the datastore", ylabel="perplexity saved, %")
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.legend()  # where it covers least
    return figure


def gain_by_group(table: pd.DataFrame, label: str) -> Figure:
    """Draw nats per token saved by the mixture, a bar a group; columns ``gain`` and ``share``."""
    figure, axes = plt.subplots()
    places = np.arange(len(table))
    axes.bar(places, table["gain"], color=[MIX if g >= 0 else CYCLE[5] for g in table["gain"]])
    for place, (gain, share) in enumerate(zip(table["gain"], table["share"], strict=True)):
        axes.annotate(
            f"{share:.0%}",
            (place, max(gain, 0)),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=10,
        )
    axes.set(xlabel=label, ylabel="nats saved per token", xticks=places)
    axes.set_xticklabels(table.index)
    axes.axhline(0, color="black", lw=1)
    axes.margins(y=0.15)
    axes.grid(axis="x", visible=False)
    return figure


def _readable(token: str) -> str:
    """Return a token with its white space visible, and with no formula in it for matplotlib."""
    return token.replace("\n", "⏎").replace(" ", "␣").replace("$", r"\$") or "∅"


def case(shown: Case, most_likely: int = 5) -> Figure:
    """Draw one token: the three distributions' likeliest tokens, the true one in bold."""
    figure, panels = plt.subplots(3, 1, figsize=(5.6, 0.9 * most_likely + 1.2), sharex=True)
    for axes, name, pairs, probability, color in zip(
        panels,
        ("language model", "neighbors", "mixture"),
        (shown.lm, shown.knn, shown.knn_lm),
        (shown.lm_probability, shown.knn_probability, shown.knn_lm_probability),
        (LM, KNN, MIX),
        strict=True,
    ):
        pairs = pairs[:most_likely]
        places = range(len(pairs))
        bars = axes.barh(places, [p for _, p in pairs], color=color)
        axes.bar_label(bars, [percent(p) for _, p in pairs], padding=3, fontsize=10)
        axes.set_yticks(places, [_readable(token) for token, _ in pairs])
        for tick, (token, _) in zip(axes.get_yticklabels(), pairs, strict=True):
            tick.set_fontweight("bold" if token == shown.label else "normal")
        axes.set_title(f"{name}: {percent(probability)} for {_readable(shown.label)}")
        axes.set(xlim=(0, 1.08), ylim=(most_likely - 0.4, -0.6))
        axes.grid(axis="y", visible=False)
    axes.set_xlabel("probability")
    return figure
