#!/usr/bin/env python3
"""What the server gives and how long its clients wait, beside the offline job of the same prompts. Appends one line of
JSON to FILE for each number of ranks; only Python's own modules. The load generator runs on the server's machine.

    benchmarks/serve_benchmark.py BINARY --commit C --machine M --output FILE.jsonl [--ranks 1,2] [--lanes 32]
        [--requests 400] [--prompt-tokens 32] [--new-tokens 100] [--rounds 3] [--loads 0.25,0.5,0.9]
        [--apart] [FLAGS..]

FLAGS go to zero-infer, for the job and for the server (--load-format dummy, a tier). A round is the job, then the
server with all requests at once up to twice its lanes, without streams and with them; the middle round counts. Then
requests arrive at random times (exponential gaps, a fixed seed), as streams, at these shares (--loads) of the rate that
the streams of a full server ended at. --apart gives the load generator the last core, and the job and the server the
others: what is compared then is the server's own work with the job's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import random
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from serving.server import ENVIRONMENT, Server, ranks_command
from serving.streams import Answer, complete, complete_all

_WORK = re.compile(r"in ([\d.]+) s: ([\d.]+) tokens/s")


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


def prompts(options: argparse.Namespace) -> list[list[int]]:
    """Random ids that every vocabulary here has; no two begin alike, so that nothing is shared."""
    draw = random.Random(1)
    return [[draw.randrange(10, 1000) for _ in range(options.prompt_tokens)] for _ in range(options.requests)]


def offline_rate(options: argparse.Namespace, ranks: int, flags: list[str]) -> float:
    """New tokens a second of the job, from its first pass to its last."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "prompts.jsonl")
        lines = (json.dumps({"prompt_ids": ids, "max_new_tokens": options.new_tokens}) for ids in prompts(options))
        source.write_text("\n".join(lines) + "\n", encoding="utf-8")
        run = subprocess.run(
            [*ranks_command(options.binary, ranks), "--model", options.model, *flags, "--prompts", source,
             "--output", Path(folder, "results")],
            env=ENVIRONMENT, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    found = _WORK.search(run.stdout)
    if not found:
        raise RuntimeError(f"the job printed no rate:\n{run.stdout}")
    return float(found.group(2))


def bodies(options: argparse.Namespace, stream: bool) -> list[dict]:
    common = {"max_tokens": options.new_tokens, "temperature": 0, "ignore_eos": True, "stream": stream}
    if stream:
        common["stream_options"] = {"include_usage": True}
    return [{"prompt": ids, **common} for ids in prompts(options)]


def check(options: argparse.Namespace, answers: list[Answer]) -> None:
    for answer in answers:
        if answer.status != 200 or answer.usage.get("completion_tokens") != options.new_tokens:
            raise RuntimeError(f"status {answer.status}, usage {answer.usage}: {answer.body[:500]!r}")


def server_rate(options: argparse.Namespace, server: Server, ranks: int, stream: bool) -> float:
    """New tokens a second of a full server, from the first request to the end of the last answer."""
    begin = time.monotonic()
    at_once = 2 * options.lanes * ranks
    answers = asyncio.run(complete_all(server.port, bodies(options, stream), at_once=at_once))
    seconds = time.monotonic() - begin
    check(options, answers)
    return len(answers) * options.new_tokens / seconds


async def arrive(port: int, requests: list[dict], rate: float) -> list[Answer]:
    """Asks `rate` times a second on average, whatever is still open."""
    draw = random.Random(2)
    loop = asyncio.get_running_loop()
    at = loop.time()
    asked = []
    for body in requests:
        at += draw.expovariate(rate)
        await asyncio.sleep(max(0.0, at - loop.time()))
        asked.append(loop.create_task(complete(port, body)))
    return list(await asyncio.gather(*asked))


def waits(options: argparse.Namespace, server: Server, load: float, full_rate: float) -> dict:
    """What clients wait for at this share of the full rate (requests a second)."""
    rate = load * full_rate
    answers = asyncio.run(arrive(server.port, bodies(options, stream=True), rate))
    check(options, answers)
    first = [answer.times[0] - answer.asked for answer in answers]
    between = [b - a for answer in answers for a, b in zip(answer.times, answer.times[1:])]
    return {
        "load": load, "requests_s": rate,
        "first_token_p50_ms": percentile(first, 0.5) * 1e3, "first_token_p99_ms": percentile(first, 0.99) * 1e3,
        "between_p50_ms": percentile(between, 0.5) * 1e3, "between_p99_ms": percentile(between, 0.99) * 1e3,
    }  # fmt: skip


def command_of(options: argparse.Namespace, ranks: int) -> str:
    """What makes this line again, without what names this machine."""
    return shlex.join(
        ["serve_benchmark.py", "--model", options.model, "--ranks", str(ranks), "--lanes", str(options.lanes),
         "--requests", str(options.requests), "--prompt-tokens", str(options.prompt_tokens),
         "--new-tokens", str(options.new_tokens), "--rounds", str(options.rounds),
         "--loads", ",".join(map(str, options.loads)), *(["--apart"] if options.apart else []), *options.more]
    )  # fmt: skip


@contextlib.contextmanager
def cores_of_the_server(options: argparse.Namespace):
    """What is started inside has all cores but the last, where --apart gives that to the load generator."""
    if options.apart:
        os.sched_setaffinity(0, options.cores - {max(options.cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, {max(options.cores)} if options.apart else options.cores)


def measure(options: argparse.Namespace, ranks: int, flags: list[str]) -> dict:
    rounds: dict[str, list[float]] = {"offline": [], "server": [], "streamed": []}
    with cores_of_the_server(options):
        started = Server(options.binary, *flags, model=Path(options.model), ranks=ranks)
    with started as server:
        for _ in range(options.rounds):
            with cores_of_the_server(options):
                rounds["offline"].append(offline_rate(options, ranks, flags))
            rounds["server"].append(server_rate(options, server, ranks, stream=False))
            rounds["streamed"].append(server_rate(options, server, ranks, stream=True))
        rates = {name: statistics.median(values) for name, values in rounds.items()}
        full_rate = rates["streamed"] / options.new_tokens
        loads = [waits(options, server, load, full_rate) for load in options.loads]
    return {
        "name": "serve", "machine": options.machine, "commit": options.commit,
        "command": command_of(options, ranks), "world": ranks,
        "model": options.model, "backend": options.backend, "lanes": options.lanes, "requests": options.requests,
        "prompt_tokens": options.prompt_tokens, "new_tokens": options.new_tokens, "rounds": rounds,
        "offline_tokens_s": rates["offline"], "server_tokens_s": rates["server"],
        "streamed_tokens_s": rates["streamed"], "ratio": rates["server"] / rates["offline"],
        "ratio_streamed": rates["streamed"] / rates["offline"], "loads": loads,
    }  # fmt: skip


def parsed() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--commit", required=True)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--ranks", default="1")
    parser.add_argument("--lanes", type=int, default=32)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    shares = lambda text: [float(share) for share in text.split(",") if share]  # noqa: E731
    parser.add_argument("--loads", type=shares, default=[0.25, 0.5, 0.9])
    parser.add_argument("--apart", action="store_true")
    options, options.more = parser.parse_known_args()
    options.cores = os.sched_getaffinity(0)
    if options.apart and len(options.cores) < 2:
        parser.error("--apart needs two cores")
    flags = ["--backend", options.backend, "--batch-size", str(options.lanes),
             "--ignore-eos", "--temperature", "0", *options.more]  # fmt: skip
    return options, flags


def main() -> None:
    options, flags = parsed()
    for ranks in map(int, options.ranks.split(",")):
        line = json.dumps(measure(options, ranks, flags))
        with options.output.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line)


if __name__ == "__main__":
    main()
