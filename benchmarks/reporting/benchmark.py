"""The published BLOOM benchmark: our cells and the published rows."""

from __future__ import annotations

import re

from reporting.results import BENCHMARK, PUBLISHED, Result, newest, of_kind
from reporting.text import (
    Notes,
    run_note,
    runs_below,
    shape,
    significant,
    size,
    table,
)

#: Columns that the table has whether or not we have cells for them.
PUBLISHED_BATCHES = (1, 8, 16, 32, 64, 128)

_DEFINITION = (
    "Milliseconds per token by batch size a rank: the wall time of generate, tokenisation "
    "included, over (new tokens of one sequence x batch a rank x ranks); greedy, after a warm-up."
)


def options_of(command: str) -> str:
    """A command without what varies from cell to cell, or where its output goes."""
    command = re.sub(r"^mpirun .*?(?=\S*zero-infer)", "", command)
    return re.sub(r"\s--(batch-size|output|commit|machine)[= ]\S+", "", command)


def tier_of(line: Result) -> str:
    """Where the blocks of a cell rest: as it says, else (a plan was refused) as it was asked."""
    asked = [
        tier
        for flag, tier in (("--cpu-offload", "host"), ("--nvme-offload-path", "nvme"))
        if flag in line["command"]
    ]
    return line.get("tier") or " + ".join(asked) or "device"


def row_of(line: Result) -> tuple:
    fields = ("machine", "world", "backend", "model", "dtype")
    return (*(line[f] for f in fields), options_of(line["command"]))


def own_rows(results: list[Result]) -> list[dict[int, Result]]:
    """Our rows: of each, the newest cell by batch size."""
    cells = [g[0] for g in newest(of_kind(results, BENCHMARK), lambda r: (row_of(r), r["batch"]))]
    rows: dict[tuple, dict[int, Result]] = {}
    for cell in cells:
        rows.setdefault(row_of(cell), {})[cell["batch"]] = cell
    return list(rows.values())


def label_of(cell: Result) -> str:
    ranks = "rank" if cell["world"] == 1 else "ranks"
    return (
        f"zero-infer, {shape(cell['model'])}, {cell['dtype']}, {cell['world']} {ranks}, "
        f"blocks: {tier_of(cell)}"
    )


def _cell(cells: dict[int, Result], batch: int) -> str:
    if batch not in cells:
        return ""
    cell = cells[batch]
    return "oom" if "out_of_memory" in cell.fields else significant(cell["ms_per_token"], 3)


def _published_cell(row: Result, batch: int) -> str:
    for cell in row["cells"]:
        if cell["batch"] == batch:
            if "out_of_memory" in cell:
                return "oom"
            value = cell["ms_per_token"]  # as it was published
            return str(value) if isinstance(value, int) else f"{value:.2f}"
    return ""


def _published_load(row: Result) -> str:
    text = str(row.get("load_s", ""))
    unsharded = row.get("load_unsharded_s")
    return text if unsharded is None else f"{text} pre-sharded, {unsharded} not"


def _differences(own: list[dict[int, Result]], published: list[Result]) -> str:
    """What a reader must know before comparing our rows with the published ones."""
    theirs = {(shape(p["model"]), p["world"], p["machine"]) for p in published}
    texts = []
    for model, world, machine in sorted(theirs):
        texts.append(f"The published rows are of {model} on {machine}, {world} ranks.")
        ours = [next(iter(cells.values())) for cells in own]
        if any(shape(o["model"]) != model for o in ours):
            texts.append("**Some of our rows are of another model and do not compare.**")
        if any(shape(o["model"]) == model and o["world"] != world for o in ours):
            texts.append(f"**Some of our rows have another number of ranks than {world}.**")
        texts.append("The hardware differs: see the column `machine`.")
    return " ".join(texts)


def benchmark_table(results: list[Result]) -> str:
    own = own_rows(results)
    if not own:
        return ""
    published = of_kind(results, PUBLISHED)
    batches = sorted(set(PUBLISHED_BATCHES) | {b for cells in own for b in cells})
    runs, ooms = Notes(), Notes()
    rows = []
    for cells in own:
        first = next(iter(cells.values()))
        loads = [c["load_s"] for c in cells.values() if "load_s" in c.fields]
        marks = dict.fromkeys(runs.mark(run_note(c)) for c in cells.values())
        rows.append(
            [label_of(first), first["machine"]]
            + [_cell(cells, b) for b in batches]
            + [significant(loads[0]) if loads else "", ", ".join(marks)]
        )
        for batch, cell in cells.items():
            if "out_of_memory" in cell.fields:
                ooms.mark(f"{label_of(first)}, batch {batch}: {cell['out_of_memory']}")
    for row in published:
        rows.append(
            [
                f"{row['system']} {row['dtype']}, {shape(row['model'])}, batch {row['batch_is']}",
                row["machine"],
            ]
            + [_published_cell(row, b) for b in batches]
            + [_published_load(row), f"[published]({row['source_url']})"]
        )
    header = ["", "machine", *(str(b) for b in batches), "load s", "run"]
    parts = [
        f"{_DEFINITION} {_differences(own, published)}".strip(),
        table(header, rows),
        *(["Out of memory: " + "; ".join(note for _, note in ooms) + "."] if ooms else []),
        runs_below(runs),
    ]
    return "\n\n".join(parts)


def _links(cell: Result) -> str:
    texts = []
    for link in cell.get("links", ()):
        text = f"{link['link']} {significant(link['achieved_gb_s'])}"
        if "limit_gb_s" in link:
            text += f" of {significant(link['limit_gb_s'])} GB/s: {link['ratio']:.2f}"
        texts.append(text if "limit_gb_s" in link else f"{text} GB/s")
    return "; ".join(texts)


def _peak(cell: Result, field: str) -> str:
    return size(cell[field]) if cell.get(field) else ""


def split_table(results: list[Result]) -> str:
    """Where the time of a pass goes, for the cells that say so."""
    cells = [c for row in own_rows(results) for _, c in sorted(row.items()) if c.get("split")]
    if not cells:
        return ""
    names = list(dict.fromkeys(n for c in cells for n, ms in c["split"].items() if ms))
    rows = [
        [label_of(c), c["machine"], str(c["batch"]), significant(c["pass_ms"], 4)]
        + [significant(c["split"][n], 3) if n in c["split"] else "" for n in names]
        + [_links(c), _peak(c, "peak_device_bytes"), _peak(c, "peak_host_bytes")]
        for c in cells
    ]
    header = ["", "machine", "batch", "pass"]
    header += [n.removesuffix("_ms").replace("_", " ") for n in names]
    header += ["links and their limits", "peak, device", "peak, host"]
    return (
        "Milliseconds of a pass: compute, waits and host add up to it; reads, copies and gathers run "
        "at the same time. Peaks are those of one rank.\n\n" + table(header, rows, labels=2)
    )
