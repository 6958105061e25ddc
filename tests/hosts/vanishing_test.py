#!/usr/bin/env python3
"""A host that vanishes ends the job, with its name, in time; what was finished is kept, and --resume goes on.

    tests/hosts/vanishing_test.py BINARY
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hosts import MODEL, Host, Hosts, Job, enter_sandbox, shared

PROMPTS = 48
LIMIT = 4  # seconds of silence; where it is not given, 15
#: From the limit on: others of the host are waited for (1 s), the reason is written (2 s at most), MPI_Abort (2 s),
#: mpirun (5 s).
END = 20
START = ["In the beginning", "Jesus wept.", "Thou shalt not", "And it came to pass, when"]


def lines_of(results: Path) -> list[dict]:
    """Whole lines alone."""
    text = results.read_text() if results.exists() else ""
    assert text.endswith("\n") or not text, f"half a line: {text[-100:]!r}"
    return [json.loads(line) for line in text.splitlines()]


class Run:
    """A job of more prompts than it will finish, on hosts of its own."""

    def __init__(self, binary: str, name: str, count: int, ranks: int, *flags: object) -> None:
        self.hosts = Hosts(count, name)
        self.ranks = ranks
        self.results = self.hosts.files / "results.jsonl"
        prompts = self.hosts.files / "prompts.jsonl"
        lines = [
            json.dumps({"id": i, "prompt": START[i % len(START)], "max_new_tokens": 5 + i % 40}) for i in range(PROMPTS)
        ]
        prompts.write_text("\n".join(lines) + "\n")
        self.command = [binary, "--model", MODEL, "--prompts", prompts, "--output", self.results,
                        "--ignore-eos", *flags]  # fmt: skip

    def start_and_wait_for_results(self) -> Job:
        job = self.hosts.start(self.hosts.mpirun(self.ranks, *self.command, "--batch-size", 1))
        end = time.monotonic() + 60
        while not self.results.exists() or self.results.stat().st_size < 500:
            assert job.process.poll() is None and time.monotonic() < end, job.err()
            time.sleep(0.01)
        return job

    def resume(self, hosts: Hosts) -> None:
        """On hosts that are all there, with the files of this job: what is missing runs, and each prompt once."""
        before = lines_of(self.results)
        assert 0 < len(before) < PROMPTS, f"{len(before)} of {PROMPTS} prompts had results"
        ended = hosts.run(self.ranks, *self.command, "--resume")
        assert ended.code == 0, ended.err
        after = lines_of(self.results)
        assert after[: len(before)] == before
        assert sorted(line["id"] for line in after) == list(range(PROMPTS))


def vanish(
    binary: str, name: str, event: Callable[[Host], None], *, limit: int | None, said: list[str | tuple[str, ...]]
) -> None:
    """One host of three vanishes. `said`: each of them, or one of those in a tuple."""
    flags = [] if limit is None else ["--host-timeout", limit]
    run = Run(binary, name, 3, 1, *flags)
    job = run.start_and_wait_for_results()
    begin = time.monotonic()
    event(run.hosts[1])
    ended = job.wait((limit or 15) + END)
    seconds = time.monotonic() - begin
    assert ended.code != 0
    for parts in said:
        choices = (parts,) if isinstance(parts, str) else parts
        assert any(part in ended.err for part in choices), f"{name}: no {choices} in:\n{ended.err}"
    # Nobody who can still do something stays: not on the other hosts, not on a host that was cut off.
    for host in (run.hosts[0], run.hosts[2]):
        host.wait_until_empty(5)
    if event is Host.cut_off:
        wait_for_ranks_to_leave(run.hosts[1])
    if event is Host.freeze:
        run.hosts[1].thaw()
        run.hosts[1].wait_until_empty(10)
    run.resume(Hosts(3, name + "r"))
    print(f"{name}: the job ended {seconds:.1f} s after a host vanished", flush=True)


def wait_for_ranks_to_leave(host: Host) -> None:
    """mpirun's daemon stays until its connection breaks; a rank, with its memory, does not."""
    end = time.monotonic() + LIMIT + 5
    while ranks := host.ranks():
        assert time.monotonic() < end, f"ranks stay on {host.name}: {ranks}"
        time.sleep(0.05)


def first_host(binary: str) -> None:
    """The host of rank 0 and of mpirun is cut off: the ranks elsewhere leave, and say why."""
    run = Run(binary, "first", 3, 1, "--host-timeout", LIMIT)
    job = run.start_and_wait_for_results()
    run.hosts[0].cut_off()
    for host in run.hosts.hosts[1:]:
        wait_for_ranks_to_leave(host)
    ended = job.wait(LIMIT + END)
    assert ended.code != 0
    assert "host host1 (rank 1) and host host2 (rank 2) have been silent" in ended.err, ended.err
    assert "the network of host0 may be down" in ended.err, ended.err
    print("first: ranks leave when the host of rank 0 is cut off", flush=True)


