"""The table of exchanges around products whose matrices stay."""

from __future__ import annotations

from reporting.results import EXCHANGE, Result, newest, of_kind
from reporting.text import Notes, run_note, runs_below, significant, table

_WAYS = (
    "calls_us", "calls_in_graph_us", "device_api_us", "device_api_in_graph_us", "device_api_in_turn_us",
    "device_api_in_turn_in_graph_us", "peers_us", "peers_in_graph_us", "limit_us",
)  # fmt: skip


def exchange_table(results: list[Result]) -> str:
    fields = ("machine", "world", "hidden", "columns", "rows")
    lines = [g[0] for g in newest(of_kind(results, EXCHANGE), lambda r: tuple(r[f] for f in fields))]
    if not lines:
        return ""
    lines.sort(key=lambda r: (r["machine"], r["world"], r["hidden"], r["rows"]))
    runs = Notes()
    rows = [
        [
            r["machine"], str(r["world"]), f"{r['hidden']:,} to {r['columns']:,}", str(r["rows"]),
            *("" if r.get(way) is None else significant(r[way]) for way in _WAYS),
            runs.mark(run_note(r)),
        ]
        for r in lines
    ]  # fmt: skip
    header = (
        "machine", "ranks", "inputs to results of a row", "rows a rank", "us by NCCL's calls", "in a graph",
        "by NCCL's device API", "in a graph", "in turn", "in a graph", "by peers' memory", "in a graph", "limit", "run",
    )  # fmt: skip
    return f"{table(header, rows, labels=3)}\n\n{runs_below(runs)}"
