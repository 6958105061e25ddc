"""Programs that take turns on one machine, and how this program and llama.cpp are asked for what they decode: what
beside_others.py and beside_split.py share."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: What is measured, in tokens a second: `decode_N`, new tokens of N sequences together, and maybe `prompt`.
Rates = dict[str, float]
_LAST_LINES = 8


class ProgramError(Exception):
    """A program that did not give what it was asked for: says which command, and the end of what it printed."""


def output_of(command: list[str | Path], limit: float | None = None, **environment: str) -> str:
    """Its standard output. Nothing of it is left after `limit` seconds."""
    words = " ".join(map(str, command))
    try:
        done = subprocess.run(
            command, env={**os.environ, **environment}, text=True, capture_output=True, timeout=limit, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ProgramError(f"{words} took longer than {limit:.0f} s") from error
    except OSError as error:
        raise ProgramError(f"{words}: {error}") from error
    if done.returncode != 0:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-_LAST_LINES:])
        raise ProgramError(f"{words} ended with {done.returncode}:\n{said}")
    return done.stdout


def json_lines(output: str) -> list[dict[str, Any]]:
    return [json.loads(text) for text in output.splitlines() if text.startswith("{")]


def _all_batches(rates: Rates, command: list[str | Path], batches: list[int]) -> Rates:
    if missing := [str(batch) for batch in batches if f"decode_{batch}" not in rates]:
        raise ProgramError(f"{' '.join(map(str, command))} printed nothing of batch {', '.join(missing)}")
    return rates


def own_decoding(command: list[str | Path], batches: list[int], steps: int, limit: float | None = None,
                 **environment: str) -> Rates:  # fmt: skip
    """Of a pass_benchmark with its model and tiers, by batch: `steps` tokens of each lane, once warm."""
    command = [*command, "--batch", ",".join(map(str, batches)), "--repeats", "1", "--passes", str(steps)]
    lines = json_lines(output_of(command, limit, **environment))
    return _all_batches({f"decode_{r['batch']}": r["batch"] / r["pass_ms"] * 1e3 for r in lines}, command, batches)


def llama_decoding(folder: Path, flags: list[str | Path], batches: list[int], steps: int,
                   limit: float | None = None) -> Rates:  # fmt: skip
    """Of the llama-batched-bench in `folder`, by batch: `steps` tokens of each lane from prompts of one token."""
    command = [folder / "llama-batched-bench", *flags, "-c", str(2 * steps * max(batches)), "-b", "512",
               "-npp", "1", "-ntg", str(steps), "-npl", ",".join(map(str, batches)),
               "--output-format", "jsonl"]  # fmt: skip
    lines = json_lines(output_of(command, limit, **llama_environment(folder)))
    return _all_batches({f"decode_{r['pl']}": r["speed_tg"] for r in lines}, command, batches)


def llama_environment(folder: Path) -> dict[str, str]:
    """For programs in `folder` that have their libraries beside them."""
    paths = [str(folder), os.environ.get("LD_LIBRARY_PATH", "")]
    return {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, paths))}


@dataclass
class Measured:
    """A program's rates, one entry a round that it finished, and what went wrong in the last one that it did not."""

    rounds: list[Rates] = field(default_factory=list)
    failed: str = ""

    def fields(self) -> dict[str, Any]:
        """Of a line of results: the median of the rounds, by what was measured."""
        names = list(self.rounds[0]) if self.rounds else []
        line: dict[str, Any] = {
            "tokens_s": {name: statistics.median(rates[name] for rates in self.rounds) for name in names},
            "rounds": self.rounds,
        }
        return line if self.rounds else line | {"failed": self.failed}


def in_turns(
    programs: Mapping[Hashable, Callable[[], Rates]], rounds: int, seconds: float = float("inf")
) -> dict[Hashable, Measured]:
    """Each program in each round. No round begins that would end later than `seconds` from now, as long as the last
    one took. One that fails is said on standard error, and the next one runs."""
    measured = {program: Measured() for program in programs}
    start = time.monotonic()
    longest = 0.0
    for number in range(rounds):
        begin = time.monotonic()
        if number > 0 and begin - start + longest > seconds:
            print(f"{number} of {rounds} rounds: another one would end later than in {seconds:.0f} s", file=sys.stderr)
            break
        for program, measure in programs.items():
            of_program = measured[program]
            before = time.monotonic()
            try:
                of_program.rounds.append(measure())
                said = of_program.rounds[-1]
            except ProgramError as error:
                of_program.failed = said = str(error)
            print(number, program, said, f"({time.monotonic() - before:.0f} s)", file=sys.stderr, flush=True)
        longest = max(longest, time.monotonic() - begin)
    return measured


def append(file: Path, lines: list[dict[str, Any]]) -> None:
    with file.open("a", encoding="utf-8") as out:
        out.writelines(json.dumps(line) + "\n" for line in lines)
