"""The generated blocks of the pages: the lines between `<!-- report: NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import re

from reporting.benchmark import benchmark_table, split_table
from reporting.exchanges import exchange_table
from reporting.figures import Figure
from reporting.headline import headline_table
from reporting.machine import (
    attention_table,
    limits_table,
    loading_table,
    product_table,
    sampling_table,
    scaling_table,
)
from reporting.others import beside_split_table, deepspeed_table, others_table
from reporting.passes import PASS_TABLES, pass_block
from reporting.serving import serving_table
from reporting.weights import weight_formats_table
from reporting.results import PASS, PROMPT_PASS, ReportError, Result, of_kind

#: The pages, by their path from the root, and the blocks that each must have.
PAGES: dict[str, tuple[str, ...]] = {
    "README.md": ("headline",),
    "benchmarks/README.md": (
        *(spec.block for spec in PASS_TABLES), "attention", "products", "sampling", "published-benchmark", "scaling",
        "beside-others", "beside-split", "beside-deepspeed", "exchanges", "loading", "limits", "weight-formats", "serving",
    ),
}  # fmt: skip

_BEGIN = re.compile(r"^<!-- report: ([a-z0-9-]+) -->$")
_END = "<!-- end -->"


def _picture(figures: dict[str, Figure], name: str) -> str:
    """A plot, as the page in its parent folder shows it."""
    if name not in figures:
        return ""
    return (
        f"![{figures[name]['title']}](plots/{name})\n\n"
        "*Drawn by `benchmarks/report` from `benchmarks/results/`.*"
    )


def blocks(results: list[Result], figures: dict[str, Figure]) -> dict[str, str]:
    """Each block's text; empty where there are no results for it."""
    for line in of_kind(results, PASS, PROMPT_PASS):
        if not any(all(line[f] == v for f, v in t.where.items()) for t in PASS_TABLES):
            raise ReportError(f"{line.at}: belongs to no table of benchmarks/reporting/passes.py")
    made = {"headline": headline_table(results)}
    for spec in PASS_TABLES:
        made[spec.block] = _joined(_picture(figures, spec.plot), pass_block(results, spec))
    made["attention"] = attention_table(results)
    made["products"] = product_table(results)
    made["sampling"] = sampling_table(results)
    made["published-benchmark"] = _joined(
        benchmark_table(results), _picture(figures, "ms-per-token.svg"), split_table(results)
    )
    made["scaling"] = _joined(_picture(figures, "scaling.svg"), scaling_table(results))
    made["beside-others"] = others_table(results)
    made["beside-split"] = beside_split_table(results)
    made["beside-deepspeed"] = deepspeed_table(results)
    made["exchanges"] = exchange_table(results)
    made["loading"] = loading_table(results)
    made["limits"] = limits_table(results)
    made["serving"] = serving_table(results)
    made["weight-formats"] = weight_formats_table(results)
    return made


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def rewritten(page: str, text: str, made: dict[str, str]) -> str:
    """The page with these blocks in place of what was between their markers. Each block that has a
    text must be there, and no other one."""
    out: list[str] = []
    inside = ""
    seen: set[str] = set()
    for number, line in enumerate(text.splitlines(), 1):
        begin = _BEGIN.match(line)
        if begin:
            name = begin.group(1)
            if inside:
                raise ReportError(f"{page}:{number}: block `{inside}` has no `{_END}`")
            if name not in made:
                known = ", ".join(f"`{known}`" for known in made)
                raise ReportError(f"{page}:{number}: no block `{name}`; this page has {known}")
            if name in seen:
                raise ReportError(f"{page}:{number}: block `{name}` is there twice")
            inside = name
            seen.add(name)
            out.append(line)
            if made[name]:
                out += ["", *made[name].splitlines(), ""]
        elif line == _END:
            if not inside:
                raise ReportError(f"{page}:{number}: `{_END}` without a begin")
            inside = ""
            out.append(line)
        elif not inside:
            out.append(line)
    if inside:
        raise ReportError(f"{page}: block `{inside}` has no `{_END}`")
    for name, block in made.items():
        if block and name not in seen:
            raise ReportError(f"{page}: no block `{name}`, for which there are results")
    return "\n".join(out) + "\n"
