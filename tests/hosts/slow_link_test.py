#!/usr/bin/env python3
"""Over a slow network a pass that gathers takes the time that the plan says, from the rate that the run has measured.

    tests/hosts/slow_link_test.py BINARY
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

from hosts import MODEL, ROOT, Hosts, enter_sandbox, shared

MEGABITS = 200
TOLERANCE = 0.1
ATTEMPTS = 3  # a machine that is busy with something else computes for longer


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found, f"no {pattern} in:\n{text}"
    return float(found[1])


def planned_ms(binary: str, gather_gb_s: float, hosts: Hosts) -> float:
    """Of a pass of one lane; all other rates are far from being the limit."""
    limits = {
        "name": "limits", "source": "this test", "backend": "cpu", "device": "cpu", "world": 2, "ranks_per_host": 1,
        "device_bytes": 0, "host_bytes": 16 << 30, "copy_alone_gb_s": 10, "copy_together_gb_s": 10,
        "gather": [{"bytes": 1 << 24, "gb_s": gather_gb_s}], "device_memory_gb_s": 20, "host_memory_gb_s": 20,
        "storage_path": "", "storage_method": "", "reads": [], "writes": [],
        "products": [{"rows": 1, "weights_gb_s": 10, "tflop_s": 0.01}], "seconds": 1,
    }  # fmt: skip
    path = hosts.files / "limits.json"
    path.write_text(json.dumps(limits))
    said = subprocess.run(
        [binary, "plan", "--model", ROOT / "tests/data/bloom-kjv", "--limits", path, "--ranks", "2", "--ranks-per-host",
         "1", "--batch-size", "1", "--travel", "weights", "--json"], check=True, capture_output=True, text=True,
    )  # fmt: skip
    return json.loads(said.stdout)["pass"]["pass_s"] * 1000


def main() -> None:
    enter_sandbox()
    binary = str(shared(sys.argv[1]))
    hosts = Hosts(2)
    for host in hosts.hosts:
        host.limit_rate(MEGABITS)
    for _ in range(ATTEMPTS):
        ended = hosts.run(1, binary, "--model", MODEL, "--prompt", "Jesus wept.", "--max-new-tokens", 6,
                          "--batch-size", 1, "--travel", "weights")  # fmt: skip
        assert ended.code == 0, ended.err
        measured = number(r"passes of ([\d.]+) ms", ended.err)
        link = number(r"\((?:limit|the bare link gave) ([\d.]+) MB/s", ended.err)
        assert link < MEGABITS / 8, f"{link} MB/s over a link of {MEGABITS} Mbit/s"
        planned = planned_ms(binary, link / 1000, hosts)
        print(f"{MEGABITS} Mbit/s: gathers of {link} MB/s, a pass of {measured:.0f} ms, planned {planned:.0f} ms")
        if abs(measured / planned - 1) <= TOLERANCE:
            return
    raise AssertionError("the plan does not hold")


if __name__ == "__main__":
    main()
