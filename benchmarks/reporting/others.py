"""The table of other programs on the same CPU and the same shape."""

from __future__ import annotations

from reporting.results import BESIDE_OTHERS, Result, newest, of_kind
from reporting.text import Notes, run_note, runs_below, shape, significant, table


def _name(r: Result) -> str:
    return f"{r['program']} ({r['version']})"


def others_table(results: list[Result]) -> str:
    fields = ("machine", "model", "threads", "prompt_tokens", "weights", "program")
    lines = [g[0] for g in newest(of_kind(results, BESIDE_OTHERS), lambda r: tuple(r[f] for f in fields))]
    if not lines:
        return ""
    formats = list(dict.fromkeys(r["weights"] for r in lines))
    lines.sort(key=lambda r: formats.index(r["weights"]))
    measured = list(dict.fromkeys(what for r in lines for what in r["tokens_s"] if what != "prompt"))
    heads = [f"batch {what.removeprefix('decode_')}" for what in measured]
    runs = Notes()
    rows = [
        [
            r["machine"], shape(r["model"]), str(r["threads"]), r["weights"], _name(r),
            *(significant(r["tokens_s"][what]) if what in r["tokens_s"] else "" for what in measured),
            f"{significant(r['tokens_s']['prompt'])} ({r['prompt_tokens']})",
            runs.mark(run_note(r)),
        ]
        for r in lines
    ]  # fmt: skip
    header = ("machine", "model", "threads", "weights", "tokens/s of", *heads, "a prompt (of tokens)", "run")
    return f"{table(header, rows, labels=4)}\n\n{runs_below(runs)}"