def slow_host(binary: str) -> None:
    """A host that answers late is waited for: it is frozen for less than the limit, several times."""
    run = Run(binary, "slow", 2, 2, "--host-timeout", LIMIT)
    job = run.start_and_wait_for_results()
    for _ in range(2):
        run.hosts[1].freeze()
        time.sleep(LIMIT / 2)
        run.hosts[1].thaw()
        time.sleep(1)
    ended = job.wait(60)
    assert ended.code == 0, ended.err
    assert sorted(line["id"] for line in lines_of(run.results)) == list(range(PROMPTS))
    print(f"slow: a host that pauses for {LIMIT / 2} s is waited for", flush=True)


def part_of_host(binary: str) -> None:
    """One rank of a host is stopped, and its other rank is not: the rank is named."""
    run = Run(binary, "part", 2, 2, "--host-timeout", LIMIT)
    job = run.start_and_wait_for_results()
    os.kill(run.hosts[1].ranks()[0], signal.SIGSTOP)
    ended = job.wait(LIMIT + END)
    assert ended.code != 0
    assert "on host1 has been silent" in ended.err and "other ranks there have not" in ended.err, ended.err
    for host in run.hosts.hosts:
        host.wait_until_empty(10)
    print("part: a rank that is stopped alone is named", flush=True)


def firewall(binary: str) -> None:
    """Where ranks cannot reach rank 0 by TCP, a warning names them, and the job runs."""
    hosts = Hosts(2, "firewall")
    # Of the ports that connections of MPI and mpirun do not use.
    hosts[0].run("sysctl", "-w", "net.ipv4.ip_local_port_range=50000 50100")
    hosts[1].run(*"ip rule add ipproto tcp dport 50000-50100 prohibit".split())
    ended = hosts.run(1, "--mca", "oob_tcp_dynamic_ipv4_ports", "40000-40100", binary, "--model", MODEL, "--prompt",
                      "Jesus wept.", "--max-new-tokens", 2)  # fmt: skip
    assert ended.code == 0, ended.err
    assert "warning: rank 1 on host1 has not connected to rank 0 on host0 by TCP within 5 s" in ended.err, ended.err
    print("firewall: a rank that cannot be watched is named", flush=True)


def server(binary: str) -> None:
    """A host of a server is frozen: who waits for an answer gets an error instead, and the server ends."""
    hosts = Hosts(2, "server")
    job = hosts.start(hosts.mpirun(1, binary, "serve", "--model", MODEL, "--port", 8000, "--host-timeout", LIMIT))
    end = time.monotonic() + 60
    while " at port " not in job.err():
        assert job.process.poll() is None and time.monotonic() < end, job.err()
        time.sleep(0.05)
    body = {"model": str(MODEL), "prompt": "Jesus wept.", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    client = hosts.start(hosts[0].enter(sys.executable, "-c", CLIENT, json.dumps(body)))
    while client.out().count("data: {") < 3:
        assert client.process.poll() is None and time.monotonic() < end, client.err()
        time.sleep(0.05)
    hosts[1].freeze()
    said = client.wait(LIMIT + END).out
    assert "rank 1 of the server is gone" in said, said[-1000:]
    ended = job.wait(END)
    assert ended.code != 0 and "error: host host1 (rank 1) has been silent for" in ended.err, ended.err
    hosts[0].wait_until_empty(5)
    print("server: a stream ends with an error when a host is frozen", flush=True)


#: Prints what the server streams.
CLIENT = """
import sys, urllib.request
request = urllib.request.Request("http://127.0.0.1:8000/v1/completions", sys.argv[1].encode(),
                                 {"Content-Type": "application/json"})
for line in urllib.request.urlopen(request):
    print(line.decode(), end="", flush=True)
"""


def main() -> None:
    enter_sandbox()
    binary = str(shared(sys.argv[1]))
    silent = ["error: host host1 (rank 1) has been silent for", "--host-timeout", "continue with --resume"]
    # mpirun may notice first that its daemon there has ended.
    killed = ("error: rank 1 on host1 has ended without a word", "has lost communication with a remote daemon")
    cases = [
        lambda: vanish(binary, "frozen", Host.freeze, limit=None, said=silent),
        lambda: vanish(binary, "cut", Host.cut_off, limit=LIMIT, said=silent),
        lambda: vanish(binary, "killed", Host.kill, limit=LIMIT, said=[killed, "host1"]),
        lambda: first_host(binary),
        lambda: part_of_host(binary),
        lambda: slow_host(binary),
        lambda: server(binary),
        lambda: firewall(binary),
    ]
    # Side by side: most of the time they wait.
    with ThreadPoolExecutor(max_workers=len(cases)) as pool:
        for done in [pool.submit(case) for case in cases]:
            done.result()


if __name__ == "__main__":
    main()
