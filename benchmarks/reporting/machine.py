"""The tables of a machine's limits, of loading, and of scaling over ranks."""

from __future__ import annotations

import re
from collections.abc import Callable
from string import ascii_lowercase

from reporting.benchmark import options_of, own_rows, tier_of
from reporting.passes import configuration, way, where_blocks_rest
from reporting.results import (
    ATTENTION,
    BENCHMARK,
    LIMITS,
    LOAD,
    PASS,
    PRODUCT,
    SAMPLE,
    Result,
    newest,
    of_kind,
)
from reporting.text import (
    Notes,
    block_size,
    median,
    run_note,
    runs_below,
    shape,
    significant,
    size,
    table,
)


def _rate(value: float) -> str:
    return f"{significant(value)} GB/s" if value else ""


def _storage(rates: list[dict]) -> str:
    if not rates:
        return ""
    best = max(rates, key=lambda r: r["gb_s"])
    return f"{_rate(best['gb_s'])}, {best['depth']} blocks of {block_size(best['bytes'])} in flight"


def _limit_rows(limits: Result) -> dict[str, str]:
    """A machine's column, by row; what was not measured is left out."""
    rows = {
        "device": limits["device"],
        "backend": limits["backend"],
        "ranks; of a host": f"{limits['world']}; {limits['ranks_per_host']}",
        "memory of a device": size(limits["device_bytes"]) if limits["device_bytes"] else "",
        "memory of a host": size(limits["host_bytes"]),
        "copy, host to device, one rank alone": _rate(limits["copy_alone_gb_s"]),
        "the same, all ranks of a host at once, of each": _rate(limits["copy_together_gb_s"]),
        "device memory, read and written": _rate(limits["device_memory_gb_s"]),
        "host memory, read and written": _rate(limits["host_memory_gb_s"]),
        "storage, best read of a host": _storage(limits["reads"]),
        "storage, best write of a host": _storage(limits["writes"]),
    }
    for gather in limits["gather"]:
        rows[f"all-gather of {block_size(gather['bytes'])}, received by a rank"] = _rate(
            gather["gb_s"]
        )
    for product in limits["products"]:
        rows[f"products, rows: {product['rows']}"] = (
            f"weights {_rate(product['weights_gb_s'])}, {significant(product['tflop_s'])} TFLOP/s"
        )
    return {name: text for name, text in rows.items() if text}


def limits_table(results: list[Result]) -> str:
    machines = sorted(of_kind(results, LIMITS), key=lambda m: (m["source"], m["world"]))
    if not machines:
        return ""
    columns = [_limit_rows(m) for m in machines]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[name, *(column.get(name, "") for column in columns)] for name in names]
    files = ", ".join(f"`{m.file}`" for m in machines)
    return (
        f"As `zero-infer limits` measured them ({files}). Rates are those of one rank while all ranks "
        f"are at work, unless the row says otherwise.\n\n{table(['', *(m['source'] for m in machines)], rows)}"
    )


def loading_table(results: list[Result]) -> str:
    fields = ("machine", "model", "world", "tier", "start")
    lines = [g[0] for g in newest(of_kind(results, LOAD), lambda r: tuple(r[f] for f in fields))]
    if not lines:
        return ""
    limits, runs = Notes(ascii_lowercase), Notes()
    rows = [
        [
            r["machine"],
            shape(r["model"]),
            str(r["world"]),
            r["tier"],
            r["start"],
            size(r["checkpoint_bytes"]),
            size(r["read_bytes"]),
            median(r["load_s"], r["load_s_min"], r["load_s_max"], 3),
            f"{significant(r['achieved_gb_s'])} GB/s",
            f"{significant(r['limit_gb_s'])} GB/s ({limits.mark(r['limit_how'])})",
            f"{r['ratio']:.2f}",
            size(r["peak_host_bytes"]),
            runs.mark(run_note(r)),
        ]
        for r in lines
    ]
    header = (
        "machine", "model", "ranks", "tier", "start", "checkpoint", "read",
        "s, median (min to max)", "rate", "limit", "share", "peak host memory of a rank", "run",
    )  # fmt: skip
    hows = "; ".join(f"({mark}) {how}" for mark, how in limits)
    return f"{table(header, rows, labels=4)}\n\nLimits: {hows}.\n\n{runs_below(runs)}"


