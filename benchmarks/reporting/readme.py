"""The README's generated blocks: what stands between `<!-- report: NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import re

from reporting.benchmark import benchmark_table, split_table
from reporting.figures import Figure
from reporting.machine import limits_table, loading_table, scaling_table
from reporting.passes import PASS_TABLES, pass_block
from reporting.results import PASS, PROMPT_PASS, ReportError, Result, of_kind

_BEGIN = re.compile(r"^<!-- report: ([a-z0-9-]+) -->$")
_END = "<!-- end -->"


def _picture(figures: dict[str, Figure], name: str) -> str:
    if name not in figures:
        return ""
    return (
        f"![{figures[name]['title']}](benchmarks/plots/{name})\n\n"
        "*Drawn by `benchmarks/report` from `benchmarks/results/`.*"
    )


def blocks(results: list[Result], figures: dict[str, Figure]) -> dict[str, str]:
    """Each block's text; empty where there are no results for it."""
    for line in of_kind(results, PASS, PROMPT_PASS):
        if not any(all(line[f] == v for f, v in t.where.items()) for t in PASS_TABLES):
            raise ReportError(f"{line.at}: stands in no table of benchmarks/reporting/passes.py")
    made = {
        spec.block: _joined(_picture(figures, spec.plot), pass_block(results, spec))
        for spec in PASS_TABLES
    }
    made["published-benchmark"] = _section(
        "The published BLOOM benchmark",
        benchmark_table(results),
        _picture(figures, "ms-per-token.svg"),
        split_table(results),
    )
    made["scaling"] = _section(
        "Scaling over ranks", _picture(figures, "scaling.svg"), scaling_table(results)
    )
    made["loading"] = _section("Loading", loading_table(results))
    made["limits"] = _section("Limits of the machines", limits_table(results))
    return made


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def _section(heading: str, *parts: str) -> str:
    """A part with its heading: neither where there are no results."""
    text = _joined(*parts)
    return f"### {heading}\n\n{text}" if text else ""


def rewritten(readme: str, made: dict[str, str]) -> str:
    """The README with these blocks in place of what stood between their markers."""
    out: list[str] = []
    inside = ""
    seen: set[str] = set()
    for number, line in enumerate(readme.splitlines(), 1):
        begin = _BEGIN.match(line)
        if begin:
            name = begin.group(1)
            if inside:
                raise ReportError(f"README.md:{number}: block `{inside}` has no `{_END}`")
            if name not in made:
                known = ", ".join(made)
                raise ReportError(f"README.md:{number}: no block `{name}`, there are {known}")
            if name in seen:
                raise ReportError(f"README.md:{number}: block `{name}` stands there twice")
            inside = name
            seen.add(name)
            out.append(line)
            if made[name]:
                out += ["", *made[name].splitlines(), ""]
        elif line == _END:
            if not inside:
                raise ReportError(f"README.md:{number}: `{_END}` without a begin")
            inside = ""
            out.append(line)
        elif not inside:
            out.append(line)
    if inside:
        raise ReportError(f"README.md: block `{inside}` has no `{_END}`")
    for name, text in made.items():
        if text and name not in seen:
            raise ReportError(f"README.md: no block `{name}`, for which there are results")
    return "\n".join(out) + "\n"
