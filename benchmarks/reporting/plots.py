"""Draws the figures as SVG. The only module, with trace.py, that needs matplotlib."""

from __future__ import annotations

import io
from typing import Any

try:
    import matplotlib
except ImportError as error:
    from reporting.results import ReportError

    raise ReportError(
        "plots need matplotlib (package python3-matplotlib, or pip install matplotlib); "
        "without it: --tables-only"
    ) from error

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, ScalarFormatter
from matplotlib.transforms import blended_transform_factory

from reporting.figures import Figure
from reporting.text import significant

#: Colours that differ for colour-blind readers, too (Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_MARKERS = "osD^vP*"

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "zero-infer",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.w_pad": 0.12,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def as_svg(figure: Any, **metadata: str) -> str:
    """The same text for the same drawing: no date, no random ids."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, **metadata})
    pyplot.close(figure)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _plain_log(axis: Any) -> None:
    """1, 2, 5, 10, .. as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_locator(NullLocator())


def _bars(data: Figure) -> Any:
    """A pair of bars for each label, under the bold name of its group."""
    groups = data["groups"]
    pairs = [bar for group in groups for bar in group["bars"]]
    rows = len(pairs) + len(groups)
    figure, axes = pyplot.subplots(figsize=(8.6, 1.0 + 0.36 * rows), layout="constrained")
    most = max(max(bar["achieved"], bar["limit"]) for bar in pairs)
    least = min(min(bar["achieved"], bar["limit"]) for bar in pairs)
    at, places = 0, []
    for group in groups:
        place = blended_transform_factory(figure.transFigure, axes.transData)  # names may be long
        axes.text(0.01, at + 0.1, group["label"], transform=place, va="center", fontweight="bold")
        for bar in group["bars"]:
            at += 1
            places.append(at)
            text = f"{significant(bar['achieved'])} of {significant(bar['limit'])}"
            end = max(bar["achieved"], bar["limit"])
            axes.text(end * 1.08, at, f"{text}: {bar['share']:.2f}", va="center", fontsize=8)
        at += 1
    achieved = [bar["achieved"] for bar in pairs]
    limits = [bar["limit"] for bar in pairs]
    axes.barh([y - 0.19 for y in places], achieved, 0.36, color=COLOURS[0], label="achieved")
    axes.barh([y + 0.19 for y in places], limits, 0.36, color="#b8b8b8", label="limit")
    axes.set_yticks(places, [bar["label"] for bar in pairs])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(at - 0.3, -0.6)
    axes.set_xscale("log")
    axes.set_xlim(least / 1.6, most * (most / least) ** 0.5)  # room for the numbers
    _plain_log(axes.xaxis)
    if most / least > 100:
        axes.xaxis.set_major_locator(LogLocator())
    axes.set_xlabel(data["axis"])
    axes.set_title(data["title"], loc="left")
    figure.legend(loc="outside upper right", frameon=False, ncols=2)
    return figure


def _lines(data: Figure) -> Any:
    series = data["series"]
    figure, axes = pyplot.subplots(figsize=(8.4, 3.6 + 0.2 * len(series)), layout="constrained")
    published = 0
    for i, line in enumerate(series):
        points: list[tuple[float, float]] = line["points"]
        xs, ys = [x for x, _ in points], [y for _, y in points]
        colour = COLOURS[i % len(COLOURS)]
        style = "-"
        if not line["own"]:
            colour = ("#444444", "#777777", "#999999", "#bbbbbb")[published % 4]
            style = "--"
            published += 1
        axes.plot(
            xs, ys, style, marker=_MARKERS[i % len(_MARKERS)], color=colour, markersize=5,
            label=line["label"],
        )  # fmt: skip
        if data.get("linear"):
            axes.plot(xs, [ys[0] * x / xs[0] for x in xs], ":", color=colour, linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    places = sorted({point[0] for line in series for point in line["points"]})
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    _plain_log(axes.yaxis)
    axes.set_xlabel(data["x"])
    axes.set_ylabel(data["y"])
    axes.grid(color="#e4e4e4")
    axes.set_axisbelow(True)
    axes.set_title(data["title"], loc="left")
    figure.legend(loc="outside lower left", frameon=False, fontsize=8)
    return figure


def draw(data: Figure) -> Any:
    """A matplotlib figure of what figures.py made."""
    with matplotlib.rc_context(STYLE):
        return {"bars": _bars, "lines": _lines}[data["kind"]](data)


def draw_svg(data: Figure) -> str:
    with matplotlib.rc_context(STYLE):
        return as_svg(draw(data))