def attention_table(results: list[Result]) -> str:
    """One layer's attention: decoding beside the copy rate, rows of prompts by their operations."""
    fields = ("machine", "command", "lengths")
    lines = [
        g[0] for g in newest(of_kind(results, ATTENTION), lambda r: tuple(r.get(f) for f in fields))
    ]
    if not lines:
        return ""
    limits, runs = Notes(ascii_lowercase), Notes()
    rows = [
        [
            r["machine"],
            f"{r['heads']} on {r['kv_heads']} of {r['head_dim']}"
            + (", ALiBi" if "--alibi" in r["command"].split() else ""),
            str(r["lanes"]),
            f"{r['context']:,}" if "," not in r.get("lengths", "") else f"mixed: {r['lengths']}",
            f"{r['rows']:,}",
            median(r["us"], r["us_min"], r["us_max"], 3),
            *(
                (
                    f"{significant(r['achieved_gb_s'])} GB/s",
                    f"{significant(r['limit_gb_s'])} GB/s ({limits.mark(r['limit_how'])})",
                    f"{r['ratio']:.2f}",
                )
                if r["rows"] == 1
                else (f"{significant(r['achieved_tflop_s'])} TFLOP/s", "", "")
            ),
            runs.mark(run_note(r)),
        ]
        for r in lines
    ]
    header = (
        "machine", "heads", "sequences", "keys of each", "rows of each",
        "us, median (min to max)", "rate", "limit", "share", "run",
    )  # fmt: skip
    hows = "; ".join(f"({mark}) {how}" for mark, how in limits)
    return f"{table(header, rows, labels=2)}\n\nLimits: {hows}.\n\n{runs_below(runs)}"


def _by_rows(lines: list[Result], labels: dict[str, Callable[[Result], str]]) -> str:
    """A row for each kind of line, by its labels, and a column for each number of rows."""
    if not lines:
        return ""
    limits, runs = Notes(ascii_lowercase), Notes()
    row_counts = sorted({r["rows"] for r in lines})
    groups: dict[tuple, dict[int, Result]] = {}
    for r in lines:
        groups.setdefault(tuple(label(r) for label in labels.values()), {})[r["rows"]] = r
    rows = [
        [
            *key,
            *(
                f"{significant(cells[n]['us'])} ({cells[n]['ratio']:.2f})" if n in cells else ""
                for n in row_counts
            ),
            f"{significant(first['limit_gb_s'])} GB/s ({limits.mark(first['limit_how'])})",
            ", ".join(dict.fromkeys(runs.mark(run_note(r)) for r in cells.values())),
        ]
        for key, cells in groups.items()
        for first in [next(iter(cells.values()))]
    ]
    header = (
        *labels, *(f"us, {n} row{'s' if n > 1 else ''}" for n in row_counts), "limit", "run",
    )  # fmt: skip
    hows = "; ".join(f"({mark}) {how}" for mark, how in limits)
    return (
        f"{table(header, rows, labels=3)}\n\nIn brackets the share of the limit. Limits: {hows}.\n\n"
        f"{runs_below(runs)}"
    )


def product_table(results: list[Result]) -> str:
    """One product: a row for each format of weights, a column for each number of rows."""
    fields = ("machine", "outputs", "columns", "dtype", "weights", "rows")
    lines = [g[0] for g in newest(of_kind(results, PRODUCT), lambda r: tuple(r[f] for f in fields))]
    labels = {
        "machine": lambda r: r["machine"],
        "outputs x columns": lambda r: f"{r['outputs']:,} x {r['columns']:,}",
        "activations": lambda r: r["dtype"],
        "weights": lambda r: r["weights"],
    }
    return _by_rows(lines, labels)


