"""A Chrome trace of the program as a picture: a row for each lane of each rank."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reporting.plots import COLOURS, STYLE, as_svg, matplotlib, pyplot
from reporting.results import ReportError

_CATEGORY_COLOURS = {
    "read": COLOURS[3],
    "copy": COLOURS[4],
    "gather": COLOURS[0],
    "compute": COLOURS[2],
    "host": COLOURS[5],
    "wait": "#c8c8c8",
}


class Trace:
    """The complete events of a trace, its names, and what it says about itself."""

    def __init__(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            events = content["traceEvents"]
            self.bars = [e for e in events if e["ph"] == "X"]
            self.other: Mapping[str, Any] = content.get("otherData", {})
            self.processes: dict[int, str] = {}
            self.threads: dict[tuple[int, int], str] = {}
            for event in events:
                if event["ph"] == "M" and event["name"] == "process_name":
                    self.processes[event["pid"]] = event["args"]["name"]
                if event["ph"] == "M" and event["name"] == "thread_name":
                    self.threads[event["pid"], event["tid"]] = event["args"]["name"]
            self.start_us = min((e["ts"] for e in self.bars), default=0)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ReportError(f"{path}: no Chrome trace: {error!r}") from error

    def within(self, from_ms: float | None, to_ms: float | None) -> list[dict[str, Any]]:
        """The events that touch this span, cut to it; times in ms from the trace's start."""
        first = 0.0 if from_ms is None else from_ms
        last = float("inf") if to_ms is None else to_ms
        bars = []
        for event in self.bars:
            begin = (event["ts"] - self.start_us) / 1e3
            end = begin + event["dur"] / 1e3
            if end <= first or begin >= last:
                continue
            begin, end = max(begin, first), min(end, last)
            bars.append(event | {"begin_ms": begin, "length_ms": end - begin})
        return bars

    def row_name(self, row: tuple[int, int]) -> str:
        rank = self.processes.get(row[0], f"rank {row[0]}")
        return f"{rank}: {self.threads.get(row, f'lane {row[1]}')}"


def _draw(trace: Trace, bars: Sequence[dict[str, Any]]) -> Any:
    rows = sorted({(bar["pid"], bar["tid"]) for bar in bars})
    begin = min(bar["begin_ms"] for bar in bars)
    end = max(bar["begin_ms"] + bar["length_ms"] for bar in bars)
    known = [c for c in _CATEGORY_COLOURS if any(bar["cat"] == c for bar in bars)]
    others = sorted({bar["cat"] for bar in bars} - set(known))
    figure, axes = pyplot.subplots(figsize=(10, 1.1 + 0.32 * len(rows)), layout="constrained")
    for category in known + others:
        label: str | None = category
        for at, row in enumerate(rows):
            spans = [
                (bar["begin_ms"], bar["length_ms"])
                for bar in bars
                if (bar["pid"], bar["tid"]) == row and bar["cat"] == category
            ]
            if not spans:
                continue
            colour = _CATEGORY_COLOURS.get(category, "#000000")
            axes.broken_barh(
                spans, (at - 0.4, 0.8), facecolors=colour, edgecolor="white", linewidth=0.4,
                label=label,
            )  # fmt: skip
            label = None
    for bar in bars:  # names where they fit: about 150 characters are as wide as the axes
        name = bar["name"].removeprefix("block ")
        if bar["cat"] != "wait" and bar["length_ms"] / (end - begin) > len(name) / 150:
            at = rows.index((bar["pid"], bar["tid"]))
            middle = bar["begin_ms"] + bar["length_ms"] / 2
            colour = "white" if bar["cat"] in ("gather", "compute") else "black"
            axes.text(middle, at, name, ha="center", va="center", fontsize=6, color=colour)
    axes.set_yticks(range(len(rows)), [trace.row_name(row) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(begin, end)
    axes.set_xlabel("ms from the start of the trace")
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper right", ncols=len(known + others), frameon=False)
    return figure


def picture_of(path: Path, from_ms: float | None, to_ms: float | None) -> str:
    """An SVG of the events between two times; its description names the trace's file and commit."""
    trace = Trace(path)
    bars = trace.within(from_ms, to_ms)
    if not bars:
        raise ReportError(f"{path}: no events between {from_ms} and {to_ms} ms")
    description = f"trace {path.name}"
    if "commit" in trace.other:
        description += f", commit {trace.other['commit']}"
    with matplotlib.rc_context(STYLE):
        return as_svg(_draw(trace, bars), Description=description)
