"""What each plot shows, as plain data: the same lines give the same digest, drawn or not."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from reporting.benchmark import label_of, own_rows
from reporting.machine import scaling_label, scaling_rows, tokens_per_second
from reporting.passes import PASS_TABLES, PassTable, chosen, travel, types_of, way, where_blocks_rest
from reporting.results import PROMPT_PASS, PUBLISHED, Result, of_kind
from reporting.text import shape

Figure = dict[str, Any]


def _tiers(results: list[Result], spec: PassTable) -> Figure | None:
    """Achieved rate and limit: for each machine, model and tier the smallest batch that was measured,
    newest lines only, in the order of the table."""
    bars: dict[tuple, Result] = {}
    for line in chosen(results, spec):
        key = (line["machine"], line["model"], line["world"], travel(line), way(line), line["resident_bytes"])
        if line.name != PROMPT_PASS and (key not in bars or line["batch"] < bars[key]["batch"]):
            bars[key] = line
    if not bars:
        return None
    groups: dict[str, list] = {}
    for line in bars.values():
        where = f"{shape(line['model'])}{types_of(line)}, {where_blocks_rest(line)}"
        groups.setdefault(line["machine"], []).append(
            {
                "label": f"{where}, batch {line['batch']}",
                "achieved": line["achieved_gb_s"],
                "limit": line["limit_gb_s"],
                "share": line["ratio"],
            }
        )
    return {
        "kind": "bars",
        "title": "Achieved rate and its limit, by tier",
        "axis": "GB/s of one rank, logarithmic",
        "groups": [{"label": label, "bars": bars} for label, bars in groups.items()],
    }


def _ms_per_token(results: list[Result]) -> Figure | None:
    series = []
    for cells in own_rows(results):
        fitted = {b: c for b, c in sorted(cells.items()) if "out_of_memory" not in c.fields}
        for first in list(fitted.values())[:1]:
            label = f"{label_of(first)} ({first['machine']})"
            points = [[batch, cell["ms_per_token"]] for batch, cell in fitted.items()]
            series.append({"label": label, "own": True, "points": points})
    if not series:
        return None
    for row in of_kind(results, PUBLISHED):
        name = f"{row['system']} {row['dtype']}, {shape(row['model'])}"
        points = [[c["batch"], c["ms_per_token"]] for c in row["cells"] if "ms_per_token" in c]
        label = f"{name} ({row['machine']}, published)"
        series.append({"label": label, "own": False, "points": points})
    return {
        "kind": "lines",
        "title": "Milliseconds per token by batch size",
        "x": "batch size",
        "y": "ms per token",
        "series": series,
    }


def _scaling(results: list[Result]) -> Figure | None:
    rows = scaling_rows(results)
    if not rows:
        return None
    series = []
    for lines in rows:
        points = [[line["world"], tokens_per_second(line)] for line in lines]
        series.append({"label": scaling_label(lines), "own": True, "points": points})
    return {
        "kind": "lines",
        "title": "Scaling over ranks (dotted: linear from the fewest ranks)",
        "x": "ranks",
        "y": "tokens/s of all ranks",
        "linear": True,
        "series": series,
    }


def figures(results: list[Result]) -> dict[str, Figure]:
    """The plots that there are results for, by file name."""
    made = {
        **{spec.plot: _tiers(results, spec) for spec in PASS_TABLES},
        "ms-per-token.svg": _ms_per_token(results),
        "scaling.svg": _scaling(results),
    }
    return {name: figure for name, figure in made.items() if figure}


def digest(figure: Figure) -> str:
    text = json.dumps(figure, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def with_digest(svg: str, figure: Figure) -> str:
    """The drawing with the digest of its data as a comment after the XML declaration."""
    head, newline, rest = svg.partition("\n")
    return f"{head}{newline}<!-- benchmarks/report: data sha256 {digest(figure)} -->\n{rest}"


def digest_in(svg: str) -> str | None:
    found = re.search(r"<!-- benchmarks/report: data sha256 ([0-9a-f]{64}) -->", svg)
    return found.group(1) if found else None
