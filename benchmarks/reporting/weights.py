"""The table of formats of packed weights."""

from __future__ import annotations

from reporting.results import WEIGHT_FORMATS, Result, newest, of_kind
from reporting.text import Notes, run_note, runs_below, significant, table


def _values(line: Result, name: str) -> tuple[str, str]:
    """Of one format on one model: what it does to perplexity, and to the distributions."""
    for row in line["formats"]:
        if row["format"] == name:
            return (
                f"{row['difference_percent']:+.2f} ({row['difference_percent_error']:.2f})",
                f"{significant(row['kl_1000'])} ({significant(row['kl_1000_error'], 2)})",
            )
    return "", ""


def weight_formats_table(results: list[Result]) -> str:
    """Rows are formats, in the order of the first model's line; each model has two columns."""
    groups = newest(list(of_kind(results, WEIGHT_FORMATS)), lambda r: (r["model"],), 1)
    lines = [group[0] for group in groups]
    if not lines:
        return ""
    runs = Notes()
    header = ["format", "rounded", "bits a weight", "error of the weights, %"]
    for line in lines:
        mark = runs.mark(run_note(line))
        header += [f"{line['model']}: perplexity, % ({mark})", "KL x 1000"]
    rows = []
    for first in lines[0]["formats"]:
        cells = [
            first["format"],
            first["matrices"],
            f"{first['bits']:.2f}",
            significant(first["rms_percent"]),
        ]
        for line in lines:
            cells += _values(line, first["format"])
        rows.append(cells)
    return f"{table(tuple(header), rows, labels=0)}\n\n{runs_below(runs)}"
