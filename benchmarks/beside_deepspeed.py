#!/usr/bin/env python3
"""This program and DeepSpeed ZeRO-3 on the same GPUs and the same shape, one after the other. Appends one line of JSON
to FILE for each program and setting as soon as it is measured; only Python's own modules here, the peer has its own.

    benchmarks/beside_deepspeed.py BUILD --commit C --machine M --output FILE.jsonl --model DIR [--batch 1,8,64]
        [--ranks 2] [--tiers device,host] [--programs zero-infer,deepspeed] [--steps 6] [--limit 120]
        [--python PYTHON] [--packages DIR] [--mpirun "mpirun --bind-to none"]

BUILD is a folder in which the project was built. All have random weights in bfloat16, prompts of a few tokens, and
decode greedily; each rank has as many lanes as --batch says. Measured are, by tier:

- `device`: weights partitioned over the GPUs of --ranks ranks. zero-infer with each --travel; DeepSpeed with its own
  settings (`default`), with 1e9 elements fetched ahead and 4e9 kept (`prefetch`), and with these and each block
  fetched as a whole (`blocks`).
- `host`: weights in pinned memory, no budget on the GPU, with one rank and with --ranks. zero-infer with `--cpu-share`
  0 and auto; DeepSpeed with offload_param, `default` and `prefetch`.

A pass of zero-infer is one of `--benchmark`: the mean of five whole generations, prompts and host included. DeepSpeed's
are decoding passes alone, without generate(): the median of --steps, after warm-up. A program that fails or takes
longer than --limit seconds gets a line that says so, with the end of what it printed, and the next one runs.

PYTHON is an interpreter that has torch, transformers (5) and DeepSpeed; DIR is put in front of its path. Where the
machine reaches PyPI, `pip install deepspeed` is enough. Where it does not, one with the same Python makes DIR, without
any of DeepSpeed's compiled operations, which are not needed here:

    pip download --no-deps --no-binary :all: --no-build-isolation deepspeed==0.19.8
    tar xf deepspeed-0.19.8.tar.gz && mkdir DIR && cp -r deepspeed-0.19.8/deepspeed DIR/
    pip install --target DIR --only-binary :all: hjson einops msgpack psutil py-cpuinfo pydantic
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

Line = dict[str, object]
#: Of a generation: a pass from pinned memory takes ten times as long.
_NEW_TOKENS = {"device": "20", "host": "5"}
_LAST_LINES = 8


@dataclass
class Run:
    """One process (or job) that writes a file of JSON lines, and the settings that these are of."""

    program: str
    tier: str
    world: int
    settings: list[str]
    launcher: list[str]
    command: list[str]
    #: Of the launcher, in front of a folder: what ranks print goes there, and not to the launcher's own output.
    log_flags: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def in_folder(self, folder: Path) -> list[str]:
        """The whole command; what it writes goes into `folder`."""
        logs = [*self.log_flags, str(folder)] if self.log_flags else []
        return [*self.launcher, *logs, *self.command, "--output", str(folder / "lines.jsonl")]


def zero_infer_runs(options: argparse.Namespace, tier: str) -> Iterator[Run]:
    program = [str(options.build / "zero-infer"), "--benchmark", "--model", options.model, "--load-format", "dummy",
               "--quiet", "--batch-size", ",".join(map(str, options.batch)),
               "--max-new-tokens", _NEW_TOKENS[tier]]  # fmt: skip
    if tier == "device":
        jobs = [(options.ranks, ["--travel", travel]) for travel in ("weights", "activations", "auto")]
    else:
        program += ["--cpu-offload", "--gpu-weight-budget", "0"]
        jobs = [
            (world, [*(["--travel", "auto"] if world > 1 else []), "--cpu-share", share])
            for world in worlds(options) for share in ("0", "auto")
        ]  # fmt: skip
    for world, flags in jobs:
        launcher = [*options.mpirun, "-np", str(world)] if world > 1 else []
        yield Run("zero-infer", tier, world, [" ".join(flags)], launcher, [*program, *flags])


def deepspeed_runs(options: argparse.Namespace, tier: str) -> Iterator[Run]:
    settings = ["default", "prefetch", "blocks"] if tier == "device" else ["default", "prefetch"]
    environment = {"HF_HUB_OFFLINE": "1"}
    if options.packages:
        paths = [str(options.packages.resolve()), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    for world in worlds(options) if tier == "host" else [options.ranks]:
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // world)))
        launcher = [options.python, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
                    "--nproc-per-node", str(world)]  # fmt: skip
        command = [str(Path(__file__).resolve().parent / "deepspeed_passes.py"), "--model", options.model,
                   "--tier", tier, "--settings", ",".join(settings),
                   "--batch", ",".join(map(str, options.batch)), "--steps", str(options.steps),
                   "--limit", str(options.limit)]  # fmt: skip
        yield Run("DeepSpeed ZeRO-3", tier, world, settings, launcher, command,
                  ["--redirects", "3", "--log-dir"], {**environment, "OMP_NUM_THREADS": threads})  # fmt: skip


def worlds(options: argparse.Namespace) -> list[int]:
    """Of ranks with weights in pinned memory."""
    return sorted({1, options.ranks})


def ended(process: subprocess.Popen, limit: float) -> str:
    """What is wrong with how it ended; nothing where all is well. Nothing of it is left."""
    try:
        code = process.wait(limit)
        return f"ended with {code}" if code else ""
    except subprocess.TimeoutExpired:
        return f"took longer than {limit:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)  # launchers end their ranks when asked to
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)


def last_lines(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:])


def measured(run: Run, limit: float) -> tuple[list[Line], str]:
    """The lines that it wrote, and what went wrong, if anything."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines, log = folder / "lines.jsonl", folder / "log"
        with log.open("w", encoding="utf-8") as file:
            try:
                process = subprocess.Popen(
                    run.in_folder(folder), env={**os.environ, **run.environment},
                    stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                return [], str(error)
            wrong = ended(process, limit)
        if wrong:
            said = [last_lines(path) for path in sorted(folder.rglob("stderr.log")) or [log]]
            wrong = "\n".join([wrong, *filter(None, said)])
        texts = lines.read_text(encoding="utf-8").splitlines() if lines.exists() else []
    return [json.loads(text) for text in texts if text.startswith("{") and text.endswith("}")], wrong


def line_of(run: Run, setting: str, cells: list[Line], wrong: str, options: argparse.Namespace) -> Line:
    """What is kept of one setting; `cells` are its batches."""
    fits = [cell for cell in cells if "pass_ms" in cell]
    refused = [f"batch {cell['batch']}: {cell['out_of_memory']}" for cell in cells if "out_of_memory" in cell]
    missing = {*options.batch} - {cell["batch"] for cell in fits}
    line: Line = {
        "name": "beside_deepspeed", "machine": options.machine, "commit": options.commit, "world": run.world,
        "command": command_of(options), "program": run.program, "setting": setting,
        "version": options.commit if run.program == "zero-infer" else fits[0]["version"] if fits else "unknown",
        "model": options.model, "weights": "bfloat16", "tier": run.tier,
    }  # fmt: skip
    for what in ("pass_ms", "pass_ms_min", "pass_ms_max", "partition_bytes", "peak_device_bytes", "peak_host_bytes"):
        values = {str(cell["batch"]): cell[what] for cell in fits if what in cell}
        if values or what == "pass_ms":
            line[what] = values
    if missing:
        line["failed"] = "\n".join(refused) or wrong or "no line for this setting"
    return line


def lines_of(run: Run, cells: list[Line], wrong: str, options: argparse.Namespace) -> Iterator[Line]:
    for setting in run.settings:
        own = [cell for cell in cells if cell.get("setting", setting) == setting]
        yield line_of(run, setting, own, wrong, options)


def command_of(options: argparse.Namespace) -> str:
    """What makes these lines again, without what names this machine."""
    return shlex.join(
        ["beside_deepspeed.py", "--model", options.model, "--batch", ",".join(map(str, options.batch)),
         "--ranks", str(options.ranks), "--tiers", ",".join(options.tiers), "--steps", str(options.steps)],
    )  # fmt: skip


_PROGRAMS = {"zero-infer": zero_infer_runs, "deepspeed": deepspeed_runs}


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("build", type=Path)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch", type=lambda text: [int(part) for part in text.split(",")], default=[1, 8, 64])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--tiers", type=words, default=list(_NEW_TOKENS))
    parser.add_argument("--programs", type=words, default=list(_PROGRAMS))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--limit", type=int, default=120, help="seconds that one run may take")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--packages", type=Path)
    parser.add_argument("--mpirun", type=shlex.split, default=["mpirun", "--bind-to", "none"])
    options = parser.parse_args(arguments)
    for flag, known in (("tiers", _NEW_TOKENS), ("programs", _PROGRAMS)):
        if unknown := set(getattr(options, flag)) - set(known):
            parser.error(f"--{flag} are of {', '.join(known)}, not {', '.join(sorted(unknown))}")
    return options


def main() -> int:
    options = parsed(sys.argv[1:])
    failed = 0
    for tier in options.tiers:
        for run in (run for program in options.programs for run in _PROGRAMS[program](options, tier)):
            begin = time.monotonic()
            cells, wrong = measured(run, options.limit)
            for line in lines_of(run, cells, wrong, options):
                with options.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                passes = ", ".join(f"batch {batch}: {ms:.2f} ms" for batch, ms in line["pass_ms"].items())
                print(f"{run.program}, {tier}, {run.world} ranks, {line['setting']}: {passes or 'nothing'} "
                      f"({time.monotonic() - begin:.0f} s)", file=sys.stderr, flush=True)  # fmt: skip
                failed += "failed" in line
            if wrong:
                print(wrong, file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
