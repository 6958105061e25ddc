"""The tables of whole passes: which lines make which rows, and how a row reads."""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_lowercase

from reporting.results import PASS, PROMPT_PASS, ReportError, Result, newest, of_kind
from reporting.text import (
    Notes,
    median,
    run_note,
    runs_below,
    shape,
    significant,
    size,
    table,
)


def travel(line: Result) -> str:
    """What a pass waits for: the one thing that its limit was measured for."""
    if line.name == PROMPT_PASS:
        return "prompts"
    if line["tier"] in ("host", "nvme"):
        return line["tier"] if line["resident_bytes"] == 0 else f"part {line['tier']}"
    if line["tier"] != "device":
        raise ReportError(f"{line.at}: `tier` is {line['tier']!r}: device, host and nvme are known")
    if line.get("staying_share", 0) > 0.5:
        return "staying"
    return "gathered" if line["world"] > 1 else "resident"


def way(line: Result) -> str:
    """What went from rank to rank, where that was chosen: lines without `travel` are of weights."""
    return {"weights": "", "activations": ", activations travel", "auto": ", weights or activations travel"}[
        line.get("travel", "weights")
    ]


def configuration(line: Result) -> tuple:
    """What makes two lines comparable: the newer of one configuration replaces the older."""
    fields = ("machine", "backend", "world", "model", "dtype", "tier", "batch", "resident_bytes")
    return (
        line.name,
        *(line[f] for f in fields),
        line["resident_bytes"],
        line.get("prompt_tokens", 1),
        bool(line.get("host_multiplied_share")),
        line.get("travel", "weights"),
    )


@dataclass(frozen=True)
class Section:
    """Rows of one kind of travel; `keep` lines of each configuration, newest first."""

    travel: str
    keep: int = 1


@dataclass(frozen=True)
class PassTable:
    """One block and its plot: the lines with these fields, in a table for each machine (or in one for
    all, with the machine as its first column), rows in the order of the sections."""

    block: str
    plot: str
    where: dict[str, object]
    sections: tuple[Section, ...]
    table_each_machine: bool


_SECTIONS = (
    Section("resident"),
    Section("gathered"),
    Section("staying"),
    Section("part host"),
    Section("host", keep=2),  # the link was uneven in one run: the run before it is shown as well
    Section("part nvme"),
    Section("nvme"),
    Section("prompts"),
)
PASS_TABLES = (
    PassTable("passes-cuda", "tiers-cuda.svg", {"backend": "cuda"}, _SECTIONS, True),
    PassTable("passes-cpu", "tiers-cpu.svg", {"backend": "cpu"}, _SECTIONS, False),
)

_HEADER = (
    "model", "where the blocks rest", "batch a rank", "a pass moves",
    "ms a pass, median (min to max)", "rate", "limit", "share", "run",
)  # fmt: skip


def chosen(results: list[Result], spec: PassTable) -> list[Result]:
    """The lines of a table: by machine, model, section and batch, in the files' order."""
    lines = [
        r
        for r in of_kind(results, PASS, PROMPT_PASS)
        if all(r[field] == value for field, value in spec.where.items())
    ]
    order = {section.travel: i for i, section in enumerate(spec.sections)}
    keep = {section.travel: section.keep for section in spec.sections}
    machines = list(dict.fromkeys(r["machine"] for r in lines))
    if spec.table_each_machine:  # one GPU, then two, ..
        machines.sort(key=lambda m: max(r["world"] for r in lines if r["machine"] == m))
    models = list(dict.fromkeys((r["machine"], r["model"]) for r in lines))
    types = list(dict.fromkeys(r["dtype"] for r in lines))
    groups = [g for g in newest(lines, configuration, max(keep.values())) if travel(g[0]) in order]
    rows = [r for g in groups for r in g[: keep[travel(g[0])]]]
    age = {id(r): i for g in groups for i, r in enumerate(g)}
    return sorted(
        rows,
        key=lambda r: (
            machines.index(r["machine"]),
            models.index((r["machine"], r["model"])),
            types.index(r["dtype"]),
            order[travel(r)],
            -r["resident_bytes"],
            age[id(r)],
            r["batch"],
        ),
    )