def sampling_table(results: list[Result]) -> str:
    """Sampling: a row for each kind of logits and settings, a column for each number of rows."""
    fields = ("machine", "vocabulary", "logits", "settings", "rows")
    lines = [g[0] for g in newest(of_kind(results, SAMPLE), lambda r: tuple(r[f] for f in fields))]
    labels = {
        "machine": lambda r: r["machine"],
        "ids": lambda r: f"{r['vocabulary']:,}",
        "logits": lambda r: r["logits"],
        "settings": lambda r: r["settings"],
    }
    return _by_rows(lines, labels)


def device_kind(line: Result) -> str:
    """What one rank computes with: a GPU's kind, whatever their number; of CPUs the machine."""
    if line["backend"] != "cuda":
        return line["machine"]
    return re.sub(r"^\d+x ", "", line["machine"]).split(",")[0]


def _scaling_key(line: Result) -> tuple:
    kind = (line.name, line["backend"], device_kind(line), line["model"], line["dtype"])
    if line.name == PASS:
        return (*kind, line["tier"], line["batch"])
    return (*kind, options_of(line["command"]), line["batch"])


def tokens_per_second(line: Result) -> float:
    """Of all ranks together."""
    if line.name == BENCHMARK:
        return 1e3 / line["ms_per_token"]
    return 1e3 * line["world"] * line["batch"] / line["pass_ms"]


def scaling_rows(results: list[Result]) -> list[list[Result]]:
    """Lines that differ in nothing but the number of ranks; only where there are two or more."""
    lines = [g[0] for g in newest(of_kind(results, PASS), configuration)]
    cells = [cell for row in own_rows(results) for cell in row.values()]
    lines += [c for c in cells if "out_of_memory" not in c.fields]
    rows: dict[tuple, dict[int, Result]] = {}
    for line in lines:
        # Of part-resident blocks each rank count has other shares: only whole tiers compare.
        if line.name == PASS and line["tier"] != "device" and line["resident_bytes"]:
            continue
        if line.name == PASS and way(line):  # one way for all counts: that of the older lines
            continue
        rows.setdefault(_scaling_key(line), {})[line["world"]] = line
    return [[r for _, r in sorted(row.items())] for row in rows.values() if len(row) > 1]


def scaling_label(row: list[Result]) -> str:
    first = row[0]
    what = "" if first.name == PASS else f", benchmark, blocks: {tier_of(first)}"
    return f"{shape(first['model'])}, batch {first['batch']} a rank{what}; {device_kind(first)}"


def scaling_table(results: list[Result]) -> str:
    rows_of = scaling_rows(results)
    if not rows_of:
        return ""
    runs = Notes()
    rows = []
    for lines in rows_of:
        base = lines[0]
        for line in lines:
            speed = tokens_per_second(line)
            ideal = tokens_per_second(base) * line["world"] / base["world"]
            where = where_blocks_rest(line) if line.name == PASS else tier_of(line)
            rows.append(
                [
                    scaling_label(lines),
                    str(line["world"]),
                    where,
                    f"{significant(speed)}",
                    f"{speed / ideal:.2f}",
                    runs.mark(run_note(line)),
                ]
            )
    header = ("", "ranks", "blocks", "tokens/s of all ranks", "share of linear", "run")
    notes = ["Lines that differ in nothing but the number of ranks."]
    if any(lines[0]["backend"] != "cuda" for lines in rows_of):
        notes.append(
            "Ranks of the CPU backend share the cores of their machine: more of them bring no more "
            "hardware, and these rows show what the gathers cost."
        )
    if any(lines[0]["backend"] == "cuda" for lines in rows_of):
        notes.append(
            "On GPUs, these models also fit on one GPU, and a single rank reads its own weights faster "
            "than links bring them: partitioning is for models that do not fit on one GPU."
        )
    return f"{' '.join(notes)}\n\n{table(header, rows, labels=1)}\n\n{runs_below(runs)}"
