"""The tables of the server: what it gives beside the offline job, and how long clients wait."""

from __future__ import annotations

from reporting.results import SERVE, Result, newest, of_kind
from reporting.text import Notes, run_note, runs_below, shape, significant, table


def _rate_rows(lines: list[Result], runs: Notes) -> list[list[str]]:
    return [
        [
            r["machine"], shape(r["model"]), str(r["world"]), str(r["lanes"]),
            f"{r['prompt_tokens']:,}, {r['new_tokens']:,}",
            f"{r['offline_tokens_s']:,.0f}",
            f"{r['server_tokens_s']:,.0f}", f"{r['ratio']:.2f}",
            f"{r['streamed_tokens_s']:,.0f}", f"{r['ratio_streamed']:.2f}",
            runs.mark(run_note(r)),
        ]
        for r in lines
    ]  # fmt: skip


def _wait_rows(lines: list[Result], runs: Notes) -> list[list[str]]:
    return [
        [
            r["machine"], shape(r["model"]), str(r["world"]), f"{load['load']:.0%}",
            significant(load["requests_s"]),
            *(
                f"{significant(load[f'{what}_p50_ms'])}, {significant(load[f'{what}_p99_ms'])}"
                for what in ("first_token", "between")
            ),
            runs.mark(run_note(r)),
        ]
        for r in lines
        for load in r["loads"]
    ]  # fmt: skip


def serving_table(results: list[Result]) -> str:
    fields = ("machine", "model", "backend", "command", "world")
    lines = [g[0] for g in newest(of_kind(results, SERVE), lambda r: tuple(r[f] for f in fields))]
    if not lines:
        return ""
    runs = Notes()
    rates = table(
        (
            "machine", "model", "ranks", "lanes of a rank", "tokens of a prompt, new ones", "job, tokens/s",
            "server", "of the job", "server, streams", "of the job", "run",
        ),
        _rate_rows(lines, runs), labels=2,
    )  # fmt: skip
    waits = table(
        (
            "machine", "model", "ranks", "load", "requests/s", "to the first token, ms: p50, p99",
            "between tokens, ms: p50, p99", "run",
        ),
        _wait_rows(lines, runs), labels=3,
    )  # fmt: skip
    return f"{rates}\n\n{waits}\n\n{runs_below(runs)}"
