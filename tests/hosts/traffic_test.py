#!/usr/bin/env python3
"""Each block enters a host once, however many of its ranks gather it: the counters of the hosts' network interfaces
beside what the summary says.

    tests/hosts/traffic_test.py BINARY
"""

from __future__ import annotations

import re
import sys

from hosts import MODEL, Hosts, enter_sandbox, shared

RANKS_PER_HOST = 2
FEW, MANY = 20, 420  # passes
#: Headers of TCP and MPI, and control messages. And at its end each run measures bare gathers for a time, some 9 MB each:
#: one run may have a few more of them than the other.
MOST_OVERHEAD = 0.1
MOST_DIFFERENCE = 0.03


def received(binary: str, hosts: Hosts, passes: int) -> list[tuple[int, int]]:
    """Of each host: bytes that its interface received in a job, and those that the summary says."""
    before = [host.received_bytes() for host in hosts.hosts]
    ended = hosts.run(
        RANKS_PER_HOST, binary, "--model", MODEL, "--prompt", "Jesus wept.", "--batch-size", 1, "--ignore-eos",
        "--max-new-tokens", passes, "--travel", "weights",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    counted = [host.received_bytes() - b for host, b in zip(hosts.hosts, before)]
    said = [int(n) for n in re.findall(r"received .* over the network, (\d+) bytes in all", ended.err)]
    assert len(said) == len(counted), ended.err
    return list(zip(counted, said))


def main() -> None:
    enter_sandbox()
    binary = str(shared(sys.argv[1]))
    hosts = Hosts(2)
    few, many = (received(binary, hosts, passes) for passes in (FEW, MANY))
    for host, (counted_few, said_few), (counted_many, said_many) in zip(hosts.hosts, few, many):
        counted, said = counted_many - counted_few, said_many - said_few
        print(f"{host.name}: {MANY - FEW} passes brought {said} bytes, the interface counted {counted}")
        assert said > 0 and 1 - MOST_DIFFERENCE <= counted / said <= 1 + MOST_OVERHEAD, f"{counted / said}"


if __name__ == "__main__":
    main()
