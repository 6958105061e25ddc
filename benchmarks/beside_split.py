#!/usr/bin/env python3
"""This program and llama.cpp with weights that the GPU and the processor multiply together, on the same host and in
turns. Appends one line of JSON to FILE for each program and setting; only Python's own modules.

    benchmarks/beside_split.py BUILD --commit C --machine M --output FILE.jsonl --model DIR --llama DIR --gguf FILE
        [--batch 1,8,32] [--blocks 0,15] [--threads 16,8] [--steps 16] [--rounds 3] [--seconds 540] [--limit 120]
        [--llama-version TEXT]

BUILD is a folder in which the project was built. DIR of --llama has llama-batched-bench, built with GGML_CUDA; the
GGUF file has the shape of --model in bfloat16 (benchmarks/random_gguf.py writes one, on a file system in memory at
best). --blocks are numbers of blocks that rest on the GPU, a comparison each; the rest is in host memory. The head is
on the GPU in all settings but llama.cpp's `-ngl 0`, as this program puts it there without a budget. Settings:

- this program: `--tier host --cpu-share auto` with the bytes of the blocks as --gpu-weight-budget; the blocks in host
  memory are copied in part, and in part multiplied by the processor;
- llama.cpp: `-ngl` of the blocks and the head. The processor multiplies the others, except that in passes of 32 rows
  and more their weights are copied to the GPU, and multiplied there; `--no-op-offload` forbids that, `--load-mode none`
  reads the file into pinned memory, from which such copies are faster than from the mapped file. The first number of
  --threads is that of all settings; with the others the plain one is measured once more.

In each round every program loads its weights and decodes, once warm, --steps tokens with each batch; the middle round
counts. No round begins that would end after --seconds. A program that takes longer than --limit seconds has failed; a
setting that failed in all rounds gets a line that says so.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.dont_write_bytecode = True  # the source tree stays as it is
sys.path.insert(0, str(Path(__file__).resolve().parent))

from random_gguf import block_bytes, config_of
from turns import ProgramError, Rates, append, in_turns, llama_decoding, llama_environment, output_of, own_decoding

_OWN, _LLAMA = "zero-infer", "llama.cpp"


class Setting(NamedTuple):
    """What a line is of; `flags` are those that tell it from the program's other settings."""

    program: str
    resident_blocks: int
    threads: int
    flags: str


def settings(options: argparse.Namespace) -> list[Setting]:
    most, *fewer = options.threads
    found = []
    for blocks in options.blocks:
        found.append(Setting(_OWN, blocks, most, "--cpu-share auto"))
        plain = f"-ngl {blocks + 1}"  # llama.cpp counts the head as one more, and puts it on the GPU first
        for flags in (plain, f"{plain} --no-op-offload", f"{plain} --load-mode none"):
            found.append(Setting(_LLAMA, blocks, most, flags))
        if blocks == 0:
            found.append(Setting(_LLAMA, blocks, most, "-ngl 0"))
        found += [Setting(_LLAMA, blocks, threads, plain) for threads in fewer]
    return found


def own(options: argparse.Namespace, setting: Setting) -> Rates:
    budget = setting.resident_blocks * block_bytes(config_of(Path(options.model)))
    command = [options.build / "benchmarks/pass_benchmark", "--backend", "cuda", "--model", options.model,
               "--tier", "host", "--gpu-weight-budget", str(budget), *setting.flags.split()]  # fmt: skip
    return own_decoding(command, options.batch, options.steps, options.limit)


def llama(options: argparse.Namespace, setting: Setting) -> Rates:
    flags = ["-m", options.gguf, "-t", str(setting.threads), *setting.flags.split()]
    return llama_decoding(options.llama, flags, options.batch, options.steps, options.limit)


def llama_version(options: argparse.Namespace) -> str:
    """Refuses one without CUDA, which would run on the processor alone and say nothing of it."""
    program = [options.llama / "llama-batched-bench"]
    devices = output_of([*program, "--list-devices"], options.limit, **llama_environment(options.llama))
    if "CUDA" not in devices:
        raise ProgramError(f"llama.cpp in {options.llama} sees no GPU through CUDA; it lists:\n{devices}")
    if options.llama_version:
        return options.llama_version
    # It goes to standard error, which is kept only of failures.
    shell = ["sh", "-c", '"$0" --version 2>&1', *program]
    return output_of(shell, options.limit, **llama_environment(options.llama)).splitlines()[0].removeprefix("version: ")


def command_of(options: argparse.Namespace) -> str:
    """What makes these lines again, without what names this machine."""
    numbers = lambda values: ",".join(map(str, values))  # noqa: E731
    seconds = ["--seconds", f"{options.seconds:.0f}"] if options.seconds < float("inf") else []
    return shlex.join(
        ["beside_split.py", "--model", options.model, "--llama", "DIR", "--gguf", "FILE",
         "--batch", numbers(options.batch), "--blocks", numbers(options.blocks),
         "--threads", numbers(options.threads), "--steps", str(options.steps), "--rounds", str(options.rounds),
         *seconds],
    )  # fmt: skip


def line_of(setting: Setting, version: str, measured: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    return {
        "name": "beside_split", "machine": options.machine, "commit": options.commit, "world": 1,
        "command": command_of(options), "program": setting.program, "version": version, "setting": setting.flags,
        "model": options.model, "weights": "bfloat16", "resident_blocks": setting.resident_blocks,
        "threads": setting.threads, **measured,
    }  # fmt: skip


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("build", type=Path)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--llama", required=True, type=Path)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--llama-version", default="")
    parser.add_argument("--batch", type=numbers, default=[1, 8, 32])
    parser.add_argument("--blocks", type=numbers, default=[0])
    parser.add_argument("--threads", type=numbers, default=[os.cpu_count()])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--limit", type=float, default=120, help="seconds that one program may take")
    return parser.parse_args()


def main() -> int:
    options = parsed()
    measures = {_OWN: own, _LLAMA: llama}
    try:
        versions = {_OWN: options.commit, _LLAMA: llama_version(options)}
    except ProgramError as error:
        raise SystemExit(str(error)) from error
    programs = {setting: partial(measures[setting.program], options, setting) for setting in settings(options)}
    measured = in_turns(programs, options.rounds, options.seconds)
    lines = [line_of(s, versions[s.program], of.fields(), options) for s, of in measured.items()]
    append(options.output, lines)
    return 1 if any("failed" in line for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
