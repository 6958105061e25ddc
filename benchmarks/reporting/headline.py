"""The short table of the first page: a few rows of the large tables, one for each kind of run."""

from __future__ import annotations

from dataclasses import dataclass

from reporting.passes import PASS_TABLES, chosen, moved, travel, types_of, where_blocks_rest
from reporting.results import PASS, ReportError, Result
from reporting.text import shape, significant, table


@dataclass(frozen=True)
class Headline:
    """Names one measured pass; the newest line of it counts."""

    machine: str
    model: str  # as the tables call it
    travel: str  # see passes.travel
    batch: int  # lanes of a rank
    way: str = "weights"  # what went from rank to rank


_ONE_H100 = "1x H100 80GB, 16 cores of a Xeon"
_ONE_H200 = "1x H200, 16 cores of a Xeon"
_TWO_H200 = "2x H200, 32 cores of a Xeon"
_TWO_CORES = "2 cores of a Xeon (AMX), 24 GiB, virtual machine"

HEADLINES = (
    Headline(_ONE_H100, "7b1", "resident", 1),
    Headline(_ONE_H100, "7b1", "host", 128),
    Headline(_ONE_H100, "7b1", "nvme", 1),
    Headline(_ONE_H200, "7b1, int4, head int8", "host", 128),
    Headline(_TWO_H200, "176b, 28 of its 70 blocks", "gathered", 64),
    Headline(_TWO_H200, "176b, int4, head int8", "staying", 32, "activations"),
    Headline(_TWO_CORES, "560m", "nvme", 1),
)

_HEADER = (
    "model", "its blocks", "machine", "batch a rank", "a pass moves", "ms a pass",
    "tokens/s, all ranks", "rate and limit", "share",
)  # fmt: skip


def _is(line: Result, wanted: Headline) -> bool:
    return (
        line.name == PASS
        and line["machine"] == wanted.machine
        and shape(line["model"]) + types_of(line) == wanted.model
        and travel(line) == wanted.travel
        and line.get("travel", "weights") == wanted.way
        and line["batch"] == wanted.batch
    )


def _row(line: Result) -> list[str]:
    return [
        shape(line["model"]) + types_of(line),
        where_blocks_rest(line),
        line["machine"].split(",")[0],
        str(line["batch"]),
        moved(line),
        significant(line["pass_ms"], 4),
        significant(1e3 * line["world"] * line["batch"] / line["pass_ms"]),
        f"{significant(line['achieved_gb_s'])} of {significant(line['limit_gb_s'])} GB/s",
        f"{line['ratio']:.2f}",
    ]


def headline_table(results: list[Result], wanted: tuple[Headline, ...] = HEADLINES) -> str:
    """Throws where a line that the table wants is not measured: it must not shrink unnoticed."""
    lines = [line for spec in PASS_TABLES for line in chosen(results, spec)]  # the newest first
    rows = []
    for headline in wanted:
        found = next((line for line in lines if _is(line, headline)), None)
        if found is None:
            raise ReportError(
                f"the table of headlines wants a line of {headline}, and no result is one: "
                "measure it, or change HEADLINES in benchmarks/reporting/headline.py"
            )
        rows.append(_row(found))
    return table(_HEADER, rows)
