"""Numbers and tables as text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence


def decimals_of(value: float, digits: int) -> int:
    """Decimals that show `value` with this many significant digits; digits before the point stay."""
    if value == 0:
        return 0
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    if decimals > 0 and abs(round(value, decimals)) >= 10 ** (digits - decimals):
        decimals -= 1  # 9.996 is 10.0
    return max(0, decimals)


def significant(value: float, digits: int = 3) -> str:
    return f"{value:.{decimals_of(value, digits)}f}"


def median(value: float, least: float, most: float, digits: int) -> str:
    """A median with its spread, all with the decimals of the median."""
    decimals = decimals_of(value, digits)
    return f"{value:.{decimals}f} ({least:.{decimals}f} to {most:.{decimals}f})"


def size(count: float) -> str:
    """Bytes in the unit that reads best (powers of ten, as the rates are)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{significant(count / scale)} {unit}"
    return f"{significant(count / 1e3)} kB"


def block_size(count: int) -> str:
    """Bytes of a block or a buffer, which are powers of two."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= scale:
            return f"{count / scale:g} {unit}"
    return f"{count} bytes"


def shape(model: str) -> str:
    """A model as the tables call it: `config/models/bloom-7b1` is `7b1`."""
    model = re.sub(r" with n_layer (\d+) of (\d+)", r", \1 of its \2 blocks", model)
    name = model.rstrip("/").removeprefix("config/models/").split("/")[-1]
    return name.removeprefix("bloom-") if name != "bloom" else "176b"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], labels: int = 0) -> str:
    """A Markdown table; in the first `labels` columns, what repeats the row above stays blank."""
    lines = [_row(header), "|" + "---|" * len(header)]
    above: Sequence[str] = ()
    for row in rows:
        same = 0
        while same < min(labels, len(above)) and row[same] == above[same]:
            same += 1
        lines.append(_row([""] * same + list(row[same:])))
        above = row
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "|" + "".join(f" {c.replace('|', chr(92) + '|')} |" if c else " |" for c in cells)


class Notes:
    """Numbers or letters for the notes below a table: the same note, the same mark."""

    def __init__(self, marks: str = "") -> None:
        self._marks = marks
        self._notes: list[str] = []

    def mark(self, note: str) -> str:
        if note not in self._notes:
            self._notes.append(note)
        return self._mark_at(self._notes.index(note))

    def _mark_at(self, index: int) -> str:
        if not self._marks:
            return str(index + 1)
        rounds, at = divmod(index, len(self._marks))
        return self._marks[at] * (rounds + 1)

    def __iter__(self):
        """Pairs of a mark and its note, in order."""
        return iter([(self._mark_at(i), note) for i, note in enumerate(self._notes)])

    def __bool__(self) -> bool:
        return bool(self._notes)


def details(summary: str, lines: Sequence[str]) -> str:
    """A part that a reader unfolds."""
    return "\n".join([f"<details><summary>{summary}</summary>", "", *lines, "", "</details>"])


def runs_below(runs: Notes) -> str:
    """The commands that made a table, numbered as its column `run`."""
    return details("Commands and commits", [f"{mark}. {note}" for mark, note in runs])


def run_note(result) -> str:
    """What made a line: its command, commit and file."""
    return f"`{result['command']}` (commit {result['commit']}, `{result.file}`)"