def where_blocks_rest(line: Result) -> str:
    kind = travel(line)
    ranks = f"{line['world']} ranks"
    if kind == "gathered":
        return f"gathered from {ranks}{way(line)}"
    if kind == "staying":
        return f"resident on {ranks}{way(line)}"
    if kind == "resident":
        return "all resident"
    if kind == "prompts":
        return f"prompts of {line['prompt_tokens']:,} tokens{way(line)}"
    place = "NVMe"
    if line["tier"] == "host":
        place = "pinned host memory" if line["backend"] == "cuda" else "host memory"
    if line["world"] > 1:
        place += f" of {ranks}{way(line)}"
    if line.get("host_multiplied_share"):
        place += f", {line['host_multiplied_share']:.0%} multiplied there"
    share = line["resident_bytes"] / (line["resident_bytes"] + line["bytes_per_pass"])
    return f"{place}, {share:.0%} resident" if share else place


def moved(line: Result) -> str:
    if line.name == PROMPT_PASS:
        text = f"{significant(line['operations_per_pass'] / 1e12)} TFLOP"
        attention = line.get("attention_operations_per_pass")
        return f"{text}, attention {significant(attention / 1e12)}" if attention else text
    verb = {"gathered": "received", "resident": "weights read", "staying": "weights read"}.get(travel(line))
    verb = verb or {"host": "copied", "nvme": "read"}[line["tier"]]
    return f"{size(line['bytes_per_pass'])} {verb}"


def types_of(line: Result) -> str:
    """How weights are stored and computed with, where that is not bfloat16: `, int4, head int8`."""
    text = line["dtype"].removeprefix("bfloat16").removeprefix(", ")
    for name, short in (("int8g32f8", "int8"), ("int4g16f8", "int4"), ("weights ", "")):
        text = text.replace(name, short)
    return f", {text}" if text else ""


def _cells(line: Result, limits: Notes, runs: Notes) -> list[str]:
    unit, field = ("TFLOP/s", "tflop_s") if line.name == PROMPT_PASS else ("GB/s", "gb_s")
    limit = f"{significant(line[f'limit_{field}'])} {unit} ({limits.mark(line['limit_how'])})"
    share = f"{line['ratio']:.2f}"
    if "bare_products_ms" in line.fields:
        how = "bare products of as many rows with every weight, one after the other"
        limit += f"; {significant(line['bare_products_ms'], 3)} ms ({limits.mark(how)})"
        share += f"; {line['ratio_to_bare_products']:.2f}"
    if "ratio_with_attention" in line.fields:
        share += f"; {line['ratio_with_attention']:.2f} with attention's"
    return [
        shape(line["model"]) + types_of(line),
        where_blocks_rest(line),
        str(line["batch"]),
        moved(line),
        median(line["pass_ms"], line["pass_ms_min"], line["pass_ms_max"], 4),
        f"{significant(line[f'achieved_{field}'])} {unit}",
        limit,
        share,
        runs.mark(run_note(line)),
    ]


def _below(limits: Notes, runs: Notes) -> str:
    hows = "; ".join(f"({mark}) {how}" for mark, how in limits)
    return f"Limits: {hows}.\n\n{runs_below(runs)}"


def _one_table(lines: list[Result], with_machine: bool) -> str:
    limits, runs = Notes(ascii_lowercase), Notes()
    rows, keys = [], []
    for line in lines:
        cells = _cells(line, limits, runs)
        key = (line["machine"], line["model"], line["dtype"], travel(line), way(line),
               line["resident_bytes"], line["batch"], line.get("prompt_tokens"))  # fmt: skip
        if key in keys:
            cells[1] += ", an earlier run"
        keys.append(key)
        rows.append(([line["machine"]] if with_machine else []) + cells)
    header = (("machine",) if with_machine else ()) + _HEADER
    return f"{table(header, rows, labels=3 if with_machine else 2)}\n\n{_below(limits, runs)}"


def pass_block(results: list[Result], spec: PassTable) -> str:
    lines = chosen(results, spec)
    if not spec.table_each_machine:
        return _one_table(lines, with_machine=True) if lines else ""
    parts = []
    for machine in dict.fromkeys(r["machine"] for r in lines):
        of_machine = [r for r in lines if r["machine"] == machine]
        parts.append(f"**{machine}**\n\n{_one_table(of_machine, with_machine=False)}")
    return "\n\n".join(parts)
